package sourcetest

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/edgehost/edgehost/sources"
)

// published is how many numbers a case publishes.
const published = 200

var errConsumer = errors.New("the consumer refuses this batch")

// Run checks the contract of sources against h, each part as a subtest.
func Run(t *testing.T, h Harness) {
	t.Run("accepts", func(t *testing.T) { testAccepts(t, h) })
	t.Run("fails once", func(t *testing.T) {
		testDelivers(t, h, 8, func(_ context.Context, batch int) error { return failFirst(batch, 1) })
	})
	t.Run("fails, then recovers", func(t *testing.T) {
		testDelivers(t, h, 8, func(_ context.Context, batch int) error { return failFirst(batch, 5) })
	})
	t.Run("is slow", func(t *testing.T) {
		c := testDelivers(t, h, 1, func(ctx context.Context, _ int) error { return pause(ctx, 10*time.Millisecond) })
		c.checkNoRepeats(t)
	})
	t.Run("drops", func(t *testing.T) {
		c := testDelivers(t, h, 8, func(_ context.Context, batch int) error {
			if batch%2 == 0 {
				return sources.ErrDropped
			}
			return nil
		})
		c.checkNoRepeats(t)
	})
	t.Run("withholds", func(t *testing.T) { testWithholds(t, h) })
	if h.Spoils {
		t.Run("spoils", func(t *testing.T) { testSpoils(t, h) })
	}
	t.Run("ends idle", func(t *testing.T) { testEndsIdle(t, h) })
	t.Run("ends blocked", func(t *testing.T) { testEndsBlocked(t, h) })
}

func failFirst(batch, n int) error {
	if batch < n {
		return errConsumer
	}
	return nil
}

// pause waits and reports nil: a slow consumer, not a failing one.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return nil
}

// start makes a rig and a consumer, and runs the source under its supervisor
// until the test ends. It returns when the source is connected.
func start(t *testing.T, h Harness, depth int, decide verdict) *consumer {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	rig := h.New(t)
	c := newConsumer(t, h, rig, depth, decide)
	ctx, cancel := context.WithCancel(context.Background())
	var source, pipeline sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		source.Wait()
		close(c.queue)
		pipeline.Wait()
	})
	fast := sources.ReconnectConfig{InitialDelaySeconds: 0.01, MaxDelaySeconds: 0.05}
	source.Go(func() {
		if sources.Supervise(ctx, rig.Source, c.emit, rig.Status, fast, slog.New(slog.DiscardHandler)) != nil {
			t.Error("Run did not return in time after its context had ended")
		}
	})
	pipeline.Go(func() { c.run(ctx) })
	awaitConnected(t, h, rig)
	return c
}

func awaitConnected(t *testing.T, h Harness, rig Rig) {
	t.Helper()
	h.eventually(t, "the source to connect", func() bool {
		s := rig.Status.Snapshot().State
		return s == sources.Connected || s == sources.Degraded
	})
}

func testAccepts(t *testing.T, h Harness) {
	c := start(t, h, 8, func(context.Context, int) error { return nil })
	c.rig.Publish(1, published)
	h.eventually(t, "all numbers", func() bool { return c.settled(1, published) })
	c.checkAllAcked(t, 1, published)
	c.checkNoRepeats(t)
}

// testDelivers publishes in two halves, so that there is something in flight
// and something to come whatever the verdict does.
func testDelivers(t *testing.T, h Harness, depth int, decide verdict) *consumer {
	c := start(t, h, depth, decide)
	c.rig.Publish(1, published/2)
	h.eventually(t, "the first half", func() bool { return c.settled(1, published/2) })
	c.rig.Publish(published/2+1, published)
	h.eventually(t, "all numbers", func() bool { return c.settled(1, published) })
	c.checkAllAcked(t, 1, published)
	return c
}

// checkAllAcked waits until the peer holds the acknowledgement of every number.
func (c *consumer) checkAllAcked(t *testing.T, first, last int) {
	t.Helper()
	if c.rig.Acked == nil {
		return
	}
	c.h.eventually(t, "the peer to receive all acknowledgements", func() bool {
		acked := map[int]bool{}
		for _, n := range c.rig.Acked() {
			acked[n] = true
		}
		for n := first; n <= last; n++ {
			if !acked[n] {
				return false
			}
		}
		return true
	})
}

// testWithholds holds back done while batches come in: the peer must not hear
// of them. Then it lets them go, and everything arrives.
func testWithholds(t *testing.T, h Harness) {
	release := make(chan struct{})
	held := make(chan struct{}, 1)
	c := start(t, h, 64, func(ctx context.Context, batch int) error {
		if batch == 0 {
			held <- struct{}{}
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return nil
	})
	c.rig.Publish(1, published)
	select {
	case <-held:
	case <-time.After(h.patience()):
		t.Fatal("no batch came in time")
	}
	if c.rig.Acked != nil {
		// An acknowledgement that is sent too early arrives within this time.
		<-time.After(300 * time.Millisecond)
		if acked := c.rig.Acked(); len(acked) > 0 {
			t.Errorf("%v were acknowledged while done was held back", acked)
		}
	}
	close(release)
	h.eventually(t, "all numbers", func() bool { return c.settled(1, published) })
	c.checkAllAcked(t, 1, published)
}

// testSpoils: what cannot be read is a record that is not good and holds nothing,
// and the next number is good again.
func testSpoils(t *testing.T, h Harness) {
	c := start(t, h, 8, func(context.Context, int) error { return nil })
	c.rig.Publish(1, 10)
	h.eventually(t, "good numbers", func() bool { return c.settled(10, 10) })
	c.rig.Spoil()
	h.eventually(t, "a record that is not good", func() bool { return c.notGood() > 0 })
	c.rig.Publish(11, 20)
	h.eventually(t, "good numbers again", func() bool { return c.settled(20, 20) })
	c.checkAllAcked(t, 20, 20)
}

// testEndsIdle ends a connected source that has nothing to do.
func testEndsIdle(t *testing.T, h Harness) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	rig := h.New(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	accept := func(_ context.Context, _ sources.Batch, done func(error)) error { done(nil); return nil }
	go func() { ended <- rig.Source.Run(ctx, accept) }()
	awaitConnected(t, h, rig)
	cancel()
	awaitEnd(t, h, ended)
}

// testEndsBlocked ends a source whose consumer blocks in Emit.
func testEndsBlocked(t *testing.T, h Harness) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	rig := h.New(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	blocked := make(chan struct{}, 1)
	block := func(ctx context.Context, _ sources.Batch, _ func(error)) error {
		select {
		case blocked <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return ctx.Err()
	}
	go func() { ended <- rig.Source.Run(ctx, block) }()
	awaitConnected(t, h, rig)
	rig.Publish(1, published)
	select {
	case <-blocked:
	case err := <-ended:
		cancel()
		t.Fatalf("Run returned before its context ended: %v", err)
	case <-time.After(h.patience()):
		cancel()
		t.Fatal("Emit was not called in time")
	}
	cancel()
	awaitEnd(t, h, ended)
}

func awaitEnd(t *testing.T, h Harness, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v after its context had ended, want nil or the context's error", err)
		}
	case <-time.After(h.patience()):
		t.Fatal("Run did not return after its context had ended")
	}
}
