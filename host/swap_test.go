package host

import (
	"flag"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sources"
)

// By hand, the sources emit for a time as fast as they can:
//
//	go test ./host -run SwapUnderLoad -v -swap.for=1m -swap.every=200ms
var (
	swapFor   = flag.Duration("swap.for", 0, "how long TestSwapUnderLoad emits; 0: until each pair of revisions was seen")
	swapEvery = flag.Duration("swap.every", 200*time.Millisecond, "how often TestSwapUnderLoad swaps meanwhile")
)

// swapCheck looks at every row as it is delivered: none lost, none doubled, none
// out of order, none of a batch that saw two revisions of a module.
type swapCheck struct {
	rows    int
	next    map[string]int64 // event time of the row that must come, by source
	batch   map[string]swapBatch
	batches int
	seen    map[float64]int // batches by the pair of revisions
	all     atomic.Bool     // all four pairs were seen
	wrong   []string
}

type swapBatch struct {
	number uint64
	value  float64
}

func (c *swapCheck) row(r sinks.Record) {
	c.rows++
	if r.EventTime != c.next[r.Source] {
		c.wrong = append(c.wrong, fmt.Sprintf("source %s: row %d comes where %d should", r.Source, r.EventTime, c.next[r.Source]))
	}
	c.next[r.Source] = r.EventTime + 1
	b, v := c.batch[r.Source], r.Value.AsFloat()
	switch {
	case b.number != r.ID.Batch:
		c.batches++
		c.seen[v]++
		c.all.Store(len(c.seen) >= 4)
		c.batch[r.Source] = swapBatch{r.ID.Batch, v}
	case b.value != v:
		c.wrong = append(c.wrong, fmt.Sprintf("source %s: batch %d saw revisions %v and %v", r.Source, b.number, b.value, v))
	}
}

// verdict compares what was delivered with what was emitted.
func (c *swapCheck) verdict(t *testing.T, batches, rows int) {
	t.Helper()
	if len(c.wrong) > 0 {
		t.Errorf("%d rows are wrong, the first: %s", len(c.wrong), c.wrong[0])
	}
	if c.rows != rows || c.batches != batches {
		t.Errorf("%d rows in %d batches, want %d in %d", c.rows, c.batches, rows, batches)
	}
	for v := range c.seen {
		if v != 11 && v != 12 && v != 21 && v != 22 {
			t.Errorf("value %v is of no pair of revisions", v)
		}
	}
	if !c.all.Load() {
		t.Errorf("only the pairs %v of revisions were seen", c.seen)
	}
}

// pulse measures the longest time in which no batch was settled.
type pulse struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
}

func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.last.IsZero() {
		p.longest = max(p.longest, now.Sub(p.last))
	}
	p.last = now
}

// TestSwapUnderLoad pushes revisions of two modules in turn while four sources
// emit: none is lost, none doubled, none half of one revision and half of another.
func TestSwapUnderLoad(t *testing.T) {
	const sourcesN, batches, size = 4, 150, 20
	check := &swapCheck{next: map[string]int64{}, batch: map[string]swapBatch{}, seen: map[float64]int{}}
	r := newRig(t, "m", "n").wide(sourcesN, 4)
	r.retain = 0
	r.main.watch = check.row
	r.start()
	r.push("m", "stamp1")
	r.push("n", "add10")
	begin := time.Now()
	var beat pulse
	var sending, settling sync.WaitGroup
	var sent [sourcesN]int
	for k, f := range r.feeds {
		emitted := make(chan struct{}, 1<<16)
		sending.Go(func() {
			defer close(emitted)
			for sent[k] < batches || time.Since(begin) < *swapFor || (!check.all.Load() && time.Since(begin) < 30*time.Second) {
				f.in <- sources.Batch{Time: 1, Records: recsOf(r.cfg.Sources[k], "a", sent[k]*size, size)}
				emitted <- struct{}{}
				sent[k]++
			}
		})
		settling.Go(func() {
			for range emitted {
				r.must(f.settled(t))
				beat.beat()
			}
		})
	}
	done := make(chan struct{})
	go func() { sending.Wait(); close(done) }()
	swaps := 0
	for more := true; more; swaps++ {
		name, file := "m", []string{"stamp2", "stamp1"}[swaps/2%2]
		if swaps%2 == 1 {
			name, file = "n", []string{"add20", "add10"}[swaps/2%2]
		}
		r.push(name, file)
		var pause <-chan time.Time
		if *swapFor > 0 {
			pause = time.After(*swapEvery)
		} else {
			pause = time.After(time.Millisecond)
		}
		select {
		case <-done:
			more = false
		case <-pause:
		}
	}
	settling.Wait()
	s := r.until("everything delivered", func(s control.Status) bool { return s.Ledger.Waiting == 0 })
	r.stop()
	total := 0
	for k, n := range sent {
		total += n
		if got := check.next[r.cfg.Sources[k]]; got != int64(n*size) {
			t.Errorf("source %s emitted %d rows, %d were delivered", r.cfg.Sources[k], n*size, got)
		}
	}
	check.verdict(t, total, total*size)
	if !s.Ledger.Balanced {
		t.Errorf("ledger %+v", s.Ledger)
	}
	t.Logf("%d batches, %d rows, %d swaps, at most %s without a settled batch; batches by revisions %v",
		total, check.rows, swaps, beat.longest.Round(time.Microsecond), check.seen)
}

// TestOldRevisionDrains: a revision that is in force no more serves the batches that
// began with it, and is closed after the last.
func TestOldRevisionDrains(t *testing.T) {
	r := newRig(t).start()
	st := &stage{cfg: ModuleConfig{Name: "m"}}
	c := &chain{host: r.box, log: slog.New(slog.DiscardHandler), memo: newMemo(r.host.state, "drain"), stages: []*stage{st}, changed: make(chan struct{}, 1)}
	inForce := func(file string) {
		t.Helper()
		l, err := c.start(t.Context(), st, file, wasm(t, file))
		r.must(err)
		r.must(c.offer(t.Context(), st, l))
		if !c.apply(t.Context()) {
			t.Fatal("an offered revision is not in force")
		}
	}
	lends := func(l *loaded) bool {
		i, err := l.pool.Get(t.Context(), nil)
		if err == nil {
			l.pool.Put(t.Context(), i)
		}
		return err == nil
	}
	inForce("stamp1")
	first, second := c.take(), c.take()
	inForce("stamp2")
	c.release(t.Context(), first)
	c.closing.Wait()
	if !lends(second[0]) {
		t.Error("the old revision is closed before its last batch has ended")
	}
	c.release(t.Context(), second)
	c.closing.Wait()
	if lends(first[0]) {
		t.Error("the old revision is not closed after its last batch")
	}
	if now := c.take(); now[0].digest != "stamp2" || !lends(now[0]) {
		t.Error("the new revision is not in force")
	}
	r.must(c.close(t.Context()))
}

// TestFailedBatchTriesTheNewRevision: a batch that failed with a revision that was
// replaced meanwhile is tried with the new one before anything is held.
func TestFailedBatchTriesTheNewRevision(t *testing.T) {
	r := newRig(t, "m").wide(2, 2)
	r.cfg.Modules[0].Limits = sandbox.Limits{Deadline: time.Second, Fuel: 1 << 50}
	r.start()
	r.push("m", "loop")
	r.feed.send(t, recs("a", 0, 40)...)
	r.until("called", func(s control.Status) bool { return s.Pipelines[0].Modules[0].Calls > 0 })
	r.push("m", "stamp1")
	r.must(r.feed.settled(t))
	r.main.wait(t, 40)
	r.balanced(control.Ledger{Read: 40, Delivered: 40})
	r.host.books.RLock()
	defer r.host.books.RUnlock()
	if r.host.pipelines[0].commit.book.HeldHead != 0 {
		t.Error("the batch was held")
	}
}
