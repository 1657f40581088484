package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/spool"
)

// errStopped is what emit returns once the pipeline has stopped.
var errStopped = errors.New("pipeline stopped")

// pipeline moves batches from its sources through its chain to its committer.
//
//	emit ─> in ─> loop ─> lane of each source ─> workers: chain, bisect ─> loop ─> committer.run ─> done
//	                        one batch at a time                             in order
//
// loop is one goroutine. It numbers the batches, decides what is held and which
// revision a batch sees, and gives the effects to the committer by their numbers.
// The batches of one source go through the chain one after the other, so that
// order holds; those of several sources at the same time. While the chain cannot
// go on, loop sends the input, as it came, to the held queue, and transforms that
// queue first when it can again.
type pipeline struct {
	cfg      PipelineConfig
	h        *Host
	log      *slog.Logger
	chain    *chain
	commit   *committer
	held     *spool.Queue
	byHandle map[uint32]string // destination of each output handle
	budget   faultBudget
	workers  []*worker

	in      chan item
	room    *semaphore.Weighted
	queued  atomic.Int64
	effects chan *effect
	stopped chan struct{}
	jobs    chan *job // to the workers; nil: there is one, and loop does its work
	results chan *job // from the workers

	// Owned by loop.
	seq       uint64
	lanes     []*lane
	nextLane  int    // whose turn it is
	order     []*job // numbered and not given to the committer, by number
	flying    int    // of them, those that a worker has
	stopping  bool
	heldLeft  uint64 // records in the held queue that loop has not settled
	heldNow   *spool.Stored
	reader    *spool.Reader
	retryAt   time.Time
	retryWait time.Duration
	probing   bool // a held batch is tried with the revision that failed

	mu     sync.Mutex
	state  string
	detail string
}

// item is one emitted batch on its way.
type item struct {
	lane  *lane
	batch sources.Batch
	done  func(error)
}

// heldQueue is the name of the queue that keeps a pipeline's input while its
// modules cannot go on.
func heldQueue(pipeline string) string { return "held/" + pipeline }

func (h *Host) openPipeline(ctx context.Context, pc PipelineConfig, bs *books) (*pipeline, error) {
	b, err := bs.book(pc.Name)
	if err != nil {
		return nil, err
	}
	log := h.log.With("component", "pipeline", "pipeline", pc.Name)
	held, err := h.cfg.Spool.Queue(heldQueue(pc.Name), bs.committed)
	if err != nil {
		return nil, fmt.Errorf("open held queue of %s: %w", pc.Name, err)
	}
	if head := held.Head(); head < b.HeldHead {
		// The commit record was written, the cursor file not yet.
		if err := catchUp(ctx, held, b.HeldHead); err != nil {
			return nil, fmt.Errorf("move cursor of held queue of %s: %w", pc.Name, err)
		}
	}
	m := newMemo(h.state, pc.Name)
	p := &pipeline{cfg: pc, h: h, log: log, held: held, byHandle: map[uint32]string{},
		commit: newCommitter(h, log, held, m, b), chain: &chain{host: h.cfg.Sandbox, log: log, bypass: pc.Bypass, memo: m,
			outputs: map[string]uint32{}, changed: make(chan struct{}, 1)},
		in: make(chan item, h.cfg.MemoryRecords), room: semaphore.NewWeighted(int64(h.cfg.MemoryRecords)),
		effects: make(chan *effect, 8), stopped: make(chan struct{}),
		seq: b.Seq, heldLeft: held.Stat().WaitingRecords, state: control.PipelineRunning}
	p.probing = p.heldLeft > 0
	p.openChain(ctx)
	p.openLanes(time.Now())
	return p, nil
}

// catchUp settles the records of a held queue below head.
func catchUp(ctx context.Context, held *spool.Queue, head uint64) error {
	r := held.Reader(held.Head())
	defer r.Close()
	var live uint64
	for {
		f, err := r.Next(ctx)
		var damaged *spool.DamagedFrame
		switch {
		case errors.As(err, &damaged):
			f = spool.Stored{Base: damaged.Base, Frame: spool.Frame{Count: int(damaged.Count)}}
		case err != nil:
			return err
		}
		live += uint64(f.Count)
		if f.Base+uint64(f.Count) >= head {
			return held.Advance(head, spool.Settled{Delivered: live})
		}
	}
}

// openChain loads the active revisions. One that cannot be loaded leaves its
// stage empty and the reason in the log and the status.
func (p *pipeline) openChain(ctx context.Context) {
	c := p.chain
	for _, name := range sortedKeys(p.cfg.Outputs) {
		handle := uint32(len(c.outputs) + 1)
		c.outputs[name] = handle
		p.byHandle[handle] = p.cfg.Outputs[name]
	}
	for _, mc := range p.cfg.Modules {
		st := &stage{cfg: mc, at: len(c.stages)}
		c.stages = append(c.stages, st)
		rev, ok := p.h.cfg.Modules.Active(mc.Name)
		if !ok {
			continue
		}
		wasm, err := p.h.cfg.Modules.Read(rev.Digest)
		if err == nil {
			st.next, err = c.start(ctx, st, rev.Digest, wasm)
		}
		if err != nil {
			st.stat.Last = err.Error()
			p.log.Error("module cannot be loaded; upload it again or roll back", "module", mc.Name, "error", err)
		}
	}
}

// emit returns the Emit of one source.
func (p *pipeline) emit(source string) sources.Emit {
	l := p.lanes[slices.Index(p.cfg.Sources, source)]
	return func(ctx context.Context, b sources.Batch, done func(error)) error {
		weight := int64(min(max(len(b.Records), 1), p.h.cfg.MemoryRecords))
		if err := p.room.Acquire(ctx, weight); err != nil {
			return fmt.Errorf("wait for room in pipeline %s: %w", p.cfg.Name, err)
		}
		p.queued.Add(int64(len(b.Records)))
		release := func(err error) {
			p.queued.Add(-int64(len(b.Records)))
			p.room.Release(weight)
			done(err)
		}
		select {
		case p.in <- item{l, b, release}:
			return nil
		case <-p.stopped:
		case <-ctx.Done():
		}
		p.queued.Add(-int64(len(b.Records)))
		p.room.Release(weight)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return errStopped
	}
}

// run works until ctx ends; then it transforms and commits what was emitted
// before and returns.
func (p *pipeline) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { p.commit.run(ctx, p.effects) })
	// Modules have limits of their own; a stop must not look like their fault.
	work := context.WithoutCancel(ctx)
	if n := len(p.workers); n > 1 {
		p.jobs, p.results = make(chan *job, n), make(chan *job, n)
		for _, w := range p.workers {
			wg.Go(func() { w.run(work, p.jobs, p.results) })
		}
	}
	p.reader = p.held.Reader(p.held.Head())
	p.loop(ctx, work)
	close(p.stopped)
	if p.jobs != nil {
		close(p.jobs)
	}
	close(p.effects)
	wg.Wait()
	p.reader.Close()
}

// loop is the one goroutine that numbers batches and settles them.
func (p *pipeline) loop(ctx, work context.Context) {
	first := true // what is loaded at the start is the revision of before
	for {
		if swapped := p.chain.apply(work); swapped && !first {
			p.mended()
		}
		first = false
		if name := p.chain.missing(); name != "" {
			p.setState(control.PipelineWaiting, "module "+name+" is not uploaded: edgehost module push FILE --name "+name)
			select {
			case <-p.chain.changed:
				continue
			case <-ctx.Done():
				p.refuseInput()
				return
			}
		}
		if p.heldLeft > 0 && p.flying == 0 && !time.Now().Before(p.retryAt) {
			if !p.transformHeld(ctx, work) {
				p.lastInput(work)
				return
			}
			// Keep the input moving behind the held queue, in order.
			p.takeIn(1)
			p.dispatch(work)
			continue
		}
		if p.heldLeft == 0 {
			p.setState(control.PipelineRunning, "")
		}
		p.dispatch(work)
		if !p.next(ctx, work) {
			p.lastInput(work)
			return
		}
	}
}

// next waits for whatever comes first: input, a batch that went through the chain,
// a new revision, the time of a tick or of another try of a held pipeline, the end.
func (p *pipeline) next(ctx, work context.Context) (more bool) {
	var alarm <-chan time.Time
	if at := p.wakeAt(); !at.IsZero() {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		alarm = t.C
	}
	select {
	case it := <-p.in:
		it.lane.waiting = append(it.lane.waiting, it)
	case j := <-p.results:
		p.settle(work, j)
	case <-p.chain.changed:
	case <-alarm:
	case <-ctx.Done():
		return false
	}
	return true
}

// takeIn moves up to n emitted batches into their lanes, without waiting.
func (p *pipeline) takeIn(n int) {
	for range n {
		select {
		case it := <-p.in:
			it.lane.waiting = append(it.lane.waiting, it)
		default:
			return
		}
	}
}

// lastInput works off what was emitted before the stop.
func (p *pipeline) lastInput(work context.Context) {
	p.stopping = true
	p.takeIn(cap(p.in))
	for p.dispatch(work); p.flying > 0; p.dispatch(work) {
		p.settle(work, <-p.results)
	}
}

// refuseInput gives back what waits for a module that never came.
func (p *pipeline) refuseInput() {
	for {
		select {
		case it := <-p.in:
			it.done(errStopped)
		default:
			return
		}
	}
}

// fill turns what the chain made of a batch into its effect. The classes of
// input records are counted one by one.
func (p *pipeline) fill(e *effect, b *abi.Batch, out passed, source string, r *recall) {
	produced := make([]bool, len(b.Records))
	id := sinks.ID{Pipeline: p.commit.id, Batch: e.seq}
	for i := range out.rows {
		r := &out.rows[i]
		if r.origin >= 0 {
			produced[r.origin] = true
		}
		id.Index = uint32(i)
		e.outputs = append(e.outputs, output{destination: p.destination(source, r.handle), id: id, record: r.rec})
	}
	e.counts.Emitted = uint64(len(out.rows))
	e.kv = r.accept(e.seq)
	for _, m := range out.metrics {
		m.st.observe(m.Metric)
	}
	p.fillMade(e, out.made, len(b.Records))
	for i := range b.Records {
		rej, rejected := out.rejects[i]
		switch {
		case rejected:
			p.reject(e, i, &b.Records[i], rej)
		case produced[i]:
			e.counts.Transformed++
		default:
			e.counts.Filtered++
		}
	}
}

// reject adds a dead letter to an effect.
func (p *pipeline) reject(e *effect, index int, r *abi.Record, why rejection) {
	e.counts.Rejected++
	e.letters = append(e.letters, p.letter(e.seq, index, r, why))
	if e.rejects == nil {
		e.rejects = map[string]uint64{}
	}
	e.rejects[why.reason]++
}

// fillMade dead-letters records that a tick made and a later module rejected.
// They were nobody's input, so the ledger counts them as read here.
func (p *pipeline) fillMade(e *effect, made []madeRejection, from int) {
	for i := range made {
		e.counts.Read++
		p.reject(e, from+i, &made[i].rec, made[i].rejection)
	}
}

// destination resolves an output handle for records of a source.
func (p *pipeline) destination(source string, handle uint32) string {
	if handle != 0 {
		return p.byHandle[handle]
	}
	if d, ok := p.cfg.Targets[source]; ok {
		return d
	}
	return p.cfg.Target
}

func (p *pipeline) letter(seq uint64, index int, r *abi.Record, rej rejection) spool.Letter {
	now := time.Now().UnixMicro()
	id := p.commit.id
	var pk packer
	pk.add(sinks.ID{Pipeline: id, Batch: seq, Index: uint32(index)}, r)
	return spool.Letter{Owner: spool.Owner{ID: id, Seq: seq}, Origin: "pipeline/" + p.cfg.Name,
		Key: strconv.FormatUint(seq, 10) + "/" + strconv.Itoa(index), Time: now, FirstTime: now, Attempts: 1,
		Reason: rej.reason, Error: rej.text, Source: r.Source, Pipeline: p.cfg.Name, Module: rej.module,
		Revision: rej.revision, Payload: pk.payload(), Count: 1}
}

func (p *pipeline) setState(state, detail string) {
	p.mu.Lock()
	changed := p.state != state || p.detail != detail
	p.state, p.detail = state, detail
	p.mu.Unlock()
	if changed {
		p.log.Info("pipeline state", "state", state, "detail", detail)
	}
}

func (p *pipeline) getState() (state, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.detail
}
