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
	last  data
	epoch int // of the source when last was taken; -1: nothing to compare with
}

// newQuiet returns nil when a reply that is like the last can still make
// records: a point is reported always, or anew after a time.
func newQuiet(points []Point, list []int) *quiet {
	for _, i := range list {
		if p := &points[i]; p.Report != OnChange || p.Heartbeat != 0 {
			return nil
		}
	}
	return &quiet{epoch: -1}
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
	for _, i := range b.points {
		if ok && s.points[i].same(last, b.data, b.start) {
			continue
		}
		recs = s.point(recs, i, b)
	}
	return recs
}

// same reports whether p holds the same in two replies to one request, which
// begin at start.
func (p *Point) same(a, b data, start uint16) bool {
	from := int(p.Offset - start)
	if p.Type.bits() {
		return a.bits[from] == b.bits[from]
	}
	to := 2 * (from + p.Width)
	return string(a.words[2*from:to]) == string(b.words[2*from:to])
}
