package sinks

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a Sink whose answers a test writes down.
type script struct {
	mu      sync.Mutex
	answers []error // of Open, one after the other; the last one stays
	calls   []time.Duration
	start   time.Time
	streams []*fakeStream
}

func newScript(answers ...error) *script { return &script{answers: answers, start: time.Now()} }

func (s *script) Open(context.Context) (Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, time.Since(s.start))
	err := s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
	if err != nil {
		return nil, err
	}
	st := &fakeStream{acks: NewAckQueue()}
	s.streams = append(s.streams, st)
	return st, nil
}

// gaps are the waits between the calls of Open.
func (s *script) gaps() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []time.Duration
	for i := 1; i < len(s.calls); i++ {
		out = append(out, s.calls[i]-s.calls[i-1])
	}
	return out
}

func (s *script) last() *fakeStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[len(s.streams)-1]
}

type fakeStream struct {
	acks *AckQueue
	once sync.Once
	err  error
}

func (s *fakeStream) Send(context.Context, []Record) error { return s.err }
func (s *fakeStream) Acks() <-chan Ack                     { return s.acks.C() }
func (s *fakeStream) Err() error                           { return s.err }
func (s *fakeStream) Close(context.Context) error          { s.end(nil); return nil }
func (s *fakeStream) end(err error) {
	s.once.Do(func() { s.err = err; s.acks.Close() })
}

var errDown = errors.New("connection refused")

// steady is the back-off of sinks without its randomness.
func steady() ReconnectConfig {
	c := DefaultReconnectConfig()
	c.Jitter = 0
	return c
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run opens streams for ever and hands each to use, which waits for its end.
func run(t *testing.T, g *Guarded, use func(Stream)) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			st, err := g.Open(ctx)
			if err != nil {
				return
			}
			use(st)
		}
	}()
	return func() { cancel(); <-done }
}

// untilEnd reads acks until the stream ends.
func untilEnd(st Stream) {
	for range st.Acks() {
	}
}

// A92: five failures open the breaker; no call for 60 s; one probe; closed by
// the first ack.
func TestBreakerOpensAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(errDown, errDown, errDown, errDown, errDown, nil)
		var log bytes.Buffer
		g := Guard(sink, DefaultBreakerConfig(), steady(), slog.New(slog.NewTextHandler(&log, nil)))
		stop := run(t, g, untilEnd)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		s := g.State()
		if s.State != StateCircuitOpen || s.Failures != 5 || s.Trips != 1 || !strings.Contains(s.LastError, "refused") ||
			s.NextProbe.Sub(s.OpenedAt) != 60*time.Second {
			t.Fatalf("after five failures: %+v", s)
		}
		for _, want := range []string{"circuit breaker open", "connection refused", "next_probe", "breaker reset"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log lacks %q: %s", want, &log)
			}
		}
		time.Sleep(58 * time.Second) // 60 s after it opened
		synctest.Wait()
		if n := len(sink.calls); n != 5 {
			t.Fatalf("%d calls while the breaker is open", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := g.State(); s.State != StateHalfOpen || len(sink.calls) != 6 {
			t.Fatalf("probe: %+v, %d calls", s, len(sink.calls))
		}
		sink.last().acks.Put(Ack{Seq: 1})
		synctest.Wait()
		if s := g.State(); s.State != StateConnected || s.Failures != 0 || s.LastError != "" || !s.OpenedAt.IsZero() {
			t.Errorf("after an ack: %+v", s)
		}
		sink.last().end(nil)
		stop()
		want := []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 60 * time.Second}
		if gaps := sink.gaps(); !slices.Equal(gaps[:5], want) {
			t.Errorf("gaps %v, want %v", gaps, want)
		}
	})
}

// A probe that opens and dies without an ack opens the breaker for another 60 s:
// a successful dial proves nothing.
func TestBreakerProbeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(errDown, errDown, errDown, errDown, errDown, nil)
		g := Guard(sink, DefaultBreakerConfig(), steady(), quiet())
		stop := run(t, g, untilEnd)
		time.Sleep(62 * time.Second)
		synctest.Wait()
		sink.last().end(errDown)
		synctest.Wait()
		if s := g.State(); s.State != StateCircuitOpen || s.Trips != 1 {
			t.Fatalf("after a failed probe: %+v", s)
		}
		time.Sleep(59 * time.Second)
		if len(sink.calls) != 6 {
			t.Fatal("called while the breaker is open")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		time.Sleep(stableAfter) // nothing to acknowledge, but it lives
		synctest.Wait()
		if s := g.State(); s.State != StateConnected || s.Failures != 0 {
			t.Errorf("after a stable probe: %+v", s)
		}
		sink.last().end(nil)
		stop()
	})
}

// A96, A97, A98: the three settings.
func TestBreakerSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(errDown)
		g := Guard(sink, BreakerConfig{Enabled: true, FailureThreshold: 2, TimeoutSeconds: 7}, steady(), quiet())
		stop := run(t, g, untilEnd)
		time.Sleep(20 * time.Second)
		stop()
		if want := []time.Duration{100 * time.Millisecond, 7 * time.Second, 7 * time.Second}; !slices.Equal(sink.gaps(), want) {
			t.Errorf("gaps %v, want %v", sink.gaps(), want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(errDown)
		g := Guard(sink, BreakerConfig{FailureThreshold: 2, TimeoutSeconds: 7}, steady(), quiet())
		stop := run(t, g, untilEnd)
		time.Sleep(time.Hour)
		synctest.Wait()
		if s := g.State(); s.Trips != 0 || s.State != StateConnecting {
			t.Errorf("disabled breaker: %+v", s)
		}
		stop()
		if last := sink.gaps()[len(sink.gaps())-1]; last != 30*time.Second {
			t.Errorf("the longest back-off is %v", last)
		}
	})
}

// A93: the document's sequence, capped, and reset by a stable stream only.
func TestBackoff(t *testing.T) {
	document := ReconnectConfig{InitialDelaySeconds: 1, MaxDelaySeconds: 300, BackoffMultiplier: 2}
	var got []float64
	for n := range 11 {
		got = append(got, document.Delay(n).Seconds())
	}
	if want := []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300}; !slices.Equal(got, want) {
		t.Errorf("delays %v, want %v", got, want)
	}
	if d := document.Delay(1 << 30); d != 300*time.Second {
		t.Errorf("after very many failures: %v", d)
	}
	document.Jitter = 0.2
	low, high := document.Delay(9), document.Delay(9)
	for range 1000 {
		d := document.Delay(9)
		low, high = min(low, d), max(high, d)
	}
	if low < 240*time.Second || high > 360*time.Second || high-low < 50*time.Second {
		t.Errorf("jitter from %v to %v", low, high)
	}
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(errDown, errDown, errDown, nil, errDown, errDown, nil, errDown)
		g := Guard(sink, BreakerConfig{}, ReconnectConfig{InitialDelaySeconds: 1, MaxDelaySeconds: 300, BackoffMultiplier: 2}, quiet())
		ages := []time.Duration{time.Second, stableAfter}
		stop := run(t, g, func(st Stream) {
			if len(ages) > 0 {
				time.Sleep(ages[0])
				ages = ages[1:]
				sink.last().end(errDown)
			}
			untilEnd(st)
		})
		time.Sleep(120 * time.Second)
		stop()
		gaps := sink.gaps()
		s := time.Second
		// 1, 2, 4, then a stream of 1 s and 8, then 16 and 32, then a stable stream of 15 s and 1 again
		if want := []time.Duration{s, 2 * s, 4 * s, 1*s + 8*s, 16 * s, 32 * s, 15*s + 1*s}; !slices.Equal(gaps[:7], want) {
			t.Errorf("gaps %v, want %v", gaps, want)
		}
	})
}

// A94: no limit of attempts, also when the first connection fails.
func TestOpenTriesForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(errDown)
		g := Guard(sink, DefaultBreakerConfig(), DefaultReconnectConfig(), quiet())
		stop := run(t, g, untilEnd)
		time.Sleep(7 * 24 * time.Hour)
		if n := len(sink.calls); n < 10_000 {
			t.Errorf("%d attempts in a week", n)
		}
		stop()
	})
}

// A planned end and a search for a refused record are no failures and wait for
// nothing.
func TestPlannedEnds(t *testing.T) {
	for _, end := range []error{ErrRotated, ErrSuspect} {
		synctest.Test(t, func(t *testing.T) {
			sink := newScript(nil)
			g := Guard(sink, DefaultBreakerConfig(), steady(), quiet())
			stop := run(t, g, func(st Stream) {
				time.Sleep(15 * time.Minute)
				sink.last().end(end)
				untilEnd(st)
			})
			time.Sleep(3 * time.Hour)
			synctest.Wait()
			if s := g.State(); s.Failures != 0 || s.Trips != 0 || s.LastError != "" || s.Reconnects < 11 || errors.Is(end, ErrRotated) != (s.Rotations >= 11) {
				t.Errorf("%v: %+v", end, s)
			}
			for _, gap := range sink.gaps() {
				if gap != 15*time.Minute {
					t.Errorf("%v: a gap of %v", end, gap)
				}
			}
			sink.last().end(nil)
			stop()
		})
	}
}

// A service that ends every stream at once, planned or not, is not hammered.
func TestInstantRotationsAreFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(nil)
		g := Guard(sink, DefaultBreakerConfig(), steady(), quiet())
		stop := run(t, g, func(st Stream) { sink.last().end(ErrRotated); untilEnd(st) })
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := len(sink.calls); n != 5 || g.State().State != StateCircuitOpen {
			t.Errorf("%d calls, %+v", n, g.State())
		}
		stop()
	})
}

// Held: no breaker, probes from 1 s to 5 min, and Reset probes at once.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(HoldAs(StateAuthFailed, errors.New("the grant is missing")))
		var log bytes.Buffer
		g := Guard(sink, DefaultBreakerConfig(), steady(), slog.New(slog.NewTextHandler(&log, nil)))
		stop := run(t, g, untilEnd)
		time.Sleep(time.Hour)
		synctest.Wait()
		s := g.State()
		if s.State != StateAuthFailed || !s.State.Held() || s.Trips != 0 || !strings.Contains(s.LastError, "grant") || s.NextProbe.Before(time.Now()) {
			t.Errorf("held: %+v", s)
		}
		gaps := sink.gaps()
		if gaps[0] != time.Second || gaps[1] != 2*time.Second || gaps[len(gaps)-1] != 5*time.Minute {
			t.Errorf("probes %v", gaps)
		}
		if n := strings.Count(log.String(), "destination held"); n != 1 {
			t.Errorf("logged %d times: %s", n, &log)
		}
		sink.mu.Lock()
		sink.answers = []error{nil}
		sink.mu.Unlock()
		calls := len(sink.calls)
		g.Reset()
		synctest.Wait()
		if len(sink.calls) != calls+1 || g.State().State != StateConnected {
			t.Errorf("after Reset: %d calls, %+v", len(sink.calls), g.State())
		}
		sink.last().end(nil)
		stop()
	})
}

// Reset closes an open breaker at once (`edgehost breaker reset`).
func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(errDown, errDown, errDown, errDown, errDown, nil)
		g := Guard(sink, DefaultBreakerConfig(), steady(), quiet())
		stop := run(t, g, untilEnd)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		g.Reset()
		synctest.Wait()
		if s := g.State(); s.State != StateConnected || len(sink.calls) != 6 || s.Failures != 0 {
			t.Errorf("after Reset: %+v", s)
		}
		sink.last().end(nil)
		stop()
	})
}

// A27: a request to slow down waits at least as long as it says and longer every
// time, and is no failure.
func TestThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(Throttled(errors.New("quota"), 10*time.Second), Throttled(errors.New("quota"), 0))
		g := Guard(sink, DefaultBreakerConfig(), steady(), quiet())
		stop := run(t, g, untilEnd)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if s := g.State(); s.State != StateThrottled || s.Throttles < 2 || s.Failures != 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if s := g.State(); s.Trips != 0 {
			t.Errorf("%+v", s)
		}
		stop()
		gaps := sink.gaps()
		if gaps[0] != 10*time.Second || gaps[1] != 200*time.Millisecond || gaps[len(gaps)-1] != 30*time.Second {
			t.Errorf("gaps %v", gaps)
		}
	})
}

// Failures count only when they are consecutive: an ack between them resets.
func TestAckResetsTheCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(nil)
		g := Guard(sink, DefaultBreakerConfig(), steady(), quiet())
		n := uint64(0)
		stop := run(t, g, func(st Stream) {
			if n++; n%4 == 0 {
				sink.last().acks.Put(Ack{Seq: n})
				synctest.Wait()
			}
			sink.last().end(errDown)
			untilEnd(st)
		})
		time.Sleep(10 * time.Minute)
		if s := g.State(); s.Trips != 0 {
			t.Errorf("%+v", s)
		}
		stop()
	})
}

// Nobody has to read the acks for the guard to see them, and none is lost.
func TestAcksAreMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newScript(nil)
		g := Guard(sink, DefaultBreakerConfig(), steady(), quiet())
		st, err := g.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for seq := uint64(1); seq <= 100; seq++ {
			sink.last().acks.Put(Ack{Seq: seq, Refused: []Refusal{{Seq: seq}}})
		}
		if err := st.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		var last uint64
		var refused []uint64
		for a := range st.Acks() {
			last = a.Seq
			for _, r := range a.Refused {
				refused = append(refused, r.Seq)
			}
		}
		if last != 100 || len(refused) != 100 || !slices.IsSorted(refused) {
			t.Errorf("last %d, refused %v", last, refused)
		}
	})
}

func TestMarks(t *testing.T) {
	if Permanent(nil) != nil || Hold(nil) != nil || Throttled(nil, 1) != nil {
		t.Error("nil became an error")
	}
	if !IsPermanent(Hold(Permanent(errDown))) || !Held(Permanent(Hold(errDown))) || IsPermanent(errDown) || Held(errDown) {
		t.Error("marks are not found or found where there are none")
	}
	if after, ok := IsThrottled(Throttled(errDown, time.Second)); !ok || after != time.Second {
		t.Error("Throttled is not found")
	}
	if id := (ID{Pipeline: [16]byte{0xab}, Batch: 1 << 40, Index: 7}).String(); id != "ab000000000000000000000000000000-0000010000000000-00000007" || len(id) != IDLen {
		t.Errorf("ID %q", id)
	}
}
