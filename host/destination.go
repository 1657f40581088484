package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/spool"
)

// latencyBounds are the buckets of batch_latency_seconds.
var latencyBounds = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 3600}

// destination drains one queue into one sink.
//
//	queue ─reader─> batches ─Send─> stream ─Acks─> settle: refusals to the
//	  ^                                            dead-letter queue, then
//	  └──────────────── Advance <───────────────── the cursor
//
// After a stream ends, the next one begins again at the cursor: what was not
// acknowledged is sent again, with the same ids.
type destination struct {
	cfg   DestinationConfig
	h     *Host
	log   *slog.Logger
	queue *spool.Queue
	sink  *sinks.Guarded

	mu      sync.Mutex
	flight  []sent // sent and not acknowledged, in order
	wake    func() // ends the wait for a fuller batch; nil: nobody waits
	lastAck time.Time
	latency control.Histogram
	problem string // why acknowledged records cannot be settled; "": they can
}

// sent is a run of records with consecutive sequence numbers on their way.
type sent struct {
	first, end uint64    // [first, end)
	ingest     time.Time // of the oldest record
	damaged    error     // not sent: the frame does not open
}

func newDestination(h *Host, cfg DestinationConfig, q *spool.Queue) *destination {
	log := h.log.With("component", "destination", "destination", cfg.Name)
	return &destination{cfg: cfg, h: h, log: log, queue: q, sink: sinks.Guard(cfg.NewSink(), cfg.Breaker, cfg.Reconnect, log),
		latency: control.Histogram{Bounds: latencyBounds, Counts: make([]uint64, len(latencyBounds))}}
}

// run delivers until ctx ends, and then waits up to the grace period for what is
// on its way.
func (d *destination) run(ctx context.Context) {
	for ctx.Err() == nil {
		st, err := d.sink.Open(ctx)
		if err != nil {
			continue // Guard gives up only when ctx ends
		}
		d.session(ctx, st)
	}
}

// session sends from the cursor until the stream or ctx ends.
func (d *destination) session(ctx context.Context, st sinks.Stream) {
	d.mu.Lock()
	d.flight = nil
	d.mu.Unlock()
	sendCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		for a := range st.Acks() {
			d.settleAck(sendCtx, a)
		}
	})
	err := d.send(sendCtx, st)
	if err != nil && ctx.Err() == nil && sendCtx.Err() == nil {
		d.log.Warn("stream ended", "error", err)
	}
	closeCtx, stop := context.WithTimeout(context.WithoutCancel(ctx), d.h.cfg.Grace)
	defer stop()
	if err := st.Close(closeCtx); err != nil && ctx.Err() == nil {
		d.log.Debug("stream did not close", "error", err)
	}
	// The reader of Acks may have stopped early: let the stream end.
	for range st.Acks() {
		continue
	}
	wg.Wait()
}

// send reads the queue and sends it in requests of at most MaxBatch records.
func (d *destination) send(ctx context.Context, st sinks.Stream) error {
	r := d.queue.Reader(d.queue.Head())
	defer r.Close()
	head := d.queue.Head()
	var batch []sinks.Record
	var due time.Time
	for {
		recs, err := d.more(ctx, r, len(batch) > 0, due)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled):
			return err
		}
		for _, rec := range recs {
			if rec.Seq < head {
				continue // settled before the frame was opened again
			}
			if len(batch) == 0 {
				due = time.Now().Add(d.cfg.MaxWait)
			}
			if batch = append(batch, rec); len(batch) == d.cfg.MaxBatch {
				if err := d.push(ctx, st, batch); err != nil {
					return err
				}
				batch = nil
			}
		}
		if len(batch) > 0 && (d.idle() || !time.Now().Before(due)) {
			if err := d.push(ctx, st, batch); err != nil {
				return err
			}
			batch = nil
		}
	}
}

// more returns the records of the next frame. With a batch begun it waits until
// due at most, or until everything sent is acknowledged: then a small batch is
// better than a late one.
func (d *destination) more(ctx context.Context, r *spool.Reader, begun bool, due time.Time) ([]sinks.Record, error) {
	if begun {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, due)
		defer cancel()
		d.mu.Lock()
		d.wake = cancel
		idle := len(d.flight) == 0
		d.mu.Unlock()
		defer func() { d.mu.Lock(); d.wake = nil; d.mu.Unlock() }()
		if idle {
			return nil, nil
		}
	}
	f, err := r.Next(ctx)
	var damaged *spool.DamagedFrame
	if errors.As(err, &damaged) {
		d.pass(ctx, damaged.Base, damaged.Count, damaged.Err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	recs, err := decodeFrame(f.Payload, f.Base, f.Count)
	if err != nil {
		d.pass(ctx, f.Base, uint64(f.Count), err)
		return nil, nil
	}
	return recs, nil
}

func (d *destination) idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.flight) == 0
}

// push sends a batch. It is noted as on its way first: its acknowledgement may
// come before Send returns.
func (d *destination) push(ctx context.Context, st sinks.Stream, batch []sinks.Record) error {
	d.mu.Lock()
	for i := 0; i < len(batch); {
		j := i + 1
		for j < len(batch) && batch[j].Seq == batch[j-1].Seq+1 {
			j++
		}
		d.flight = append(d.flight, sent{first: batch[i].Seq, end: batch[j-1].Seq + 1, ingest: time.UnixMicro(batch[i].IngestTime)})
		i = j
	}
	d.mu.Unlock()
	if err := st.Send(ctx, batch); err != nil {
		return fmt.Errorf("send batch: %w", err)
	}
	return nil
}

// pass steps over a frame that does not open, in its turn.
func (d *destination) pass(ctx context.Context, base, count uint64, err error) {
	d.mu.Lock()
	d.flight = append(d.flight, sent{first: base, end: base + count, damaged: err})
	alone := len(d.flight) == 1
	d.mu.Unlock()
	if alone {
		d.settleAck(ctx, sinks.Ack{Seq: base + count - 1})
	}
}

// settleAck settles until it succeeds: what was acknowledged must not be sent
// again because the dead-letter queue is full. Meanwhile the window fills and
// the destination is held.
func (d *destination) settleAck(ctx context.Context, a sinks.Ack) {
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 10*time.Second) {
		err := d.settle(ctx, a)
		if err == nil {
			d.setProblem("")
			return
		}
		d.setProblem(err.Error())
		d.log.Error("acknowledged records cannot be settled; the destination waits", "error", err, "retry_in", delay)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}

// settle takes an acknowledgement: refused and damaged records are dead-lettered
// first, then the cursor moves.
func (d *destination) settle(ctx context.Context, a sinks.Ack) error {
	runs := d.covered(a.Seq)
	if len(runs) == 0 {
		return nil
	}
	var s spool.Settled
	letters, err := d.refused(ctx, a.Refused)
	if err != nil {
		return err
	}
	for _, run := range runs {
		n := run.end - run.first
		if run.damaged != nil {
			letters = append(letters, d.damagedLetter(run))
			s.DeadLettered += n
			continue
		}
		s.Delivered += n
	}
	s.Delivered -= uint64(len(a.Refused))
	s.DeadLettered += uint64(len(a.Refused))
	if len(letters) > 0 {
		if err := d.h.dlq.Put(ctx, letters...); err != nil {
			return fmt.Errorf("dead-letter refused records: %w", err)
		}
	}
	if err := d.queue.Advance(runs[len(runs)-1].end, s); err != nil {
		return fmt.Errorf("move cursor: %w", err)
	}
	d.observe(a.Seq, runs)
	return nil
}

// covered lists what an acknowledgement up to seq settles. A damaged frame is
// settled with what was sent before it.
func (d *destination) covered(seq uint64) []sent {
	d.mu.Lock()
	defer d.mu.Unlock()
	var runs []sent
	for _, s := range d.flight {
		if s.damaged == nil && s.end-1 > seq {
			if s.first <= seq {
				runs = append(runs, sent{first: s.first, end: seq + 1, ingest: s.ingest})
			}
			break
		}
		runs = append(runs, s)
	}
	return runs
}

// observe takes settled runs off the flight, notes their latency, and lets a
// small batch go when nothing is on its way any more.
func (d *destination) observe(seq uint64, runs []sent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, run := range runs {
		if d.flight[0].end > run.end {
			d.flight[0].first = seq + 1
			break
		}
		d.flight = d.flight[1:]
	}
	now := time.Now()
	for _, run := range runs {
		if run.damaged != nil {
			continue
		}
		d.lastAck = now
		seconds := now.Sub(run.ingest).Seconds()
		d.latency.Count++
		d.latency.Sum += seconds
		for i, bound := range latencyBounds {
			if seconds <= bound {
				d.latency.Counts[i]++
			}
		}
	}
	if len(d.flight) == 0 && d.wake != nil {
		d.wake()
	}
}

// refused makes letters of refused records; their contents are read from the
// queue again, for refusals are rare.
func (d *destination) refused(ctx context.Context, refusals []sinks.Refusal) ([]spool.Letter, error) {
	var letters []spool.Letter
	for _, ref := range refusals {
		rec, err := d.find(ctx, ref.Seq)
		if err != nil {
			return nil, fmt.Errorf("read refused record %d: %w", ref.Seq, err)
		}
		var pk packer
		pk.add(rec.ID, &rec.Record)
		l := d.letter(ref.Seq, ref.Reason, ref.Err.Error())
		l.Source, l.Payload, l.Count = rec.Source, pk.payload(), 1
		letters = append(letters, l)
	}
	return letters, nil
}

// find reads one waiting record.
func (d *destination) find(ctx context.Context, seq uint64) (sinks.Record, error) {
	r := d.queue.Reader(seq)
	defer r.Close()
	for {
		f, err := r.Next(ctx)
		if err != nil {
			return sinks.Record{}, err
		}
		if f.Base+uint64(f.Count) <= seq {
			continue
		}
		if f.Base > seq {
			return sinks.Record{}, errors.New("it is not in the queue")
		}
		recs, err := decodeFrame(f.Payload, f.Base, f.Count)
		if err != nil {
			return sinks.Record{}, err
		}
		return recs[seq-f.Base], nil
	}
}

func (d *destination) letter(seq uint64, reason, text string) spool.Letter {
	now := time.Now().UnixMicro()
	return spool.Letter{Owner: d.h.requeue.owner(), Origin: "queue/" + d.cfg.Name, Key: strconv.FormatUint(seq, 10),
		Time: now, FirstTime: now, Attempts: 1, Reason: reason, Error: text, Destination: d.cfg.Name}
}

func (d *destination) damagedLetter(run sent) spool.Letter {
	l := d.letter(run.first, "tamper_or_corrupt", run.damaged.Error())
	l.Count = int(run.end - run.first)
	return l
}

func (d *destination) setProblem(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.problem = s
}
