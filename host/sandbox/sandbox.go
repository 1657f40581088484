// Package sandbox runs the modules of users on wazero: it admits, meters,
// instantiates and calls them, and gives back what they made of a batch. It
// knows the abi, not the pipelines.
//
//	wasm ──Compile──> Module ──Instantiate──> Instance ──Process──> Result | *Fault
//	      scan, meter,  │     _initialize, init,  ^      lay out, call,
//	      compile, check│     snapshot            │      read back
//	                    └─────NewPool──> Pool ──Get
//
// A module has its own memory, the functions of docs/abi.md and nothing else: no
// files, no sockets, no clock but the batch's. It can neither stop the process nor
// pause it: it is metered at load time, yields to the scheduler every slice of
// fuel, and ends with a *Fault at its deadline. After a fault the instance is put
// back into the state that it had after init, so that the next batch finds it whole.
//
// Compiled code is kept on disk under a MAC (cache.go says what against): code that
// was changed, moved or planted there is never executed.
package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/edgehost/edgehost/host/sandbox/meter"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// Config says how a Host is set up.
type Config struct {
	// Cache keeps compiled code between starts. One that cannot be used is told
	// to its logger, and the Host goes on without.
	Cache CacheConfig
	// Limits bound what Compile accepts; the zero value means DefaultLimits.
	Limits Limits
}

// Host is the one wazero runtime of a process. All its methods may be called by
// any number of goroutines.
type Host struct {
	runtime wazero.Runtime
	cache   *codeCache // nil: compiled code is not kept
	limits  Limits

	compiling sync.WaitGroup
}

// New starts a Host.
func New(cfg Config) (*Host, error) {
	ctx := context.Background()
	rc := wazero.NewRuntimeConfigCompiler().
		WithCoreFeatures(api.CoreFeaturesV2).
		WithDebugInfoEnabled(false)
	h := &Host{limits: cfg.Limits.orDefault()}
	if c := cfg.Cache; c.Dir != "" {
		if len(c.Key) < minCacheKey {
			return nil, fmt.Errorf("the key of the module cache has %d bytes, it must have %d", len(c.Key), minCacheKey)
		}
		cache, err := openCodeCache(c)
		if err != nil {
			c.Logger.Warn("compiled modules are not kept: each start compiles them anew", "dir", c.Dir, "error", err)
		} else {
			h.cache, rc = cache, rc.WithCompilationCache(cache.wazero)
		}
	}
	h.runtime = wazero.NewRuntimeWithConfig(ctx, rc)
	for _, build := range []func(context.Context, wazero.Runtime) error{exportEdgehost, exportWASI, exportYield} {
		if err := build(ctx, h.runtime); err != nil {
			_ = h.Close()
			return nil, fmt.Errorf("export host functions: %w", err)
		}
	}
	return h, nil
}

// Close ends the runtime and frees the compiled code. All instances must be
// closed before.
func (h *Host) Close() error {
	h.compiling.Wait()
	ctx := context.Background()
	err := h.runtime.Close(ctx)
	if h.cache != nil {
		err = errors.Join(err, h.cache.close(ctx))
	}
	return err
}

// Module is one compiled revision of a module. Its methods may be called by any
// number of goroutines.
type Module struct {
	host     *Host
	compiled wazero.CompiledModule
	digest   string
	meter    *meter.Info
	has      exportSet
}

// Compile admits and compiles a module. When the module itself is at fault the
// error is a *Refusal that lists every reason found.
func (h *Host) Compile(ctx context.Context, wasm []byte) (*Module, error) {
	if err := precheck(wasm, h.limits.ModuleBytes); err != nil {
		return nil, err
	}
	metered, info, err := instrument(wasm, h.limits)
	if err != nil {
		return nil, err
	}
	has, reasons := checkModule(info)
	if len(reasons) > 0 {
		return nil, &Refusal{Reasons: reasons}
	}
	sum := sha256.Sum256(wasm)
	digest := hex.EncodeToString(sum[:])
	compiled, err := h.compile(ctx, digest, metered)
	if err != nil {
		return nil, err
	}
	return &Module{host: h, compiled: compiled, digest: digest, meter: info, has: has}, nil
}

// compile gives a module to the engine. The engine looks at a context only when it
// compiles in goroutines of its own, where a panic of it would end the process; so it
// runs in ours, and one that takes too long is left to end by itself: the meter
// has bounded what it costs.
func (h *Host) compile(ctx context.Context, digest string, metered []byte) (wazero.CompiledModule, error) {
	if h.cache != nil {
		if err := h.cache.begin(ctx); err != nil {
			return nil, fmt.Errorf("compile module: %w", err)
		}
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
		compiled, err := h.engine(context.WithoutCancel(ctx), digest, metered)
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
	var err error
	select {
	case r := <-done:
		return r.compiled, r.err
	case <-ctx.Done():
		err = fmt.Errorf("compile module: %w", ctx.Err())
	case <-late.C:
		err = refuse("compiling takes longer than %s: make the largest functions smaller", h.limits.CompileDeadline)
	}
	h.compiling.Go(func() {
		if r := <-done; r.compiled != nil {
			_ = r.compiled.Close(context.Background()) // nobody has it
		}
	})
	return nil, err
}

// engine compiles, or takes the code from the cache.
func (h *Host) engine(ctx context.Context, digest string, metered []byte) (wazero.CompiledModule, error) {
	if h.cache == nil {
		return h.runtime.CompileModule(ctx, metered)
	}
	defer h.cache.end()
	return h.cache.compile(ctx, h.runtime, digest, metered)
}

// Digest is the SHA-256 of the module as it was given to Compile, in hex.
func (m *Module) Digest() string { return m.digest }

// Info is what admission learned about a module: imports, exports, sizes, tools.
type Info = meter.Info

// Info describes the module. It must not be changed.
func (m *Module) Info() *Info { return m.meter }

// Ticks reports whether the module wants to be called without input.
func (m *Module) Ticks() bool { return m.has.tick }

// Close frees the compiled code. All instances of the module must be closed
// before.
func (m *Module) Close(ctx context.Context) error { return m.compiled.Close(ctx) }
