package sourcetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
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
	spoilt   int            // records that are not good
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
		c.look(r)
		n, ok := c.rig.Number(r)
		if !ok {
			continue
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

// look holds a record to the rules that all protocols share.
func (c *consumer) look(r abi.Record) {
	if err := CheckRecord(r); err != nil {
		c.t.Error(err)
	}
	for key, want := range c.rig.Tags {
		if got, _ := r.Attr(key); got != abi.String(want) {
			c.t.Errorf("tag %s is %v in %+v, want %s", key, got, r, want)
		}
	}
	n, number := c.rig.Number(r)
	if sources.Quality(r.Status) == sources.Good {
		return
	}
	c.spoilt++
	if number {
		c.t.Errorf("number %d came in a record that is not good: %+v", n, r)
	}
}

// notGood is how many records were not good.
func (c *consumer) notGood() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spoilt
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
