package modbus

import (
	"bytes"
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

func (e extent) same(a, b data) bool {
	if len(a.bits) > 0 {
		return a.bits[e.from] == b.bits[e.from]
	}
	return string(a.words[e.from:e.to]) == string(b.words[e.from:e.to])
}

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
	for n, i := range b.points {
		if ok && b.quiet.where[n].same(last, b.data) {
			continue
		}
		recs = s.point(recs, i, b)
	}
	return recs
}
