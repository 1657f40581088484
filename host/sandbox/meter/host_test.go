package meter

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

var (
	errDepth    = errors.New("test host: too deep")
	errDeadline = errors.New("test host: deadline")
)

// testHost runs metered modules as a host does: yield looks at the depth, then
// at the deadline, and refills.
type testHost struct {
	runtime  wazero.Runtime
	deadline time.Time // zero: none
	yields   int
	used     int64 // fuel of the slices used up
	lenient  bool  // let a module that is too deep go on
}

// compiled keeps code for other tests that use the same module.
var compiled = wazero.NewCompilationCache()

func newTestHost(t *testing.T) *testHost {
	ctx := t.Context()
	h := &testHost{runtime: wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().
		WithCoreFeatures(api.CoreFeaturesV2).WithCompilationCache(compiled))}
	t.Cleanup(func() { h.runtime.Close(context.Background()) })
	_, err := h.runtime.NewHostModuleBuilder(YieldModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(h.yield), nil, nil).Export(YieldName).Instantiate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *testHost) yield(_ context.Context, mod api.Module, _ []uint64) {
	h.yields++
	if int64(mod.ExportedGlobal(DepthGlobal).Get()) < 0 {
		if h.lenient {
			return
		}
		panic(errDepth)
	}
	if !h.deadline.IsZero() && time.Now().After(h.deadline) {
		panic(errDeadline)
	}
	fuel := mod.ExportedGlobal(FuelGlobal).(api.MutableGlobal)
	h.used += DefaultConfig().Slice - int64(fuel.Get())
	fuel.Set(uint64(DefaultConfig().Slice))
}

// load meters a module and instantiates it.
func (h *testHost) load(t *testing.T, wasm []byte) (api.Module, *Info) {
	t.Helper()
	out, info, err := Instrument(wasm, DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	mod, err := h.runtime.InstantiateWithConfig(t.Context(), out, wazero.NewModuleConfig().WithName(""))
	if err != nil {
		t.Fatal(err)
	}
	return mod, info
}

// call resets the counters and calls an export.
func (h *testHost) call(t *testing.T, mod api.Module, name string, args ...uint64) ([]uint64, error) {
	t.Helper()
	mod.ExportedGlobal(FuelGlobal).(api.MutableGlobal).Set(uint64(DefaultConfig().Slice))
	mod.ExportedGlobal(DepthGlobal).(api.MutableGlobal).Set(uint64(DefaultConfig().MaxDepth))
	h.used, h.yields = 0, 0
	results, err := mod.ExportedFunction(name).Call(t.Context(), args...)
	h.used += DefaultConfig().Slice - int64(mod.ExportedGlobal(FuelGlobal).Get())
	return results, err
}
