//go:build !wasip1

package abi

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
	"unsafe"
)

const (
	internMax   = 128  // bytes of a string that is remembered from batch to batch
	internWays  = 4    // places where one string may be
	internSlots = 4096 // such strings
	memoSlots   = 256  // references remembered in one batch
	guessBits   = 10   // log2 of the input texts whose replacement is remembered
	attrChunk   = 256  // attributes allocated at a time
)

// Output is one record that a module emitted.
type Output struct {
	Record
	Index  int    // the input record that it derives from; -1 when there is none
	Handle uint32 // the output that it goes to; 0 is the default
}

// Reject is one input record that a module rejected. A record that is rejected
// once is rejected as a whole: its emits are discarded.
type Reject struct {
	Index  int
	Reason string // at most MaxReason bytes, never empty
}

// Outputs is what one call of a module left. Input records that neither list
// names were filtered.
type Outputs struct {
	Out     []Output
	Rejects []Reject
}

// add appends an output that copies rec, for which there is room.
func (out *Outputs) add(rec *Record, index int) *Output {
	out.Out = out.Out[:len(out.Out)+1]
	o := &out.Out[len(out.Out)-1]
	o.Record, o.Index, o.Handle = *rec, index, 0
	return o
}

// OutputLimits bounds what Decode accepts. The zero value means the limits of
// v1 and no output but the default.
type OutputLimits struct {
	RowsFactor, RowsExtra   int // rows out <= RowsFactor * rows in + RowsExtra
	BytesFactor, BytesExtra int // bytes of new and of repeated text out <= BytesFactor * bytes in + BytesExtra
	// Handles holds the handles beside 0 that rows may name. A row that names
	// another is rejected.
	Handles map[uint32]bool
}

func (l *OutputLimits) maxRows(in int) uint64 {
	if l.RowsFactor == 0 && l.RowsExtra == 0 {
		return rowsFactor*uint64(in) + rowsExtra
	}
	return uint64(l.RowsFactor)*uint64(in) + uint64(l.RowsExtra)
}

func (l *OutputLimits) maxBytes(in int) int64 {
	if l.BytesFactor == 0 && l.BytesExtra == 0 {
		return bytesFactor*int64(in) + bytesExtra
	}
	return int64(l.BytesFactor)*int64(in) + int64(l.BytesExtra)
}

var errNotUTF8 = errors.New("not UTF-8")

// decoder is the part of an Arena that reads.
type decoder struct {
	mem      []byte
	budget   int64 // bytes that may still come out
	interned [internSlots / internWays][internWays]string
	texts    [memoSlots]textMemo
	arrays   [memoSlots]attrsMemo
	guesses  [1 << guessBits]string
	chunk    []Attr
	named    []uint64 // a bit for each input row that an output row has named
}

// textMemo remembers a string that was read in this generation. Guests refer to
// the same string from many rows, as the host does.
type textMemo struct {
	gen  uint32
	ref  Ref
	text string
}

// attrsMemo does the same for an attribute array and the host's array that it was
// compared with.
type attrsMemo struct {
	gen      uint32
	ref, was Ref
	attrs    []Attr
	size     int64 // what reading it took of the budget
}

func memoSlot(ref Ref) uint32 { return uint32(ref) * 0x9E3779B1 >> 24 }

// emptyRow and emptyRecord stand in for the input of rows that have none.
var (
	emptyRow    [RowSize]byte
	emptyRecord Record
)

// Decode reads what the guest left in mem, its whole linear memory, after a
// call with the batch of the last Encode, and replaces the content of out. The
// records own their strings: nothing in out points into mem. Every error wraps
// ErrBadOutput, and out is then empty.
func (a *Arena) Decode(mem []byte, lim *OutputLimits, out *Outputs) error {
	out.Out, out.Rejects = out.Out[:0], out.Rejects[:0]
	a.mem, a.budget = mem, lim.maxBytes(len(a.image))
	defer func() { a.mem = nil }()
	if err := a.decode(lim, out); err != nil {
		out.Out, out.Rejects = out.Out[:0], out.Rejects[:0]
		return err
	}
	if len(out.Rejects) > 0 {
		a.settleRejects(out)
	}
	return nil
}

func (a *Arena) decode(lim *OutputLimits, out *Outputs) error {
	le := binary.LittleEndian
	header, ok := a.span(uint64(a.base), HeaderSize)
	if !ok {
		return fmt.Errorf("%w: the batch is no longer inside the memory", ErrBadOutput)
	}
	at, n := le.Uint32(header[HeaderOutRows:]), le.Uint32(header[HeaderNOut:])
	if most := lim.maxRows(len(a.in)); uint64(n) > most {
		return fmt.Errorf("%w: n_out is %d, at most %d rows are allowed for %d input rows", ErrBadOutput, n, most, len(a.in))
	}
	rows, ok := a.span(uint64(at), uint64(n)*RowSize)
	if !ok {
		return fmt.Errorf("%w: %d rows at out_rows %#x reach outside the memory", ErrBadOutput, n, at)
	}
	a.named = slices.Grow(a.named[:0], (len(a.in)+63)/64)[:(len(a.in)+63)/64]
	clear(a.named)
	out.Out = slices.Grow(out.Out, int(n))
	for i := range int(n) {
		row := (*[RowSize]byte)(rows[i*RowSize:])
		was, rec, index := &emptyRow, &emptyRecord, -1
		if x := le.Uint32(row[RowIndex:]); uint64(x) < uint64(len(a.in)) {
			index = int(x)
			was, rec = (*[RowSize]byte)(a.image[HeaderSize+index*RowSize:]), &a.in[index]
			if err := a.name(index); err != nil {
				return fmt.Errorf("%w: row %d: %w", ErrBadOutput, i, err)
			}
			if *row == *was {
				out.add(rec, index)
				continue
			}
		} else if x != NoIndex {
			return fmt.Errorf("%w: row %d: index %d, there are %d input rows", ErrBadOutput, i, x, len(a.in))
		}
		if err := a.changed(row, was, rec, index, lim, out); err != nil {
			return fmt.Errorf("%w: row %d: %w", ErrBadOutput, i, err)
		}
	}
	return nil
}

// name notes that an output row derives from an input row. The first may repeat its
// input for nothing; every further one pays for what it repeats.
func (a *Arena) name(index int) error {
	word, bit := &a.named[index/64], uint64(1)<<(index%64)
	if *word&bit == 0 {
		*word |= bit
		return nil
	}
	r := &a.in[index]
	size := len(r.Source) + len(r.Address) + len(r.Value.str)
	for i := range r.Attrs {
		size += AttrSize + len(r.Attrs[i].Key) + len(r.Attrs[i].Value.str)
	}
	return a.spend(int64(size))
}

// changed reads a row that differs from the row that the host wrote for its
// index.
func (a *Arena) changed(row, was *[RowSize]byte, rec *Record, index int, lim *OutputLimits, out *Outputs) error {
	le := binary.LittleEndian
	handle := le.Uint32(row[RowOutput:])
	switch {
	case row[RowDisposition] == DispositionReject && index >= 0:
		reason, err := a.reason(Ref(le.Uint64(row[RowReason:])))
		if err != nil {
			return fmt.Errorf("reason: %w", err)
		}
		out.Rejects = append(out.Rejects, Reject{Index: index, Reason: reason})
		return nil
	case row[RowDisposition] == DispositionReject:
		return fmt.Errorf("rejected, but it derives from no input row")
	case row[RowDisposition] != DispositionEmit:
		return fmt.Errorf("disposition %d is neither 0 (emit) nor 1 (reject)", row[RowDisposition])
	case handle != 0 && !lim.Handles[handle] && index >= 0:
		out.Rejects = append(out.Rejects, Reject{Index: index, Reason: fmt.Sprintf("unknown output %d", handle)})
		return nil
	case handle != 0 && !lim.Handles[handle]:
		return fmt.Errorf("unknown output %d", handle)
	}
	o := out.add(rec, index)
	o.Handle = handle
	r := &o.Record
	r.EventTime = int64(le.Uint64(row[RowEventTime:]))
	r.IngestTime = int64(le.Uint64(row[RowIngestTime:]))
	r.Status = le.Uint32(row[RowStatus:])
	var err error
	if ref := le.Uint64(row[RowSource:]); ref != le.Uint64(was[RowSource:]) {
		if r.Source, err = a.text(Ref(ref)); err != nil {
			return fmt.Errorf("source: %w", err)
		}
	}
	if ref := le.Uint64(row[RowAddress:]); ref != le.Uint64(was[RowAddress:]) {
		if r.Address, err = a.replaced(Ref(ref), rec.Address); err != nil {
			return fmt.Errorf("address: %w", err)
		}
	}
	if bits := le.Uint64(row[RowValue:]); bits != le.Uint64(was[RowValue:]) || row[RowKind] != was[RowKind] {
		if r.Value, err = a.value(Kind(row[RowKind]), bits); err != nil {
			return fmt.Errorf("value: %w", err)
		}
	}
	if ref := le.Uint64(row[RowAttrs:]); ref != le.Uint64(was[RowAttrs:]) {
		if r.Attrs, err = a.attrs(Ref(ref), Ref(le.Uint64(was[RowAttrs:])), rec.Attrs); err != nil {
			return fmt.Errorf("attributes: %w", err)
		}
	}
	return nil
}

// attrs reads an attribute array, once in a batch. was is the array that the host
// wrote for old: what stands there unchanged is taken from old.
func (a *Arena) attrs(ref, was Ref, old []Attr) ([]Attr, error) {
	memo := &a.arrays[memoSlot(ref)]
	if memo.gen == a.gen && memo.ref == ref && memo.was == was {
		return memo.attrs, a.spend(memo.size)
	}
	before := a.budget
	attrs, err := a.readAttrs(ref, was, old)
	if err == nil {
		*memo = attrsMemo{a.gen, ref, was, attrs, before - a.budget}
	}
	return attrs, err
}

func (a *Arena) readAttrs(ref, was Ref, old []Attr) ([]Attr, error) {
	le := binary.LittleEndian
	n := int(ref.Len())
	if n == 0 {
		return nil, nil
	}
	if n > MaxAttrs {
		return nil, fmt.Errorf("%d, at most %d are allowed", n, MaxAttrs)
	}
	b, ok := a.span(uint64(ref.Ptr()), uint64(n)*AttrSize)
	if !ok {
		return nil, fmt.Errorf("%d at %#x reach outside the memory", n, ref.Ptr())
	}
	if err := a.spend(int64(len(b))); err != nil {
		return nil, err
	}
	var image []byte
	if len(old) > 0 {
		image = a.image[was.Ptr()-a.base:]
	}
	attrs := a.newAttrs(n)
	for i := range attrs {
		at := b[i*AttrSize : (i+1)*AttrSize]
		key, bits, kind := le.Uint64(at[AttrKey:]), le.Uint64(at[AttrValue:]), at[AttrKind]
		var err error
		if i < len(old) && key == le.Uint64(image[i*AttrSize+AttrKey:]) {
			attrs[i].Key = old[i].Key
		} else if attrs[i].Key, err = a.text(Ref(key)); err != nil {
			return nil, fmt.Errorf("key %d: %w", i, err)
		}
		if i < len(old) && bits == le.Uint64(image[i*AttrSize+AttrValue:]) && kind == image[i*AttrSize+AttrKind] {
			attrs[i].Value = old[i].Value
		} else if attrs[i].Value, err = a.value(Kind(kind), bits); err != nil {
			return nil, fmt.Errorf("%q: %w", attrs[i].Key, err)
		}
		if err := checkKey(attrs[:i], attrs[i].Key); err != nil {
			return nil, err
		}
	}
	return attrs, nil
}

func checkKey(before []Attr, key string) error {
	if key == "" {
		return fmt.Errorf("an empty key")
	}
	for i := range before {
		if before[i].Key == key {
			return fmt.Errorf("key %q stands twice", key)
		}
	}
	return nil
}

// newAttrs cuts n attributes, which the caller may keep, from a larger piece.
func (a *Arena) newAttrs(n int) []Attr {
	if len(a.chunk) < n {
		a.chunk = make([]Attr, max(n, attrChunk))
	}
	attrs := a.chunk[:n:n]
	a.chunk = a.chunk[n:]
	return attrs
}

func (a *Arena) value(kind Kind, bits uint64) (Value, error) {
	switch kind {
	case KindNone:
		return Value{}, nil
	case KindBool:
		return Bool(bits != 0), nil
	case KindInt, KindUint, KindFloat:
		return Value{kind: kind, num: bits}, nil
	case KindString, KindJSON:
		s, err := a.text(Ref(bits))
		if err == nil && kind == KindJSON && !json.Valid([]byte(s)) {
			err = fmt.Errorf("kind json, but the text is not JSON")
		}
		return Value{kind: kind, str: s}, err
	case KindBytes:
		b, err := a.copyable(Ref(bits))
		return Value{kind: kind, str: string(b)}, err
	default:
		return Value{}, fmt.Errorf("unknown kind %d", kind)
	}
}

// text copies a string out of the guest's memory, unless it was copied before.
func (a *Arena) text(ref Ref) (string, error) {
	memo := &a.texts[memoSlot(ref)]
	if memo.gen == a.gen && memo.ref == ref {
		return memo.text, a.spend(int64(len(memo.text)))
	}
	b, err := a.copyable(ref)
	if err != nil || len(b) == 0 {
		return "", err
	}
	s, err := a.intern(b)
	if err != nil {
		return "", fmt.Errorf("text at %#x: %w", ref.Ptr(), err)
	}
	*memo = textMemo{a.gen, ref, s}
	return s, nil
}

// replaced is text for a reference that stands where was stood. A module that renames
// makes the same of the same, so the last replacement of the same Go string is compared
// before the text is looked up.
func (a *Arena) replaced(ref Ref, was string) (string, error) {
	guess := &a.guesses[uint64(uintptr(unsafe.Pointer(unsafe.StringData(was))))*0x9E3779B97F4A7C15>>(64-guessBits)]
	if n := len(*guess); n > 0 && n == int(ref.Len()) {
		if b, ok := a.span(uint64(ref.Ptr()), uint64(n)); ok && *guess == string(b) {
			return *guess, a.spend(int64(n))
		}
	}
	s, err := a.text(ref)
	if err == nil && len(s) <= internMax {
		*guess = s
	}
	return s, err
}

// intern copies b, or finds a copy from this batch or an earlier one.
func (a *Arena) intern(b []byte) (string, error) {
	if len(b) > internMax {
		if !utf8.Valid(b) {
			return "", errNotUTF8
		}
		return string(b), nil
	}
	ways := &a.interned[hash(b)%uint64(len(a.interned))]
	for i := range ways {
		if ways[i] == string(b) {
			return ways[i], nil
		}
	}
	if !utf8.Valid(b) {
		return "", errNotUTF8
	}
	copy(ways[1:], ways[:]) // the oldest gives way
	ways[0] = string(b)
	return ways[0], nil
}

// reason copies the words of a reject, cut and mended where they must be: they
// are for people, and no cause to fail a batch.
func (a *Arena) reason(ref Ref) (string, error) {
	if ref.Len() == 0 {
		return "rejected by the module without a reason", nil
	}
	b, ok := a.span(uint64(ref.Ptr()), uint64(min(ref.Len(), MaxReason)))
	if !ok {
		return "", fmt.Errorf("%d bytes at %#x reach outside the memory", ref.Len(), ref.Ptr())
	}
	if err := a.spend(int64(len(b))); err != nil {
		return "", err
	}
	return cutText(b, MaxReason), nil
}

// cutText makes valid UTF-8 of at most n bytes of b.
func cutText(b []byte, n int) string {
	s := strings.ToValidUTF8(string(b[:min(len(b), n)]), "")
	if s == "" {
		return "(not UTF-8)"
	}
	return s
}

// copyable checks a span and charges it to the budget.
func (a *Arena) copyable(ref Ref) ([]byte, error) {
	if ref.Len() > MaxString {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", ref.Len(), MaxString)
	}
	b, ok := a.span(uint64(ref.Ptr()), uint64(ref.Len()))
	if !ok {
		return nil, fmt.Errorf("%d bytes at %#x reach outside the memory", ref.Len(), ref.Ptr())
	}
	return b, a.spend(int64(len(b)))
}

func (a *Arena) spend(n int64) error {
	if a.budget -= n; a.budget < 0 {
		return fmt.Errorf("the batch holds more bytes than a module may emit for its input")
	}
	return nil
}

// span is the memory from at to at+n. n is below 2^40, so nothing wraps.
func (a *Arena) span(at, n uint64) ([]byte, bool) {
	if n == 0 {
		return nil, true
	}
	if end := at + n; end <= uint64(len(a.mem)) {
		return a.mem[at:end:end], true
	}
	return nil, false
}

// settleRejects makes every rejected record rejected once and as a whole.
func (a *Arena) settleRejects(out *Outputs) {
	rejected := make(map[int]bool, len(out.Rejects))
	kept := out.Rejects[:0]
	for _, r := range out.Rejects {
		if !rejected[r.Index] {
			rejected[r.Index] = true
			kept = append(kept, r)
		}
	}
	out.Rejects = kept
	emits := out.Out[:0]
	for _, o := range out.Out {
		if o.Index < 0 || !rejected[o.Index] {
			emits = append(emits, o)
		}
	}
	clear(out.Out[len(emits):])
	out.Out = emits
}

// BatchError reads the words that the guest left for a batch error; "" when it
// left none that can be read.
func (a *Arena) BatchError(mem []byte) string {
	a.mem = mem
	defer func() { a.mem = nil }()
	header, ok := a.span(uint64(a.base), HeaderSize)
	if !ok {
		return ""
	}
	ref := Ref(binary.LittleEndian.Uint64(header[HeaderError:]))
	b, ok := a.span(uint64(ref.Ptr()), uint64(min(ref.Len(), MaxReason)))
	if !ok || len(b) == 0 {
		return ""
	}
	return cutText(b, MaxReason)
}
