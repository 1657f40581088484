package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
		Outputs: c.outputs, Limits: st.cfg.Limits, Logger: c.log})
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

// row is a record on its way through the chain and the input that it stands for.
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
}

// run sends records through all stages. base is the origin of the first. A
// *sandbox.Fault says that a module could not; then nothing has happened. An
// output to a named destination leaves the chain at once; the default output is
// the next stage's input.
func (c *chain) run(ctx context.Context, b *abi.Batch, base int) (passed, error) {
	p := passed{rejects: map[int]rejection{}}
	rows := make([]row, len(b.Records))
	for i := range b.Records {
		rows[i] = row{origin: base + i, rec: b.Records[i]}
	}
	for _, st := range c.stages {
		if st.now == nil || len(rows) == 0 {
			continue
		}
		in := &abi.Batch{Seq: b.Seq, Time: b.Time, Records: make([]abi.Record, len(rows))}
		for i := range rows {
			in.Records[i] = rows[i].rec
		}
		begin := time.Now()
		res, err := st.now.instance.Process(ctx, in)
		st.count(time.Since(begin), err)
		if err != nil {
			return passed{}, err
		}
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
			origin := rows[r.Index].origin
			if _, ok := p.rejects[origin]; !ok {
				p.rejects[origin] = rejection{module: st.cfg.Name, revision: st.now.digest, reason: "rejected", text: r.Reason}
			}
		}
		rows = next
	}
	p.rows = append(p.rows, rows...)
	p.withhold()
	return p, nil
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

func (st *stage) count(d time.Duration, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.stat.Calls++
	st.stat.Seconds += d.Seconds()
	if err != nil {
		st.stat.Faults++
		st.stat.Last = err.Error()
	}
}

// inUse describes the stages for the status.
func (c *chain) inUse() []control.ModuleInUse {
	var out []control.ModuleInUse
	for _, st := range c.stages {
		st.mu.Lock()
		s := st.stat
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
			Outputs: c.outputs, Limits: st.cfg.Limits, Logger: c.log})
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
