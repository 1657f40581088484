//go:build !wasip1

package abi

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"unsafe"
)

const (
	dedupSlots = 4096 // strings and attribute arrays remembered in one batch
	dedupMax   = 256  // bytes; longer ones are written each time
	seenBits   = 10   // log2 of the addresses whose attributes are remembered
	sameBits   = 10   // log2 of the Go strings remembered by where they lie
)

// Arena is the host's half of a batch in guest memory: it lays records out as
// flat rows and, after the guest has run, reads what the guest left. It
// remembers the image that it wrote, so that what a guest did not touch costs
// neither a read nor a copy.
//
//	base ┌────────┬──────────────┬─────────────────────────────┐
//	     │ header │ rows, 80 B   │ strings and attribute arrays│
//	     └────────┴──────────────┴─────────────────────────────┘
//
// An Arena is used by one goroutine at a time and reuses its buffers. The zero
// Arena is not usable; NewArena makes one.
type Arena struct {
	image []byte // what was written at base
	base  uint32
	in    []Record

	gen     uint32
	slots   []slot
	same    [1 << sameBits]same
	seen    [1 << seenBits]seen
	scratch []byte // one attribute array
	last    lastSingle

	decoder
}

// slot remembers where in the image a string or attribute array of this
// generation lies.
type slot struct {
	gen, off, n uint32
}

// same remembers a Go string by where it lies, which costs less to find out than
// what it says: sources use the same strings in record after record. The records of
// a generation keep their strings where they are.
type same struct {
	gen, n uint32
	at     uintptr
	ref    Ref
}

// seen remembers the attributes that a record of this generation had.
type seen struct {
	gen, record uint32
	attrs       Ref
}

// lastSingle is what the image begins with since the last batch, when that was one
// record: sources that emit record by record repeat their name and their attributes.
type lastSingle struct {
	base          uint32
	end           int // of this part of the image; 0 when there is none
	source        string
	attrs         []Attr // a copy
	sourceAt, ref Ref
}

// NewArena makes an Arena.
func NewArena() *Arena {
	return &Arena{slots: make([]slot, dedupSlots)}
}

// Encode lays b out for the guest address base and returns the image, which is
// valid until the next Encode: the caller copies it to base, which must be a
// multiple of 8. Which address it is may depend on the size of the image; then
// Encode is called again. The records of b must stay unchanged until Decode has
// returned.
func (a *Arena) Encode(b *Batch, base, flags uint32) ([]byte, error) {
	n := len(b.Records)
	if n > (maxArenaSize-HeaderSize)/RowSize {
		return nil, fmt.Errorf("lay out batch of %d records: %w", n, ErrBatchTooLarge)
	}
	a.base, a.in = base, b.Records
	a.nextGeneration()
	size := HeaderSize + n*RowSize
	if cap(a.image) < size {
		a.image = make([]byte, size, size+size/2)
	}
	a.image = a.image[:size]
	a.header(b, flags)
	if n == 1 {
		return a.single(&b.Records[0])
	}
	a.last.end = 0
	var prev *Record
	var source, attrs Ref
	for i := range b.Records {
		r := &b.Records[i]
		if prev == nil || !sameText(r.Source, prev.Source) {
			source = a.put(r.Source)
		}
		address := a.put(r.Address)
		if prev == nil || !sameAttrs(prev.Attrs, r.Attrs) {
			attrs = a.attrsOf(address, i)
		}
		value := a.bits(&r.Value)
		a.row(i, r, source, address, attrs, value)
		if len(a.image) > maxArenaSize {
			return nil, fmt.Errorf("lay out batch of over %d bytes: %w", maxArenaSize, ErrBatchTooLarge)
		}
		prev = r
	}
	return a.image, nil
}

// single lays out the only record of a batch, in which nothing is worth remembering
// but what the last one had as well.
func (a *Arena) single(r *Record) ([]byte, error) {
	if l := &a.last; l.end == 0 || l.base != a.base || !sameText(l.source, r.Source) || !sameAttrs(l.attrs, r.Attrs) {
		*l = lastSingle{base: a.base, source: r.Source, attrs: append(l.attrs[:0], r.Attrs...)}
		l.ref = a.singleAttrs(r.Attrs)
		l.sourceAt = a.append(r.Source)
		l.end = len(a.image)
	}
	a.image = a.image[:a.last.end]
	a.row(0, r, a.last.sourceAt, a.append(r.Address), a.last.ref, a.bits(&r.Value))
	if len(a.image) > maxArenaSize {
		return nil, fmt.Errorf("lay out batch of over %d bytes: %w", maxArenaSize, ErrBatchTooLarge)
	}
	return a.image, nil
}

func (a *Arena) singleAttrs(attrs []Attr) Ref {
	if len(attrs) == 0 {
		return 0
	}
	le, at := binary.LittleEndian, len(a.image)
	a.image = slices.Grow(a.image, len(attrs)*AttrSize)[:at+len(attrs)*AttrSize]
	for i := range attrs {
		key, value := a.append(attrs[i].Key), a.bits(&attrs[i].Value)
		attr := (*[AttrSize]byte)(a.image[at+i*AttrSize:])
		le.PutUint64(attr[AttrKey:], uint64(key))
		le.PutUint64(attr[AttrValue:], value)
		le.PutUint64(attr[AttrKind:], uint64(attrs[i].Value.kind))
	}
	return MakeRef(a.base+uint32(at), uint32(len(attrs)))
}

// nextGeneration forgets the strings of the last batch without touching them.
func (a *Arena) nextGeneration() {
	a.gen++
	if a.gen == 0 {
		clear(a.slots)
		clear(a.same[:])
		clear(a.seen[:])
		clear(a.texts[:])
		clear(a.arrays[:])
		a.gen = 1
	}
}

func (a *Arena) header(b *Batch, flags uint32) {
	le := binary.LittleEndian
	h := (*[HeaderSize]byte)(a.image)
	clear(h[:])
	rows, n := a.base+HeaderSize, uint32(len(b.Records))
	le.PutUint32(h[HeaderVersion:], Version)
	le.PutUint32(h[HeaderHeaderSize:], HeaderSize)
	le.PutUint32(h[HeaderRowSize:], RowSize)
	le.PutUint32(h[HeaderFlags:], flags)
	le.PutUint32(h[HeaderRows:], rows)
	le.PutUint32(h[HeaderNRows:], n)
	le.PutUint32(h[HeaderOutRows:], rows)
	le.PutUint32(h[HeaderNOut:], n)
	le.PutUint64(h[HeaderTime:], uint64(b.Time))
	le.PutUint64(h[HeaderSeq:], b.Seq)
	le.PutUint32(h[HeaderAttrSize:], AttrSize)
}

func (a *Arena) row(i int, r *Record, source, address, attrs Ref, value uint64) {
	le := binary.LittleEndian
	row := (*[RowSize]byte)(a.image[HeaderSize+i*RowSize:])
	le.PutUint64(row[RowEventTime:], uint64(r.EventTime))
	le.PutUint64(row[RowIngestTime:], uint64(r.IngestTime))
	le.PutUint64(row[RowValue:], value)
	le.PutUint64(row[RowSource:], uint64(source))
	le.PutUint64(row[RowAddress:], uint64(address))
	le.PutUint64(row[RowAttrs:], uint64(attrs))
	le.PutUint64(row[RowReason:], 0)
	le.PutUint32(row[RowStatus:], r.Status)
	le.PutUint32(row[RowIndex:], uint32(i))
	le.PutUint32(row[RowOutput:], 0)
	row[RowKind] = byte(r.Value.kind)
	row[RowProtocol] = byte(r.Protocol)
	row[RowDisposition] = DispositionEmit
	row[RowFlags] = 0
	le.PutUint64(row[72:], 0)
}

// bits are the 64 bits that stand for v in a row or an attribute.
func (a *Arena) bits(v *Value) uint64 {
	if v.kind.isText() {
		return uint64(a.put(v.str))
	}
	return v.num
}

// put writes s once in a batch, if it is short, and returns where it lies.
func (a *Arena) put(s string) Ref {
	if len(s) == 0 {
		return 0
	}
	if len(s) > dedupMax || len(a.in) == 1 {
		return a.append(s)
	}
	p := uintptr(unsafe.Pointer(unsafe.StringData(s)))
	same := &a.same[uint64(p)*0x9E3779B97F4A7C15>>(64-sameBits)]
	if same.gen == a.gen && same.at == p && same.n == uint32(len(s)) {
		return same.ref
	}
	same.gen, same.at, same.n = a.gen, p, uint32(len(s))
	same.ref = a.write(s)
	return same.ref
}

// write finds s in this batch by what it says, or writes it.
func (a *Arena) write(s string) Ref {
	at := &a.slots[hash(unsafe.Slice(unsafe.StringData(s), len(s)))%dedupSlots]
	if at.gen == a.gen && at.n == uint32(len(s)) && string(a.image[at.off:at.off+at.n]) == s {
		return MakeRef(a.base+at.off, at.n)
	}
	ref := a.append(s)
	*at = slot{gen: a.gen, off: ref.Ptr() - a.base, n: uint32(len(s))}
	return ref
}

// append writes s at the end of the image.
func (a *Arena) append(s string) Ref {
	if len(s) == 0 {
		return 0
	}
	off := uint32(len(a.image))
	a.image = append(a.image, s...)
	return MakeRef(a.base+off, uint32(len(s)))
}

// attrsOf writes the attributes of record i, unless the last record of the same
// address has the same ones, as most have.
func (a *Arena) attrsOf(address Ref, i int) Ref {
	at := &a.seen[uint32(address)*0x9E3779B1>>(32-seenBits)]
	r := &a.in[i]
	if at.gen == a.gen && sameAttrs(a.in[at.record].Attrs, r.Attrs) {
		return at.attrs
	}
	*at = seen{gen: a.gen, record: uint32(i), attrs: a.putAttrs(r.Attrs)}
	return at.attrs
}

// putAttrs writes an attribute array, or finds the same one in this batch.
func (a *Arena) putAttrs(attrs []Attr) Ref {
	if len(attrs) == 0 {
		return 0
	}
	le := binary.LittleEndian
	a.scratch = a.scratch[:0]
	for i := range attrs {
		at := &attrs[i]
		a.scratch = le.AppendUint64(a.scratch, uint64(a.put(at.Key)))
		a.scratch = le.AppendUint64(a.scratch, a.bits(&at.Value))
		a.scratch = le.AppendUint64(a.scratch, uint64(at.Value.kind))
	}
	count := uint32(len(attrs))
	n := uint32(len(a.scratch))
	at := &a.slots[hash(a.scratch)%dedupSlots]
	if at.gen != a.gen || at.n != n || at.off%8 != 0 || string(a.image[at.off:at.off+n]) != string(a.scratch) {
		*at = slot{gen: a.gen, off: a.appendAttrs(), n: n}
	}
	return MakeRef(a.base+at.off, count)
}

// appendAttrs writes the attribute array at the end of the image.
func (a *Arena) appendAttrs() (off uint32) {
	for len(a.image)%8 != 0 {
		a.image = append(a.image, 0)
	}
	off = uint32(len(a.image))
	a.image = append(a.image, a.scratch...)
	return off
}

// sameAttrs reports whether x and y hold the same attributes in the same order.
func sameAttrs(x, y []Attr) bool {
	if len(x) != len(y) {
		return false
	}
	if len(x) == 0 || &x[0] == &y[0] {
		return true
	}
	for i := range x {
		if x, y := &x[i], &y[i]; x.Value.kind != y.Value.kind || x.Value.num != y.Value.num || !sameText(x.Key, y.Key) || !sameText(x.Value.str, y.Value.str) {
			return false
		}
	}
	return true
}

// sameText is x == y with a look at where they lie first.
func sameText(x, y string) bool {
	return len(x) == len(y) && (unsafe.StringData(x) == unsafe.StringData(y) || x == y)
}

// hash spreads short strings over the slots. A collision only costs a copy.
func hash(s []byte) uint64 {
	const k0, k1 = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
	le, h := binary.LittleEndian, uint64(len(s))*k0
	if len(s) < 8 {
		for i := range len(s) {
			h = h<<8 ^ uint64(s[i])
		}
		return mix(h, k1)
	}
	last := le.Uint64(s[len(s)-8:])
	for ; len(s) > 8; s = s[8:] {
		h = mix(h^le.Uint64(s), k1)
	}
	return mix(h^last, k0)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
