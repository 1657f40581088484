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

	"github.com/edgehost/edgehost/host/sandbox/meter"
	"github.com/tetratelabs/wazero"
)

// Config says how a Host is set up.
type Config struct {
	// Cache keeps compiled code between starts. One that cannot be used is told
	// to its logger, and the Host goes on without.
	Cache CacheConfig
	// Limits bound what Compile accepts; the zero value means DefaultLimits.
	Limits Limits
}

// Host compiles and runs the modules of a process, on two engines: two modules can be
// compiled at the same time, and instances of any number run. All its methods may be
// called by any number of goroutines.
type Host struct {
	engines [compilers]*engine
	cache   *codeCache // nil: compiled code is not kept
	limits  Limits

	compiling sync.WaitGroup
}

// New starts a Host.
func New(cfg Config) (*Host, error) {
	h := &Host{limits: cfg.Limits.orDefault()}
	if c := cfg.Cache; c.Dir != "" {
		if len(c.Key) < minCacheKey {
			return nil, fmt.Errorf("the key of the module cache has %d bytes, it must have %d", len(c.Key), minCacheKey)
		}
		var err error
		if h.cache, err = openCodeCache(c, compilers); err != nil {
			c.Logger.Warn("compiled modules are not kept: each start compiles them anew", "dir", c.Dir, "error", err)
		}
	}
	for k := range h.engines {
		var d *desk
		if h.cache != nil {
			d = h.cache.desks[k]
		}
		var err error
		if h.engines[k], err = newEngine(d); err != nil {
			return nil, errors.Join(err, h.Close())
		}
	}
	return h, nil
}

// Close ends the engines and frees the compiled code. All instances must be
// closed before.
func (h *Host) Close() error {
	h.compiling.Wait()
	ctx := context.Background()
	var errs []error
	for _, e := range h.engines {
		if e != nil {
			errs = append(errs, e.runtime.Close(ctx))
		}
	}
	if h.cache != nil {
		errs = append(errs, h.cache.close(ctx))
	}
	return errors.Join(errs...)
}

// CacheStat says how the cache of compiled code does; all zero when nothing is kept.
func (h *Host) CacheStat() CacheStat {
	if h.cache == nil {
		return CacheStat{}
	}
	return h.cache.stat()
}

// Module is one compiled revision of a module. Its methods may be called by any
// number of goroutines.
type Module struct {
	engine   *engine
	compiled wazero.CompiledModule
	digest   string
	meter    *meter.Info
	has      exportSet
}

// Compile admits and compiles a module. When the module itself is at fault the
// error is a *Refusal that lists every reason found. It ends when ctx does, and after
// the deadline of the Host's limits, which is for waiting and compiling each.
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
	e, compiled, err := h.compile(ctx, digest, metered)
	if err != nil {
		return nil, err
	}
	return &Module{engine: e, compiled: compiled, digest: digest, meter: info, has: has}, nil
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
