package isolate

import (
	"errors"
	"sync"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// place is where a batch is.
type place uint8

const (
	received place = iota // from the child, not yet with the pipeline
	emitted               // with the pipeline
	returned              // given back by the pipeline: to be emitted again
	settled               // durable or dropped; waits for those before it
)

// held is a batch that is not settled, or not in order yet.
type held struct {
	from    *process
	number  uint64
	size    int // what it takes of the window
	batch   sources.Batch
	place   place
	again   bool // it was emitted before
	dropped bool
}

// queue holds every batch from its arrival until its outcome went to the child,
// in order, over the death of the child that emitted it:
//
//	settled │ emitted │ returned │ emitted │ received │ received
//	└ popped in order ┘    ^ first to be emitted    ^ then these
type queue struct {
	mu      sync.Mutex
	list    []*held
	changed chan struct{} // closed and replaced at every change
	back    *sources.Backoff
	retryAt time.Time
	fault   error // why the pipeline gave a batch back; nil: it has not
}

func newQueue() *queue {
	return &queue{changed: make(chan struct{}),
		back: sources.ReconnectConfig{InitialDelaySeconds: 0.1, MaxDelaySeconds: 5}.Backoff()}
}

func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *queue) add(h *held) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list, h)
	q.wake()
}

// next takes the batch that is to be emitted now. When there is none, changed
// tells when to ask again, and wait, when not 0, after which time.
func (q *queue) next() (h *held, wait time.Duration, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, h := range q.list {
		if h.place != received && h.place != returned {
			continue
		}
		if wait := time.Until(q.retryAt); h.place == returned && wait > 0 {
			return nil, wait, q.changed
		}
		h.place = emitted
		return h, 0, nil
	}
	return nil, 0, q.changed
}

// giveBack notes that h is ours again; err is nil when only the run ended.
func (q *queue) giveBack(h *held, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	h.place = returned
	if err != nil {
		q.fault = err
		q.retryAt = time.Now().Add(q.back.Next())
	}
	q.wake()
}

// settle takes the outcome of h and returns what may be acknowledged now, in
// order.
func (q *queue) settle(h *held, err error) (out []*held) {
	if err != nil && !errors.Is(err, sources.ErrDropped) {
		q.giveBack(h, err)
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	h.place, h.dropped = settled, err != nil
	h.batch = sources.Batch{}
	for len(q.list) > 0 && q.list[0].place == settled {
		out = append(out, q.list[0])
		q.list[0] = nil
		q.list = q.list[1:]
	}
	if !q.has(returned) && q.fault != nil {
		q.fault = nil
		q.back.Reset()
	}
	q.wake()
	return out
}

func (q *queue) has(places ...place) bool {
	for _, h := range q.list {
		for _, p := range places {
			if h.place == p {
				return true
			}
		}
	}
	return false
}

// faulty returns why the pipeline gives batches back, nil when it does not.
func (q *queue) faulty() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.fault
}

// idle reports whether nothing waits to be emitted, and settled whether nothing
// is held at all.
func (q *queue) idle() (empty bool, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.has(received, returned), q.changed
}

func (q *queue) settled() (empty bool, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.list) == 0, q.changed
}
