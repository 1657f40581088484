package abi

import "errors"

// Version is the record ABI that this package lays out; a module declares it
// with the marker export ExportMarker.
const Version = 1

// The exports of a module and the name of the module that the host's functions
// are imported from. docs/abi.md has the signatures.
const (
	ExportMemory     = "memory"
	ExportMarker     = "edgehost_abi_v1"
	ExportAlloc      = "edgehost_alloc"
	ExportProcess    = "edgehost_process"
	ExportInitialize = "_initialize"
	ExportInit       = "edgehost_init"
	ExportTick       = "edgehost_tick"
	ExportStop       = "edgehost_stop"
	ImportModule     = "edgehost"
	ImportWASI       = "wasi_snapshot_preview1"
)

// The sizes in bytes of the structures in guest memory. A guest strides by the
// sizes in the header, which may grow within v1.
const (
	HeaderSize = 64
	RowSize    = 80
	AttrSize   = 24
)

// The offsets of the batch header's fields.
const (
	HeaderVersion    = 0  // u32, Version
	HeaderHeaderSize = 4  // u32, HeaderSize
	HeaderRowSize    = 8  // u32, RowSize
	HeaderFlags      = 12 // u32, FlagTick
	HeaderRows       = 16 // u32, address of the input rows
	HeaderNRows      = 20 // u32
	HeaderOutRows    = 24 // u32, address of the output rows; preset: rows
	HeaderNOut       = 28 // u32; preset: n_rows
	HeaderTime       = 32 // i64, microseconds
	HeaderSeq        = 40 // u64
	HeaderError      = 48 // Ref, the guest's words for a batch error
	HeaderAttrSize   = 56 // u32, AttrSize
)

// FlagTick in a header says that the batch has no input: a tick.
const FlagTick = 1

// The offsets of a row's fields.
const (
	RowEventTime   = 0  // i64, microseconds
	RowIngestTime  = 8  // i64, microseconds
	RowValue       = 16 // u64: f64 bits, i64, u64, bool or Ref, by kind
	RowSource      = 24 // Ref
	RowAddress     = 32 // Ref
	RowAttrs       = 40 // Ref; its length counts attributes, not bytes
	RowReason      = 48 // Ref, why the row is rejected
	RowStatus      = 56 // u32
	RowIndex       = 60 // u32, the input row that this row derives from
	RowOutput      = 64 // u32, handle of the output, 0 is the default
	RowKind        = 68 // u8
	RowProtocol    = 69 // u8, read-only
	RowDisposition = 70 // u8, DispositionEmit or DispositionReject
	RowFlags       = 71 // u8, reserved
)

// The offsets of an attribute's fields.
const (
	AttrKey   = 0  // Ref
	AttrValue = 8  // u64, as RowValue
	AttrKind  = 16 // u8
)

// What becomes of an output row.
const (
	DispositionEmit   = 0
	DispositionReject = 1
)

// NoIndex is the index of a row that derives from no input row.
const NoIndex = 0xFFFF_FFFF

// The bits of features(): what the host offers beyond the v1 minimum.
const (
	FeatureKV      = 1 << 0
	FeatureMetrics = 1 << 1
	FeatureTick    = 1 << 2
)

// What host functions return below zero.
const (
	ErrnoNotFound = -1 // no such key, output or metric
	ErrnoMemory   = -2 // a pointer is outside the module's memory
	ErrnoTooLarge = -3 // a name, key or value is over its limit
	ErrnoDenied   = -4 // the deployment does not grant this
	ErrnoInvalid  = -5 // an argument makes no sense, or text is not UTF-8
)

// The limits of v1 that a module can count on (docs/abi.md).
const (
	MaxString    = 64 << 10 // bytes of one text or byte string that a module makes
	MaxAttrs     = 64       // attributes of one record
	MaxReason    = 1 << 10  // bytes of a reason; longer ones are cut
	MaxKey       = 256      // bytes of a KV key, a config key, an output or a metric name
	MaxKVValue   = 64 << 10 // bytes of one KV value
	MaxLogLine   = 1 << 10  // bytes of one log line; longer ones are cut
	MaxMetrics   = 64       // metrics of one module
	rowsFactor   = 16       // rows out <= 16 * rows in + 1024
	rowsExtra    = 1024     //
	bytesFactor  = 4        // bytes out <= 4 * bytes in + 1 MiB
	bytesExtra   = 1 << 20  //
	maxArenaSize = 64 << 20 // bytes of one batch in guest memory
)

// ErrBadOutput is wrapped by every error about what a module left in its memory.
var ErrBadOutput = errors.New("bad output")

// ErrBatchTooLarge means that a batch does not fit into a module's memory: split it.
var ErrBatchTooLarge = errors.New("batch too large")

// Ref is a span of guest memory as it stands in a row: the address in the low
// 32 bits, the length in the high 32.
type Ref uint64

// MakeRef makes a Ref of an address and a length.
func MakeRef(ptr, n uint32) Ref { return Ref(ptr) | Ref(n)<<32 }

// Ptr is the address.
func (r Ref) Ptr() uint32 { return uint32(r) }

// Len is the length in bytes, or the number of attributes.
func (r Ref) Len() uint32 { return uint32(r >> 32) }

// isText reports whether a value of kind k is a Ref.
func (k Kind) isText() bool { return k >= KindString && k <= KindJSON }
