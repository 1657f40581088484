// Package abi is the contract between edgehost and the modules that users
// write: what a record is, how a batch of records lies in a module's linear
// memory, and the canonical encoding in which records rest in the spool.
//
// docs/abi.md is the normative text. This package imports the standard library
// only, so that the guest SDK and every tool can stand on it.
//
//	Record   what a source read at one address at one time
//	Batch    records that travel and are transformed together
//	layout   the flat rows that a module edits in place (record ABI v1)
//	codec    the canonical encoding of records at rest
//
// In a module (GOOS=wasip1) only the first three exist: what lays batches out and
// encodes them is the host's, and would make every Go module half a megabyte larger.
package abi

import (
	"math"
	"strconv"
)

// Protocol says which kind of source read a record. The numbers are part of
// the ABI and never change.
type Protocol uint8

// The protocols of ABI v1. ProtocolNone marks records that a module made
// without an input record (ticks).
const (
	ProtocolNone   Protocol = 0
	ProtocolOPCUA  Protocol = 1
	ProtocolMQTT   Protocol = 2
	ProtocolModbus Protocol = 3
)

// String is the name used in configuration, metrics and tables.
func (p Protocol) String() string {
	switch p {
	case ProtocolOPCUA:
		return "opcua"
	case ProtocolMQTT:
		return "mqtt"
	case ProtocolModbus:
		return "modbus"
	default:
		return "none"
	}
}

// Kind is the type of a Value. The numbers are part of the ABI.
type Kind uint8

// The kinds of ABI v1.
const (
	KindNone   Kind = 0 // no value: SQL NULL
	KindBool   Kind = 1
	KindInt    Kind = 2 // int64
	KindUint   Kind = 3 // uint64
	KindFloat  Kind = 4 // float64
	KindString Kind = 5 // UTF-8
	KindBytes  Kind = 6
	KindJSON   Kind = 7 // UTF-8 JSON text of an object, an array or a scalar
)

var kindNames = [...]string{"none", "bool", "int64", "uint64", "float64", "string", "bytes", "json"}

// String is the name used in docs, NDJSON and the value_type column.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "kind(" + strconv.Itoa(int(k)) + ")"
}

// Value is one typed scalar, text or byte string. The zero Value is "no value"
// (NULL). A Value is immutable and cheap to copy; it is comparable with ==
// (two NaN floats of equal bits are equal).
type Value struct {
	kind Kind
	num  uint64 // bool, int64, uint64 and float64 as bits
	str  string // string, bytes and json
}

// Bool makes a bool Value.
func Bool(v bool) Value {
	if v {
		return Value{kind: KindBool, num: 1}
	}
	return Value{kind: KindBool}
}

// Int makes an int64 Value.
func Int(v int64) Value { return Value{kind: KindInt, num: uint64(v)} }

// Uint makes a uint64 Value.
func Uint(v uint64) Value { return Value{kind: KindUint, num: v} }

// Float makes a float64 Value.
func Float(v float64) Value { return Value{kind: KindFloat, num: math.Float64bits(v)} }

// String makes a text Value.
func String(v string) Value { return Value{kind: KindString, str: v} }

// Bytes makes a binary Value of a copy of v.
func Bytes(v []byte) Value { return Value{kind: KindBytes, str: string(v)} }

// JSON makes a Value of text that is JSON already; it is not checked here.
func JSON(v string) Value { return Value{kind: KindJSON, str: v} }

// Kind returns the type of v.
func (v Value) Kind() Kind { return v.kind }

// IsNone reports whether v is "no value".
func (v Value) IsNone() bool { return v.kind == KindNone }

// Bits returns the 64 bits of a bool, int64, uint64 or float64, and 0 for
// every other kind.
func (v Value) Bits() uint64 { return v.num }

// AsBool returns the bool of v, and false for every other kind.
func (v Value) AsBool() bool { return v.kind == KindBool && v.num != 0 }

// AsInt returns the int64 of v, and 0 for every other kind.
func (v Value) AsInt() int64 {
	if v.kind == KindInt {
		return int64(v.num)
	}
	return 0
}

// AsUint returns the uint64 of v, and 0 for every other kind.
func (v Value) AsUint() uint64 {
	if v.kind == KindUint {
		return v.num
	}
	return 0
}

// AsFloat returns the float64 of v, and 0 for every other kind. Use Number to
// convert.
func (v Value) AsFloat() float64 {
	if v.kind == KindFloat {
		return math.Float64frombits(v.num)
	}
	return 0
}

// Text returns the text of a string or json Value and the raw bytes of a bytes
// Value; "" for every other kind.
func (v Value) Text() string { return v.str }

// Number converts v to a float64. ok is false when v is not a bool or a number.
// int64 and uint64 beyond 2^53 lose precision.
func (v Value) Number() (n float64, ok bool) {
	switch v.kind {
	case KindBool, KindUint:
		return float64(v.num), true
	case KindInt:
		return float64(int64(v.num)), true
	case KindFloat:
		return math.Float64frombits(v.num), true
	default:
		return 0, false
	}
}

// Record is what a source read at one address at one time. Records are treated
// as immutable once they are emitted: whoever changes one copies it first.
type Record struct {
	EventTime  int64    // microseconds since the Unix epoch; when it was measured
	IngestTime int64    // microseconds since the Unix epoch; when edgehost received it
	Source     string   // the name of the source in the configuration
	Address    string   // topic, node id or register
	Protocol   Protocol //
	Value      Value    //
	Status     uint32   // quality as an OPC UA StatusCode: 0 is Good, top two bits 01 Uncertain, 10 Bad
	Attrs      []Attr   // in the order in which they were added; keys are unique
}

// Attr is a typed attribute of a record. Reserved keys are the constants below;
// each fills a column of the bronze tables.
type Attr struct {
	Key   string
	Value Value
}

// The reserved attribute keys of ABI v1 and the types they hold. docs/abi.md
// lists the column that each of them fills.
const (
	AttrUnit            = "unit"             // string: engineering unit
	AttrQuality         = "quality"          // string: Good | Uncertain | Bad
	AttrReason          = "reason"           // string: why the quality is not Good
	AttrIndustry        = "industry"         // string
	AttrSensorName      = "sensor_name"      // string
	AttrSensorType      = "sensor_type"      // string
	AttrSensorPath      = "sensor_path"      // string
	AttrPLCName         = "plc_name"         // string
	AttrPLCVendor       = "plc_vendor"       // string
	AttrPLCModel        = "plc_model"        // string
	AttrQoS             = "qos"              // int64: MQTT quality of service
	AttrRetain          = "retain"           // bool: MQTT retained message
	AttrTimestampMS     = "timestamp_ms"     // int64: the payload's own timestamp
	AttrSlaveID         = "slave_id"         // int64: Modbus unit
	AttrRegisterAddress = "register_address" // int64: as configured (40001)
	AttrRegisterType    = "register_type"    // string: holding | input | coil | discrete
	AttrRawValue        = "raw_value"        // float64: register value before scale and offset
	AttrScaledValue     = "scaled_value"     // int64
	AttrScaleFactor     = "scale_factor"     // int64
	AttrEndpoint        = "endpoint"         // string: OPC UA endpoint URL
	AttrNamespace       = "namespace"        // int64: OPC UA namespace index
	AttrBrowsePath      = "browse_path"      // string
	AttrStatus          = "status"           // string: name of the OPC UA StatusCode
	AttrRaw             = "raw"              // bytes: undecoded payload
	AttrServerTime      = "server_time"      // int64: OPC UA server timestamp, microseconds
	AttrStale           = "stale"            // bool: the point stopped sending
	AttrBackfilled      = "backfilled"       // bool: read from history after an outage
	AttrOverflow        = "overflow"         // bool: the server's queue overflowed before this value
	AttrEvent           = "event"            // bool: an event of the device, not the value of a point
)

// Attr returns the value of the attribute key, and false when r has none.
func (r *Record) Attr(key string) (Value, bool) {
	for i := range r.Attrs {
		if r.Attrs[i].Key == key {
			return r.Attrs[i].Value, true
		}
	}
	return Value{}, false
}

// Batch is records that travel together: one emit of a source, one call of a
// module, one commit.
type Batch struct {
	Seq     uint64 // sequence number in its pipeline; 0 until the pipeline gives one
	Time    int64  // microseconds since the Unix epoch; the clock that modules see
	Records []Record
}
