package sources

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// sourceFunc is a Source.
type sourceFunc func(ctx context.Context, emit Emit) error

func (f sourceFunc) Run(ctx context.Context, emit Emit) error { return f(ctx, emit) }

func noJitter() ReconnectConfig {
	zero := 0.0
	return ReconnectConfig{Jitter: &zero}
}

// supervise runs src until it has been run n times and returns the pauses
// between the end of one run and the start of the next.
func supervise(t *testing.T, n int, cfg ReconnectConfig, st *Status, src func(run int) error) (pauses []time.Duration, log string) {
	t.Helper()
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ended time.Time
	run := 0
	Supervise(ctx, sourceFunc(func(context.Context, Emit) error {
		if run > 0 {
			pauses = append(pauses, time.Since(ended))
		}
		run++
		if run == n {
			cancel()
			return nil
		}
		defer func() { ended = time.Now() }()
		return src(run)
	}), nil, st, cfg, slog.New(slog.NewTextHandler(&out, nil)))
	return pauses, out.String()
}

func TestSuperviseBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("connection refused")
		pauses, log := supervise(t, 13, noJitter(), NewStatus("s", "mqtt"), func(int) error { return refused })
		want := []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300}
		for i := range want {
			if pauses[i] != want[i]*time.Second {
				t.Errorf("pause %d is %v, want %v", i, pauses[i], want[i]*time.Second)
			}
		}
		if n := strings.Count(log, "connection refused"); n != 1 {
			t.Errorf("an outage of 12 attempts is logged %d times, want once:\n%s", n, log)
		}
	})
}

func TestSuperviseHonoursConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := noJitter()
		cfg.InitialDelaySeconds, cfg.MaxDelaySeconds, cfg.BackoffMultiplier = 0.5, 5, 3
		pauses, _ := supervise(t, 6, cfg, NewStatus("s", "mqtt"), func(int) error { return errors.New("x") })
		for i, want := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond, 4500 * time.Millisecond, 5 * time.Second, 5 * time.Second} {
			if pauses[i] != want {
				t.Errorf("pause %d is %v, want %v", i, pauses[i], want)
			}
		}
	})
}

func TestJitterStaysWithinBounds(t *testing.T) {
	back := ReconnectConfig{}.Backoff()
	base := time.Second
	different := false
	for range 2000 {
		d := back.Next()
		low, high := base*8/10, min(base*12/10, 300*time.Second)
		if d < low-time.Millisecond || d > high+time.Millisecond {
			t.Fatalf("delay %v is not within 20 %% of %v and at most 300 s", d, base)
		}
		different = different || d != base
		base = min(2*base, 300*time.Second)
	}
	if !different {
		t.Error("2000 delays without jitter")
	}
}

func TestSuperviseResetsAfterStablePeriodOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStatus("s", "mqtt")
		pauses, _ := supervise(t, 7, noJitter(), st, func(run int) error {
			switch run {
			case 3: // connects and falls over: no reset
				st.Set(Connected, "")
				<-time.After(59 * time.Second)
			case 5: // stands for the stable period, degraded in between
				st.Set(Connected, "")
				<-time.After(30 * time.Second)
				st.Set(Degraded, "a point is bad")
				<-time.After(31 * time.Second)
			case 6: // takes as long to fail, but was never connected
				<-time.After(10 * time.Minute)
			}
			return errors.New("lost")
		})
		want := []time.Duration{1, 2, 4, 8, 1, 2}
		for i := range want {
			if pauses[i] != want[i]*time.Second {
				t.Errorf("pause %d is %v, want %v", i, pauses[i], want[i]*time.Second)
			}
		}
	})
}

func TestSuperviseSurvivesPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStatus("s", "mqtt")
		var state Snapshot
		pauses, _ := supervise(t, 4, noJitter(), st, func(run int) error {
			if run == 2 {
				state = st.Snapshot()
				return errors.New("x")
			}
			panic("index out of range")
		})
		if len(pauses) != 3 {
			t.Errorf("%d restarts, want 3", len(pauses))
		}
		if state.State != Reconnecting || !strings.Contains(state.Detail, "index out of range") {
			t.Errorf("after a panic the state is %s (%s)", state.State, state.Detail)
		}
	})
}

func TestSuperviseStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStatus("s", "mqtt")
		errs := []error{AuthError(errors.New("wrong password")), ConfigError(errors.New("no such file")), errors.New("refused"), nil}
		want := []State{AuthFailed, Failed, Reconnecting, Reconnecting}
		var got []Snapshot
		supervise(t, len(errs)+2, noJitter(), st, func(run int) error {
			if run > 1 {
				got = append(got, st.Snapshot())
			}
			if run > len(errs) {
				return errors.New("x")
			}
			return errs[run-1]
		})
		for i := range want {
			if got[i].State != want[i] || got[i].Detail == "" {
				t.Errorf("after %v the state is %s (%q), want %s with words", errs[i], got[i].State, got[i].Detail, want[i])
			}
		}
		if end := st.Snapshot(); end.State != Stopped || end.Counters[MetricReconnects] != 5 {
			t.Errorf("in the end: %s, %v reconnects; want stopped, 5", end.State, end.Counters[MetricReconnects])
		}
	})
}

func TestSuperviseEndsWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		started := time.Now()
		Supervise(ctx, sourceFunc(func(context.Context, Emit) error { return errors.New("x") }), nil,
			NewStatus("s", "mqtt"), noJitter(), slog.New(slog.DiscardHandler))
		if took := time.Since(started); took != 100*time.Second {
			t.Errorf("Supervise returned after %v, want 100 s", took)
		}
	})
}

// TestSuperviseLeavesBehindWhatDoesNotStop: a stop is bounded; a source that takes
// its time, and panics then, is waited for.
func TestSuperviseLeavesBehindWhatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			takes, want time.Duration
			state       State
		}{{9 * time.Second, 9 * time.Second, Stopped}, {time.Minute, stopGrace, Failed}} {
			st := NewStatus("s", "mqtt")
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			told := make(chan time.Time, 1)
			stuck := Supervise(ctx, sourceFunc(func(ctx context.Context, _ Emit) error {
				<-ctx.Done()
				told <- time.Now()
				time.Sleep(c.takes)
				panic("late")
			}), nil, st, noJitter(), slog.New(slog.DiscardHandler))
			began := <-told
			if took := time.Since(began); took != c.want || (stuck != nil) != (c.state == Failed) || st.Snapshot().State != c.state {
				t.Errorf("takes %v: returned after %v, stuck %v, state %s", c.takes, took, stuck != nil, st.Snapshot().State)
			}
			if stuck == nil {
				continue
			}
			<-stuck
			if took := time.Since(began); took != c.takes {
				t.Errorf("takes %v: called ended after %v", c.takes, took)
			}
		}
	})
}

func TestReconnectConfigValidate(t *testing.T) {
	half, whole := 0.5, 1.0
	if errs := (ReconnectConfig{InitialDelaySeconds: 2, MaxDelaySeconds: 30, BackoffMultiplier: 1, Jitter: &half}).Validate(); len(errs) > 0 {
		t.Errorf("a good configuration is refused: %v", errs)
	}
	for want, cfg := range map[string]ReconnectConfig{
		"initial_delay_seconds": {InitialDelaySeconds: 400},
		"max_delay_seconds":     {MaxDelaySeconds: -1, InitialDelaySeconds: -2},
		"backoff_multiplier":    {BackoffMultiplier: 0.5},
		"jitter":                {Jitter: &whole},
	} {
		errs := cfg.Validate()
		found := false
		for _, e := range errs {
			found = found || e.Path == want && e.Msg != ""
		}
		if !found {
			t.Errorf("%+v: %v, want an error at %s", cfg, errs, want)
		}
	}
}

func TestReportLogsOutagesOnce(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	st := NewStatus("s", "mqtt")
	for range 3 {
		st.Report(log, Connecting, "")
		st.Report(log, Reconnecting, "refused")
	}
	st.Report(log, Connected, "")
	if got := strings.Count(out.String(), "\n"); got != 2 {
		t.Errorf("an outage and its end are %d lines, want 2:\n%s", got, out.String())
	}
}
