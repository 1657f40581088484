package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
)

// chain is the modules of one pipeline, in order. run and apply are called by
// the pipeline's goroutine; offer and inUse by any.
type chain struct {
	host    *sandbox.Host
	log     *slog.Logger
	bypass  bool
	outputs map[string]uint32
	memo    *memo
	stages  []*stage
	// changed wakes the pipeline after an offer.
	changed chan struct{}
}

// stage is one module of a chain: the instance that runs, and the one that is to
// run from the next batch on.
type stage struct {
	cfg ModuleConfig

	mu   sync.Mutex
	next *loaded // offered, not yet in force
	now  *loaded // nil: never uploaded
	stat control.ModuleInUse

	// Owned by the pipeline's goroutine: until when the module is not called, by
	// its policy for faults, and why.
	openUntil time.Time
	openWait  time.Duration
	openFault *sandbox.Fault
}

// loaded is a revision made ready for one stage.
type loaded struct {
	digest   string
	module   *sandbox.Module
	instance *sandbox.Instance
}

func (l *loaded) close(ctx context.Context) error {
	if l == nil {
		return nil
	}
	return errors.Join(l.instance.Close(ctx), l.module.Close(ctx))
}

// load admits a revision and instantiates it for the stage, init included. After
// an error nothing has changed.
func (c *chain) load(ctx context.Context, st *stage, digest string, wasm []byte) (*loaded, error) {
	m, err := c.host.Compile(ctx, wasm)
	if err != nil {
		return nil, err
	}
	inst, err := m.Instantiate(ctx, sandbox.Env{Name: st.cfg.Name, Revision: digest, Config: st.cfg.Config,
		Outputs: c.outputs, KV: view{c.memo, st.cfg.Name}, Limits: st.cfg.Limits, Logger: c.log})
	if err != nil {
		return nil, errors.Join(err, m.Close(ctx))
	}
	return &loaded{digest: digest, module: m, instance: inst}, nil
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
// runs between two batches only: a batch sees one revision of a module.
func (c *chain) apply(ctx context.Context) (swapped bool) {
	for _, st := range c.stages {
		st.mu.Lock()
		old, next := st.now, st.next
		if next != nil {
			st.now, st.next = next, nil
			st.stat.Digest, st.stat.Last = next.digest, ""
		}
		st.mu.Unlock()
		if next == nil {
			continue
		}
		swapped = true
		st.openUntil, st.openWait = time.Time{}, 0
		c.log.Info("module in force", "module", st.cfg.Name, "revision", short(next.digest))
		if err := old.close(ctx); err != nil {
			c.log.Warn("old revision did not close", "module", st.cfg.Name, "error", err)
		}
	}
	return swapped
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

// row is a record on its way through the chain and the input that it stands for;
// origin -1 is none: a tick made it.
type row struct {
	origin int
	handle uint32
	rec    abi.Record
}

// rejection says why an input record cannot go on.
type rejection struct {
	module, revision, reason, text string
}

// passed is what the chain made of some records of a batch.
type passed struct {
	rows    []row
	rejects map[int]rejection // by origin
	made    []madeRejection   // rejected records that a tick made
	metrics []stageMetric
}

type madeRejection struct {
	rec abi.Record
	rejection
}

type stageMetric struct {
	st *stage
	sandbox.Metric
}

// add appends what another part of the same batch became.
func (p *passed) add(q passed) {
	p.rows = append(p.rows, q.rows...)
	for i, r := range q.rejects {
		p.rejects[i] = r
	}
	p.made = append(p.made, q.made...)
	p.metrics = append(p.metrics, q.metrics...)
}

// run sends records through all stages. base is the origin of the first. A
// *sandbox.Fault says that a module could not; then nothing has happened. An
// output to a named destination leaves the chain at once; the default output is
// the next stage's input.
func (c *chain) run(ctx context.Context, b *abi.Batch, base int) (passed, error) {
	rows := make([]row, len(b.Records))
	for i := range b.Records {
		rows[i] = row{origin: base + i, rec: b.Records[i]}
	}
	return c.pass(ctx, b, rows, 0, passed{rejects: map[int]rejection{}})
}

// tick has the module of one stage make records of none and sends them through
// the stages behind it.
func (c *chain) tick(ctx context.Context, b *abi.Batch, at int) (passed, error) {
	p := passed{rejects: map[int]rejection{}}
	st := c.stages[at]
	if st.now == nil || time.Now().Before(st.openUntil) {
		return p, nil
	}
	begin := time.Now()
	res, err := st.now.instance.Tick(ctx, b)
	st.count(time.Since(begin), res, err)
	if err != nil {
		return passed{}, c.ended(err)
	}
	rows, err := c.collect(&p, st, nil, res)
	if err != nil {
		return passed{}, c.ended(err)
	}
	return c.pass(ctx, b, rows, at+1, p)
}

// pass sends rows through the stages from one on and adds what becomes of them
// to p.
func (c *chain) pass(ctx context.Context, b *abi.Batch, rows []row, from int, p passed) (passed, error) {
	for _, st := range c.stages[from:] {
		if st.now == nil || len(rows) == 0 {
			continue
		}
		if time.Now().Before(st.openUntil) {
			rows = st.pastModule(&p, rows)
			continue
		}
		in := &abi.Batch{Seq: b.Seq, Time: b.Time, Records: make([]abi.Record, len(rows))}
		for i := range rows {
			in.Records[i] = rows[i].rec
		}
		begin := time.Now()
		res, err := st.now.instance.Process(ctx, in)
		st.count(time.Since(begin), res, err)
		if err != nil {
			return passed{}, c.ended(err)
		}
		if rows, err = c.collect(&p, st, rows, res); err != nil {
			return passed{}, c.ended(err)
		}
	}
	p.rows = append(p.rows, rows...)
	p.withhold()
	c.memo.keep()
	return p, nil
}

// ended forgets what the modules of a run that failed wrote.
func (c *chain) ended(err error) error {
	c.memo.reset()
	return err
}

// collect sorts the result of one call: side outputs and rejects go to p, the
// default output is returned. The error is a fault when the module wants to
// remember too much.
func (c *chain) collect(p *passed, st *stage, rows []row, res *sandbox.Result) ([]row, error) {
	next := make([]row, 0, len(res.Out))
	for _, o := range res.Out {
		r := row{origin: -1, handle: o.Handle, rec: o.Record}
		if o.Index >= 0 {
			r.origin = rows[o.Index].origin
		}
		if o.Handle != 0 {
			p.rows = append(p.rows, r)
			continue
		}
		next = append(next, r)
	}
	for _, r := range res.Rejects {
		p.reject(rows[r.Index], rejection{module: st.cfg.Name, revision: st.now.digest, reason: "rejected", text: r.Reason})
	}
	for _, m := range res.Metrics {
		p.metrics = append(p.metrics, stageMetric{st, m})
	}
	fits, err := c.memo.note(st.cfg.Name, res.KV)
	if err == nil && !fits {
		err = &sandbox.Fault{Class: sandbox.ClassMemory, Module: st.cfg.Name, Revision: st.now.digest,
			Message: fmt.Sprintf("the module remembers more than %d bytes of one source: delete keys or let them expire", memoQuota)}
	}
	return next, err
}

// reject notes the first reason for a row's input, or for the row itself when it
// has none.
func (p *passed) reject(r row, why rejection) {
	if r.origin < 0 {
		p.made = append(p.made, madeRejection{r.rec, why})
		return
	}
	if _, ok := p.rejects[r.origin]; !ok {
		p.rejects[r.origin] = why
	}
}

// pastModule is what happens to rows while the module is not called: they go on
// without it, or to the dead-letter queue.
func (st *stage) pastModule(p *passed, rows []row) []row {
	if st.cfg.OnFault == FaultBypass {
		return rows
	}
	for _, r := range rows {
		p.reject(r, faultRejection(st.openFault))
	}
	return nil
}

func faultRejection(f *sandbox.Fault) rejection {
	return rejection{module: f.Module, revision: f.Revision, reason: "module_" + string(f.Class), text: f.Error()}
}

// open stops calling the module of a fault for a while, if its policy is another
// than to hold the pipeline, and reports whether it did.
func (c *chain) open(f *sandbox.Fault) bool {
	for _, st := range c.stages {
		if st.cfg.Name == f.Module && (st.cfg.OnFault == FaultBypass || st.cfg.OnFault == FaultDeadLetter) {
			st.openWait = min(max(2*st.openWait, retryFirst), retryMax)
			st.openUntil, st.openFault = time.Now().Add(st.openWait), f
			c.log.Warn("module is not called for a while", "module", st.cfg.Name, "policy", st.cfg.OnFault, "until", st.openUntil, "fault", f)
			return true
		}
	}
	return false
}

// withhold takes back the outputs of rejected records: what is dead-lettered is
// the input, and replaying it makes all of its outputs again.
func (p *passed) withhold() {
	if len(p.rejects) == 0 {
		return
	}
	kept := p.rows[:0]
	for _, r := range p.rows {
		if _, rejected := p.rejects[r.origin]; !rejected {
			kept = append(kept, r)
		}
	}
	p.rows = kept
}

// count notes one call for the status.
func (st *stage) count(d time.Duration, res *sandbox.Result, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.stat.Calls++
	st.stat.Seconds += d.Seconds()
	st.stat.Memory = st.now.instance.MemoryBytes()
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
		st.mu.Unlock()
		s.Name = st.cfg.Name
		out = append(out, s)
	}
	return out
}

// reload makes fresh instances of the stages that run: guest memory is a cache,
// and a module that faults may be well again with an empty one.
func (c *chain) reload(ctx context.Context) error {
	for _, st := range c.stages {
		if st.now == nil {
			continue
		}
		inst, err := st.now.module.Instantiate(ctx, sandbox.Env{Name: st.cfg.Name, Revision: st.now.digest, Config: st.cfg.Config,
			Outputs: c.outputs, KV: view{c.memo, st.cfg.Name}, Limits: st.cfg.Limits, Logger: c.log})
		if err != nil {
			return fmt.Errorf("instantiate module %s: %w", st.cfg.Name, err)
		}
		old := st.now.instance
		st.now.instance = inst
		if err := old.Close(ctx); err != nil {
			c.log.Warn("old instance did not close", "module", st.cfg.Name, "error", err)
		}
	}
	return nil
}

// close releases all instances.
func (c *chain) close(ctx context.Context) error {
	var errs []error
	for _, st := range c.stages {
		errs = append(errs, st.next.close(ctx), st.now.close(ctx))
		st.next, st.now = nil, nil
	}
	return errors.Join(errs...)
}
