package host

import (
	"bytes"
	"context"
	"log/slog"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sources"
)

func TestPauseAndResumeSource(t *testing.T) {
	r := newRig(t).start()
	r.must(r.feed.give(t, recs("a", 0, 10)...))
	for range 2 { // twice is as good as once
		r.must(r.host.PauseSource(t.Context(), "s1"))
	}
	select {
	case r.feed.in <- batchOf(recs("a", 10, 1)):
		t.Error("the source still runs after PauseSource has returned")
	default:
	}
	s := r.until("the state", func(s control.Status) bool { return s.Sources[0].State == string(sources.Paused) })
	if s.Status != control.Degraded || !strings.Contains(strings.Join(s.Reasons, " "), "source s1 is paused") {
		t.Errorf("the host is %s: %v", s.Status, s.Reasons)
	}
	r.main.wait(t, 10)
	r.balanced(control.Ledger{Read: 10, Delivered: 10})

	r.must(r.host.ResumeSource(t.Context(), "s1"))
	r.must(r.feed.give(t, recs("a", 10, 10)...))
	r.main.wait(t, 20)
	r.balanced(control.Ledger{Read: 20, Delivered: 20})

	r.must(r.host.PauseSource(t.Context(), "s1"))
	r.restart()
	r.must(r.feed.give(t, recs("a", 20, 1)...))
	r.main.wait(t, 21)
}

func TestStopWhilePaused(t *testing.T) {
	r := newRig(t).start()
	r.must(r.host.PauseSource(t.Context(), "s1"))
	r.stop()
	if s := r.status(); s.Sources[0].State != string(sources.Stopped) {
		t.Errorf("the source is %s after the stop", s.Sources[0].State)
	}
}

// TestPauseSaysWhoPaused: the kernel tells who is at the other end of the socket.
func TestPauseSaysWhoPaused(t *testing.T) {
	r := newRig(t).start()
	socket := filepath.Join(t.TempDir(), "c.sock")
	l, err := control.Listen(socket)
	r.must(err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, l, r.host, slog.New(slog.DiscardHandler)) }()
	client := control.NewClient(socket)
	r.must(client.PauseSource(t.Context(), "s1"))
	me, err := user.Current()
	r.must(err)
	said := func(who string) {
		t.Helper()
		r.until("who paused", func(s control.Status) bool { return strings.HasPrefix(s.Sources[0].Detail, who+" paused it: ") })
	}
	said(me.Username)
	r.must(r.host.PauseSource(t.Context(), "s1")) // the first counts
	said(me.Username)
	r.must(client.ResumeSource(t.Context(), "s1"))
	r.must(r.host.PauseSource(t.Context(), "s1"))
	said("a person")
	client.Close()
	stop()
	r.must(<-served)
}

// deaf is a source that does not stop when it is told to.
type deaf struct {
	runs    chan struct{}
	release chan struct{}
}

func (d deaf) Run(context.Context, sources.Emit) error {
	d.runs <- struct{}{}
	<-d.release
	return nil
}

// TestSourceThatDoesNotStop: neither an order nor the end of the host waits for it
// for ever, its name is in the answer and in the log, and it is never run twice at a
// time.
func TestSourceThatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil)).With("source", "s1")
		src := deaf{make(chan struct{}, 1), make(chan struct{})}
		sc := SourceConfig{Name: "s1", Source: src, Status: sources.NewStatus("s1", "mqtt")}
		h := &Host{cfg: Config{Sources: []SourceConfig{sc}}, gates: map[string]*gate{"s1": newGate()}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); runGated(ctx, sc, h.gates["s1"], nil, log) }()
		<-src.runs
		begin := time.Now()
		for range 2 {
			err := h.PauseSource(t.Context(), "s1")
			if control.CodeOf(err) != control.Busy || !strings.Contains(err.Error(), "source s1 was told to stop and does not") {
				t.Errorf("pause: %v", err)
			}
		}
		if err := h.ResumeSource(t.Context(), "s1"); control.CodeOf(err) != control.Busy {
			t.Errorf("resume: %v", err)
		}
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("two pauses took %v", took)
		}
		if s := sc.Status.Snapshot(); s.State != sources.Failed || !strings.Contains(s.Detail, "was told to stop 10s ago and does not") {
			t.Errorf("%s %q", s.State, s.Detail)
		}
		if !strings.Contains(out.String(), "level=WARN") || !strings.Contains(out.String(), "source=s1") {
			t.Errorf("log: %s", out.String())
		}
		time.Sleep(time.Hour)
		if len(src.runs) > 0 {
			t.Error("the source runs twice at a time")
		}
		src.release <- struct{}{}
		<-src.runs // it was resumed
		begin = time.Now()
		cancel()
		<-ended
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("the end took %v", took)
		}
		if s := sc.Status.Snapshot(); s.State != sources.Failed {
			t.Errorf("in the end %s", s.State)
		}
		close(src.release)
	})
}

func TestPauseOfWhatIsNotThere(t *testing.T) {
	r := newRig(t).start()
	for _, order := range []error{r.host.PauseSource(t.Context(), "s2"), r.host.ResumeSource(t.Context(), "s2")} {
		if control.CodeOf(order) != control.NotFound || !strings.Contains(order.Error(), "there are: s1") {
			t.Errorf("got %v", order)
		}
	}
}
