package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
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

// faultBudget counts faults since the last call that went well.
type faultBudget struct {
	faults int
	time   time.Duration
}

func (b *faultBudget) fault(d time.Duration) { b.faults++; b.time += d }
func (b *faultBudget) good()                 { *b = faultBudget{} }
func (b *faultBudget) spent() bool           { return b.faults >= budgetFaults || b.time >= budgetTime }

// transform sends a batch through the chain and bisects it when a module faults,
// until each poison record stands alone and is dead-lettered. An error says that
// the budget is spent or the host itself is at fault: hold the batch.
func (p *pipeline) transform(ctx context.Context, b *abi.Batch, source string) (passed, error) {
	all := passed{rejects: map[int]rejection{}}
	p.chain.memo.begin(source, b.Time)
	spentFaults, begin := 0, time.Now()
	var poison []*sandbox.Fault // of records that stand alone
	var part func(lo, hi int) error
	part = func(lo, hi int) error {
		start := time.Now()
		out, err := p.chain.run(ctx, &abi.Batch{Seq: b.Seq, Time: b.Time, Records: b.Records[lo:hi]}, lo)
		var fault *sandbox.Fault
		switch {
		case err == nil:
			p.budget.good()
			all.add(out)
			return nil
		case !errors.As(err, &fault):
			return fmt.Errorf("run modules: %w", err)
		}
		spentFaults++
		p.budget.fault(time.Since(start))
		if p.budget.spent() || spentFaults > budgetFaults || (spentFaults > 1 && time.Since(begin) > budgetTime) {
			if !p.chain.open(fault) {
				return fault
			}
			p.budget.good()
			return part(lo, hi)
		}
		if hi-lo == 1 {
			all.rejects[lo] = faultRejection(fault)
			poison = append(poison, fault)
			return nil
		}
		mid := lo + (hi-lo)/2
		if err := part(lo, mid); err != nil {
			return err
		}
		return part(mid, hi)
	}
	if len(b.Records) == 0 {
		return all, nil
	}
	if err := part(0, len(b.Records)); err != nil {
		return passed{}, err
	}
	if p.probing && len(poison) == len(b.Records) {
		return passed{}, poison[0] // the module, not a record, is at fault
	}
	p.probing = false
	return all, nil
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
	if rerr := p.chain.reload(ctx); rerr != nil {
		p.log.Error("module cannot be made afresh", "error", rerr)
	}
}

// mended forgets the back-off: another revision is in force.
func (p *pipeline) mended() {
	p.retryAt, p.retryWait = time.Time{}, 0
	p.probing = false
	p.budget.good()
}

// transformHeld transforms the first batch of the held queue. It returns false
// when ctx ended first.
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
	b := &abi.Batch{Seq: p.seq, Time: hb.time, Records: hb.records}
	out, err := p.transform(work, b, hb.source)
	if err != nil {
		p.hold(work, err)
		return true
	}
	e := &effect{seq: p.seq, heldHead: f.Base + uint64(f.Count), heldRecords: uint64(f.Count)}
	p.fill(e, b, out, hb.source)
	p.heldNow = nil
	p.heldLeft -= uint64(f.Count)
	p.retryWait = 0
	p.effects <- e
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
