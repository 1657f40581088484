package sources

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// MaxPoints is how many points of one source are watched unless configured
// otherwise: a publisher may invent topics without end.
const MaxPoints = 200_000

// attrClockSkew is by how many milliseconds the event time is ahead of ours,
// when that is more than WatchConfig.MaxSkew.
const attrClockSkew = "clock_skew_ms"

// MetricSkewed counts the records whose event time is too far from ours.
const MetricSkewed = "clock_skew_total"

// WatchConfig is what is the same for the records of all protocols.
type WatchConfig struct {
	// StaleAfter is how long a point may be silent; 0: for ever.
	StaleAfter time.Duration
	// Rules replace StaleAfter for some points; the first that fits counts.
	Rules []StaleRule
	// MaxPoints bounds the memory; 0: MaxPoints of the package.
	MaxPoints int
	// MaxSkew is how far an event time may be from our clock before the record is
	// marked; 0: clocks are not compared. The value and its time stay as they are.
	MaxSkew time.Duration
	// Ingest makes the time at which edgehost received a record its event time.
	Ingest bool
}

// StaleRule is the patience with the points whose address matches.
type StaleRule struct {
	Address string        // a glob: * is any text, also none and also with slashes
	After   time.Duration // 0: for ever
}

// Watch stands between one source and its pipeline, in the host's own process.
// It is the same for every protocol: it remembers when a record of each point
// passed last, and makes one bad record of a point that has been silent for too
// long. The next record of the point ends that by being good.
//
//	source ──Emit──> Watch ──> pipeline
//	                   └─ Run: a record of status stale for each silent point, in turn with the source
//
// A point is an address, with the attribute sensor_path where the records of one
// address are told apart by it. A point is known from its first record on; events
// are none. Records that say what was (retained, back-filled) make a point known
// and do not count as a sign of life. A point whose last record was bad is not
// reported: whoever reads it knows. Time for which the pipeline kept the source
// waiting does not count as silence.
type Watch struct {
	cfg    WatchConfig
	status *Status
	log    *slog.Logger
	turn   chan struct{} // whose turn it is to emit: one slot

	mu      sync.Mutex
	points  map[string]*list.Element // of *point
	live    []*list.List             // by rule, the last for StaleAfter; those silent longest are first
	silent  *list.List               // reported; those silent longest are first
	bad     *list.List               // their last record was bad, or nothing is asked of them
	floor   time.Time                // silence counts from here on at the earliest
	beyond  uint64                   // records of points that did not fit
	talking bool                     // nothing was silent when it was last told
}

// point is what is remembered of one point.
type point struct {
	key   string
	rest  []byte // its record without what belongs to a value, as records rest
	rule  int    // index into live
	home  *list.List
	seen  time.Time
	event int64 // time of the record that said that it is silent
}

// NewWatch makes the Watch of the source that reports to st.
func NewWatch(cfg WatchConfig, st *Status, log *slog.Logger) *Watch {
	if cfg.MaxPoints <= 0 {
		cfg.MaxPoints = MaxPoints
	}
	cfg.Rules = append(slices.Clip(cfg.Rules), StaleRule{"*", cfg.StaleAfter})
	w := &Watch{cfg: cfg, status: st, log: log, turn: make(chan struct{}, 1), points: map[string]*list.Element{},
		silent: list.New(), bad: list.New(), talking: true}
	for range cfg.Rules {
		w.live = append(w.live, list.New())
	}
	st.Declare([]string{MetricReconnects}, nil)
	if cfg.MaxSkew > 0 {
		st.Declare([]string{MetricSkewed}, nil)
	}
	return w
}

// period is how often silence is looked for; 0: never.
func (w *Watch) period() time.Duration {
	var least time.Duration
	for _, r := range w.cfg.Rules {
		if r.After > 0 && (least == 0 || r.After < least) {
			least = r.After
		}
	}
	if least == 0 {
		return 0
	}
	return min(max(least/10, time.Millisecond), time.Second)
}

// take waits for the turn to emit.
func (w *Watch) take(ctx context.Context) error {
	select {
	case w.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *Watch) give() { <-w.turn }

// Emit returns the Emit of the source; next is that of the pipeline. What the
// source emits keeps its order and its done.
func (w *Watch) Emit(next Emit) Emit {
	period := w.period()
	return func(ctx context.Context, b Batch, done func(error)) error {
		begin := time.Now()
		if err := w.take(ctx); err != nil {
			return err
		}
		defer w.give()
		b.Records = w.clocks(b.Records)
		if err := next(ctx, b, done); err != nil {
			return err
		}
		w.lag(b.Records)
		if period > 0 {
			w.passed(b.Records, time.Since(begin) >= period)
		}
		return nil
	}
}

// clocks applies what is configured of event times. Records are the source's,
// so those that change are copied.
func (w *Watch) clocks(recs []abi.Record) []abi.Record {
	if !w.cfg.Ingest && w.cfg.MaxSkew == 0 {
		return recs
	}
	own := false
	for i := range recs {
		r := &recs[i]
		skew := r.EventTime - r.IngestTime // a time.Duration holds 292 years only
		replace := w.cfg.Ingest && skew != 0
		mark := w.cfg.MaxSkew > 0 && !replace && max(skew, -skew) > w.cfg.MaxSkew.Microseconds() && lookAt(r).fresh
		if !replace && !mark {
			continue
		}
		if !own {
			recs, own = slices.Clone(recs), true
			r = &recs[i]
		}
		if replace {
			r.EventTime = r.IngestTime
			continue
		}
		r.Attrs = SetAttr(slices.Clone(r.Attrs), attrClockSkew, abi.Int(skew/1000))
		w.status.Add(MetricSkewed, 1)
	}
	return recs
}

// lag notes how far the last fresh record is behind its device.
func (w *Watch) lag(recs []abi.Record) {
	if n := len(recs); n > 0 && lookAt(&recs[n-1]).fresh {
		w.status.setLag(time.Since(time.UnixMicro(recs[n-1].EventTime)))
	}
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

// passed notes records that the pipeline took; blocked says that it took its
// time for it.
func (w *Watch) passed(recs []abi.Record, blocked bool) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if blocked {
		w.floor = now
	}
	for i := range recs {
		w.note(&recs[i], now)
	}
}

// note enters one record.
func (w *Watch) note(r *abi.Record, now time.Time) {
	l := lookAt(r)
	if l.event {
		return
	}
	key := r.Address
	if l.path != "" {
		key += "\x00" + l.path
	}
	e := w.points[key]
	if e == nil {
		if len(w.points) >= w.cfg.MaxPoints {
			if w.beyond++; w.beyond == 1 {
				w.log.Warn("too many points to watch all of them: the rest can fall silent unnoticed", "points", len(w.points))
			}
			return
		}
		p := &point{key: key, rule: w.rule(r.Address), seen: now}
		if w.cfg.Rules[p.rule].After > 0 {
			p.rest = abi.AppendRecord(nil, identity(r))
		}
		w.put(p, w.home(p, r))
		return
	}
	p := e.Value.(*point)
	if !l.fresh {
		if p.home == w.silent && r.EventTime >= p.event {
			// It looks good and is old: what is known of the point is said again.
			w.move(e, w.home(p, r), false)
		}
		return
	}
	p.seen = now
	w.move(e, w.home(p, r), true)
}

// rule is the index of the rule for an address.
func (w *Watch) rule(address string) int {
	return slices.IndexFunc(w.cfg.Rules, func(r StaleRule) bool { return Glob(r.Address, address) })
}

// After is how long the point at address may be silent; 0: for ever.
func (c WatchConfig) After(address string) time.Duration {
	for _, r := range c.Rules {
		if Glob(r.Address, address) {
			return r.After
		}
	}
	return c.StaleAfter
}

// home is the list in which p belongs after the record r.
func (w *Watch) home(p *point, r *abi.Record) *list.List {
	if p.rest == nil || Quality(r.Status) == Bad {
		return w.bad
	}
	return w.live[p.rule]
}

func (w *Watch) put(p *point, home *list.List) {
	p.home = home
	w.points[p.key] = home.PushBack(p)
}

// move puts a point at the end of a list, or at its front.
func (w *Watch) move(e *list.Element, home *list.List, back bool) {
	p := e.Value.(*point)
	if p.home != home {
		p.home.Remove(e)
		p.home = home
		e = home.PushFront(p)
		w.points[p.key] = e
	}
	if back {
		home.MoveToBack(e)
	}
}

// ownKeys are the attributes that belong to a value and not to its point.
var ownKeys = []string{abi.AttrQuality, abi.AttrReason, abi.AttrStatus, abi.AttrQoS, abi.AttrRetain, abi.AttrTimestampMS, abi.AttrRawValue,
	abi.AttrScaledValue, abi.AttrRaw, abi.AttrServerTime, abi.AttrStale, abi.AttrBackfilled, abi.AttrOverflow,
	attrClockSkew, "event_time_from", "heartbeat"}

// identity is r without its value and times.
func identity(r *abi.Record) *abi.Record {
	out := &abi.Record{Source: r.Source, Address: r.Address, Protocol: r.Protocol}
	for _, a := range r.Attrs {
		if !slices.Contains(ownKeys, a.Key) {
			out.Attrs = append(out.Attrs, a)
		}
	}
	return out
}

// Run looks for silence and reports it until ctx ends. next is the Emit of the
// pipeline. It runs beside the source for as long as the host does: a source
// that is reconnecting or paused is as silent as any other.
func (w *Watch) Run(ctx context.Context, next Emit) {
	period := w.period()
	if period == 0 {
		return
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for w.sweep(ctx, next) {
		}
		w.report()
	}
}

// sweep emits at most one batch of records of points that fell silent, and
// reports whether there may be more.
func (w *Watch) sweep(ctx context.Context, next Emit) (more bool) {
	if w.take(ctx) != nil {
		return false
	}
	defer w.give()
	now := time.Now()
	keys, recs := w.due(now)
	if len(recs) == 0 {
		return false
	}
	err := next(ctx, Batch{Time: Micros(now), Records: recs}, func(err error) {
		if err != nil && !errors.Is(err, ErrDropped) {
			w.untell(keys, Micros(now))
		}
	})
	if err != nil {
		w.untell(keys, Micros(now))
		return false
	}
	return len(recs) == BatchRecords
}

// due takes the points that are silent for too long, and makes their records.
func (w *Watch) due(now time.Time) (keys []string, recs []abi.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, l := range w.live {
		after := w.cfg.Rules[i].After
		for l.Len() > 0 && len(recs) < BatchRecords {
			e := l.Front()
			p := e.Value.(*point)
			from := p.seen
			if w.floor.After(from) {
				from = w.floor
			}
			if now.Sub(from) < after {
				break
			}
			r, err := p.stale(now, after)
			if err != nil {
				w.log.Error("a silent point cannot be reported", "address", p.key, "error", err)
				w.move(e, w.bad, true)
				continue
			}
			p.event = r.EventTime
			w.move(e, w.silent, true)
			keys, recs = append(keys, p.key), append(recs, r)
		}
	}
	return keys, recs
}

// stale is the record that says that p is silent.
func (p *point) stale(now time.Time, after time.Duration) (abi.Record, error) {
	decoded, err := abi.DecodeRecords(p.rest)
	if err != nil || len(decoded) != 1 {
		return abi.Record{}, fmt.Errorf("read what is remembered of a point: %w", err)
	}
	r := decoded[0]
	r.EventTime, r.IngestTime = Micros(now), Micros(now)
	NotGood(&r, StatusBadNoCommunication, "", fmt.Sprintf("stale: no record for %v, the last at %s", after, p.seen.UTC().Format(time.RFC3339)))
	r.Attrs = SetAttr(r.Attrs, abi.AttrStale, abi.Bool(true))
	return r, nil
}

// untell puts points back whose records, of this time, were not stored: they are
// reported again.
func (w *Watch) untell(keys []string, event int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range slices.Backward(keys) {
		e := w.points[key]
		if p := e.Value.(*point); p.home == w.silent && p.event == event {
			w.move(e, w.live[p.rule], false)
		}
	}
}

// report tells the Status and, when it begins and when it ends, the log.
func (w *Watch) report() {
	const most = 3
	w.mu.Lock()
	s := silence{silent: w.silent.Len(), points: len(w.points), beyond: w.beyond}
	for e := w.silent.Front(); e != nil; e = e.Next() {
		p := e.Value.(*point)
		if s.since.IsZero() || p.seen.Before(s.since) {
			s.since = p.seen
		}
		if len(s.names) == most {
			break
		}
		s.names = append(s.names, strings.ReplaceAll(p.key, "\x00", " "))
	}
	changed := w.talking != (s.silent == 0)
	w.talking = s.silent == 0
	w.mu.Unlock()
	w.status.setSilence(s)
	switch {
	case !changed:
	case s.silent > 0:
		w.log.Warn("source has silent points", "detail", s.detail())
	default:
		w.log.Info("source has no silent points any more")
	}
}

// Glob reports whether text matches pattern, in which * is any text.
func Glob(pattern, text string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == text
	}
	text, ok := strings.CutPrefix(text, head)
	if !ok {
		return false
	}
	for {
		part, more, star := strings.Cut(rest, "*")
		if !star {
			return strings.HasSuffix(text, part)
		}
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text, rest = text[i+len(part):], more
	}
}
