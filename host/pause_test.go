package host

import (
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

func TestPauseOfWhatIsNotThere(t *testing.T) {
	r := newRig(t).start()
	for _, order := range []error{r.host.PauseSource(t.Context(), "s2"), r.host.ResumeSource(t.Context(), "s2")} {
		if control.CodeOf(order) != control.NotFound || !strings.Contains(order.Error(), "there are: s1") {
			t.Errorf("got %v", order)
		}
	}
}
