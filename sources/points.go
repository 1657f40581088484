package sources

import (
	"container/list"
	"fmt"
	"slices"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// points is what a Watch remembers of the points of its source. The Watch locks
// it.
type points struct {
	rules  []StaleRule // the last is for all that no other fits
	most   int
	all    map[string]*point
	live   []*list.List // of *point, by rule; those silent longest are first
	silent *list.List   // reported; those silent longest are first
	bad    *list.List   // their last record was bad, or nothing is asked of them
	floor  time.Time    // silence counts from here on at the earliest
	beyond uint64       // records of points that did not fit
}

// point is what is remembered of one point.
type point struct {
	key   string
	rest  []byte // its record without what belongs to a value, as records rest; nil: nothing is asked of it
	rule  int    // index into rules
	home  *list.List
	at    *list.Element // in home
	seen  time.Time
	start bool  // seen is the start of the process: the point is known from before
	event int64 // time of the record that said that it is silent
	kept  kept
}

func newPoints(rules []StaleRule, most int) *points {
	s := &points{rules: rules, most: most, all: map[string]*point{}, silent: list.New(), bad: list.New()}
	for range rules {
		s.live = append(s.live, list.New())
	}
	return s
}

// look is what the attributes of a record say of it.
type look struct {
	fresh bool   // it says how its point is now, not how it was
	event bool   // it is no value of a point
	path  string // which value of its address it is
}

func lookAt(r *abi.Record) look {
	l := look{fresh: true}
	for i := range r.Attrs {
		switch a := &r.Attrs[i]; a.Key {
		case abi.AttrBackfilled, abi.AttrRetain:
			l.fresh = l.fresh && !a.Value.AsBool()
		case abi.AttrEvent:
			l.event = a.Value.AsBool()
		case abi.AttrSensorPath:
			l.path = a.Value.Text()
		}
	}
	return l
}

// passage is one batch on its way to the pipeline, as the points see it. It is
// used again for the next.
type passage struct {
	sights  []sight
	changed []*point    // what is to be kept of them is not what is kept
	notes   []PointNote // that the batch takes with it
}

// sight is a record that says something of a point.
type sight struct {
	p     *point
	home  *list.List // where p belongs once the pipeline has the record
	heard bool       // the record is a sign of life
	made  bool       // the point is known by it
}

// meet looks up the points of records that are about to be emitted, makes those
// that are new, and says what is to be kept of them with the records. arrive or
// turnBack follows.
func (s *points) meet(recs []abi.Record, now time.Time, way *passage) {
	*way = passage{sights: way.sights[:0]}
	for i := range recs {
		r := &recs[i]
		l := lookAt(r)
		if l.event {
			continue
		}
		p, made := s.find(r, l.path, now, way)
		if p == nil {
			continue
		}
		home := s.home(p, r)
		if !l.fresh && !made && (p.home != s.silent || r.EventTime < p.event) {
			continue // it is old, and nothing newer was said
		}
		way.sights = append(way.sights, sight{p, home, l.fresh || made, made})
		if want := s.wanted(home); want != p.kept {
			p.kept = want
			way.changed = append(way.changed, p)
		}
	}
	for _, p := range way.changed {
		way.notes = append(way.notes, p.note())
	}
}

// find returns the point of a record; nil when there is no room for it.
func (s *points) find(r *abi.Record, path string, now time.Time, way *passage) (p *point, made bool) {
	key := r.Address
	if path != "" {
		key += "\x00" + path
	}
	if p = s.all[key]; p != nil {
		return p, false
	}
	if len(s.all) >= s.most && !s.evict(way) {
		s.beyond++
		return nil, false
	}
	p = &point{key: key, rule: s.rule(r.Address), seen: now}
	if s.rules[p.rule].After > 0 {
		p.rest = abi.AppendRecord(nil, identity(r))
	}
	s.put(p, s.bad)
	return p, true
}

// evict makes room by forgetting the point that has been known to be silent for
// longest: when it speaks again it is a new one.
func (s *points) evict(way *passage) bool {
	e := s.silent.Front()
	if e == nil {
		return false
	}
	p := e.Value.(*point)
	if p.kept != keptSilent {
		return false // it is about to be heard again
	}
	p.kept = keptNot
	s.drop(p)
	way.notes = append(way.notes, p.note())
	return true
}

// arrive notes that the pipeline took a batch; blocked says that it took its time
// for it.
func (s *points) arrive(way *passage, now time.Time, blocked bool) {
	if blocked {
		s.floor = now
	}
	for _, at := range way.sights {
		switch {
		case at.heard:
			at.p.seen, at.p.start = now, false
			s.move(at.p, at.home, true)
		case at.p.home == s.silent:
			// It looks good and is old: what is known of the point is said again.
			s.move(at.p, at.home, false)
		}
	}
}

// turnBack notes that the pipeline did not take a batch.
func (s *points) turnBack(way *passage) {
	unsure(way.changed)
	for _, at := range way.sights {
		if at.made {
			s.drop(at.p)
		}
	}
}

// rule is the index of the rule for an address.
func (s *points) rule(address string) int {
	return slices.IndexFunc(s.rules, func(r StaleRule) bool { return Glob(r.Address, address) })
}

// home is the list in which p belongs after the record r.
func (s *points) home(p *point, r *abi.Record) *list.List {
	if p.rest == nil || Quality(r.Status) == Bad {
		return s.bad
	}
	return s.live[p.rule]
}

func (s *points) put(p *point, home *list.List) {
	s.all[p.key] = p
	p.home, p.at = home, home.PushBack(p)
}

func (s *points) drop(p *point) {
	delete(s.all, p.key)
	p.home.Remove(p.at)
	p.home = nil
}

// move puts a point at the end of a list, or at its front.
func (s *points) move(p *point, home *list.List, back bool) {
	if p.home != home {
		p.home.Remove(p.at)
		p.home, p.at = home, home.PushFront(p)
	}
	if back {
		home.MoveToBack(p.at)
	}
}

// ownKeys are the attributes that belong to a value and not to its point.
var ownKeys = []string{abi.AttrQuality, abi.AttrReason, abi.AttrStatus, abi.AttrQoS, abi.AttrRetain, abi.AttrTimestampMS, abi.AttrRawValue,
	abi.AttrScaledValue, abi.AttrRaw, abi.AttrServerTime, abi.AttrStale, abi.AttrBackfilled, abi.AttrOverflow}

// identity is r without its value and times.
func identity(r *abi.Record) *abi.Record {
	out := &abi.Record{Source: r.Source, Address: r.Address, Protocol: r.Protocol}
	for _, a := range r.Attrs {
		if !slices.Contains(ownKeys, a.Key) && !slices.Contains(valueKeys, a.Key) {
			out.Attrs = append(out.Attrs, a)
		}
	}
	return out
}

// staleReport is what is said of points that fell silent: the records, the points in
// the same order, and what is to be kept with them.
type staleReport struct {
	points []*point
	recs   []abi.Record
	notes  []PointNote
	event  int64
}

// due takes the points that are silent for too long, at most one batch of them.
// Those of which no record can be made are returned with the reason.
func (s *points) due(now time.Time) (out staleReport, failed []error) {
	out.event = Micros(now)
	for i, l := range s.live {
		after := s.rules[i].After
		for l.Len() > 0 && len(out.recs) < BatchRecords {
			p := l.Front().Value.(*point)
			from := p.seen
			if s.floor.After(from) {
				from = s.floor
			}
			if now.Sub(from) < after {
				break
			}
			r, err := p.stale(now, after)
			if err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", p.key, err))
				s.move(p, s.bad, true)
				continue
			}
			p.event, p.kept = out.event, keptSilent
			s.move(p, s.silent, true)
			out.points, out.recs, out.notes = append(out.points, p), append(out.recs, r), append(out.notes, p.note())
		}
	}
	return out, failed
}

// stale is the record that says that p is silent.
func (p *point) stale(now time.Time, after time.Duration) (abi.Record, error) {
	decoded, err := abi.DecodeRecords(p.rest)
	if err != nil || len(decoded) != 1 {
		return abi.Record{}, fmt.Errorf("read what is remembered of a point: %w", err)
	}
	r := decoded[0]
	r.EventTime, r.IngestTime = Micros(now), Micros(now)
	last := "the last at "
	if p.start {
		last = "none since the start at "
	}
	NotGood(&r, StatusBadNoCommunication, "", fmt.Sprintf("stale: no record for %v, %s%s", after, last, p.seen.UTC().Format(time.RFC3339)))
	r.Attrs = SetAttr(r.Attrs, abi.AttrStale, abi.Bool(true))
	return r, nil
}

// untell puts points back whose records were not stored: they are reported again.
func (s *points) untell(out staleReport) {
	unsure(out.points)
	for _, p := range slices.Backward(out.points) {
		if p.home == s.silent && p.event == out.event {
			s.move(p, s.live[p.rule], false)
		}
	}
}
