package sources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// stablePeriod is how long a source must stay connected before its next
// failure starts again at the initial delay: one successful dial of a peer
// that falls over at once must not reset the back-off.
const stablePeriod = 60 * time.Second

// MetricReconnects counts the attempts after the first, for every protocol.
const MetricReconnects = "reconnects_total"

// ReconnectConfig is the back-off between two attempts of a source. The zero
// value of a field means its default. There is no limit of attempts.
type ReconnectConfig struct {
	InitialDelaySeconds float64  `yaml:"initial_delay_seconds"` // default 1
	MaxDelaySeconds     float64  `yaml:"max_delay_seconds"`     // default 300; no delay is longer, jitter included
	BackoffMultiplier   float64  `yaml:"backoff_multiplier"`    // default 2; at least 1
	Jitter              *float64 `yaml:"jitter"`                // default 0.2: ±20 %; 0 for none, below 1
}

// WithDefaults fills the fields that are not set.
func (c ReconnectConfig) WithDefaults() ReconnectConfig {
	if c.InitialDelaySeconds == 0 {
		c.InitialDelaySeconds = 1
	}
	if c.MaxDelaySeconds == 0 {
		c.MaxDelaySeconds = 300
	}
	if c.BackoffMultiplier == 0 {
		c.BackoffMultiplier = 2
	}
	if c.Jitter == nil {
		jitter := 0.2
		c.Jitter = &jitter
	}
	return c
}

// Validate returns what is wrong, with paths relative to the reconnect block.
func (c ReconnectConfig) Validate() []FieldError {
	var errs []FieldError
	for _, f := range []struct {
		path  string
		value float64
	}{{"initial_delay_seconds", c.InitialDelaySeconds}, {"max_delay_seconds", c.MaxDelaySeconds}} {
		if !(f.value >= 0 && f.value <= 86400) {
			errs = append(errs, FieldError{f.path, fmt.Sprintf("%v is not between 0 and 86400 seconds", f.value)})
		}
	}
	d := c.WithDefaults()
	if d.InitialDelaySeconds > d.MaxDelaySeconds {
		errs = append(errs, FieldError{"initial_delay_seconds",
			fmt.Sprintf("%v is longer than max_delay_seconds (%v)", d.InitialDelaySeconds, d.MaxDelaySeconds)})
	}
	if !(d.BackoffMultiplier >= 1 && d.BackoffMultiplier <= 100) {
		errs = append(errs, FieldError{"backoff_multiplier", fmt.Sprintf("%v is not between 1 and 100", d.BackoffMultiplier)})
	}
	if !(*d.Jitter >= 0 && *d.Jitter < 1) {
		errs = append(errs, FieldError{"jitter", fmt.Sprintf("%v is not at least 0 and below 1", *d.Jitter)})
	}
	return errs
}

// Backoff returns the delays of c one after another: a source that has more
// than one connection to look after makes one for each. Not for concurrent use.
func (c ReconnectConfig) Backoff() *Backoff {
	c = c.WithDefaults()
	b := &backoff.ExponentialBackOff{
		InitialInterval:     seconds(c.InitialDelaySeconds),
		MaxInterval:         seconds(c.MaxDelaySeconds),
		Multiplier:          c.BackoffMultiplier,
		RandomizationFactor: *c.Jitter,
	}
	b.Reset()
	return &Backoff{b: b}
}

func seconds(s float64) time.Duration {
	return time.Duration(math.Round(s * float64(time.Second)))
}

// Backoff is the state of one back-off.
type Backoff struct{ b *backoff.ExponentialBackOff }

// Next returns how long to wait before the next attempt. The configured
// maximum holds with jitter too: what jitter would put above it is mirrored
// below it, so that many hosts do not meet at the maximum.
func (b *Backoff) Next() time.Duration {
	d := b.b.NextBackOff()
	if d > b.b.MaxInterval {
		d = 2*b.b.MaxInterval - d
	}
	return d
}

// least is the shortest that a wait of delay may become.
func (b *Backoff) least(delay time.Duration) time.Duration { return min(delay, b.b.InitialInterval) }

// Reset starts again at the initial delay.
func (b *Backoff) Reset() { b.b.Reset() }

// stateError marks an error with the state in which it leaves the source.
type stateError struct {
	state State
	err   error
}

func (e stateError) Error() string { return e.err.Error() }
func (e stateError) Unwrap() error { return e.err }

// AuthError marks err as a refusal of our credentials or certificate: the
// source shows as AuthFailed. It is tried again like every other failure,
// since the peer may be mended without us.
func AuthError(err error) error { return mark(AuthFailed, err) }

// ConfigError marks err as a configuration that cannot work as it is: the
// source shows as Failed. It is tried again, since files may be mended.
func ConfigError(err error) error { return mark(Failed, err) }

func mark(state State, err error) error {
	if err == nil {
		return nil
	}
	return stateError{state, err}
}

// ErrorState returns the state in which err leaves a source: AuthFailed or
// Failed when err is marked so, else Reconnecting.
func ErrorState(err error) State {
	var marked stateError
	if errors.As(err, &marked) {
		return marked.state
	}
	return Reconnecting
}

// stopGrace is how long Run may take to return after its context has ended.
const stopGrace = 10 * time.Second

// Supervise runs src until ctx ends: Connecting, then one Run after another
// with the back-off of cfg between them, without limit. It returns when ctx has
// ended and Run has returned, and leaves the state Stopped. A Run that does not
// return within ten seconds is left behind: the state is Failed and names it, and
// stuck is a channel that is closed when it has returned at last. Until then src
// must not be run again. stuck is nil otherwise.
//
// A wait is cut short when src is Peered and a peer that did not accept TCP
// connections accepts them again, which is looked for about once a second; the
// back-off then starts again, since a peer that has just come up may need a
// moment. Thus the longest delay is for a peer that is there and fails us, and
// attempts are never closer than the initial delay. There is no looking while
// the peer refuses us or the configuration is wrong.
//
// Between two runs the state is Reconnecting, AuthFailed or Failed with the
// error's words as detail, and it stays so until the source reports Connected:
// a source reports only what it knows while it is connected and leaves the rest
// to the error that it returns. A panic of Run's own goroutine is an error like
// any other; a panic in a goroutine that the source or a library started ends
// the process, so sources recover there themselves or live in a child process.
func Supervise(ctx context.Context, src Source, emit Emit, st *Status, cfg ReconnectConfig, log *slog.Logger) (stuck <-chan struct{}) {
	return superviseWith(ctx, src, emit, st, cfg, log, newLookout(src))
}

func superviseWith(ctx context.Context, src Source, emit Emit, st *Status, cfg ReconnectConfig, log *slog.Logger, look *lookout) (stuck <-chan struct{}) {
	back := cfg.Backoff()
	st.Report(log, Connecting, "")
	for {
		st.takeStable()
		stuck, err := runOnce(ctx, src, emit, log)
		if stuck != nil {
			st.Report(log, Failed, stuckDetail)
			return stuck
		}
		if ctx.Err() != nil {
			st.Report(log, Stopped, "")
			return nil
		}
		if err == nil {
			err = errors.New("source ended without a reason")
		}
		stable := st.takeStable()
		if stable >= stablePeriod {
			back.Reset()
		}
		state := ErrorState(err)
		if stable > 0 || state != Reconnecting {
			look.forget()
		}
		st.Report(log, state, err.Error())
		delay := back.Next()
		log.Debug("source waits before the next attempt", "delay", delay)
		if state != Reconnecting {
			sleep(ctx, delay)
		} else if look.wait(ctx, back.least(delay), delay) {
			log.Debug("peer accepts connections again")
			back.Reset()
		}
		if ctx.Err() != nil {
			st.Report(log, Stopped, "")
			return nil
		}
		st.Add(MetricReconnects, 1)
	}
}

// stuckDetail is what the status says of a source that was left behind.
var stuckDetail = fmt.Sprintf("the source was told to stop %v ago and does not: its connection is still open, and it is not read again before it has ended; "+
	"a restart of edgehost ends it, please report this", stopGrace)

// runOnce calls Run and waits for its end; stuck is as in Supervise.
func runOnce(ctx context.Context, src Source, emit Emit, log *slog.Logger) (stuck <-chan struct{}, err error) {
	result, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		result <- guarded(ctx, src, emit, log)
	}()
	select {
	case err := <-result:
		return nil, err
	case <-ctx.Done():
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case err := <-result:
		return nil, err
	case <-grace.C:
		return ended, nil
	}
}

// guarded is Run, with a panic as an error.
func guarded(ctx context.Context, src Source, emit Emit, log *slog.Logger) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("source panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("source panicked: %v", p)
		}
	}()
	return src.Run(ctx, emit)
}
