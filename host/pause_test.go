package host

import (
	"context"
	"log/slog"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

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

func TestPauseOfWhatIsNotThere(t *testing.T) {
	r := newRig(t).start()
	for _, order := range []error{r.host.PauseSource(t.Context(), "s2"), r.host.ResumeSource(t.Context(), "s2")} {
		if control.CodeOf(order) != control.NotFound || !strings.Contains(order.Error(), "there are: s1") {
			t.Errorf("got %v", order)
		}
	}
}
