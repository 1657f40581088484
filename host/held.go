package host

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/spool"
)

// The budget of a bisection, and of faults without one good call between them:
// beyond it the module is not fed any more and the pipeline is held.
const (
	budgetFaults = 16
	budgetTime   = 2 * time.Second
)

// The back-off with which a held pipeline tries its first batch again.
const (
	retryFirst = time.Second
	retryMax   = time.Minute
)

// faultBudget counts faults since the last call that went well, whoever's batch it
// was for.
type faultBudget struct {
	mu     sync.Mutex
	faults int
	time   time.Duration
}

func (b *faultBudget) fault(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults++
	b.time += d
}

func (b *faultBudget) good() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults, b.time = 0, 0
}

func (b *faultBudget) spent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.faults >= budgetFaults || b.time >= budgetTime
}

// hold stops feeding the modules. Input goes to the held queue until they work
// again; they are tried with a back-off, and at once after an upload or a
// rollback.
func (p *pipeline) hold(ctx context.Context, err error) {
	p.retryWait = min(max(2*p.retryWait, retryFirst), retryMax)
	p.retryAt = time.Now().Add(p.retryWait)
	p.budget.good()
	p.probing = true
	p.setState(control.PipelineHeld, err.Error()+" (input is kept; upload a mended module or roll back: edgehost module rollback NAME)")
	p.chain.renew(ctx)
}

// mended forgets the back-off: another revision is in force.
func (p *pipeline) mended() {
	p.retryAt, p.retryWait = time.Time{}, 0
	p.probing = false
	p.budget.good()
}

// transformHeld transforms the first batch of the held queue; no other is on its
// way meanwhile. It returns false when ctx ended first.
func (p *pipeline) transformHeld(ctx, work context.Context) bool {
	if p.heldNow == nil {
		f, err := p.reader.Next(ctx)
		var damaged *spool.DamagedFrame
		switch {
		case errors.As(err, &damaged):
			p.settleDamaged(damaged)
			return true
		case err != nil:
			return false
		}
		p.heldNow = &f
	}
	f := p.heldNow
	hb, err := decodeHeld(f.Payload, f.Count)
	if err != nil {
		p.settleDamaged(&spool.DamagedFrame{Base: f.Base, Count: uint64(f.Count), Err: err})
		p.heldNow = nil
		return true
	}
	p.seq++
	j := &job{source: hb.source, revs: p.chain.take(), probing: p.probing, batch: &abi.Batch{Seq: p.seq, Time: hb.time, Records: hb.records},
		effect: &effect{seq: p.seq, heldHead: f.Base + uint64(f.Count), heldRecords: uint64(f.Count)}}
	p.workers[0].do(work, j)
	p.chain.release(work, j.revs)
	if j.err != nil {
		p.hold(work, j.err)
		return true
	}
	p.probing = false
	p.heldNow = nil
	p.heldLeft -= uint64(f.Count)
	p.retryWait = 0
	p.effects <- j.effect
	return true
}

// settleDamaged dead-letters a held frame that cannot be opened any more, so
// that what is behind it goes on.
func (p *pipeline) settleDamaged(d *spool.DamagedFrame) {
	p.seq++
	n := d.Count
	p.log.Error("held batch is damaged", "records", n, "error", d.Err)
	l := p.letter(p.seq, 0, &abi.Record{}, rejection{reason: "tamper_or_corrupt", text: d.Err.Error()})
	l.Count, l.Payload = int(d.Count), nil
	p.heldLeft -= n
	p.effects <- &effect{seq: p.seq, counts: counts{Rejected: n}, letters: []spool.Letter{l},
		rejects: map[string]uint64{"tamper_or_corrupt": n}, heldHead: d.Base + n, heldRecords: n}
}
