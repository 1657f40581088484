package sandbox_test

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// counting is a module that counts its calls in memory and writes the number into
// the value of the first row.
func counting(more ...[]byte) guest {
	return guest{always: body(i32(256), i32(256), load(0), i32(1), add, store(0),
		get(0), load(abi.HeaderRows), i32(256), load(0), store(abi.RowValue), cat(more...))}
}

// count is the number that a counting module wrote.
func count(t *testing.T, i *sandbox.Instance) int {
	t.Helper()
	res, err := i.Process(t.Context(), batch(1))
	if err != nil {
		t.Fatal(err)
	}
	return int(math.Float64bits(res.Out[0].Value.AsFloat()))
}

func newPool(t testing.TB, m *sandbox.Module, env sandbox.Env, idle time.Duration) *sandbox.Pool {
	t.Helper()
	env.Logger = slog.New(slog.DiscardHandler)
	p, err := m.NewPool(t.Context(), env, idle)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func lend(t *testing.T, p *sandbox.Pool) *sandbox.Instance {
	t.Helper()
	i, err := p.Get(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func closePool(t testing.TB, p *sandbox.Pool) {
	t.Helper()
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func checkPool(t *testing.T, p *sandbox.Pool, instances, warm int) {
	t.Helper()
	if s := p.Stat(); s.Instances != instances || s.Warm != warm {
		t.Fatalf("%+v, want %d instances, %d of them warm", s, instances, warm)
	}
}

func TestPoolIsLastInFirstOut(t *testing.T) {
	p := newPool(t, compile(t, newHost(t), counting().bytes()), sandbox.Env{}, 0)
	checkPool(t, p, 1, 1) // so that a deployment that init refuses fails at once
	a, b := lend(t, p), lend(t, p)
	if a == b {
		t.Fatal("one instance is lent twice")
	}
	p.Put(t.Context(), a)
	p.Put(t.Context(), b)
	if got := lend(t, p); got != b {
		t.Error("the instance that came back last is not lent first")
	}
	checkPool(t, p, 2, 1)
	p.Put(t.Context(), b)
	closePool(t, p)
	checkPool(t, p, 0, 0)
	if _, err := p.Get(t.Context(), nil); err == nil {
		t.Error("a closed pool lends")
	}
}

func TestPoolClosesIdleInstances(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	m := compile(t, newHost(t), counting().bytes())
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, m, sandbox.Env{}, time.Minute)
		a, b := lend(t, p), lend(t, p)
		p.Put(t.Context(), a)
		time.Sleep(30 * time.Second)
		p.Put(t.Context(), b)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		checkPool(t, p, 1, 1) // a was idle for a minute, b was not
		time.Sleep(30 * time.Second)
		synctest.Wait()
		checkPool(t, p, 0, 0)
		c := lend(t, p)
		if n := count(t, c); n != 1 {
			t.Errorf("an instance after none counts %d", n)
		}
		time.Sleep(time.Hour)
		checkPool(t, p, 1, 0) // what is lent is not idle
		p.Put(t.Context(), c)
		closePool(t, p)
	})
}

func TestPoolCloseWaitsForTheBorrowed(t *testing.T) {
	m := compile(t, newHost(t), counting().bytes())
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, m, sandbox.Env{}, 0)
		a := lend(t, p)
		var closed atomic.Bool
		go func() {
			closePool(t, p)
			closed.Store(true)
		}()
		synctest.Wait()
		if closed.Load() {
			t.Fatal("closed while an instance is lent")
		}
		if n := count(t, a); n != 1 {
			t.Errorf("a lent instance of a pool that closes counts %d", n)
		}
		p.Put(t.Context(), a)
		synctest.Wait()
		if !closed.Load() {
			t.Fatal("not closed although nothing is lent")
		}
	})
}

func TestPoolRenews(t *testing.T) {
	p := newPool(t, compile(t, newHost(t), counting().bytes()), sandbox.Env{}, 0)
	a, b := lend(t, p), lend(t, p)
	count(t, a)
	count(t, b)
	p.Put(t.Context(), a)
	p.Renew(t.Context())
	p.Put(t.Context(), b)
	checkPool(t, p, 0, 0)
	c := lend(t, p)
	if n := count(t, c); n != 1 {
		t.Errorf("after Renew a module counts %d", n)
	}
	p.Put(t.Context(), c)
	closePool(t, p)
}

// TestPoolRecycles: a module whose memory grows gets a fresh instance before it
// meets its limit, one that needs much from the start does not.
func TestPoolRecycles(t *testing.T) {
	h := newHost(t)
	for name, c := range map[string]struct {
		guest    guest
		limit    uint32
		calls    int
		recycled bool
	}{
		"leaks to its limit":      {counting(i32(1), grow, drop), 160, 160, true},
		"leaks far below it":      {counting(i32(1), grow, drop), 2000, 160, true},
		"keeps its size":          {counting(), 2000, 300, false},
		"is large from the start": {counting(i32(256), load(0), i32(1), eq, when(i32(60), grow, drop)), 2000, 300, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.guest.pages = 2000
			p := newPool(t, compile(t, h, c.guest.bytes()), sandbox.Env{Limits: sandbox.Limits{MemoryPages: c.limit}}, 0)
			defer closePool(t, p)
			for range c.calls {
				i := lend(t, p)
				count(t, i)
				p.Put(t.Context(), i)
			}
			if n := p.Stat().Recycled; (n > 0) != c.recycled || n > uint64(c.calls/100) {
				t.Errorf("%d recycled in %d calls", n, c.calls)
			}
		})
	}
}

// TestPoolUnderLoad has goroutines of two ages fight for instances, with faults
// among the calls.
func TestPoolUnderLoad(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	g := counting()
	g.process = body(unreachable)
	p := newPool(t, compile(t, newHost(t), g.bytes()), sandbox.Env{Name: "hostile"}, time.Millisecond)
	var wg sync.WaitGroup
	for k := range 6 {
		wg.Go(func() {
			for n := range 300 {
				i, err := p.Get(t.Context(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				size := 1
				if n%7 == k {
					size = poisoned
				}
				if _, err := i.Process(t.Context(), batch(size)); (err != nil) != (size == poisoned) {
					t.Errorf("batch of %d: %v", size, err)
				}
				p.Put(t.Context(), i)
				if n%50 == 0 {
					p.Renew(t.Context())
				}
			}
		})
	}
	wg.Wait()
	closePool(t, p)
	checkPool(t, p, 0, 0)
}

// TestStrict: a module that counts in its memory goes on counting, unless it is
// put back after every batch; one that changes its table is started afresh.
func TestStrict(t *testing.T) {
	h := newHost(t)
	table := counting(i32(0), []byte{0xd0, 0x70}, []byte{0x26, 0}) // table.set 0 0 (ref.null func)
	table.table = true
	for name, c := range map[string]struct {
		wasm   []byte
		strict bool
	}{
		"relaxed":                  {counting().bytes(), false},
		"strict":                   {counting().bytes(), true},
		"strict, changes a table":  {table.bytes(), true},
		"strict, grows its memory": {counting(i32(1), grow, drop).bytes(), true},
	} {
		t.Run(name, func(t *testing.T) {
			i := instantiate(t, compile(t, h, c.wasm), sandbox.Env{Strict: c.strict})
			for n := range 5 {
				want := n + 1
				if c.strict {
					want = 1
				}
				if got := count(t, i); got != want {
					t.Fatalf("call %d counts %d, want %d", n, got, want)
				}
			}
		})
	}
}

// BenchmarkStrict is what putting an instance back costs a batch of one.
func BenchmarkStrict(b *testing.B) {
	h := newHost(b)
	for _, lang := range []struct {
		name string
		wasm []byte
	}{{"small", counting().bytes()}, {"Go", example(b, "scale")}} {
		m := compile(b, h, lang.wasm)
		for _, strict := range []bool{false, true} {
			name := lang.name + "/relaxed"
			if strict {
				name = lang.name + "/strict"
			}
			b.Run(name, func(b *testing.B) {
				i := instantiate(b, m, sandbox.Env{Name: "scale", Config: map[string]string{"factor": "2"}, Strict: strict})
				in := batch(1)
				for b.Loop() {
					if _, err := i.Process(b.Context(), in); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(i.MemoryBytes())/(1<<10), "KiB")
			})
		}
	}
}
