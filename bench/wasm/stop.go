package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/metrics"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// deployed compiles and starts a module.
func deployed(h *sandbox.Host, wasm []byte, op string, l sandbox.Limits) (*sandbox.Module, *sandbox.Instance, error) {
	m, err := h.Compile(context.Background(), wasm)
	if err != nil {
		return nil, nil, err
	}
	i, err := m.Instantiate(context.Background(), sandbox.Env{Name: "bench", Config: map[string]string{"op": op}, Limits: l, Logger: quiet})
	return m, i, err
}

// stopping is how long after its deadline a module still runs, and what the rest of
// the process notices of it.
func stopping(r *report, g *guests, rounds int) error {
	h, err := sandbox.New(sandbox.Config{})
	if err != nil {
		return err
	}
	defer h.Close()
	const deadline = 15 * time.Millisecond
	limits := sandbox.Limits{Deadline: deadline, Fuel: 1 << 50}
	ctx, bad, good := context.Background(), plant(1, 2, false)[0], plant(1, 1, false)[0]
	for _, op := range []string{"loop", "tree of calls", "recursion", "fill of 16 MiB"} {
		m, i, err := deployed(h, g.hostile, op, limits)
		if err != nil {
			return err
		}
		var late []float64
		for range 40 * rounds {
			begin := time.Now()
			_, err := i.Process(ctx, bad)
			took := time.Since(begin)
			var f *sandbox.Fault
			if !errors.As(err, &f) {
				return fmt.Errorf("%s: error %v, want a fault", op, err)
			}
			if f.Class == sandbox.ClassDeadline {
				took -= deadline
			}
			late = append(late, took.Seconds()*1e3)
			if _, err := i.Process(ctx, good); err != nil {
				return fmt.Errorf("%s: the next batch: %w", op, err)
			}
		}
		r.most("stopped after the deadline, p50/"+op, median(late), "ms", 20, 4)
		r.most("stopped after the deadline, p99/"+op, quantile(late, 0.99), "ms", 50, 20)
		if err := errors.Join(i.Close(ctx), m.Close(ctx)); err != nil {
			return err
		}
	}
	return pauses(r, h, g, bad)
}

// pauses is how long a collection stops the process while a module spins.
func pauses(r *report, h *sandbox.Host, g *guests, bad *abi.Batch) error {
	for _, op := range []string{"loop", "fill of 16 MiB"} {
		m, i, err := deployed(h, g.hostile, op, sandbox.Limits{Deadline: 2 * time.Second, Fuel: 1 << 50})
		if err != nil {
			return err
		}
		before := stops()
		done := make(chan struct{})
		go func() {
			defer close(done)
			i.Process(context.Background(), bad)
		}()
		for spins := true; spins; {
			runtime.GC()
			select {
			case <-done:
				spins = false
			default:
			}
		}
		after := stops()
		for k := range after.Counts {
			after.Counts[k] -= before.Counts[k]
		}
		r.note("collections while a guest spins/"+op, float64(total(after)), "")
		r.most("pause of a collection, p99/"+op, upper(after, 0.99)*1e3, "ms", 10, 3)
		r.note("pause of a collection, longest/"+op, upper(after, 1)*1e3, "ms")
		if err := errors.Join(i.Close(context.Background()), m.Close(context.Background())); err != nil {
			return err
		}
	}
	return nil
}

// stops is the histogram of how long the collector stopped the process, waiting for
// it to stop included, in seconds.
func stops() *metrics.Float64Histogram {
	s := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(s)
	h := s[0].Value.Float64Histogram()
	return &metrics.Float64Histogram{Counts: append([]uint64(nil), h.Counts...), Buckets: h.Buckets}
}

func total(h *metrics.Float64Histogram) (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// upper is the upper bound of the bucket that holds a quantile.
func upper(h *metrics.Float64Histogram, q float64) float64 {
	rest := uint64(math.Ceil(q * float64(total(h))))
	for i, c := range h.Counts {
		if c >= rest {
			return h.Buckets[i+1]
		}
		rest -= c
	}
	return 0
}

// recovery is the way from a panic in a Go guest, its trace included, to an
// instance that works.
func recovery(r *report, g *guests, rounds int) error {
	h, err := sandbox.New(sandbox.Config{})
	if err != nil {
		return err
	}
	defer h.Close()
	_, i, err := deployed(h, g.flat["Go"], "fault", sandbox.Limits{})
	if err != nil {
		return err
	}
	ctx, good := context.Background(), plant(1, 1, false)[0]
	bad := &abi.Batch{Seq: 1, Time: good.Time, Records: []abi.Record{{Source: "plant", Address: "poison"}}}
	var took []float64
	for range 30 * rounds {
		begin := cpu()
		_, err := i.Process(ctx, bad)
		took = append(took, (cpu()-begin).Seconds()*1e3)
		var f *sandbox.Fault
		if !errors.As(err, &f) || f.Class != sandbox.ClassTrap {
			return fmt.Errorf("error %v, want a trap", err)
		}
		if _, err := i.Process(ctx, good); err != nil {
			return fmt.Errorf("the next batch: %w", err)
		}
	}
	r.most("fault to usable instance/Go", median(took), "ms cpu", 1, 0.5)
	return i.Close(ctx)
}
