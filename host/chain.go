package host

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
)

// chain is the modules of one pipeline, in order. apply, take and release are
// called by the pipeline's loop; all else by any goroutine.
type chain struct {
	host    *sandbox.Host
	log     *slog.Logger
	bypass  bool
	outputs map[string]uint32
	memo    *memo
	stages  []*stage
	// changed wakes the pipeline after an offer.
	changed chan struct{}

	// now is what each stage runs, the batches that start next; never changed, only
	// replaced. Owned by the loop.
	now     []*loaded
	closing sync.WaitGroup // of revisions that nobody uses any more
}

// stage is one module of a chain: the revision that runs, and the one that is to
// run from the next batch on.
type stage struct {
	cfg ModuleConfig
	at  int // its place in the chain

	mu       sync.Mutex
	next     *loaded // offered, not yet in force
	now      *loaded // nil: never uploaded
	stat     control.ModuleInUse
	recycled uint64 // instances of the revisions before

	// Until when the module is not called, by its policy for faults, and why.
	openUntil time.Time
	openWait  time.Duration
	openFault *sandbox.Fault
}

// loaded is a revision made ready for one stage.
type loaded struct {
	digest   string
	revision *revision
	pool     *sandbox.Pool

	// Owned by the loop: batches on their way that see the revision, and whether
	// it is in force no more.
	users   int
	retired bool
}

func (l *loaded) close(ctx context.Context) error {
	if l == nil {
		return nil
	}
	return errors.Join(l.pool.Close(ctx), l.revision.release(ctx))
}

// revision is a compiled module that stages share.
type revision struct {
	module *sandbox.Module
	users  atomic.Int32
}

// newRevision has its first user.
func newRevision(m *sandbox.Module) *revision {
	r := &revision{module: m}
	r.users.Store(1)
	return r
}

// release gives a use back; the last one frees the code.
func (r *revision) release(ctx context.Context) error {
	if r.users.Add(-1) > 0 {
		return nil
	}
	return r.module.Close(ctx)
}

// load instantiates a revision for the stage, init included. After an error nothing
// has changed.
func (c *chain) load(ctx context.Context, st *stage, digest string, rev *revision) (*loaded, error) {
	pool, err := rev.module.NewPool(ctx, sandbox.Env{Name: st.cfg.Name, Revision: digest, Config: st.cfg.Config, Outputs: c.outputs,
		Limits: st.cfg.Limits, Logger: c.log, Strict: st.cfg.Strict, KV: c.memo.recall().view(st.cfg.Name)}, 0)
	if err != nil {
		return nil, err
	}
	rev.users.Add(1)
	return &loaded{digest: digest, revision: rev, pool: pool}, nil
}

// start compiles a revision and loads it for one stage.
func (c *chain) start(ctx context.Context, st *stage, digest string, wasm []byte) (*loaded, error) {
	m, err := c.host.Compile(ctx, wasm)
	if err != nil {
		return nil, err
	}
	rev := newRevision(m)
	l, err := c.load(ctx, st, digest, rev)
	return l, errors.Join(err, rev.release(ctx))
}

// short is the form of a digest for people.
func short(digest string) string { return digest[:min(12, len(digest))] }

// offer puts l in force from the next batch on.
func (c *chain) offer(ctx context.Context, st *stage, l *loaded) error {
	st.mu.Lock()
	replaced := st.next
	st.next = l
	st.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
	return replaced.close(ctx)
}

// apply puts offered revisions in force and reports whether there were any. It
// runs between two batches of the loop; those on their way end with the revisions
// that they began with.
func (c *chain) apply(ctx context.Context) (swapped bool) {
	for _, st := range c.stages {
		st.mu.Lock()
		old, next := st.now, st.next
		if next != nil {
			st.now, st.next = next, nil
			st.stat.Digest, st.stat.Last = next.digest, ""
			st.openUntil, st.openWait = time.Time{}, 0
			if old != nil {
				st.recycled += old.pool.Stat().Recycled
			}
		}
		st.mu.Unlock()
		if next == nil {
			continue
		}
		swapped = true
		c.log.Info("module in force", "module", st.cfg.Name, "revision", short(next.digest))
		if old != nil {
			old.retired = true
			c.closeUnused(ctx, old)
		}
	}
	if swapped || len(c.now) < len(c.stages) {
		c.now = make([]*loaded, len(c.stages))
		for i, st := range c.stages {
			c.now[i] = st.now
		}
	}
	return swapped
}

// take returns the revisions that a batch is to see, by stage; nil is a module
// that was never uploaded. They stay open until release.
func (c *chain) take() []*loaded {
	for _, l := range c.now {
		if l != nil {
			l.users++
		}
	}
	return c.now
}

func (c *chain) release(ctx context.Context, revs []*loaded) {
	for _, l := range revs {
		if l != nil {
			l.users--
			c.closeUnused(ctx, l)
		}
	}
}

// closeUnused closes a revision once no batch sees it any more. A module may take
// its time to stop, and nobody waits for it.
func (c *chain) closeUnused(ctx context.Context, l *loaded) {
	if !l.retired || l.users > 0 {
		return
	}
	c.closing.Go(func() {
		if err := l.close(ctx); err != nil {
			c.log.Warn("old revision did not close", "revision", short(l.digest), "error", err)
		}
	})
}

// missing names the first module that was never uploaded, "" when there is none
// or the pipeline goes on without it.
func (c *chain) missing() string {
	if c.bypass {
		return ""
	}
	for _, st := range c.stages {
		if st.now == nil {
			return st.cfg.Name
		}
	}
	return ""
}

// open stops calling the module of a fault for a while, if its policy is another
// than to hold the pipeline and the revision at fault is in force, and reports
// whether it did.
func (c *chain) open(f *sandbox.Fault) bool {
	for _, st := range c.stages {
		if st.cfg.Name == f.Module && (st.cfg.OnFault == FaultBypass || st.cfg.OnFault == FaultDeadLetter) {
			return st.open(c.log, f)
		}
	}
	return false
}

func (st *stage) open(log *slog.Logger, f *sandbox.Fault) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.now == nil || st.now.digest != f.Revision {
		return false
	}
	st.openWait = min(max(2*st.openWait, retryFirst), retryMax)
	st.openUntil, st.openFault = time.Now().Add(st.openWait), f
	log.Warn("module is not called for a while", "module", st.cfg.Name, "policy", st.cfg.OnFault, "until", st.openUntil, "fault", f)
	return true
}

// opened reports whether the module is not called now, and for which fault.
func (st *stage) opened() (f *sandbox.Fault, open bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.openFault, !st.openUntil.IsZero() && time.Now().Before(st.openUntil)
}

// count notes one call for the status.
func (st *stage) count(d time.Duration, res *sandbox.Result, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.stat.Calls++
	st.stat.Seconds += d.Seconds()
	var f *sandbox.Fault
	if errors.As(err, &f) { // what is ours is not counted as the module's
		st.stat.Faults++
		st.stat.Last = f.Error()
		if st.stat.FaultsByClass == nil {
			st.stat.FaultsByClass = map[string]uint64{}
		}
		st.stat.FaultsByClass[string(f.Class)]++
	}
	if err != nil {
		return
	}
	st.openWait = 0
	st.stat.Fuel += uint64(res.Fuel)
}

// observe adds a module's own metrics to the status.
func (st *stage) observe(m sandbox.Metric) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if m.Kind == sandbox.Counter {
		if st.stat.Counters == nil {
			st.stat.Counters = map[string]float64{}
		}
		st.stat.Counters[m.Name] += m.Value
		return
	}
	if st.stat.Gauges == nil {
		st.stat.Gauges = map[string]float64{}
	}
	st.stat.Gauges[m.Name] = m.Value
}

// inUse describes the stages for the status.
func (c *chain) inUse() []control.ModuleInUse {
	var out []control.ModuleInUse
	for _, st := range c.stages {
		st.mu.Lock()
		s := st.stat
		s.FaultsByClass, s.Counters, s.Gauges = maps.Clone(s.FaultsByClass), maps.Clone(s.Counters), maps.Clone(s.Gauges)
		s.Recycled = st.recycled
		if st.now != nil {
			pool := st.now.pool.Stat()
			s.Instances, s.Memory = pool.Instances, pool.MemoryBytes
			s.Recycled += pool.Recycled
		}
		st.mu.Unlock()
		s.Name = st.cfg.Name
		out = append(out, s)
	}
	return out
}

// renew makes the stages forget their guest memory: it is a cache, and a module
// that faults may be well again with an empty one.
func (c *chain) renew(ctx context.Context) {
	for _, st := range c.stages {
		if st.now != nil {
			st.now.pool.Renew(ctx)
		}
	}
}

// close releases all instances, once no batch is on its way any more.
func (c *chain) close(ctx context.Context) error {
	c.closing.Wait()
	var errs []error
	for _, st := range c.stages {
		st.mu.Lock()
		next, now := st.next, st.now
		st.next, st.now = nil, nil
		st.mu.Unlock()
		errs = append(errs, next.close(ctx), now.close(ctx))
	}
	return errors.Join(errs...)
}
