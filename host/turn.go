package host

import (
	"context"
	"fmt"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

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

// turn runs batches through the chain, one after the other. It belongs to one
// goroutine; there is one for each batch that is on its way at a time.
type turn struct {
	stages []*stage
	memo   *recall
	views  []*view   // of memo, by stage
	revs   []*loaded // what the batch sees, by stage
}

func (c *chain) turn() *turn {
	t := &turn{stages: c.stages, memo: c.memo.recall()}
	for _, st := range c.stages {
		t.views = append(t.views, t.memo.view(st.cfg.Name))
	}
	return t
}

// run sends records through all stages. base is the origin of the first. A
// *sandbox.Fault says that a module could not; then nothing has happened. An
// output to a named destination leaves the chain at once; the default output is
// the next stage's input.
func (t *turn) run(ctx context.Context, b *abi.Batch, base int) (passed, error) {
	rows := make([]row, len(b.Records))
	for i := range b.Records {
		rows[i] = row{origin: base + i, rec: b.Records[i]}
	}
	return t.pass(ctx, b, rows, 0, passed{rejects: map[int]rejection{}})
}

// tick has the module of one stage make records of none and sends them through
// the stages behind it.
func (t *turn) tick(ctx context.Context, b *abi.Batch, at int) (passed, error) {
	p := passed{rejects: map[int]rejection{}}
	st := t.stages[at]
	if _, open := st.opened(); open || t.revs[at] == nil {
		return p, nil
	}
	rows, err := t.call(ctx, st, &p, nil, b, (*sandbox.Instance).Tick)
	if err != nil {
		return passed{}, err
	}
	return t.pass(ctx, b, rows, at+1, p)
}

// pass sends rows through the stages from one on and adds what becomes of them
// to p.
func (t *turn) pass(ctx context.Context, b *abi.Batch, rows []row, from int, p passed) (passed, error) {
	for _, st := range t.stages[from:] {
		if t.revs[st.at] == nil || len(rows) == 0 {
			continue
		}
		if f, open := st.opened(); open {
			rows = st.pastModule(&p, rows, f)
			continue
		}
		in := &abi.Batch{Seq: b.Seq, Time: b.Time, Records: make([]abi.Record, len(rows))}
		for i := range rows {
			in.Records[i] = rows[i].rec
		}
		var err error
		if rows, err = t.call(ctx, st, &p, rows, in, (*sandbox.Instance).Process); err != nil {
			return passed{}, err
		}
	}
	p.rows = append(p.rows, rows...)
	p.withhold()
	t.memo.keep()
	return p, nil
}

// call makes one call of a stage's module, with an instance that its pool lends,
// and returns the default output. After an error what the run wrote is forgotten.
func (t *turn) call(ctx context.Context, st *stage, p *passed, rows []row, in *abi.Batch,
	f func(*sandbox.Instance, context.Context, *abi.Batch) (*sandbox.Result, error)) (next []row, err error) {
	defer func() {
		if err != nil {
			t.memo.reset()
		}
	}()
	rev := t.revs[st.at]
	begin := time.Now()
	i, err := rev.pool.Get(ctx, t.views[st.at])
	if err != nil {
		st.count(time.Since(begin), nil, err)
		return nil, &startError{err}
	}
	defer rev.pool.Put(ctx, i)
	res, err := f(i, ctx, in)
	st.count(time.Since(begin), res, err)
	if err != nil {
		return nil, err
	}
	return t.collect(p, st, rows, res)
}

// startError is that of a module of which no more instances start: no record is to
// blame for it.
type startError struct{ error }

func (e *startError) Unwrap() error { return e.error }

// collect sorts the result of one call: side outputs and rejects go to p, the
// default output is returned. The error is a fault when the module wants to
// remember too much.
func (t *turn) collect(p *passed, st *stage, rows []row, res *sandbox.Result) ([]row, error) {
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
		p.reject(rows[r.Index], rejection{module: st.cfg.Name, revision: t.revs[st.at].digest, reason: "rejected", text: r.Reason})
	}
	for _, m := range res.Metrics {
		p.metrics = append(p.metrics, stageMetric{st, m})
	}
	fits, err := t.memo.note(st.cfg.Name, res.KV)
	if err == nil && !fits {
		err = &sandbox.Fault{Class: sandbox.ClassMemory, Module: st.cfg.Name, Revision: t.revs[st.at].digest,
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
func (st *stage) pastModule(p *passed, rows []row, f *sandbox.Fault) []row {
	if st.cfg.OnFault == FaultBypass {
		return rows
	}
	for _, r := range rows {
		p.reject(r, faultRejection(f))
	}
	return nil
}

func faultRejection(f *sandbox.Fault) rejection {
	return rejection{module: f.Module, revision: f.Revision, reason: "module_" + string(f.Class), text: f.Error()}
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
