package host

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
)

// TestCrash cuts the power at random moments while batches flow to two tables
// through a module: what was called done is delivered, by the host before the
// crash or by the one after it; what was not committed does not exist; the
// ledger balances from the first moment; rows with one id are equal.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for cycle := range 12 {
		crashOnce(t, rng, cycle)
	}
}

func crashOnce(t *testing.T, rng *rand.Rand, cycle int) {
	disk := vfs.NewCrashableMem()
	r := newRig(t, "route")
	r.fs = disk
	r.start()
	r.push("route", "route")

	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i += 30 {
			select {
			case r.feed.in <- batchOf(recs("a", i, 30)):
			case <-stop:
				return
			}
		}
	})
	var done []int64
	for range 5 + rng.IntN(60) {
		d := <-r.feed.done
		r.must(d.err)
		for _, rec := range d.b.Records {
			done = append(done, rec.Value.AsInt())
		}
	}
	// Nothing is delivered any more, then the power goes.
	r.main.setDown(true)
	r.other.setDown(true)
	before := slices.Concat(r.main.all(), r.other.all())
	for more := true; more; { // done before the cut counts as well
		select {
		case d := <-r.feed.done:
			for _, rec := range d.b.Records {
				done = append(done, rec.Value.AsInt())
			}
		default:
			more = false
		}
	}
	after := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[cycle%3], RNG: rng})
	close(stop)
	wg.Wait()
	r.stop()

	again := newRig(t, "route")
	again.fs, again.dir, again.box = after, r.dir, r.box
	again.start()
	s := again.status()
	if !s.Ledger.Balanced {
		t.Fatalf("ledger after the crash: %+v", s.Ledger)
	}
	s = again.until("everything delivered", func(s control.Status) bool { return s.Ledger.Waiting == 0 })
	rows := slices.Concat(before, again.main.all(), again.other.all())
	checkRows(t, rows, done)
	if l := s.Ledger; !l.Balanced || l.Read < uint64(len(done)) {
		t.Fatalf("ledger %+v, done %d", l, len(done))
	}
	again.stop()
}

func checkRows(t *testing.T, rows []sinks.Record, done []int64) {
	t.Helper()
	byID := map[sinks.ID]string{}
	have := map[int64]bool{}
	for _, row := range rows {
		text := fmt.Sprint(row.Record)
		if was, ok := byID[row.ID]; ok && was != text {
			t.Fatalf("id %v stands on two different rows: %s and %s", row.ID, was, text)
		}
		byID[row.ID] = text
		have[row.Value.AsInt()] = true
	}
	missing := 0
	for _, v := range done {
		if !have[v] {
			missing++
		}
	}
	if missing > 0 {
		t.Fatalf("%d of %d records were done and are nowhere", missing, len(done))
	}
}
