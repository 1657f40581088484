package host

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
	"github.com/edgehost/edgehost/sinks"
)

// counted wants the rows to be numbered from 1 without gap or repeat.
func counted(t *testing.T, rows []sinks.Record, n int) {
	t.Helper()
	if got := values(rows); !slices.Equal(got, numbers(1, n)) {
		t.Fatalf("numbered %v, want 1 to %d", got, n)
	}
}

// TestStateOverFaultsRestartsAndRevisions: a state change counts once for each
// committed batch, not for a call that faulted, and outlives instance, process
// and revision.
func TestStateOverFaultsRestartsAndRevisions(t *testing.T) {
	r := newRig(t, "m").start()
	r.push("m", "count")
	r.must(r.feed.give(t, recs("a", 0, 10)...))
	batch := recs("a", 0, 8)
	batch[3].Address = "trap"
	r.must(r.feed.give(t, batch...))
	counted(t, r.main.wait(t, 17), 17)
	if m := r.status().Pipelines[0].Modules[0]; m.Counters["seen"] != 17 || m.FaultsByClass["trap"] == 0 {
		t.Fatalf("metrics of the module: %+v", m)
	}
	r.restart()
	r.must(r.feed.give(t, recs("a", 0, 3)...))
	r.push("m", "stamp1")
	r.push("m", "count")
	r.must(r.feed.give(t, recs("a", 0, 5)...))
	counted(t, r.main.wait(t, 25), 25)
	r.balanced(control.Ledger{Read: 26, Delivered: 25, DeadLettered: 1})
}

// TestStateOfHeldInput: what a module wrote for a batch that was held in the end
// is forgotten, and written once when the batch is transformed.
func TestStateOfHeldInput(t *testing.T) {
	r := newRig(t, "m", "n").start()
	r.push("m", "count")
	r.push("n", "broken")
	r.must(r.feed.give(t, recs("a", 0, 40)...))
	r.until("held", func(s control.Status) bool { return s.Ledger.Held == 40 })
	r.push("n", "poison")
	counted(t, r.main.wait(t, 40), 40)
}

// TestStateThroughCrash cuts the power between batches: the number continues
// where the last commit record is.
func TestStateThroughCrash(t *testing.T) {
	disk := vfs.NewCrashableMem()
	r := newRig(t, "m")
	r.fs = disk
	r.start()
	r.push("m", "count")
	for range 20 {
		r.must(r.feed.give(t, recs("a", 0, 7)...))
	}
	r.main.wait(t, 140)
	after := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0})
	r.stop()
	again := newRig(t, "m")
	again.fs, again.dir, again.box = after, r.dir, r.box
	again.start()
	again.must(again.feed.give(t, recs("a", 0, 7)...))
	again.until("delivered", func(s control.Status) bool { return s.Ledger.Waiting == 0 })
	rows := again.main.all()
	if last := rows[len(rows)-1].Value.AsInt(); last != 147 {
		t.Fatalf("the module counted to %d, 147 records were committed", last)
	}
}

// TestStateThroughCrashOfSeveralSources cuts the power while four sources flow at
// the same time: what a module counts for each goes on where its last commit is,
// without gap or repeat.
func TestStateThroughCrashOfSeveralSources(t *testing.T) {
	disk := vfs.NewCrashableMem()
	r := newRig(t, "m", "n").wide(4, 4).apart()
	r.fs = disk
	r.start()
	r.push("m", "count")
	r.push("n", "burn")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	emit := func(r *rig, k, from int) bool {
		select {
		case r.feeds[k].in <- batchOf(recsOf(r.cfg.Sources[k], "a", from, 7)):
			return true
		case <-stop:
			return false
		}
	}
	for k := range r.feeds {
		wg.Go(func() {
			for i := 0; emit(r, k, i); i += 7 {
			}
		})
	}
	for _, f := range r.feeds {
		for range 40 {
			r.must(f.settled(t))
		}
	}
	for _, tb := range r.tables {
		tb.setDown(true)
	}
	after := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0})
	close(stop)
	wg.Wait()
	r.stop()
	again := newRig(t, "m", "n").wide(4, 4).apart()
	again.fs, again.dir, again.box = after, r.dir, r.box
	again.start()
	stop = make(chan struct{})
	for k := range again.feeds {
		emit(again, k, 1<<20)
		again.must(again.feeds[k].settled(t))
	}
	again.until("delivered", func(s control.Status) bool { return s.Ledger.Waiting == 0 })
	for name, tb := range again.tables {
		n, _, err := numbering(slices.Concat(r.tables[name].all(), tb.all()))
		if err != nil || n < 40*7+7 {
			t.Errorf("%s: %d records: %v", name, n, err)
		}
	}
}

func TestTick(t *testing.T) {
	r := newRig(t, "m")
	r.cfg.Modules[0].Tick = 20 * time.Millisecond
	r.start()
	r.push("m", "count")
	r.must(r.feed.give(t, recs("a", 0, 5)...))
	r.until("a tick after the batch", func(control.Status) bool {
		return slices.ContainsFunc(r.main.all(), func(x sinks.Record) bool { return x.Address == "count" && x.Value.AsInt() == 5 })
	})
	s := r.until("delivered", func(s control.Status) bool { return s.Ledger.Waiting == 0 })
	if l := s.Ledger; l.Read != 5 || !l.Balanced || l.Delivered <= 5 {
		t.Fatalf("ledger with ticks: %+v", l)
	}
}

// TestRejectedTick: a record that a tick made and a later module rejected is
// dead-lettered, and the ledger knows it.
func TestRejectedTick(t *testing.T) {
	r := newRig(t, "m", "n")
	r.cfg.Modules[0].Tick = 10 * time.Millisecond
	r.start()
	r.push("m", "count")
	r.push("n", "rejectall")
	s := r.until("a dead letter", func(s control.Status) bool { return s.Ledger.DeadLettered >= 2 })
	if !s.Ledger.Balanced {
		t.Fatalf("ledger %+v", s.Ledger)
	}
}

func TestFaultPolicies(t *testing.T) {
	for policy, want := range map[string]control.Ledger{
		FaultDeadLetter: {Read: 80, DeadLettered: 80},
		FaultBypass:     {Read: 80, Delivered: 80},
	} {
		t.Run(policy, func(t *testing.T) {
			r := newRig(t, "m")
			r.cfg.Modules[0].OnFault = policy
			r.start()
			r.push("m", "broken")
			r.must(r.feed.give(t, recs("a", 0, 40)...))
			r.must(r.feed.give(t, recs("a", 40, 40)...))
			s := r.until("settled", func(s control.Status) bool { return s.Ledger.Waiting == 0 })
			l := s.Ledger
			if !l.Balanced || l.Read != want.Read || l.Delivered+16 < want.Delivered || l.Delivered+l.DeadLettered != 80 {
				t.Fatalf("ledger %+v", l)
			}
			calls := s.Pipelines[0].Modules[0].Calls
			r.must(r.feed.give(t, recs("a", 80, 40)...))
			if now := r.status().Pipelines[0].Modules[0].Calls; now != calls {
				t.Fatalf("the module is called although it faulted beyond its budget: %d, then %d", calls, now)
			}
			r.push("m", "stamp2") // is in force at once
			r.until("settled", func(s control.Status) bool { return s.Ledger.Waiting == 0 })
			before := len(r.main.all())
			r.must(r.feed.give(t, recs("a", 120, 1)...))
			rows := r.main.wait(t, before+1)
			if last := rows[len(rows)-1]; last.EventTime != 120 || last.Value.AsFloat() != 2 {
				t.Fatalf("the last of %d rows is %+v, want record 120 with the value of the new revision", len(rows), last)
			}
		})
	}
}

// TestQuotaOfState: what a module remembers is bounded over batches, replaced and
// deleted values free their room, and a call that goes beyond it has no effect.
func TestQuotaOfState(t *testing.T) {
	r := newRig(t).start()
	m := newMemo(r.host.state, "quota").recall()
	write := func(key string, n int) (bool, error) {
		return m.note("m", []sandbox.KVWrite{{Key: key, Value: make([]byte, n), Delete: n == 0}})
	}
	want := func(what string, fits bool, key string, n int) {
		t.Helper()
		got, err := write(key, n)
		if err != nil || got != fits {
			t.Fatalf("%s: fits %v, %v", what, got, err)
		}
	}
	m.begin("s1", 1)
	want("the first value", true, "a", memoQuota-2)
	want("one byte too many", false, "b", 2)
	m.reset()
	want("the first value again", true, "a", memoQuota/2)
	m.keep()
	r.must(r.host.state.Commit(m.accept(1)))
	m.memo.written(1)

	m = newMemo(r.host.state, "quota").recall() // after a restart
	m.begin("s1", 2)
	want("beyond it with what is on disk", false, "b", memoQuota/2)
	m.reset()
	want("in place of what is on disk", true, "a", memoQuota-2)
	want("deleted", true, "a", 0)
	want("in the room that it left", true, "b", memoQuota-2)
	m.begin("s2", 2)
	want("of another source", true, "a", memoQuota-2)
}
