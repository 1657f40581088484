package sources

import (
	"bytes"
	"cmp"
	"container/list"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// PointNote is what a Watch wants to know of one point after a restart. It is
// stored in the commit that makes the records durable by which it came about, so
// it is as true as they are after a crash. A nil Value: nothing, any more.
type PointNote struct {
	Key   string
	Value []byte
}

// kept is what the notes say of a point. Only a change of it is a note, so that
// points that go on speaking, or go on being silent, cost nothing.
type kept uint8

const (
	keptNot    kept = iota // no note: the point is not known, is bad, or nothing is asked of it
	keptLive               // it speaks
	keptSilent             // its silence was reported
	keptUnsure             // a note was not stored, or was; the next record makes one
)

// wanted is what is to be kept of a point with this home.
func (s *points) wanted(home *list.List) kept {
	switch home {
	case s.bad:
		return keptNot
	case s.silent:
		return keptSilent
	}
	return keptLive
}

// unsure says that the last notes of points may not be stored.
func unsure(ps []*point) {
	for _, p := range ps {
		p.kept = keptUnsure
	}
}

// The form of a note: version u8 | kept u8 | seen i64 | event i64 | rest, times
// in microseconds since the Unix epoch, little-endian.
const (
	noteVersion = 1
	noteHead    = 2 + 8 + 8
)

// note is the note that says of p what p.kept says.
func (p *point) note() PointNote {
	if p.kept == keptNot {
		return PointNote{Key: p.key}
	}
	b := make([]byte, 0, noteHead+len(p.rest))
	b = append(b, noteVersion, byte(p.kept))
	b = binary.LittleEndian.AppendUint64(b, uint64(Micros(p.seen)))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.event))
	return PointNote{p.key, append(b, p.rest...)}
}

// readNote makes a point of a note. A point that spoke is taken as heard at now,
// since nobody listened before.
func readNote(key string, b []byte, now time.Time) (*point, error) {
	if len(b) <= noteHead || b[0] != noteVersion || (kept(b[1]) != keptLive && kept(b[1]) != keptSilent) {
		return nil, fmt.Errorf("note of a point: %d bytes of a form that is not known", len(b))
	}
	p := &point{key: key, kept: kept(b[1]), seen: now, start: true, rest: bytes.Clone(b[noteHead:])}
	if p.kept == keptSilent {
		p.seen, p.start = time.UnixMicro(int64(binary.LittleEndian.Uint64(b[2:]))), false
		p.event = int64(binary.LittleEndian.Uint64(b[10:]))
	}
	return p, nil
}

// forgetSilent is how long a point must have been silent to be forgotten at a
// start: a sensor that was taken away is not to make its source degraded for ever.
const forgetSilent = 7 * 24 * time.Hour

// Recall has the Watch know the points of before a restart. scan calls its
// argument for every note that is stored; their order does not matter. What is
// returned is of no use any more and is to be stored like the notes of a batch.
// It is called once, before Emit and Run. After an error, of scan, no point is
// known.
//
// Silence of a point that spoke before counts from now on: nobody listened in
// between. A point whose silence was reported stays silent and is not reported
// again, and is forgotten when it was a week ago.
func (w *Watch) Recall(scan func(func(key string, value []byte) error) error) (forget []PointNote, err error) {
	now := time.Now()
	var found []*point
	err = scan(func(key string, value []byte) error {
		p, err := readNote(key, value, now)
		if err == nil && w.period() > 0 && len(found) < w.cfg.MaxPoints && w.points.watches(p) && now.Sub(p.seen) < forgetSilent {
			found = append(found, p)
			return nil
		}
		if err != nil {
			w.log.Warn("a point of before the restart is forgotten", "error", err)
		}
		forget = append(forget, PointNote{Key: key})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the points of before the restart: %w", err)
	}
	slices.SortFunc(found, func(a, b *point) int { return cmp.Or(a.seen.Compare(b.seen), strings.Compare(a.key, b.key)) })
	w.mu.Lock()
	for _, p := range found {
		home := w.points.live[p.rule]
		if p.kept == keptSilent {
			home = w.points.silent
		}
		w.points.put(p, home)
	}
	w.mu.Unlock()
	w.report()
	return forget, nil
}

// watches finds the rule for a point and reports whether it asks anything of it.
func (s *points) watches(p *point) bool {
	recs, err := abi.DecodeRecords(p.rest)
	if err != nil || len(recs) != 1 {
		return false
	}
	p.rule = s.rule(recs[0].Address)
	return s.rules[p.rule].After > 0
}
