package host

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// lane is the way of one source through its pipeline: one batch or tick at a time.
type lane struct {
	source  string
	waiting []item
	ticks   []*tick
	busy    bool // a worker has its batch
	ticked  bool // the last one was a tick: input comes first now
}

// maxAhead bounds the batches that are ahead of the slowest one: they wait for it
// in memory, since commits are in order.
const maxAhead = 256

// openLanes makes the lanes, the clocks of all modules with a period, and as many
// workers as may be of use.
func (p *pipeline) openLanes(now time.Time) {
	for _, source := range p.cfg.Sources {
		l := &lane{source: source}
		for i, st := range p.chain.stages {
			if st.cfg.Tick > 0 {
				l.ticks = append(l.ticks, &tick{stage: i, every: st.cfg.Tick, next: now.Add(st.cfg.Tick)})
			}
		}
		p.lanes = append(p.lanes, l)
	}
	for range max(1, min(p.h.cfg.Workers, len(p.lanes))) {
		p.workers = append(p.workers, &worker{p, p.chain.turn()})
	}
}

// free reports whether one more batch may start. While the modules are tried after
// a failure there is one at a time.
func (p *pipeline) free() bool {
	if p.probing {
		return p.flying == 0
	}
	return p.flying < len(p.workers) && len(p.order) < maxAhead
}

// dispatch starts what can start, and holds what came while older input is held.
func (p *pipeline) dispatch(ctx context.Context) {
	for p.heldLeft == 0 && p.free() {
		j := p.pick(time.Now())
		if j == nil {
			return
		}
		p.launch(ctx, j)
	}
	if p.heldLeft == 0 {
		return
	}
	for _, l := range p.lanes {
		for _, it := range l.waiting {
			j := p.input(it)
			p.order = append(p.order, j)
			p.keep(j)
		}
		l.waiting = nil
	}
	p.flush()
}

// pick numbers the batch or tick whose turn it is, nil when none can start: the
// sources take turns.
func (p *pipeline) pick(now time.Time) *job {
	for i := range p.lanes {
		at := (p.nextLane + i) % len(p.lanes)
		l := p.lanes[at]
		if l.busy {
			continue
		}
		t := l.due(now)
		var j *job
		switch {
		case t != nil && !p.stopping && !(l.ticked && len(l.waiting) > 0):
			j = p.tick(l, t, now)
		case len(l.waiting) > 0:
			j = p.input(l.waiting[0])
			l.waiting[0] = item{}
			l.waiting = l.waiting[1:]
		default:
			continue
		}
		p.nextLane = at + 1
		l.busy, l.ticked = true, j.clock != nil
		p.order = append(p.order, j)
		return j
	}
	return nil
}

// input numbers an emitted batch.
func (p *pipeline) input(it item) *job {
	p.seq++
	b := &abi.Batch{Seq: p.seq, Time: it.batch.Time, Records: it.batch.Records}
	e := &effect{seq: p.seq, source: it.lane.source, resume: it.batch.Resume,
		points: pointSets(it.lane.source, it.batch.Points), done: it.done}
	e.counts.Read = uint64(len(b.Records))
	return &job{lane: it.lane, source: it.lane.source, batch: b, effect: e}
}

// launch sends a numbered batch through the chain as it is now.
func (p *pipeline) launch(ctx context.Context, j *job) {
	j.revs, j.probing = p.chain.take(), p.probing
	p.flying++
	if p.jobs != nil {
		p.jobs <- j // there is room for all that fly
		return
	}
	p.workers[0].do(ctx, j)
	p.settle(ctx, j)
}

// settle takes a batch back from its worker.
func (p *pipeline) settle(ctx context.Context, j *job) {
	p.flying--
	p.chain.release(ctx, j.revs)
	if j.err != nil && p.heldLeft == 0 && j.clock == nil && !slices.Equal(j.revs, p.chain.now) {
		// Another revision came into force meanwhile: it may be well.
		j.err = nil
		p.launch(ctx, j)
		return
	}
	j.lane.busy = false
	switch {
	case j.clock != nil:
		p.settleTick(ctx, j)
	case j.err == nil:
		j.settled = true
		if j.probing && len(j.batch.Records) > 0 {
			p.probing = false
		}
	default:
		if p.heldLeft == 0 { // else a batch that flew beside it has said so
			p.hold(ctx, j.err)
		}
		p.keep(j)
	}
	p.flush()
}

// settleTick ends a tick. One that faults loses nothing, since state is committed
// with batches; one that faults again and again is held like a batch would be.
func (p *pipeline) settleTick(ctx context.Context, j *job) {
	j.settled = true
	if j.err == nil {
		if e := j.effect; len(e.outputs)+len(e.kv)+len(e.letters) == 0 {
			j.effect = nil
		}
		return
	}
	j.effect = nil
	p.log.Warn("tick failed", "source", j.source, "error", j.err)
	var fault *sandbox.Fault
	if slices.Equal(j.revs, p.chain.now) && p.budget.spent() && !(errors.As(j.err, &fault) && p.chain.open(fault)) {
		p.hold(ctx, j.err)
	}
}

// keep has the batch appended to the held queue.
func (p *pipeline) keep(j *job) {
	j.settled = true
	if len(j.batch.Records) > 0 {
		j.effect.hold = &heldBatch{source: j.source, time: j.batch.Time, records: j.batch.Records}
		p.heldLeft += uint64(len(j.batch.Records))
	}
}

// flush gives the committer what is settled, by number.
func (p *pipeline) flush() {
	n := 0
	for ; n < len(p.order) && p.order[n].settled; n++ {
		if e := p.order[n].effect; e != nil {
			p.effects <- e
		}
	}
	p.order = slices.Delete(p.order, 0, n)
}
