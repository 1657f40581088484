package opcua

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// maxBatch is the most records of one batch, and linger how long a record waits
// for others.
const (
	maxBatch = 500
	linger   = 50 * time.Millisecond
)

// mark says that a batch ends the notification seq of sub.
type mark struct {
	sub *subscription
	seq uint32
}

// message is records on the way to the pipeline. Records without a mark (polled
// values, history) need no acknowledgement by the server.
type message struct {
	records []abi.Record
	mark    *mark
	head    *resumePoint // not nil: subscriptions or items changed
}

// flight is a batch that the pipeline has, and has not called durable yet.
type flight struct {
	batch   sources.Batch
	marks   []mark
	settled bool
	failed  bool
}

// flights are the batches in the air, in the order in which they were emitted:
//
//	settled│settled│ failed │ waiting │ …
//	└── acknowledged ─┘ ^ emitted again by the next Run
//
// The pipeline's goroutine settles; the engine asks.
type flights struct {
	mu   sync.Mutex
	list []*flight
	// news is signalled when something became durable, broken when a batch came
	// back.
	news, broken chan struct{}
}

func newFlights() *flights {
	return &flights{news: make(chan struct{}, 1), broken: make(chan struct{}, 1)}
}

func (f *flights) start(b sources.Batch, marks []mark) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := &flight{batch: b, marks: marks}
	f.list = append(f.list, fl)
	return fl
}

// settle takes the verdict on one batch. What is durable up to the front of the
// list may be acknowledged.
func (f *flights) settle(fl *flight, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && !errors.Is(err, sources.ErrDropped) {
		fl.failed = true
		signal(f.broken)
		return
	}
	fl.settled = true
	for len(f.list) > 0 && f.list[0].settled {
		for _, m := range f.list[0].marks {
			m.sub.durable.Store(m.seq)
		}
		f.list = f.list[1:]
	}
	signal(f.news)
}

// abandon marks a batch that was never handed over.
func (f *flights) abandon(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.failed = true
}

// returned lists the batches that are ours again.
func (f *flights) returned() []*flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.list), func(fl *flight) bool { return !fl.failed })
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// emitter gathers messages into batches and emits them. It is the one goroutine
// of the source that calls emit.
type emitter struct {
	src  *Source
	emit sources.Emit
	in   chan message

	records []abi.Record
	marks   []mark
	point   resumePoint
}

// run ends with ctx or with an error of emit. What it could not hand over is
// kept in the flights for the next Run.
func (e *emitter) run(ctx context.Context) error {
	for _, fl := range e.src.flights.returned() {
		if err := e.send(ctx, fl); err != nil {
			return err
		}
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	waiting := false
	for {
		select {
		case <-ctx.Done():
			e.keep()
			return ctx.Err()
		case m := <-e.in:
			e.add(m)
			if len(e.records) >= maxBatch {
				if err := e.flush(ctx); err != nil {
					return err
				}
			}
			if !waiting && len(e.records) > 0 {
				waiting = true
				timer.Reset(linger)
			}
		case <-timer.C:
			waiting = false
			if err := e.flush(ctx); err != nil {
				return err
			}
		}
	}
}

func (e *emitter) add(m message) {
	if m.head != nil {
		e.point = *m.head
	}
	if len(e.records) == 0 {
		e.records = m.records // ours now
	} else {
		e.records = append(e.records, m.records...)
	}
	if m.mark != nil {
		e.marks = append(e.marks, *m.mark)
		e.point.advance(m.mark.sub.id, m.mark.seq)
	}
}

// take cuts what was gathered into batches. Marks and resume point go with the
// last, so that nothing is acknowledged before all of it is durable. Marks of
// notifications without records wait for the next batch.
func (e *emitter) take() []*flight {
	var out []*flight
	now := time.Now().UnixMicro()
	for len(e.records) > 0 {
		n := min(len(e.records), maxBatch)
		b := sources.Batch{Time: now, Records: slices.Clip(e.records[:n])}
		e.records = e.records[n:]
		var marks []mark
		if len(e.records) == 0 {
			marks, b.Resume = e.marks, e.point.encode()
			e.marks = nil
		}
		out = append(out, e.src.flights.start(b, marks))
	}
	e.records = nil
	return out
}

func (e *emitter) flush(ctx context.Context) error {
	list := e.take()
	for i, fl := range list {
		if err := e.send(ctx, fl); err != nil {
			for _, rest := range list[i+1:] {
				e.src.flights.abandon(rest)
			}
			return err
		}
	}
	return nil
}

func (e *emitter) send(ctx context.Context, fl *flight) error {
	e.src.flights.mu.Lock()
	fl.failed = false
	e.src.flights.mu.Unlock()
	if err := e.emit(ctx, fl.batch, func(err error) { e.src.flights.settle(fl, err) }); err != nil {
		e.src.flights.abandon(fl)
		return err
	}
	return nil
}

// keep turns what was not emitted into flights that the next Run emits.
func (e *emitter) keep() {
	for _, fl := range e.take() {
		e.src.flights.abandon(fl)
	}
}
