package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// compilers is how many modules are compiled at the same time. A compilation holds some
// 50 MB while it runs; on a gateway with two cores more would gain nothing.
const compilers = 2

// engine is a wazero runtime that compiles one module at a time, in the goroutine of
// the caller. The modules that it compiled run on it, with as many instances at a time
// as anybody starts.
type engine struct {
	runtime wazero.Runtime
	desk    *desk         // its part of the cache; nil: compiled code is not kept
	turn    chan struct{} // held by the compilation that runs
}

func newEngine(d *desk) (*engine, error) {
	ctx := context.Background()
	rc := wazero.NewRuntimeConfigCompiler().
		WithCoreFeatures(api.CoreFeaturesV2).
		WithDebugInfoEnabled(false)
	if d != nil {
		rc = rc.WithCompilationCache(d.wazero)
	}
	e := &engine{runtime: wazero.NewRuntimeWithConfig(ctx, rc), desk: d, turn: make(chan struct{}, 1)}
	for _, export := range []func(context.Context, wazero.Runtime) error{exportEdgehost, exportWASI, exportYield} {
		if err := export(ctx, e.runtime); err != nil {
			return nil, fmt.Errorf("export host functions: %w", errors.Join(err, e.runtime.Close(ctx)))
		}
	}
	return e, nil
}

// compile compiles, or takes the code from the cache, and gives the turn on.
func (e *engine) compile(ctx context.Context, digest string, metered []byte) (wazero.CompiledModule, error) {
	defer func() { <-e.turn }()
	if e.desk == nil {
		return e.runtime.CompileModule(ctx, metered)
	}
	return e.desk.compile(ctx, e.runtime, digest, metered)
}

// take waits for the turn of an engine. The first is preferred: what it has
// compiled before and still holds it need not compile again.
func (h *Host) take(ctx context.Context) (*engine, error) {
	for _, e := range h.engines {
		select {
		case e.turn <- struct{}{}:
			return e, nil
		default:
		}
	}
	late := time.NewTimer(h.limits.CompileDeadline)
	defer late.Stop()
	select {
	case h.engines[0].turn <- struct{}{}:
		return h.engines[0], nil
	case h.engines[1].turn <- struct{}{}:
		return h.engines[1], nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-late.C:
		return nil, fmt.Errorf("%d other modules have been compiling for %s: try again when they are done", compilers, h.limits.CompileDeadline)
	}
}

// compile gives a module to an engine. wazero looks at a context only when it
// compiles in goroutines of its own, where a panic of it would end the process; so it
// runs in ours, and a compilation that takes too long, or that nobody waits for any
// more, is left to end by itself: the meter has bounded what it costs. Until then it
// keeps its engine's turn.
func (h *Host) compile(ctx context.Context, digest string, metered []byte) (*engine, wazero.CompiledModule, error) {
	e, err := h.take(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("compile module: %w", err)
	}
	type result struct {
		compiled wazero.CompiledModule
		err      error
	}
	done := make(chan result, 1)
	h.compiling.Go(func() {
		defer func() {
			if r := recover(); r != nil {
				done <- result{err: refuse("the compiler cannot handle this module: %v", r)}
			}
		}()
		compiled, err := e.compile(context.WithoutCancel(ctx), digest, metered)
		switch {
		case onDisk(err):
			err = fmt.Errorf("compile module: %w", err)
		case err != nil:
			err = refuse("not a valid WebAssembly module: %v", err)
		}
		done <- result{compiled, err}
	})
	late := time.NewTimer(h.limits.CompileDeadline)
	defer late.Stop()
	select {
	case r := <-done:
		return e, r.compiled, r.err
	case <-ctx.Done():
		err = fmt.Errorf("compile module: %w", ctx.Err())
	case <-late.C:
		err = refuse("compiling takes longer than %s: make the largest functions smaller, or upload it again when this machine is less busy", h.limits.CompileDeadline)
	}
	h.compiling.Go(func() {
		if r := <-done; r.compiled != nil {
			_ = r.compiled.Close(context.Background()) // nobody has it
		}
	})
	return nil, nil, err
}
