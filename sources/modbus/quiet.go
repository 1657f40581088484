package modbus

import (
	"bytes"
	"slices"

	"github.com/edgehost/edgehost/abi"
)

// quiet remembers the last reply to one request of a plan, so that a reply that
// is the same, byte for byte, costs one comparison and not one for each point.
// It belongs to the source's goroutine; the bus only hands it through.
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

// unchanged reports whether b can make no record, because it is like the reply
// before and no point has been reported or become bad by another way since.
func (s *Source) unchanged(b block) bool {
	q := b.quiet
	switch {
	case q == nil:
		return false
	case b.err != nil:
		q.epoch = -1
		return false
	case q.epoch == s.epoch && bytes.Equal(q.last.words, b.data.words) && slices.Equal(q.last.bits, b.data.bits):
		return true
	}
	q.last, q.epoch = b.data, s.epoch
	return false
}

// block appends the records that b makes.
func (s *Source) block(recs []abi.Record, b block) []abi.Record {
	if s.unchanged(b) {
		return recs
	}
	for _, i := range b.points {
		recs = s.point(recs, i, b)
	}
	return recs
}
