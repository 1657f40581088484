package sources

import (
	"context"
	"errors"
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

// After is how long the point at address may be silent; 0: for ever.
func (c WatchConfig) After(address string) time.Duration {
	for _, r := range c.Rules {
		if Glob(r.Address, address) {
			return r.After
		}
	}
	return c.StaleAfter
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
//
// What must be known after a restart goes with the batches as notes, and comes
// back by Recall.
type Watch struct {
	cfg    WatchConfig
	status *Status
	log    *slog.Logger
	turn   chan struct{} // whose turn it is to emit: one slot

	way passage // of whoever has the turn

	mu      sync.Mutex
	points  *points
	talking bool // nothing was silent when it was last told
}

// NewWatch makes the Watch of the source that reports to st.
func NewWatch(cfg WatchConfig, st *Status, log *slog.Logger) *Watch {
	if cfg.MaxPoints <= 0 {
		cfg.MaxPoints = MaxPoints
	}
	cfg.Rules = append(slices.Clip(cfg.Rules), StaleRule{"*", cfg.StaleAfter})
	w := &Watch{cfg: cfg, status: st, log: log, turn: make(chan struct{}, 1), points: newPoints(cfg.Rules, cfg.MaxPoints), talking: true}
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
		if period == 0 {
			err := next(ctx, b, done)
			if err == nil {
				w.lag(b.Records)
			}
			return err
		}
		w.meet(b.Records)
		b.Points = w.way.notes
		if err := next(ctx, b, w.stored(done)); err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.points.turnBack(&w.way)
			return err
		}
		w.lag(b.Records)
		w.mu.Lock()
		defer w.mu.Unlock()
		now := time.Now()
		w.points.arrive(&w.way, now, now.Sub(begin) >= period)
		return nil
	}
}

// meet has the points meet records that are about to be emitted.
func (w *Watch) meet(recs []abi.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	room := w.points.beyond == 0
	w.points.meet(recs, time.Now(), &w.way)
	if room && w.points.beyond > 0 {
		w.log.Warn("too many points to watch all of them: the rest can fall silent unnoticed", "points", len(w.points.all))
	}
}

// stored returns the done of the batch that is on its way: notes that were not
// stored with it are made again.
func (w *Watch) stored(done func(error)) func(error) {
	changed := w.way.changed
	if len(changed) == 0 {
		return done
	}
	return func(err error) {
		if err != nil {
			w.mu.Lock()
			unsure(changed)
			w.mu.Unlock()
		}
		done(err)
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
		skew := r.EventTime - r.IngestTime // microseconds; a clock that was never set is centuries away
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
	w.mu.Lock()
	out, failed := w.points.due(time.Now())
	w.mu.Unlock()
	for _, err := range failed {
		w.log.Error("a silent point cannot be reported", "error", err)
	}
	if len(out.recs) == 0 {
		return false
	}
	err := next(ctx, Batch{Time: out.event, Records: out.recs, Points: out.notes}, func(err error) { w.untell(out, err) })
	w.untell(out, err)
	return err == nil && len(out.recs) == BatchRecords
}

// untell has points reported again whose records were not stored because of err.
// What was dropped by policy is not.
func (w *Watch) untell(out staleReport, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
	case errors.Is(err, ErrDropped):
		unsure(out.points)
	default:
		w.points.untell(out)
	}
}

// report tells the Status and, when it begins and when it ends, the log.
func (w *Watch) report() {
	const most = 3
	w.mu.Lock()
	s := silence{silent: w.points.silent.Len(), points: len(w.points.all), beyond: w.points.beyond}
	for e := w.points.silent.Front(); e != nil; e = e.Next() {
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
