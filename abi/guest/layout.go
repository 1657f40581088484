package guest

import (
	"unsafe"

	"github.com/edgehost/edgehost/abi"
)

// ref is abi.Ref: an address and a length.
type ref struct{ ptr, n uint32 }

// header, row and attr are the structures of docs/abi.md as they lie in memory.
type header struct {
	version, headerSize, rowSize, flags uint32
	rows, nRows, outRows, nOut          uint32
	time                                int64
	seq                                 uint64
	err                                 ref
	attrSize, _                         uint32
}

type row struct {
	eventTime, ingestTime          int64
	value                          uint64
	source, address, attrs, reason ref
	status, index, output          uint32
	kind, protocol, disposition, _ uint8
	_                              uint64
}

type attr struct {
	key   ref
	value uint64
	kind  uint8
	_     [7]uint8
}

// end is the address behind the input rows.
func (h *header) end() uint32 { return h.rows + h.nRows*h.rowSize }

// copyRow copies a row of size bytes, which may be longer than this SDK knows.
func copyRow(to, from, size uint32) {
	if size == uint32(unsafe.Sizeof(row{})) {
		*(*row)(at(to)) = *(*row)(at(from))
		return
	}
	copyWords(to, from, size)
}

func copyWords(to, from, size uint32) {
	copy(unsafe.Slice((*uint64)(at(to)), size/8), unsafe.Slice((*uint64)(at(from)), size/8))
}

// bitsOf are the 64 bits that stand for v.
func bitsOf(v abi.Value) uint64 {
	switch v.Kind() {
	case abi.KindString, abi.KindBytes, abi.KindJSON:
		r := refOf(v.Text())
		return uint64(r.ptr) | uint64(r.n)<<32
	default:
		return v.Bits()
	}
}

// valueOf is the reverse of bitsOf. Text is a view.
func valueOf(kind uint8, bits uint64) abi.Value {
	switch abi.Kind(kind) {
	case abi.KindBool:
		return abi.Bool(bits != 0)
	case abi.KindInt:
		return abi.Int(int64(bits))
	case abi.KindUint:
		return abi.Uint(bits)
	case abi.KindFloat:
		return abi.Float(fromBits(bits))
	case abi.KindString:
		return abi.String(textOf(bits))
	case abi.KindBytes:
		return abi.Bytes([]byte(textOf(bits)))
	case abi.KindJSON:
		return abi.JSON(textOf(bits))
	default:
		return abi.Value{}
	}
}

func textOf(bits uint64) string { return ref{uint32(bits), uint32(bits >> 32)}.text() }
