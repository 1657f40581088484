package sources

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
)

// again is a line over a restart: it knows what the commits of the one before
// hold, and nothing else.
func (l *line) again(cfg WatchConfig) *line {
	l.t.Helper()
	l.end()
	return newLineOf(l.t, cfg, l.disk())
}

// disk is what is stored of the notes.
func (l *line) disk() map[string][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.notes)
}

// kept checks for which points something is stored.
func (l *line) kept(want ...string) {
	l.t.Helper()
	got := map[string]bool{}
	for key := range l.disk() {
		got[strings.ReplaceAll(key, "\x00", " ")] = true
	}
	all := map[string]bool{}
	for _, key := range want {
		all[key] = true
	}
	if diff := cmp.Diff(all, got); diff != "" {
		l.t.Errorf("points that are stored (-want +got):\n%s", diff)
	}
}

func TestSilenceOverARestart(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("told"), good("dies", text(abi.AttrUnit, "C"), flag("dup")), good("lives"), good("leaf", text(abi.AttrSensorPath, "x")))
		l.seconds(8, "dies", "lives")
		l.seconds(3, "dies", "lives")
		l.want("told", "leaf")
		l.kept("told", "dies", "lives", "leaf x")

		l.end()
		time.Sleep(time.Hour)
		l = l.again(tenSeconds)
		if s := l.status.Snapshot(); s.State != Degraded || s.Points != 4 || s.Stale != 2 || !strings.Contains(s.Detail, "2 of 4 points silent since 2000-01-01T00:00:00Z") {
			t.Errorf("after the restart: %s %q, %d of %d", s.State, s.Detail, s.Stale, s.Points)
		}
		l.seconds(9, "lives")
		l.want()
		l.seconds(2, "lives")
		l.mu.Lock()
		var stale abi.Record
		for _, b := range l.batches {
			if v, _ := b.Records[0].Attr(abi.AttrStale); v.AsBool() {
				stale = b.Records[0]
			}
		}
		l.mu.Unlock()
		reason, _ := stale.Attr(abi.AttrReason)
		unit, _ := stale.Attr(abi.AttrUnit)
		if _, ok := stale.Attr("dup"); ok {
			t.Error("what belongs to a message belongs to its point")
		}
		if reason.Text() != "stale: no record for 10s, none since the start at 2000-01-01T01:00:11Z" || unit.Text() != "C" {
			t.Errorf("reason %q, unit %q", reason.Text(), unit.Text())
		}
		l.want("dies")
		l.seconds(100, "lives")
		l.want()

		l = l.again(tenSeconds)
		l.seconds(100, "lives")
		l.want() // once, also over a restart
		l.say(good("dies"))
		l.seconds(11, "lives")
		l.want("dies") // and again when it stops again
	})
}

// TestNotesAreOfChanges: points that go on as they are cost nothing; those that
// are bad are not kept, and are again when they are good.
func TestNotesAreOfChanges(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		bad := func(address string) abi.Record {
			r := good(address)
			NotGood(&r, StatusBadDecoding, "", "not a number")
			return r
		}
		notes := func(want int) {
			t.Helper()
			l.mu.Lock()
			defer l.mu.Unlock()
			got := 0
			for _, b := range l.batches {
				got += len(b.Points)
			}
			l.batches = nil
			if got != want {
				t.Errorf("%d notes, want %d", got, want)
			}
		}
		l.say(good("a"), good("b"), bad("c"), good("e", flag(abi.AttrEvent)))
		notes(2)
		l.kept("a", "b")
		l.seconds(100, "a", "b")
		notes(0)
		l.say(bad("b"), good("c"))
		notes(2)
		l.kept("a", "c")
		l.say(bad("b"), good("c"), bad("c"), good("c"))
		l.kept("a", "c")
		l.want()
		l.seconds(100, "a")
		notes(1) // that c is silent
		l.seconds(100, "a")
		notes(0)
		l.say(good("b"), good("c", flag(abi.AttrRetain))) // c looks good and is old
		notes(2)
		l = l.again(tenSeconds)
		l.seconds(12, "a")
		l.want("b", "c")
	})
}

// TestNotesThatWereNotStored are made again, those of a report too.
func TestNotesThatWereNotStored(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.set(func() { l.outcome = errors.New("disk full") })
		l.say(good("a"))
		l.kept()
		l.set(func() { l.outcome = ErrDropped })
		l.say(good("a"))
		l.kept()
		l.set(func() { l.outcome, l.refuse = nil, errors.New("stopped") })
		if err := l.emit(t.Context(), Batch{Records: []abi.Record{good("a"), good("b")}}, nil); err == nil {
			t.Error("the pipeline's error got lost")
		}
		if n := len(l.w.points.all); n != 1 {
			t.Errorf("%d points are known, one of them by a record that nobody took", n)
		}
		l.set(func() { l.refuse = nil })
		l.say(good("a"))
		l.kept("a")

		live := string(l.disk()["a"])
		l.set(func() { l.outcome = ErrDropped })
		l.seconds(12)
		l.want("a")
		if string(l.disk()["a"]) != live {
			t.Error("a report that was dropped is stored as told")
		}
		l.set(func() { l.outcome = nil })
		again := l.again(tenSeconds)
		again.seconds(12)
		again.want("a")
	})
}

func TestConfigurationOverARestart(t *testing.T) {
	cases := map[string]struct {
		cfg  WatchConfig
		want []string // stale
		kept []string
	}{
		"same":       {tenSeconds, []string{"a", "b"}, []string{"a", "b", "told"}},
		"more time":  {WatchConfig{StaleAfter: time.Minute, Rules: []StaleRule{{"b", 5 * time.Second}}}, []string{"b"}, []string{"a", "b", "told"}},
		"never":      {WatchConfig{StaleAfter: 10 * time.Second, Rules: []StaleRule{{"a", 0}, {"told", 0}}}, []string{"b"}, []string{"b"}},
		"off":        {WatchConfig{}, nil, nil},
		"other name": {WatchConfig{Rules: []StaleRule{{"x*", time.Second}}}, nil, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, tenSeconds, func(t *testing.T, l *line) {
				l.say(good("told"))
				l.seconds(11, "a")
				l.say(good("b"))
				l.want("told")
				l = l.again(c.cfg)
				l.seconds(12)
				got := map[string]bool{}
				for _, address := range l.stale() {
					got[address] = true
				}
				want := map[string]bool{}
				for _, address := range c.want {
					want[address] = true
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("stale (-want +got):\n%s", diff)
				}
				l.kept(c.kept...)
			})
		})
	}
}

// TestForgottenAtAStart: a point that has been silent for a week is not shown for
// ever, and notes that nobody can read end nothing.
func TestForgottenAtAStart(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("gone"), good("lives"))
		l.seconds(11, "lives")
		l.want("gone")
		l.set(func() {
			l.notes["torn"] = []byte("x")
			l.notes["other"] = append([]byte{9}, l.notes["gone"][1:]...)
			l.notes["rest"] = append([]byte(nil), l.notes["gone"][:noteHead+3]...)
		})
		l.end()
		time.Sleep(forgetSilent - time.Hour)
		l = l.again(tenSeconds)
		l.kept("gone", "lives")
		time.Sleep(2 * time.Hour)
		l.want("lives")
		l = l.again(tenSeconds)
		l.kept("lives")
		if s := l.status.Snapshot(); s.Points != 1 || s.Stale != 1 {
			t.Errorf("%d of %d points are silent", s.Stale, s.Points)
		}
	})
}

// TestRoomForNewPoints: a publisher that invents names for ever does not fill the
// memory with names of before: those silent longest give way.
func TestRoomForNewPoints(t *testing.T) {
	inBubble(t, WatchConfig{StaleAfter: 10 * time.Second, MaxPoints: 2}, func(t *testing.T, l *line) {
		l.say(good("a"))
		l.seconds(1)
		l.say(good("b"), good("c"))
		l.seconds(12)
		l.want("a", "b")
		l.say(good("c"))
		l.kept("b", "c")
		l.say(good("b"), good("d")) // nobody is silent but b, which speaks
		l.kept("b", "c")
		if s := l.status.Snapshot(); s.Unwatched != 1 {
			t.Errorf("%d records unwatched before the sweep", s.Unwatched)
		}
		l.seconds(12)
		l.want("c", "b")
		if s := l.status.Snapshot(); s.Points != 2 || s.Unwatched != 2 {
			t.Errorf("%d points, %d records unwatched", s.Points, s.Unwatched)
		}
		// A smaller bound after a restart forgets the rest.
		l = l.again(WatchConfig{StaleAfter: 10 * time.Second, MaxPoints: 1})
		if n := len(l.disk()); n != 1 {
			t.Errorf("%d points are stored, want 1", n)
		}
	})
}

func TestRecallFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, tenSeconds)
		l.say(good("a"))
		note := l.disk()["a"]
		l.end()
		w := NewWatch(tenSeconds, NewStatus("s", "mqtt"), l.w.log)
		forget, err := w.Recall(func(fn func(string, []byte) error) error {
			return errors.Join(fn("a", note), errors.New("torn page"))
		})
		if err == nil || !strings.Contains(err.Error(), "torn page") || forget != nil || len(w.points.all) != 0 {
			t.Errorf("forget %v, %d points, error %v", forget, len(w.points.all), err)
		}
	})
}

// FuzzNote: a note holds what was kept, and no bytes crash the one who reads it.
func FuzzNote(f *testing.F) {
	p := &point{key: "a", kept: keptSilent, seen: time.UnixMicro(1e15), event: 7, rest: []byte{1, 2}}
	f.Add(p.note().Value)
	p.kept = keptLive
	f.Add(p.note().Value)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.UnixMicro(2e15)
		p, err := readNote("a", b, now)
		if err != nil {
			return
		}
		q, err := readNote("a", p.note().Value, now)
		if err != nil || fmt.Sprint(*p) != fmt.Sprint(*q) {
			t.Errorf("%+v became %+v: %v", p, q, err)
		}
		newPoints([]StaleRule{{"*", time.Second}}, 1).watches(p)
	})
}
