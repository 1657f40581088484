package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// job is one numbered batch, or a tick, on its way. A worker owns it from the loop's
// start to its settle, the loop before and after.
type job struct {
	lane    *lane // nil: the batch comes from the held queue
	source  string
	batch   *abi.Batch
	clock   *tick // what ticks; nil: a batch
	revs    []*loaded
	probing bool

	effect  *effect // what the batch does; nil: nothing
	err     error   // why the chain cannot go on with it
	settled bool
}

// worker takes batches through the chain, one at a time. All workers of a pipeline
// do so at the same time, with batches of different sources.
type worker struct {
	p    *pipeline
	turn *turn
}

func (w *worker) run(ctx context.Context, jobs <-chan *job, results chan<- *job) {
	for j := range jobs {
		w.do(ctx, j)
		results <- j
	}
}

// do leaves in j what became of its batch.
func (w *worker) do(ctx context.Context, j *job) {
	w.turn.revs = j.revs
	w.turn.memo.begin(j.source, j.batch.Time)
	var out passed
	if j.clock != nil {
		begin := time.Now()
		if out, j.err = w.turn.tick(ctx, j.batch, j.clock.stage); j.err == nil {
			w.p.budget.good()
		} else {
			w.p.budget.fault(time.Since(begin))
		}
	} else {
		out, j.err = w.transform(ctx, j)
	}
	if j.err == nil {
		w.p.fill(j.effect, j.batch, out, j.source, w.turn.memo)
	}
}

// transform sends a batch through the chain and bisects it when a module faults,
// until each poison record stands alone and is dead-lettered. An error says that
// the budget is spent or the host itself is at fault: hold the batch.
func (w *worker) transform(ctx context.Context, j *job) (passed, error) {
	b, budget := j.batch, &w.p.budget
	all := passed{rejects: map[int]rejection{}}
	spentFaults, begin := 0, time.Now()
	var poison []*sandbox.Fault // of records that stand alone
	var part func(lo, hi int) error
	part = func(lo, hi int) error {
		began := time.Now()
		out, err := w.turn.run(ctx, &abi.Batch{Seq: b.Seq, Time: b.Time, Records: b.Records[lo:hi]}, lo)
		var fault *sandbox.Fault
		var start *startError
		switch {
		case err == nil:
			budget.good()
			all.add(out)
			return nil
		case !errors.As(err, &fault):
			return fmt.Errorf("run modules: %w", err)
		}
		spentFaults++
		budget.fault(time.Since(began))
		if errors.As(err, &start) || budget.spent() || spentFaults > budgetFaults || (spentFaults > 1 && time.Since(begin) > budgetTime) {
			if !w.p.chain.open(fault) {
				return fault
			}
			budget.good()
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
	if j.probing && len(poison) == len(b.Records) {
		return passed{}, poison[0] // the module, not a record, is at fault
	}
	return all, nil
}
