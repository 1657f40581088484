package opcua

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/gopcua/opcua/ua"
)

// rawBody keeps the bytes of a structure that the library has no Go type for.
// Without it the library throws them away.
type rawBody struct{ b []byte }

// Decode takes all of the body, which the library has cut out before.
func (r *rawBody) Decode(b []byte) (int, error) {
	r.b = append([]byte(nil), b...)
	return len(b), nil
}

// Encode returns the bytes that were decoded.
func (r *rawBody) Encode() ([]byte, error) { return r.b, nil }

// The kinds of a structure beyond the plain one, 0 (StructureType, Part 3, 8.49).
const (
	structOptional = 1
	structUnion    = 2
	structSubtyped = 3
	unionSubtyped  = 4
)

// structDef is the layout of one structure.
type structDef struct {
	name   string
	kind   int
	fields []fieldDef
}

type fieldDef struct {
	name     string
	typ      *dataType
	rank     int32 // ValueRank: -1 scalar, 1 array, 2 and more a matrix
	optional bool  // or, in a subtyped structure: subtypes allowed
}

// errBody is a structure whose bytes do not fit its definition.
var errBody = errors.New("bytes do not fit the structure's definition")

// reader takes built-in types off the front of b (Part 6, 5.2). After an error
// it returns zero values; err says what was wrong first.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		if r.err == nil {
			r.err = errBody
		}
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) bytes() []byte {
	n := int32(r.u32())
	if n <= 0 {
		return nil
	}
	return r.take(int(n))
}

// count is the length of an array; -1 is null and reads as 0. Every element
// takes at least one byte, which bounds what a hostile server can make us
// allocate.
func (r *reader) count() int {
	n := int32(r.u32())
	if n <= 0 {
		return 0
	}
	if int(n) > len(r.b) {
		r.err = errBody
		return 0
	}
	return int(n)
}

// lib decodes one value with the library's decoder: node ids and the like, whose
// decoders are safe.
func (r *reader) lib(v ua.BinaryDecoder) {
	if r.err != nil {
		return
	}
	if len(r.b) == 0 {
		r.err = errBody
		return
	}
	n, err := v.Decode(r.b)
	if err != nil || n > len(r.b) {
		r.err = errBody
		return
	}
	r.b = r.b[n:]
}

func (r *reader) time() time.Time { return timeOf(r.u64()) }

// structure decodes the body of the structure with this encoding id.
func (w *jsonWriter) structure(encoding *ua.NodeID, body []byte, depth int) error {
	if w.types == nil {
		return fmt.Errorf("structure %s has no definition", nodeText(encoding))
	}
	def := w.types.byEncoding[nodeText(encoding)]
	if def == nil {
		return fmt.Errorf("structure %s has no definition on the server", nodeText(encoding))
	}
	r := &reader{b: body}
	w.fields(r, def, depth+1)
	if r.err == nil && len(r.b) > 0 {
		r.err = errBody
	}
	if r.err != nil {
		return fmt.Errorf("decode structure %s: %w", def.name, r.err)
	}
	return nil
}

func (w *jsonWriter) fields(r *reader, def *structDef, depth int) {
	if depth > maxDepth {
		r.err = errBody
		return
	}
	if def.kind == structUnion || def.kind == unionSubtyped {
		n := r.u32()
		if n == 0 {
			w.b = append(w.b, "null"...)
			return
		}
		if int64(n) > int64(len(def.fields)) {
			r.err = errBody
			return
		}
		f := def.fields[n-1]
		w.b = append(w.b, '{')
		w.string(f.name)
		w.b = append(w.b, ':')
		w.field(r, f, def.kind == unionSubtyped && f.optional, depth)
		w.b = append(w.b, '}')
		return
	}
	var mask uint32
	if def.kind == structOptional {
		mask = r.u32()
	}
	w.b = append(w.b, '{')
	bit, written := 0, 0
	for _, f := range def.fields {
		if def.kind == structOptional && f.optional {
			present := mask>>bit&1 == 1
			bit++
			if !present {
				continue
			}
		}
		w.comma(written)
		written++
		w.string(f.name)
		w.b = append(w.b, ':')
		w.field(r, f, def.kind == structSubtyped && f.optional, depth)
		if r.err != nil {
			return
		}
	}
	w.b = append(w.b, '}')
}

// field decodes one field, an array or a matrix of it.
func (w *jsonWriter) field(r *reader, f fieldDef, subtyped bool, depth int) {
	one := func() { w.typed(r, f.typ, depth) }
	if subtyped {
		one = func() { w.builtin(r, 24, nil, depth) }
		if f.typ.def != nil || f.typ.builtin == 22 {
			one = func() { w.builtin(r, 22, nil, depth) }
		}
	}
	switch {
	case f.rank <= 0:
		one()
	case f.rank == 1:
		w.array(r, r.count(), one)
	default:
		dims := make([]int, 0, 4)
		total := 1
		for range r.count() {
			d := int(int32(r.u32()))
			if d < 0 || d > 1<<24 || total*max(d, 1) > 1<<24 {
				r.err = errBody
				return
			}
			dims, total = append(dims, d), total*d
		}
		if total > len(r.b) {
			r.err = errBody
			return
		}
		w.matrix(r, dims, one)
	}
}

func (w *jsonWriter) array(r *reader, n int, one func()) {
	w.b = append(w.b, '[')
	for i := range n {
		w.comma(i)
		one()
		if r.err != nil {
			return
		}
	}
	w.b = append(w.b, ']')
}

func (w *jsonWriter) matrix(r *reader, dims []int, one func()) {
	switch len(dims) {
	case 0:
		w.b = append(w.b, "[]"...)
	case 1:
		w.array(r, dims[0], one)
	default:
		w.array(r, dims[0], func() { w.matrix(r, dims[1:], one) })
	}
}

func (w *jsonWriter) typed(r *reader, t *dataType, depth int) {
	switch {
	case r.err != nil:
	case t == nil:
		r.err = errBody
	case t.def != nil:
		w.fields(r, t.def, depth+1)
	default:
		w.builtin(r, t.builtin, t.enum, depth)
	}
}

// builtin decodes one value of a built-in type by its number.
func (w *jsonWriter) builtin(r *reader, id uint32, enum enumNames, depth int) {
	if depth > maxDepth {
		r.err = errBody
	}
	if r.err != nil {
		return
	}
	switch id {
	case 1:
		w.b = strconv.AppendBool(w.b, r.u8() != 0)
	case 2:
		w.b = strconv.AppendInt(w.b, int64(int8(r.u8())), 10)
	case 3:
		w.b = strconv.AppendUint(w.b, uint64(r.u8()), 10)
	case 4:
		w.b = strconv.AppendInt(w.b, int64(int16(r.u16())), 10)
	case 5:
		w.b = strconv.AppendUint(w.b, uint64(r.u16()), 10)
	case 6, 29:
		w.enumOrInt(int64(int32(r.u32())), enum)
	case 7, 19:
		w.b = strconv.AppendUint(w.b, uint64(r.u32()), 10)
	case 8:
		w.b = strconv.AppendInt(w.b, int64(r.u64()), 10)
	case 9:
		w.b = strconv.AppendUint(w.b, r.u64(), 10)
	case 10:
		w.float(float64(math.Float32frombits(r.u32())), 32)
	case 11:
		w.float(math.Float64frombits(r.u64()), 64)
	case 12, 16:
		w.string(validUTF8(string(r.bytes())))
	case 13:
		w.string(timeText(r.time()))
	case 15:
		w.string(base64.StdEncoding.EncodeToString(r.bytes()))
	case 20:
		ns := r.u16()
		w.string(strconv.Itoa(int(ns)) + ":" + validUTF8(string(r.bytes())))
	case 22:
		w.builtinExtension(r, depth)
	case 23:
		w.builtinDataValue(r, depth)
	case 24, 26, 27, 28:
		w.builtinVariant(r, depth)
	default:
		w.builtinText(r, id)
	}
}

func (w *jsonWriter) builtinText(r *reader, id uint32) {
	var v ua.BinaryDecoder
	switch id {
	case 14:
		v = new(ua.GUID)
	case 17:
		v = new(ua.NodeID)
	case 18:
		v = new(ua.ExpandedNodeID)
	case 21:
		v = new(ua.LocalizedText)
	default:
		r.err = fmt.Errorf("built-in type %d in a structure is not supported", id)
		return
	}
	r.lib(v)
	if r.err == nil {
		s, _ := textOf(v)
		w.string(s)
	}
}

func (w *jsonWriter) builtinExtension(r *reader, depth int) {
	id := new(ua.ExpandedNodeID)
	r.lib(id)
	mask := r.u8()
	if mask == ua.ExtensionObjectEmpty || r.err != nil {
		w.b = append(w.b, "null"...)
		return
	}
	body := r.bytes()
	if r.err != nil {
		return
	}
	if mask == ua.ExtensionObjectXML {
		w.string(validUTF8(string(body)))
		return
	}
	w.extension(&ua.ExtensionObject{TypeID: id, EncodingMask: mask, Value: &rawBody{b: body}}, depth+1)
}

func (w *jsonWriter) builtinDataValue(r *reader, depth int) {
	mask := r.u8()
	w.b = append(w.b, `{"value":`...)
	if mask&1 != 0 {
		w.builtinVariant(r, depth+1)
	} else {
		w.b = append(w.b, "null"...)
	}
	var status uint32
	if mask&2 != 0 {
		status = r.u32()
	}
	w.b = append(w.b, `,"status":`...)
	w.b = strconv.AppendUint(w.b, uint64(status), 10)
	if mask&4 != 0 {
		w.b = append(w.b, `,"source_timestamp":`...)
		w.string(timeText(r.time()))
	}
	// Picoseconds of the source, the server's timestamp, its picoseconds.
	for _, part := range []struct {
		bit  uint8
		size int
	}{{0x10, 2}, {0x08, 8}, {0x20, 2}} {
		if mask&part.bit != 0 {
			r.take(part.size)
		}
	}
	w.b = append(w.b, '}')
}

func (w *jsonWriter) builtinVariant(r *reader, depth int) {
	mask := r.u8()
	id := uint32(mask & 0x3f)
	if depth > maxDepth || id > 25 {
		r.err = errBody
		return
	}
	if id == 0 {
		w.b = append(w.b, "null"...)
		return
	}
	one := func() { w.builtin(r, id, nil, depth+1) }
	if mask&0x80 == 0 {
		one()
		return
	}
	n := r.count()
	start := len(w.b)
	w.array(r, n, one)
	if mask&0x40 == 0 || r.err != nil {
		return
	}
	dims := make([]int, 0, 4)
	total := 1
	for range r.count() {
		d := int(int32(r.u32()))
		if d < 1 || total*d > n {
			r.err = errBody
			return
		}
		dims, total = append(dims, d), total*d
	}
	if len(dims) > 1 && total == n && r.err == nil {
		w.b = append(w.b[:start], nest(w.b[start:], dims)...)
	}
}

// nest turns the flat JSON array of a matrix into nested arrays: the dimensions
// come after the values on the wire.
func nest(flat []byte, dims []int) []byte {
	elems := splitJSON(flat)
	var b []byte
	var build func(dims []int, elems [][]byte)
	build = func(dims []int, elems [][]byte) {
		b = append(b, '[')
		step := len(elems) / dims[0]
		for i := range dims[0] {
			if i > 0 {
				b = append(b, ',')
			}
			if len(dims) == 1 {
				b = append(b, elems[i]...)
			} else {
				build(dims[1:], elems[i*step:(i+1)*step])
			}
		}
		b = append(b, ']')
	}
	build(dims, elems)
	return b
}

// splitJSON returns the elements of the JSON array b.
func splitJSON(b []byte) [][]byte {
	var out [][]byte
	depth, quoted, start := 0, false, 1
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted:
			if c == '\\' {
				i++
			} else if c == '"' {
				quoted = false
			}
		case c == '"':
			quoted = true
		case c == '[' || c == '{':
			depth++
		case c == ']' || c == '}':
			depth--
			if depth == 0 && i > start {
				out = append(out, b[start:i])
			}
		case c == ',' && depth == 1:
			out = append(out, b[start:i])
			start = i + 1
		}
	}
	return out
}
