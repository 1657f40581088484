package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// admission is what it takes to admit Go guests, cold and from the cache.
func admission(r *report, g *guests, rounds int) error {
	dir, err := os.MkdirTemp("", "edgehost-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	compile := func(wasm []byte, cache string) (float64, error) {
		runtime.GC()
		h, err := sandbox.New(sandbox.Config{Cache: sandbox.CacheConfig{Dir: cache, Key: make([]byte, 32), Logger: slog.New(slog.DiscardHandler)}})
		if err != nil {
			return 0, err
		}
		begin := cpu()
		m, err := h.Compile(context.Background(), wasm)
		took := (cpu() - begin).Seconds() * 1e3
		if err != nil {
			return 0, err
		}
		return took, errors.Join(m.Close(context.Background()), h.Close())
	}
	cache := filepath.Join(dir, "modules")
	for _, c := range []struct {
		name string
		wasm []byte
	}{{"Go", g.bareGo}, {"Go with the SDK", g.flat["Go"]}} {
		if _, err := compile(c.wasm, cache); err != nil {
			return err
		}
		var cold, warm, over []float64
		for range max(5, rounds) {
			alone, err := compileAlone(c.wasm)
			if err != nil {
				return err
			}
			k, err := compile(c.wasm, "")
			if err != nil {
				return err
			}
			w, err := compile(c.wasm, cache)
			if err != nil {
				return err
			}
			cold, warm, over = append(cold, k), append(warm, w), append(over, k/alone)
		}
		size := float64(len(c.wasm)) / 1e6
		r.note("size of the module/"+c.name, size, "MB")
		// The gates are for a module of 1.8 MB: a larger one may take more in proportion.
		r.most("admission, cold, over what the engine takes for the module as it is/"+c.name, median(over), "x", 1.3, 1.1)
		r.most("admission, cold/"+c.name, median(cold), "ms cpu", 1000*max(1, size/1.8), 700)
		r.most("admission, from the cache/"+c.name, median(warm), "ms cpu", 80*max(1, size/1.8), 50)
	}
	return nil
}

// compileAlone is the CPU time, in milliseconds, that the engine takes for a module
// that nobody looked at: how fast the machine is at the moment.
func compileAlone(wasm []byte) (float64, error) {
	runtime.GC()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithCoreFeatures(api.CoreFeaturesV2))
	begin := cpu()
	_, err := rt.CompileModule(ctx, wasm)
	took := (cpu() - begin).Seconds() * 1e3
	return took, errors.Join(err, rt.Close(ctx))
}

// parallel runs one instance, and then one for each of two cores.
func parallel(r *report, g *guests, rounds int) error {
	h, err := sandbox.New(sandbox.Config{})
	if err != nil {
		return err
	}
	defer h.Close()
	const batches = 300
	for _, lang := range []string{"C", "Go"} {
		var is []*sandbox.Instance
		for range 2 {
			_, i, err := deployed(h, g.flat[lang], scale, sandbox.Limits{})
			if err != nil {
				return err
			}
			is = append(is, i)
		}
		in := plant(4, 1000, false)
		var scaling, inflation []float64
		for range max(5, rounds) {
			wall1, cpu1, err := together(is[:1], in, batches)
			if err != nil {
				return err
			}
			wall2, cpu2, err := together(is, in, batches)
			if err != nil {
				return err
			}
			scaling, inflation = append(scaling, 2*wall1/wall2), append(inflation, cpu2/cpu1/2)
		}
		r.note("throughput of two instances over one/"+lang, median(scaling), "x")
		r.note("cpu time a record of two instances over one/"+lang, median(inflation), "x")
		for _, i := range is {
			if err := i.Close(context.Background()); err != nil {
				return err
			}
		}
	}
	return nil
}

func together(is []*sandbox.Instance, in []*abi.Batch, batches int) (wall, cpuTime float64, err error) {
	errs := make([]error, len(is))
	begin, beginCPU := time.Now(), cpu()
	var wg sync.WaitGroup
	for k, i := range is {
		wg.Go(func() {
			for n := range batches {
				if _, err := i.Process(context.Background(), in[n%len(in)]); err != nil {
					errs[k] = err
				}
			}
		})
	}
	wg.Wait()
	return time.Since(begin).Seconds(), (cpu() - beginCPU).Seconds(), errors.Join(errs...)
}

// memoryUse is what an instance holds, and what a thousand swaps leave behind.
func memoryUse(r *report, g *guests, _ int) error {
	h, err := sandbox.New(sandbox.Config{})
	if err != nil {
		return err
	}
	defer h.Close()
	for _, lang := range []string{"C", "Go"} {
		if err := perInstance(r, h, lang, g.flat[lang]); err != nil {
			return err
		}
	}
	return swaps(r, h, g)
}

func perInstance(r *report, h *sandbox.Host, lang string, wasm []byte) error {
	const n = 50
	ctx, in := context.Background(), plant(1, 1000, false)[0]
	m, err := h.Compile(ctx, wasm)
	if err != nil {
		return err
	}
	release()
	before, heap := resident(), held()
	is := make([]*sandbox.Instance, n)
	for k := range is {
		if is[k], err = m.Instantiate(ctx, sandbox.Env{Name: lang, Config: map[string]string{"op": scale}, Logger: quiet}); err != nil {
			return err
		}
		if _, err := is[k].Process(ctx, in); err != nil {
			return err
		}
	}
	release()
	r.note("memory of an instance after a batch of 1000/"+lang, (resident()-before)/n/(1<<20), "MiB")
	r.note("heap of an instance/"+lang, (held()-heap)/n/(1<<20), "MiB")
	r.note("linear memory of an instance/"+lang, float64(is[0].MemoryBytes())/(1<<20), "MiB")
	for _, i := range is {
		err = errors.Join(err, i.Close(ctx))
	}
	return errors.Join(err, m.Close(ctx))
}

// release gives back what the garbage collector can.
func release() {
	runtime.GC()
	runtime.GC()
}

// swaps replaces a module a thousand times, with each revision compiled, started, used
// and closed.
func swaps(r *report, h *sandbox.Host, g *guests) error {
	ctx, in := context.Background(), plant(1, 100, false)[0]
	swap := func(n int, wasm []byte) error {
		for range n {
			m, err := h.Compile(ctx, wasm)
			if err != nil {
				return err
			}
			p, err := m.NewPool(ctx, sandbox.Env{Name: "swapped", Config: map[string]string{"op": scale}, Logger: quiet}, 0)
			if err != nil {
				return err
			}
			i, err := p.Get(ctx, nil)
			if err != nil {
				return err
			}
			_, err = i.Process(ctx, in)
			p.Put(ctx, i)
			if err := errors.Join(err, p.Close(ctx), m.Close(ctx)); err != nil {
				return err
			}
		}
		return nil
	}
	run := func(c, other int) error { return errors.Join(swap(c, g.flat["C"]), swap(other, g.flat["Go"])) }
	if err := run(20, 1); err != nil {
		return err
	}
	heap, maps := held(), mapped()
	if err := run(992, 8); err != nil {
		return fmt.Errorf("swap: %w", err)
	}
	r.most("heap that 1000 swaps leave", (held()-heap)/(1<<20), "MiB", 1, 0.25)
	r.most("mappings that 1000 swaps leave", mapped()-maps, "", 16, 0)
	return nil
}

// held is the live heap in bytes.
func held() float64 {
	release()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
