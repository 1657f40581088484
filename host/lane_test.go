package host

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
	"github.com/edgehost/edgehost/sinks"
)

// numbering is what the module count and its ticks must leave in the table of one
// source: records in order, numbered without gap or repeat, and ticks that know
// the number of the record before them.
func numbering(rows []sinks.Record) (records, ticks int, err error) {
	slices.SortStableFunc(rows, func(a, b sinks.Record) int { return int(a.Seq) - int(b.Seq) })
	rows = slices.CompactFunc(rows, func(a, b sinks.Record) bool { return a.Seq == b.Seq }) // sent again over a restart
	last := int64(-1)
	for i, row := range rows {
		switch {
		case row.Address == "count":
			ticks++
			if row.Value.AsInt() != int64(records) {
				return records, ticks, fmt.Errorf("row %d: a tick says %d after %d records", i, row.Value.AsInt(), records)
			}
		case row.Value.AsInt() != int64(records+1):
			return records, ticks, fmt.Errorf("row %d: record %d is numbered %d, want %d", i, row.EventTime, row.Value.AsInt(), records+1)
		case row.EventTime <= last:
			return records, ticks, fmt.Errorf("row %d: record %d comes after %d", i, row.EventTime, last)
		default:
			records, last = records+1, row.EventTime
		}
	}
	return records, ticks, nil
}

// TestSeveralSources: eight sources go through two modules at the same time, the
// second of which takes a different time for each record. There are poison records
// of both, ticks, and a time in which the second is broken and input is held. The
// output of each source is in order, its state counts each record once, and the
// ledger balances.
func TestSeveralSources(t *testing.T) {
	const n, batches, size = 8, 60, 20
	r := newRig(t, "count", "burn").wide(n, 4).apart()
	r.cfg.Modules[0].Tick = 5 * time.Millisecond
	r.start()
	r.push("count", "count")
	r.push("burn", "burn")

	var poison [n]int
	half, broken := make(chan struct{}, n), make(chan struct{})
	var wg sync.WaitGroup
	for k, f := range r.feeds {
		source, rng := r.cfg.Sources[k], rand.New(rand.NewPCG(uint64(k), 7))
		wg.Go(func() {
			for b := range batches {
				recs := recsOf(source, "a", b*size, size)
				if rng.IntN(5) == 0 {
					recs[rng.IntN(size)].Address = []string{"trap", "burst"}[rng.IntN(2)]
					poison[k]++
				}
				if b == batches-1 {
					<-broken // there is something to hold, however fast the others went
				}
				f.send(t, recs...)
				if b == batches/2 {
					half <- struct{}{}
				}
			}
		})
	}
	for range n {
		<-half
	}
	r.push("burn", "broken")
	close(broken)
	s := r.until("held", func(s control.Status) bool { return s.Ledger.Held > 0 })
	if !s.Ledger.Balanced {
		t.Fatalf("ledger while held: %+v", s.Ledger)
	}
	wg.Wait()
	for _, f := range r.feeds {
		for range batches {
			r.must(f.settled(t))
		}
	}
	r.restart()
	r.push("burn", "burn")
	s = r.until("nothing waits", func(s control.Status) bool { return s.Ledger.Held == 0 && s.Ledger.Waiting == 0 })
	dead := 0
	for k, source := range r.cfg.Sources {
		rows := r.tables["c.s."+source].all()
		records, ticks, err := numbering(rows)
		lost := batches*size - poison[k] - records // poison of the time in which all was
		if err != nil || ticks == 0 || lost < 0 || lost > budgetFaults+4 {
			t.Errorf("source %s: %d records of %d, of which %d poison, and %d ticks: %v", source, records, batches*size, poison[k], ticks, err)
		}
		dead += batches*size - records
	}
	if l := s.Ledger; !l.Balanced || l.Read != n*batches*size || int(l.DeadLettered) != dead {
		t.Errorf("ledger %+v, dead %d", l, dead)
	}
	if m := s.Pipelines[0].Modules[0]; m.Instances < 1 || m.Instances > 4 {
		t.Errorf("%d instances for 4 workers", m.Instances)
	}
}

// TestSlowSource: a source whose batch takes its time keeps no other from the
// modules, and everything is committed in the end.
func TestSlowSource(t *testing.T) {
	r := newRig(t, "m").wide(3, 2)
	r.cfg.Modules[0].Limits = sandbox.Limits{Deadline: 1500 * time.Millisecond, Fuel: 1 << 50}
	r.start()
	r.push("m", "poison")
	r.feeds[0].send(t, recOf("s1", "x/loop", 0)) // until the deadline
	for b := range 10 {
		r.feeds[1].send(t, recsOf("s2", "a", b*10, 10)...)
	}
	r.until("the others are through", func(s control.Status) bool { return s.Pipelines[0].Modules[0].Calls >= 10 })
	select {
	case <-r.feeds[0].done:
		t.Error("the slow batch was settled before the others were through")
	default:
	}
	r.must(r.feeds[0].settled(t))
	for range 10 {
		r.must(r.feeds[1].settled(t))
	}
	// On a machine that is busy the slow one may use up the time of a bisection: then it is held.
	r.until("all delivered but the slow one", func(s control.Status) bool {
		l := s.Ledger
		return l.Balanced && l.Read == 101 && l.Delivered == 100 && l.DeadLettered+l.Held == 1
	})
}

// TestHoldFillsAndDrainsInOrder: while a pipeline of many sources is held nothing
// passes what is held, over and over again.
func TestHoldFillsAndDrainsInOrder(t *testing.T) {
	const n, size = 5, 40
	r := newRig(t, "m").wide(n, 3).start()
	r.push("m", "poison")
	at := make([]int, n)
	for round := range 6 {
		r.push("m", []string{"broken", "poison"}[round%2])
		for range 5 {
			for k, f := range r.feeds {
				f.send(t, recsOf(r.cfg.Sources[k], "a", at[k], size)...)
				at[k] += size
			}
		}
		for _, f := range r.feeds {
			for range 5 {
				r.must(f.settled(t))
			}
		}
	}
	s := r.until("nothing waits", func(s control.Status) bool { return s.Ledger.Held == 0 && s.Ledger.Waiting == 0 })
	next := map[string]int64{}
	for _, row := range r.main.all() {
		if row.Value.AsInt() != next[row.Source] {
			t.Fatalf("source %s: %d comes where %d should", row.Source, row.Value.AsInt(), next[row.Source])
		}
		next[row.Source]++
	}
	if l := s.Ledger; !l.Balanced || l.Delivered != n*30*size {
		t.Fatalf("ledger %+v", l)
	}
}

// TestStrict: a module's memory lasts from batch to batch, unless it must not.
func TestStrict(t *testing.T) {
	for _, strict := range []bool{false, true} {
		r := newRig(t, "m")
		r.cfg.Modules[0].Strict = strict
		r.start()
		r.push("m", "tally")
		for b := range 5 {
			r.must(r.feed.give(t, recs("a", b, 1)...))
		}
		want := []string{"1", "2", "3", "4", "5"}
		if strict {
			want = []string{"1", "1", "1", "1", "1"}
		}
		if got := values(r.main.wait(t, 5)); !slices.Equal(got, want) {
			t.Errorf("strict %v: the module counts %v", strict, got)
		}
		r.stop()
	}
}

// TestNoInstanceIsNoRecordsFault: a module of which no more instances start holds
// its pipeline; what it cannot transform is not dead-lettered.
func TestNoInstanceIsNoRecordsFault(t *testing.T) {
	r := newRig(t, "m")
	config := map[string]string{}
	r.cfg.Modules[0].Config = config
	r.start()
	r.push("m", "start")
	r.must(r.feed.give(t, recs("a", 0, 1)...))
	r.host.pipelines[0].chain.renew(t.Context()) // as a fault does
	config["trap"] = "1"
	r.must(r.feed.give(t, recs("a", 1, 1)...))
	s := r.until("held", func(s control.Status) bool { return s.Ledger.Held == 1 })
	if l := s.Ledger; l.DeadLettered != 0 || s.Pipelines[0].Modules[0].Faults != 1 || s.Pipelines[0].Modules[0].Instances != 0 {
		t.Errorf("ledger %+v, module %+v", l, s.Pipelines[0].Modules[0])
	}
	delete(config, "trap")
	r.push("m", "start")
	if got := values(r.main.wait(t, 2)); !slices.Equal(got, numbers(0, 2)) {
		t.Errorf("got %v", got)
	}
}

// TestOutOfOrderMemory: batches of different sources are accepted in any order and
// committed by their numbers.
func TestOutOfOrderMemory(t *testing.T) {
	r := newRig(t).start()
	m := newMemo(r.host.state, "order")
	write := func(source string, seq uint64) *recall {
		rc := m.recall()
		rc.begin(source, 1)
		if _, err := rc.note("m", []sandbox.KVWrite{{Key: "k", Value: []byte(strconv.FormatUint(seq, 10))}}); err != nil {
			t.Fatal(err)
		}
		rc.keep()
		rc.accept(seq)
		return rc
	}
	write("s2", 2)
	write("s1", 1)
	write("s1", 3)
	m.written(1)
	if n := len(m.pending); n != 2 {
		t.Errorf("%d batches are pending after the first was written, want 2", n)
	}
	m.written(2)
	if v := m.cache[memoKey{"m", "s1", "k"}]; v.seq != 3 || string(v.value) != "3" {
		t.Errorf("the value that was written again: %+v", v)
	}
	if v := m.cache[memoKey{"m", "s2", "k"}]; v.seq != 0 {
		t.Errorf("a value on disk: %+v", v)
	}
}

// BenchmarkWorkers sends eight sources through two modules with one worker and with
// two, in turns: modules that work on each record, and modules that hardly do.
// "ratio" is how much more two workers do; the machine must be quiet and have two
// cores.
//
//	go test ./host -run '^$' -bench Workers -benchtime 5x
func BenchmarkWorkers(b *testing.B) {
	for name, files := range map[string][2]string{"heavy": {"work", "work"}, "light": {"stamp1", "add10"}} {
		b.Run(name, func(b *testing.B) {
			var took [3]time.Duration
			for b.Loop() {
				took[1] += throughput(b, 1, files)
				took[2] += throughput(b, 2, files)
			}
			records := float64(b.N) * 8 * throughputBatches * throughputSize
			b.ReportMetric(records/took[1].Seconds(), "records/s/1")
			b.ReportMetric(records/took[2].Seconds(), "records/s/2")
			b.ReportMetric(took[1].Seconds()/took[2].Seconds(), "ratio")
		})
	}
}

const throughputBatches, throughputSize = 20, 100

// throughput is how long a pipeline takes from the first emit to the last done.
func throughput(b *testing.B, workers int, files [2]string) time.Duration {
	r := newRig(b, "m", "n").wide(8, workers).apart()
	r.retain = 0
	r.start()
	defer r.stop()
	r.push("m", files[0])
	r.push("n", files[1])
	var wg sync.WaitGroup
	runtime.GC()
	begin := time.Now()
	for k, f := range r.feeds {
		wg.Go(func() {
			for i := range throughputBatches {
				f.send(b, recsOf(r.cfg.Sources[k], "a", i*throughputSize, throughputSize)...)
			}
			for range throughputBatches {
				r.must(f.settled(b))
			}
		})
	}
	wg.Wait()
	return time.Since(begin)
}

// BenchmarkOneSource is a pipeline of one source and a chain of two modules, from
// emit to done.
func BenchmarkOneSource(b *testing.B) {
	const size = 20
	r := newRig(b, "m", "n")
	r.retain = 0
	r.start()
	r.push("m", "stamp1")
	r.push("n", "stamp2")
	batch := recs("a", 0, size)
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		for range b.N {
			r.must((<-r.feed.done).err)
		}
	}()
	b.ResetTimer()
	for range b.N {
		r.feed.in <- batchOf(batch)
	}
	<-settled
	b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "records/s")
}
