package host

import (
	"context"
	"errors"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// tick is one clock of a pipeline: a module with a period, and a source whose
// state it works on. Missed ticks are not made up for.
type tick struct {
	stage  int
	source string
	every  time.Duration
	next   time.Time
}

// schedule sets the clocks of all modules with a period.
func (p *pipeline) schedule(now time.Time) {
	for i, st := range p.chain.stages {
		if st.cfg.Tick <= 0 {
			continue
		}
		for _, source := range p.cfg.Sources {
			p.ticks = append(p.ticks, tick{stage: i, source: source, every: st.cfg.Tick, next: now.Add(st.cfg.Tick)})
		}
	}
}

// wakeAt is when loop must look again though nothing came; zero is never. A
// pipeline that holds input does not tick: ticks come after what is held.
func (p *pipeline) wakeAt() time.Time {
	if p.heldLeft > 0 {
		return p.retryAt
	}
	var at time.Time
	for _, t := range p.ticks {
		if at.IsZero() || t.next.Before(at) {
			at = t.next
		}
	}
	return at
}

// tickDue runs the ticks that are due, as batches of their own.
func (p *pipeline) tickDue(ctx context.Context, now time.Time) {
	for i := range p.ticks {
		t := &p.ticks[i]
		if now.Before(t.next) {
			continue
		}
		for !now.Before(t.next) {
			t.next = t.next.Add(t.every)
		}
		p.tick(ctx, t, now)
	}
}

// tick runs one. A tick that faults loses nothing, since state is committed with
// batches; one that faults again and again is held like a batch would be.
func (p *pipeline) tick(ctx context.Context, t *tick, now time.Time) {
	p.seq++
	b := &abi.Batch{Seq: p.seq, Time: now.UnixMicro()}
	p.chain.memo.begin(t.source, b.Time)
	out, err := p.chain.tick(ctx, b, t.stage)
	if err != nil {
		p.budget.fault(time.Since(now))
		var fault *sandbox.Fault
		if p.budget.spent() && !(errors.As(err, &fault) && p.chain.open(fault)) {
			p.hold(ctx, err)
		}
		p.log.Warn("tick failed", "source", t.source, "error", err)
		return
	}
	p.budget.good()
	e := &effect{seq: p.seq, source: t.source}
	p.fill(e, b, out, t.source)
	if len(e.outputs)+len(e.kv)+len(e.letters) > 0 {
		p.effects <- e
	}
}
