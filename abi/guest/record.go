package guest

import (
	"iter"
	"math"
	"unsafe"

	"github.com/edgehost/edgehost/abi"
)

// Record is a view of one record of the batch. It is valid while the function
// that got it runs; so are the strings that its methods return, which lie in
// the batch: use strings.Clone for what is to be kept.
type Record struct {
	at       uint32 // address of the row: a pointer would cost the garbage collector's barrier
	attrSize uint32
	room     uint32 // attributes that the row's own array can hold; 0 while it is shared
	memo     uint32 // the memo, counted from 1, of how the row's own array came about; 0 when there is none
	private  bool   // never shares its array: the function may hold it beside others
}

func (r *Record) row() *row { return (*row)(at(r.at)) }

// memo remembers an edit of attributes in this batch. The host lets many rows share
// an array, and modules mostly make the same edit to each: then the result is
// shared too.
type memo struct {
	gen      uint32
	old, new ref
	key, str string // compared by address: equal constants are the same string
	bits     uint64
	kind     abi.Kind
}

var (
	memos      [64]memo
	generation uint32 // the batch that memos are of
)

func same(a, b string) bool {
	return len(a) == len(b) && unsafe.StringData(a) == unsafe.StringData(b)
}

// recall finds the result of an edit that was made before in this batch, or
// else the place to remember it.
func (r *Record) recall(key string, v *abi.Value) (i uint32, ok bool) {
	old := r.row().attrs
	i = (old.ptr / 8) % uint32(len(memos))
	m := &memos[i]
	ok = m.gen == generation && m.old == old && same(m.key, key) && m.kind == v.Kind() && m.bits == v.Bits() && same(m.str, v.Text())
	return i, ok
}

// view is the record that operators see, one row after the other.
var view Record

// look points r at a row.
func (r *Record) look(at uint32) { r.at, r.room, r.memo = at, 0, 0 }

func fromBits(bits uint64) float64 { return math.Float64frombits(bits) }

// EventTime is when the value was measured, in microseconds since the Unix epoch.
func (r *Record) EventTime() int64 { return r.row().eventTime }

// SetEventTime sets the EventTime.
func (r *Record) SetEventTime(us int64) { r.row().eventTime = us }

// IngestTime is when edgehost received the value, in microseconds since the Unix epoch.
func (r *Record) IngestTime() int64 { return r.row().ingestTime }

// Source is the name of the source in the configuration.
func (r *Record) Source() string { return r.row().source.text() }

// SetSource sets the Source.
func (r *Record) SetSource(name string) { r.row().source = refOf(name) }

// Address is the topic, node id or register.
func (r *Record) Address() string { return r.row().address.text() }

// SetAddress sets the Address.
func (r *Record) SetAddress(address string) { r.row().address = refOf(address) }

// Protocol says which kind of source read the record.
func (r *Record) Protocol() abi.Protocol { return abi.Protocol(r.row().protocol) }

// Index is the position of the record in its batch; abi.NoIndex for a new one.
func (r *Record) Index() uint32 { return r.row().index }

// Kind is the type of the value.
func (r *Record) Kind() abi.Kind { return abi.Kind(r.row().kind) }

// Value is the value.
func (r *Record) Value() abi.Value { return valueOf(r.row().kind, r.row().value) }

// SetValue sets the value.
func (r *Record) SetValue(v abi.Value) {
	r.row().value, r.row().kind = bitsOf(v), uint8(v.Kind())
}

// Float is the value, when its kind is float64.
func (r *Record) Float() (v float64, ok bool) {
	return fromBits(r.row().value), r.row().kind == uint8(abi.KindFloat)
}

// Number is the value as a float64, when it is a bool or a number of any kind.
func (r *Record) Number() (v float64, ok bool) {
	switch abi.Kind(r.row().kind) {
	case abi.KindFloat:
		return fromBits(r.row().value), true
	case abi.KindInt:
		return float64(int64(r.row().value)), true
	case abi.KindUint, abi.KindBool:
		return float64(r.row().value), true
	}
	return 0, false
}

// SetFloat sets the value to a float64.
func (r *Record) SetFloat(v float64) {
	r.row().value, r.row().kind = math.Float64bits(v), uint8(abi.KindFloat)
}

// Int is the value, when its kind is int64.
func (r *Record) Int() (v int64, ok bool) {
	return int64(r.row().value), r.row().kind == uint8(abi.KindInt)
}

// SetInt sets the value to an int64.
func (r *Record) SetInt(v int64) { r.row().value, r.row().kind = uint64(v), uint8(abi.KindInt) }

// Bool is the value, when its kind is bool.
func (r *Record) Bool() (v, ok bool) {
	return r.row().value != 0, r.row().kind == uint8(abi.KindBool)
}

// SetBool sets the value to a bool.
func (r *Record) SetBool(v bool) { r.SetValue(abi.Bool(v)) }

// Text is the text of a string or json value, and the raw bytes of a bytes value.
func (r *Record) Text() (v string, ok bool) {
	if k := abi.Kind(r.row().kind); k < abi.KindString || k > abi.KindJSON {
		return "", false
	}
	return textOf(r.row().value), true
}

// SetText sets the value to a string.
func (r *Record) SetText(v string) { r.SetValue(abi.String(v)) }

// SetNone removes the value.
func (r *Record) SetNone() { r.row().value, r.row().kind = 0, uint8(abi.KindNone) }

// Status is the quality as an OPC UA StatusCode.
func (r *Record) Status() uint32 { return r.row().status }

// SetStatus sets the Status.
func (r *Record) SetStatus(code uint32) { r.row().status = code }

// Reject sends the record as it arrived to the dead-letter queue, with a reason
// of at most 1 KiB.
func (r *Record) Reject(reason string) {
	r.row().disposition, r.row().reason = abi.DispositionReject, refOf(reason)
}

// SetOutput sends the record to the output of a handle; 0 is the default.
func (r *Record) SetOutput(handle uint32) { r.row().output = handle }

// Attr is the attribute key, and false when the record has none.
func (r *Record) Attr(key string) (abi.Value, bool) {
	if a := r.find(key); a != nil {
		return valueOf(a.kind, a.value), true
	}
	return abi.Value{}, false
}

// Attrs are the attributes in their order. Set and remove none until the loop has
// ended.
func (r *Record) Attrs() iter.Seq2[string, abi.Value] {
	return func(yield func(string, abi.Value) bool) {
		for i := range r.row().attrs.n {
			if a := r.attr(i); !yield(a.key.text(), valueOf(a.kind, a.value)) {
				return
			}
		}
	}
}

// SetAttr sets the attribute key. A record has at most 64 attributes.
func (r *Record) SetAttr(key string, v abi.Value) {
	if r.room > 0 || r.private {
		r.forget()
		r.own(r.row().attrs.n + 1)
		r.edit(key, v)
		return
	}
	i, ok := r.recall(key, &v)
	if ok {
		r.row().attrs = memos[i].new
		return
	}
	old := r.row().attrs
	r.own(old.n + 1)
	r.edit(key, v)
	memos[i] = memo{gen: generation, old: old, new: r.row().attrs, key: key, str: v.Text(), bits: v.Bits(), kind: v.Kind()}
	r.memo = i + 1
}

// forget drops the memo of an array that is about to change.
func (r *Record) forget() {
	if r.memo > 0 {
		memos[r.memo-1].gen, r.memo = 0, 0
	}
}

// edit sets an attribute in the row's own array, which has room for it.
func (r *Record) edit(key string, v abi.Value) {
	a := r.find(key)
	if a == nil {
		a = r.attr(r.row().attrs.n)
		a.key = refOf(key)
		r.row().attrs.n++
	}
	a.value, a.kind = bitsOf(v), uint8(v.Kind())
}

// DelAttr removes the attribute key, if there is one.
func (r *Record) DelAttr(key string) {
	if r.find(key) == nil {
		return
	}
	r.forget()
	r.own(r.row().attrs.n)
	n := r.row().attrs.n - 1
	for i := range n {
		if r.attr(i).key.text() == key {
			for ; i < n; i++ {
				*r.attr(i) = *r.attr(i + 1)
			}
			break
		}
	}
	r.row().attrs.n = n
}

// Unit is the engineering unit, and "" when there is none.
func (r *Record) Unit() string {
	v, _ := r.Attr(abi.AttrUnit)
	return v.Text()
}

// SetUnit sets the engineering unit.
func (r *Record) SetUnit(unit string) { r.SetAttr(abi.AttrUnit, abi.String(unit)) }

func (r *Record) attr(i uint32) *attr { return (*attr)(at(r.row().attrs.ptr + i*r.attrSize)) }

func (r *Record) find(key string) *attr {
	for i := range r.row().attrs.n {
		if a := r.attr(i); a.key.n == uint32(len(key)) && a.key.text() == key {
			return a
		}
	}
	return nil
}

// own gives the record an attribute array of its own with room for n: the host's
// array may serve many records, and the host looks at new arrays only.
func (r *Record) own(n uint32) {
	if n <= r.room {
		return
	}
	room := n + 2
	to := alloc(room * r.attrSize)
	if old := r.row().attrs; old.n > 0 {
		words := old.n * r.attrSize / 8
		copy(unsafe.Slice((*uint64)(at(to)), words), unsafe.Slice((*uint64)(at(old.ptr)), words))
	}
	r.row().attrs.ptr, r.room = to, room
}

// Emitter collects the records that a FlatMap or a Tick emits.
type Emitter struct {
	h    *header
	at   uint32 // address of the output rows
	n    uint32
	room uint32
}

func newEmitter(h *header) *Emitter {
	out := &Emitter{h: h, room: max(h.nRows, 16)}
	out.at = alloc(out.room * h.rowSize)
	return out
}

// Emit adds a copy of r, as it is now, to the output.
func (out *Emitter) Emit(r *Record) {
	if out.n == out.room {
		size := out.room * out.h.rowSize
		to := alloc(2 * size)
		copyWords(to, out.at, size)
		out.at, out.room = to, 2*out.room
	}
	copyRow(out.at+out.n*out.h.rowSize, r.at, out.h.rowSize)
	out.n++
	r.room, r.memo = 0, 0 // the copy shares the attributes
}

// New makes a record that derives from no input record.
func (out *Emitter) New() *Record {
	r := &Record{at: alloc(out.h.rowSize), attrSize: out.h.attrSize, private: true}
	clear(unsafe.Slice((*uint64)(at(r.at)), out.h.rowSize/8))
	r.row().index = abi.NoIndex
	r.row().eventTime, r.row().ingestTime = out.h.time, out.h.time
	return r
}

func (out *Emitter) finish() { out.h.outRows, out.h.nOut = out.at, out.n }
