//go:build linux

package sandbox_test

import (
	"bytes"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/sandbox"
)

// TestSwapsLeakNothing: revisions that are compiled, started twice, used, faulted
// and closed leave no memory, mapping or goroutine behind.
func TestSwapsLeakNothing(t *testing.T) {
	h := newHost(t)
	swap := func(n int) {
		for k := range n {
			g := counting(i32(int64(k)), drop)
			g.process = body(unreachable)
			m := compile(t, h, g.bytes())
			p := newPool(t, m, sandbox.Env{Name: "hostile"}, 0)
			a, b := lend(t, p), lend(t, p)
			count(t, a)
			if _, err := b.Process(t.Context(), batch(poisoned)); err == nil {
				t.Fatal("no fault")
			}
			p.Put(t.Context(), a)
			p.Put(t.Context(), b)
			closePool(t, p)
			if err := m.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	held := func() (heap, maps, goroutines int) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return int(m.HeapAlloc), bytes.Count(b, []byte("\n")), runtime.NumGoroutine()
	}
	swap(20)
	heap, maps, goroutines := held()
	swap(200)
	heap2, maps2, goroutines2 := held()
	for begin := time.Now(); goroutines2 > goroutines && time.Since(begin) < 30*time.Second; { // those that end are still counted
		runtime.Gosched()
		heap2, maps2, goroutines2 = held()
	}
	if heap2-heap > 1<<20 || maps2-maps > 32 || goroutines2 > goroutines {
		t.Errorf("after 200 swaps: %d bytes of heap, %d mappings, %d goroutines more", heap2-heap, maps2-maps, goroutines2-goroutines)
	}
	t.Logf("after 200 swaps: %d bytes of heap, %d mappings, %d goroutines more", heap2-heap, maps2-maps, goroutines2-goroutines)
}
