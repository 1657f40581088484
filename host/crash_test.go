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

// TestCrash cuts the power at random moments while batches of one source, or of
// four at the same time, flow to two tables through a module: what was called done is delivered, by the host before the
// crash or by the one after it; what was not committed does not exist; the
// ledger balances from the first moment; rows with one id are equal.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for cycle := range 6 { // each of the two widths with each of the three disks
		crashOnce(t, rng, cycle, 1+3*(cycle/3%2))
	}
}

func crashOnce(t *testing.T, rng *rand.Rand, cycle, wide int) {
	disk := vfs.NewCrashableMem()
	r := newRig(t, "route").wide(wide, 4)
	r.fs = disk
	r.start()
	r.push("route", "route")

	var wg sync.WaitGroup
	stop := make(chan struct{})
	for k, f := range r.feeds {
		wg.Go(func() {
			for i := 0; ; i += 30 {
				select {
				case f.in <- batchOf(recsOf(r.cfg.Sources[k], "a", i, 30)):
				case <-stop:
					return
				}
			}
		})
	}
	var done []crashRow
	note := func(d fed) {
		r.must(d.err)
		for _, rec := range d.b.Records {
			done = append(done, crashRow{rec.Source, rec.Value.AsInt()})
		}
	}
	for range 5 + rng.IntN(60) {
		for _, f := range r.feeds {
			note(<-f.done)
		}
	}
	// Nothing is delivered any more, then the power goes.
	r.main.setDown(true)
	r.other.setDown(true)
	before := slices.Concat(r.main.all(), r.other.all())
	for _, f := range r.feeds { // done before the cut counts as well
		for more := true; more; {
			select {
			case d := <-f.done:
				note(d)
			default:
				more = false
			}
		}
	}
	after := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[cycle%3], RNG: rng})
	close(stop)
	wg.Wait()
	r.stop()

	again := newRig(t, "route").wide(wide, 4)
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

// crashRow is one record that was called done.
type crashRow struct {
	source string
	value  int64
}

func checkRows(t *testing.T, rows []sinks.Record, done []crashRow) {
	t.Helper()
	byID := map[sinks.ID]string{}
	have := map[crashRow]bool{}
	for _, row := range rows {
		text := fmt.Sprint(row.Record)
		if was, ok := byID[row.ID]; ok && was != text {
			t.Fatalf("id %v stands on two different rows: %s and %s", row.ID, was, text)
		}
		byID[row.ID] = text
		have[crashRow{row.Source, row.Value.AsInt()}] = true
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
