package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// State is what a guarded destination is doing. The names are those of health,
// status and metrics.
type State string

// The states. Only Connected delivers; the last four need a person when they
// last.
const (
	StateConnecting    State = "connecting"
	StateConnected     State = "connected"
	StateThrottled     State = "throttled"      // the service asked us to slow down
	StateHalfOpen      State = "half_open"      // one probe is under way
	StateCircuitOpen   State = "circuit_open"   // no call before NextProbe
	StateHeld          State = "held"           // the service refuses the destination as a whole
	StateAuthFailed    State = "auth_failed"    // held: token or grant
	StateSchemaUnknown State = "schema_unknown" // held: the table's columns are not known yet
)

// Held reports whether s is held or one of its special cases.
func (s State) Held() bool {
	return s == StateHeld || s == StateAuthFailed || s == StateSchemaUnknown
}

// Status is a snapshot of a Guarded.
type Status struct {
	State     State     `json:"state"`
	LastError string    `json:"last_error,omitempty"` // of the last failure, kept until acks progress
	OpenedAt  time.Time `json:"opened_at,omitzero"`   // when the breaker opened; zero when it is closed
	NextProbe time.Time `json:"next_probe,omitzero"`  // when the next attempt is due; zero while none waits
	// Failures counts consecutive failures; FailureThreshold of them open the breaker.
	Failures   int    `json:"failures"`
	Reconnects uint64 `json:"reconnects"` // streams opened after the first
	Rotations  uint64 `json:"rotations"`  // streams that ended as planned
	Throttles  uint64 `json:"throttles"`  // requests to slow down
	Trips      uint64 `json:"trips"`      // times the breaker opened
}

// stableAfter is how long a stream must live to prove that the destination is
// well when nothing was there to be acknowledged.
const stableAfter = 15 * time.Second

// Guarded is a Sink that never gives up. See Guard.
type Guarded struct {
	next      Sink
	breaker   BreakerConfig
	reconnect ReconnectConfig
	log       *slog.Logger

	reset chan struct{} // cap 1: Reset wakes a wait

	mu     sync.Mutex
	status Status
	opened bool      // a stream was opened before
	due    time.Time // no attempt before
	steps  int       // back-off steps since the last stable stream
	held   int       // consecutive held answers
	slow   int       // consecutive requests to slow down
}

// Guard wraps next so that Open tries for ever: with back-off and jitter between
// attempts, with a circuit breaker in front, and with slow probes while the
// destination is held. Guarded.Open therefore returns an error only when its
// context has ended.
//
// An Open that fails is a failure, and so is a stream that fails before an ack
// arrived and before it was 15 s old; an ack or 15 s reset the count. A planned
// end (ErrRotated), a refused record (ErrSuspect), a request to slow down
// (Throttled) and a refusal of the destination (Held) are none. While the
// breaker is open nothing is called; then one stream is the probe, and the
// breaker closes when that stream proves itself, or opens again.
func Guard(next Sink, breaker BreakerConfig, reconnect ReconnectConfig, log *slog.Logger) *Guarded {
	return &Guarded{
		next: next, breaker: breaker, reconnect: reconnect, log: log,
		reset:  make(chan struct{}, 1),
		status: Status{State: StateConnecting},
	}
}

// State returns a snapshot. It may be called from any goroutine.
func (g *Guarded) State() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.status
}

// Reset closes the breaker and makes a waiting Open try now, also when the
// destination is held. It may be called from any goroutine.
func (g *Guarded) Reset() {
	g.mu.Lock()
	g.status.Failures, g.steps, g.held, g.slow = 0, 0, 0, 0
	g.status.OpenedAt, g.status.NextProbe, g.due = time.Time{}, time.Time{}, time.Time{}
	if g.status.State == StateCircuitOpen || g.status.State == StateHalfOpen {
		g.status.State = StateConnecting
	}
	g.mu.Unlock()
	select {
	case g.reset <- struct{}{}:
	default:
	}
}

// Open opens a stream of the guarded sink, however long that takes.
func (g *Guarded) Open(ctx context.Context) (Stream, error) {
	for {
		if err := g.wait(ctx); err != nil {
			return nil, err
		}
		g.attempt()
		st, err := g.next.Open(ctx)
		if err == nil {
			return g.started(st), nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("open stream: %w", ctx.Err())
		}
		g.failed(err, false)
	}
}

// wait blocks until the next attempt is due, or Reset.
func (g *Guarded) wait(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("open stream: %w", err)
		}
		g.mu.Lock()
		d := time.Until(g.due)
		g.mu.Unlock()
		if d <= 0 {
			return nil
		}
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-g.reset:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// attempt notes that a call is about to be made.
func (g *Guarded) attempt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status.NextProbe = time.Time{}
	switch {
	case !g.status.OpenedAt.IsZero():
		g.status.State = StateHalfOpen
	case !g.status.State.Held() && g.status.State != StateThrottled:
		g.status.State = StateConnecting
	}
}

// started notes an open stream and watches it.
func (g *Guarded) started(st Stream) Stream {
	g.mu.Lock()
	if g.opened {
		g.status.Reconnects++
	}
	g.opened = true
	if g.status.OpenedAt.IsZero() {
		g.status.State = StateConnected
	}
	g.mu.Unlock()
	s := &guardedStream{Stream: st, acks: NewAckQueue(), done: make(chan struct{})}
	go g.watch(s)
	return s
}

// watch forwards the acks of one stream and judges it when it has ended.
func (g *Guarded) watch(s *guardedStream) {
	opened := time.Now()
	stable := time.NewTimer(stableAfter)
	defer stable.Stop()
	progressed := false
	for in := s.Stream.Acks(); ; {
		select {
		case a, open := <-in:
			if !open {
				g.ended(s.Stream.Err(), progressed, time.Since(opened))
				s.acks.Close()
				close(s.done)
				return
			}
			if !progressed {
				progressed = true
				g.well(false)
			}
			s.acks.Put(a)
		case <-stable.C:
			g.well(true)
		}
	}
}

// well notes ack progress, or that a stream has lived for stableAfter.
func (g *Guarded) well(stable bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.status.OpenedAt.IsZero() {
		g.log.Info("circuit breaker closed", "open_for", time.Since(g.status.OpenedAt).Round(time.Millisecond))
	}
	g.status.State = StateConnected
	g.status.OpenedAt = time.Time{}
	g.status.Failures, g.held = 0, 0
	g.status.LastError = ""
	if stable {
		g.steps, g.slow = 0, 0
	}
}

// ended judges the end of a stream that was open for age.
func (g *Guarded) ended(err error, progressed bool, age time.Duration) {
	planned := errors.Is(err, ErrRotated) || errors.Is(err, ErrSuspect)
	switch {
	case err == nil: // closed by its user
		g.mu.Lock()
		g.status.State = StateConnecting
		g.mu.Unlock()
	case planned && (progressed || age >= time.Second):
		g.mu.Lock()
		g.status.State = StateConnecting
		if errors.Is(err, ErrRotated) {
			g.status.Rotations++
		}
		g.mu.Unlock()
	default:
		g.failed(err, progressed || age >= stableAfter)
	}
}

// failed notes a failure and sets when the next attempt is due. proven means
// that the stream had proved itself before it failed.
func (g *Guarded) failed(err error, proven bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status.LastError = err.Error()
	after, throttled := IsThrottled(err)
	var h heldError
	switch {
	case errors.As(err, &h):
		if !g.status.State.Held() {
			g.log.Error("destination held: nothing is lost, its queue stays whole until this is mended", "state", h.state, "error", err)
		}
		g.status.State = h.state
		g.status.OpenedAt, g.status.Failures = time.Time{}, 0
		g.pause(heldReconnect(g.reconnect).Delay(g.held))
		g.held++
	case throttled:
		g.status.State = StateThrottled
		g.status.Throttles++
		g.pause(max(after, g.reconnect.Delay(g.slow)))
		g.slow++
	case proven:
		g.status.State = StateConnecting
		g.pause(g.reconnect.Delay(g.steps))
	default:
		g.count(err)
	}
}

// count counts a failure against the breaker.
func (g *Guarded) count(err error) {
	probe := !g.status.OpenedAt.IsZero()
	g.status.Failures++
	if g.breaker.Enabled && (probe || g.status.Failures >= g.breaker.FailureThreshold) {
		if !probe {
			g.status.OpenedAt = time.Now()
			g.status.Trips++
		}
		g.status.State = StateCircuitOpen
		g.pause(seconds(g.breaker.TimeoutSeconds))
		g.log.Warn("circuit breaker open: check that the endpoint can be reached and the workspace is up, or run `edgehost breaker reset` to probe now",
			"error", err, "failures", g.status.Failures, "opened_at", g.status.OpenedAt, "next_probe", g.status.NextProbe)
		return
	}
	g.status.State = StateConnecting
	g.pause(g.reconnect.Delay(g.steps))
	g.steps++
}

// pause forbids attempts for d.
func (g *Guarded) pause(d time.Duration) {
	g.due = time.Now().Add(d)
	g.status.NextProbe = g.due
}

// guardedStream is the stream that a Guarded hands out.
type guardedStream struct {
	Stream
	acks *AckQueue
	done chan struct{}
}

// Acks delivers what the guarded stream acknowledges.
func (s *guardedStream) Acks() <-chan Ack { return s.acks.C() }

// Close closes the guarded stream and waits until its last ack is forwarded.
func (s *guardedStream) Close(ctx context.Context) error {
	err := s.Stream.Close(ctx)
	<-s.done
	return err
}
