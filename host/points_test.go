package host

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sources"
)

// watched makes a rig whose source is watched: a point may be silent for 200 ms.
func watched(t *testing.T) *rig {
	r := newRig(t)
	r.watch, r.points = sources.WatchConfig{StaleAfter: 200 * time.Millisecond}, "two topics"
	return r
}

// stale counts the rows of each address that say that it is silent; a row that is
// delivered again is the same row.
func stale(rows []sinks.Record) map[string]int {
	out := map[string]int{}
	seen := map[sinks.ID]bool{}
	for _, r := range rows {
		if v, ok := r.Attr(abi.AttrStale); ok && v.AsBool() && !seen[r.ID] {
			seen[r.ID] = true
			out[r.Address]++
		}
	}
	return out
}

// silent waits until the point called last is silent, and demands these stale
// rows and no others. It speaks once and falls silent after all that were known
// at the start, so that they would have been reported before it.
func (r *rig) silent(last string, want map[string]int) {
	r.t.Helper()
	r.must(r.feed.give(r.t, rec(last, 0)))
	r.until(last+" to fall silent", func(control.Status) bool { return stale(r.main.all())[last] > 0 })
	want[last] = 1
	if diff := cmp.Diff(want, stale(r.main.all())); diff != "" {
		r.t.Fatalf("stale rows (-want +got):\n%s", diff)
	}
}

func TestPointsOverARestart(t *testing.T) {
	r := watched(t).start()
	r.silent("w1", map[string]int{})
	r.must(r.feed.give(t, rec("a", 1), rec("b", 1)))
	r.stop() // both speak still
	r.start()
	if s := r.status().Sources[0]; s.Points > 3 {
		t.Errorf("%d points are known", s.Points)
	}
	r.silent("w2", map[string]int{"w1": 1, "a": 1, "b": 1})
	r.restart()
	r.until("the silent points to be shown", func(s control.Status) bool { return s.Sources[0].PointsStale == 4 })
	r.silent("w3", map[string]int{"w1": 1, "w2": 1, "a": 1, "b": 1})
}

// TestPointsOverACrash cuts the power at once after a commit: its notes are as
// durable as its records.
func TestPointsOverACrash(t *testing.T) {
	crash := func(r *rig) *rig {
		r.main.setDown(true) // what is committed from here on is not to be seen
		after := r.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0})
		r.stop()
		r.main.setDown(false)
		again := watched(t)
		again.fs, again.dir, again.box, again.main, again.other = after, r.dir, r.box, r.main, r.other
		return again.start()
	}
	r := watched(t)
	r.fs = vfs.NewCrashableMem()
	r.start()
	r.must(r.feed.give(t, rec("a", 1)))
	r = crash(r)
	r.silent("w1", map[string]int{"a": 1})
	r = crash(r)
	r.silent("w2", map[string]int{"a": 1, "w1": 1})
}

// TestPointsAreForgotten when the configuration names others, watches none, or
// has the source no more.
func TestPointsAreForgotten(t *testing.T) {
	for name, change := range map[string]func(*rig){
		"others": func(r *rig) { r.points = "other topics" },
		"none":   func(r *rig) { r.points = "" },
		"off":    func(r *rig) { r.watch = sources.WatchConfig{} },
		"no source": func(r *rig) {
			r.cfg.Sources, r.cfg.Targets = []string{"s2"}, map[string]string{"s2": mainTable}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := watched(t)
			r.watch.StaleAfter = time.Hour
			r.start()
			r.must(r.feed.give(t, recs("a", 0, 3)...))
			if n := r.stored(); n != 1 {
				t.Fatalf("%d points are stored, want 1", n)
			}
			r.stop()
			change(r)
			r.start()
			r.must(r.feed.give(t)) // the source runs
			if n := r.stored(); n != 0 {
				t.Errorf("%d points are stored, want none", n)
			}
		})
	}
}

// stored counts what is kept of the points of s1.
func (r *rig) stored() (n int) {
	r.t.Helper()
	r.must(r.host.state.Scan(pointSpace("s1"), func(string, []byte) error { n++; return nil }))
	return n
}

var manyPoints = flag.Int("points", 5_000, "points of TestManyPoints")

// TestManyPoints: many points cost a note each when they are met and none while
// they speak, and every one of them is reported after a restart, once.
func TestManyPoints(t *testing.T) {
	points := *manyPoints
	r := watched(t)
	r.watch.StaleAfter = time.Hour
	r.start()
	round := func() time.Duration {
		begin := time.Now()
		batches := 0
		for i := 0; i < points; i += sources.BatchRecords {
			var b []abi.Record
			for k := range sources.BatchRecords {
				b = append(b, rec(fmt.Sprintf("plant/line%d/sensor%d/temperature", (i+k)%10, i+k), 1))
			}
			r.feed.send(t, b...)
			batches++
		}
		for range batches {
			r.must(r.feed.settled(t))
		}
		return time.Since(begin)
	}
	first := round()
	if n := r.stored(); n != points {
		t.Fatalf("%d points are stored", n)
	}
	second := round()
	r.stop()
	r.main = newTable()
	r.watch.StaleAfter = 100 * time.Millisecond
	begin := time.Now()
	r.start()
	r.until("all points to be known", func(s control.Status) bool { return s.Sources[0].Points == points })
	known := time.Since(begin)
	r.until("all points to be reported", func(s control.Status) bool { return s.Sources[0].PointsStale == points })
	r.until("everything delivered", func(s control.Status) bool {
		return s.Ledger.Read == uint64(3*points) && s.Ledger.Waiting == 0
	})
	got := stale(r.main.all())
	if len(got) != points {
		t.Errorf("%d points were reported", len(got))
	}
	for address, n := range got {
		if n != 1 {
			t.Errorf("%s was reported %d times", address, n)
		}
	}
	if l := r.status().Ledger; !l.Balanced {
		t.Errorf("ledger %+v", l)
	}
	t.Logf("first round %v, second %v, known %v after the start", first, second, known)
}
