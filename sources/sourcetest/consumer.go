package sourcetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// A verdict decides what done receives for the batch with this index, counted
// from 0 over all batches of a case. It runs on the consumer's goroutine and
// may wait.
type verdict func(ctx context.Context, batch int) error

// consumer stands where the pipeline stands: it queues batches and settles them
// in order on a goroutine of its own.
type consumer struct {
	t      *testing.T
	h      Harness
	rig    Rig
	decide verdict
	queue  chan emitted

	mu       sync.Mutex
	batches  int
	first    map[string]int // highest number seen, by address
	emits    map[int]int    // how often a number was emitted
	accepted map[int]int    // how often a number was settled with nil
	dropped  map[int]bool   // numbers that were settled with ErrDropped
}

type emitted struct {
	numbers []int
	done    func(error)
}

func newConsumer(t *testing.T, h Harness, rig Rig, depth int, decide verdict) *consumer {
	return &consumer{t: t, h: h, rig: rig, decide: decide, queue: make(chan emitted, depth),
		first: map[string]int{}, emits: map[int]int{}, accepted: map[int]int{}, dropped: map[int]bool{}}
}

func (c *consumer) emit(ctx context.Context, b sources.Batch, done func(error)) error {
	if len(b.Records) == 0 {
		c.t.Error("a batch without records was emitted")
	}
	if b.Time == 0 {
		c.t.Error("a batch without a time was emitted")
	}
	e := emitted{done: done}
	c.mu.Lock()
	for _, r := range b.Records {
		n, ok := c.rig.Number(r)
		if !ok {
			continue
		}
		if r.Source == "" || r.Address == "" || r.EventTime == 0 || r.IngestTime == 0 || r.Protocol == 0 {
			c.t.Errorf("number %d came in a record without source, address, protocol or times: %+v", n, r)
		}
		if c.emits[n] == 0 && n < c.first[r.Address] {
			c.t.Errorf("%s: number %d came for the first time after number %d", r.Address, n, c.first[r.Address])
		}
		c.emits[n]++
		c.first[r.Address] = max(c.first[r.Address], n)
		e.numbers = append(e.numbers, n)
	}
	c.mu.Unlock()
	select {
	case c.queue <- e:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run settles batches until the queue is closed. Those that come after ctx has
// ended get its error, as a pipeline that stops gives it.
func (c *consumer) run(ctx context.Context) {
	for e := range c.queue {
		if ctx.Err() != nil {
			e.done(ctx.Err())
			continue
		}
		c.settle(ctx, e)
	}
}

func (c *consumer) settle(ctx context.Context, e emitted) {
	c.mu.Lock()
	batch := c.batches
	c.batches++
	c.mu.Unlock()
	err := c.decide(ctx, batch)
	c.checkUnacked(e.numbers)
	c.mu.Lock()
	for _, n := range e.numbers {
		switch {
		case err == nil:
			c.accepted[n]++
		case errors.Is(err, sources.ErrDropped):
			c.dropped[n] = true
		}
	}
	c.mu.Unlock()
	e.done(err)
}

// checkUnacked holds the source to its word: what is not settled is not
// acknowledged.
func (c *consumer) checkUnacked(numbers []int) {
	if c.rig.Acked == nil {
		return
	}
	acked := c.rig.Acked()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range numbers {
		if c.accepted[n] == 0 && !c.dropped[n] && slices.Contains(acked, n) {
			c.t.Errorf("number %d was acknowledged to the peer before done said that it is safe", n)
		}
	}
}

// settled reports whether all numbers from first to last are settled; a polled
// source only owes the last.
func (c *consumer) settled(first, last int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.h.Polled {
		first = last
	}
	for n := first; n <= last; n++ {
		if c.accepted[n] == 0 && !c.dropped[n] {
			return false
		}
	}
	return true
}

// checkNoRepeats is for cases in which nothing failed: what was accepted or
// dropped is not the source's any more.
func (c *consumer) checkNoRepeats(t *testing.T) {
	t.Helper()
	if c.h.Polled {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, times := range c.emits {
		if times > 1 {
			t.Errorf("number %d came %d times although nothing failed", n, times)
		}
	}
}

// eventually polls cond until it holds; it fails the test when its patience
// ends.
func (h Harness) eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(h.patience())
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("waited %v for: %s", h.patience(), what)
		case <-tick.C:
		}
	}
}
