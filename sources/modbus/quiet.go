package modbus

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/edgehost/edgehost/abi"
)

// quiet remembers the last reply to one request of a plan, so that what is the
// same, byte for byte, costs a comparison and is not decoded again: a value that
// made no record then makes none now, and one that did has been reported. It
// belongs to the source's goroutine; the bus only hands it through.
type quiet struct {
	where []extent // of the request's points: close together, and so cheap to walk
	last  data
	epoch int // of the source when last was taken; -1: nothing to compare with
}

// extent is where a point lies in a reply, in bytes or in bits.
type extent struct{ from, to uint16 }

// newQuiet returns nil when a reply that is like the last can still make
// records: a point is reported always, or anew after a time.
func newQuiet(points []Point, list []int) *quiet {
	start, _ := span(points, list)
	q := &quiet{where: make([]extent, len(list)), epoch: -1}
	for n, i := range list {
		p := &points[i]
		if p.Report != OnChange || p.Heartbeat != 0 {
			return nil
		}
		e := extent{p.Offset - start, p.Offset - start + uint16(p.Width)}
		if !p.Type.bits() {
			e = extent{2 * e.from, 2 * e.to}
		}
		q.where[n] = e
	}
	return q
}

// before returns the reply before b, with which it can be compared; ok is false
// when every point is to be looked at, because there is none, or because a point
// has been reported or become bad by another way since. b takes its place.
func (s *Source) before(b block) (last data, ok bool) {
	q := b.quiet
	if q == nil {
		return data{}, false
	}
	if b.err != nil {
		q.epoch = -1
		return data{}, false
	}
	last, ok = q.last, q.epoch == s.epoch
	q.last, q.epoch = b.data, s.epoch
	return last, ok
}

// block appends the records that b makes.
func (s *Source) block(recs []abi.Record, b block) []abi.Record {
	last, ok := s.before(b)
	if ok && bytes.Equal(last.words, b.data.words) && slices.Equal(last.bits, b.data.bits) {
		return recs
	}
	if !ok {
		for _, i := range b.points {
			recs = s.point(recs, i, b)
		}
		return recs
	}
	c := comparison{a: last, b: b.data}
	for n, i := range b.points {
		if c.differs(b.quiet.where[n]) {
			recs = s.point(recs, i, b)
		}
	}
	return recs
}

// comparison finds the extents in which two replies to one request differ. It is
// asked in the order of from.
type comparison struct {
	a, b data
	same int // bytes are equal from an earlier extent's begin up to here
}

func (c *comparison) differs(e extent) bool {
	if len(c.a.bits) > 0 {
		return c.a.bits[e.from] != c.b.bits[e.from]
	}
	if int(e.from) >= c.same {
		c.same = int(e.from) + equalBytes(c.a.words[e.from:], c.b.words[e.from:])
	}
	return int(e.to) > c.same
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
