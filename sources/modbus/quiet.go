package modbus

import (
	"encoding/binary"
	"iter"
	"math/bits"

	"github.com/edgehost/edgehost/abi"
)

// quiet remembers the last reply to one request of a plan, so that what is the
// same, byte for byte, costs a comparison and is not decoded again: a value that
// made no record then makes none now, and one that did has been reported. It
// belongs to the source's goroutine; the bus only hands it through.
type quiet struct {
	where []extent // of the request's points, in the order of from
	first []uint16 // by register (or bit): the first point of where that ends behind its begin
	step  int      // bytes of a register (or bit)
	last  data
	epoch int // of the source when last was taken; -1: nothing to compare with
}

// extent is where a point lies in a reply, in bytes.
type extent struct{ from, to uint16 }

// newQuiet returns nil when a reply that is like the last can still make
// records: a point is reported always, or anew after a time.
func newQuiet(points []Point, list []int) *quiet {
	start, count := span(points, list)
	q := &quiet{where: make([]extent, len(list)), first: make([]uint16, count), step: points[list[0]].Type.step(), epoch: -1}
	for n, i := range list {
		p := &points[i]
		if p.Report != OnChange || p.Heartbeat != 0 {
			return nil
		}
		from := q.step * int(p.Offset-start)
		q.where[n] = extent{uint16(from), uint16(from + q.step*p.Width)}
	}
	n := 0
	for at := range q.first {
		for int(q.where[n].to) <= q.step*at {
			n++
		}
		q.first[at] = uint16(n)
	}
	return q
}

// before returns the reply before b, with which it can be compared; ok is false
// when every point is to be looked at, because there is none, or because a point
// has been reported or become bad by another way since. b takes its place.
func (s *Source) before(b block) (last data, ok bool) {
	q := b.quiet
	if q == nil {
		return nil, false
	}
	if b.err != nil {
		q.epoch = -1
		return nil, false
	}
	last, ok = q.last, q.epoch == s.epoch
	q.last, q.epoch = b.data, s.epoch
	return last, ok
}

// block appends the records that b makes.
func (s *Source) block(recs []abi.Record, b block) []abi.Record {
	last, ok := s.before(b)
	if !ok {
		for _, i := range b.points {
			recs = s.point(recs, i, b)
		}
		return recs
	}
	for n := range b.quiet.changed(last, b.data) {
		recs = s.point(recs, b.points[n], b)
	}
	return recs
}

// changed yields the points, as indexes of where, in which two replies differ.
func (q *quiet) changed(last, now data) iter.Seq[int] {
	return func(yield func(int) bool) {
		n := 0 // the points before it are done
		for at := equalBytes(last, now); at < len(now); at += equalBytes(last[at:], now[at:]) {
			n = max(n, int(q.first[at/q.step]))
			for ; n < len(q.where) && int(q.where[n].from) <= at; n++ {
				if int(q.where[n].to) > at && !yield(n) {
					return
				}
			}
			at++
		}
	}
}

// equalBytes returns how many bytes at the begin of a and b, which are of one
// length, are equal. It takes eight at a time.
func equalBytes(a, b []byte) (n int) {
	for ; n+8 <= len(a); n += 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
	}
	for n < len(a) && a[n] == b[n] {
		n++
	}
	return n
}
