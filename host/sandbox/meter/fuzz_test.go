package meter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// withoutCustom drops the custom sections: the engine refuses a module for torn
// names, which the specification does not, and metering drops them.
func withoutCustom(wasm []byte) []byte {
	out := []byte(header)
	r := reader{buf: wasm, pos: len(header)}
	for r.more() {
		id := r.byte()
		body := r.bytes(r.u32())
		if id != secCustom {
			out = appendSection(out, id, body)
		}
	}
	return out
}

// fuzzSeeds are small modules of the testsuite, those of the other tests and random
// ones.
func fuzzSeeds(f *testing.F) {
	add := func(wasm []byte) {
		if len(wasm) < 2000 {
			f.Add(wasm)
		}
	}
	for _, build := range hostile() {
		var a asm
		build(&a)
		add(a.build())
	}
	for _, c := range refusals() {
		var a asm
		c.build(&a)
		add(a.build())
	}
	for seed := range uint64(20) {
		add(newProgram(seed).build())
	}
	dir := specDir(f, "v2")
	files, err := os.ReadDir(dir)
	if err != nil {
		f.Fatal(err)
	}
	for i, file := range files {
		if i%20 != 0 || !strings.HasSuffix(file.Name(), ".wasm") {
			continue
		}
		wasm, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			f.Fatal(err)
		}
		add(wasm)
	}
}

func fuzzConfig() Config {
	cfg := DefaultConfig()
	cfg.BodyBytes, cfg.Locals, cfg.TableEntries, cfg.MemoryPages, cfg.Slice = 4<<10, 200, 1000, 16, 100_000
	return cfg
}

// FuzzScan: whatever the bytes are, the answer is a module of the length that Info
// says or reasons in plain text, the same each time, and the input is as it was.
func FuzzScan(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, wasm []byte) {
		before := slices.Clone(wasm)
		out, info, err := Instrument(wasm, fuzzConfig())
		again, _, errAgain := Instrument(wasm, fuzzConfig())
		if !bytes.Equal(wasm, before) || !bytes.Equal(out, again) || fmt.Sprint(err) != fmt.Sprint(errAgain) {
			t.Fatalf("%v, then %v", err, errAgain)
		}
		if err == nil {
			if len(out) != info.OutBytes || info.Bytes != len(wasm) {
				t.Errorf("%d bytes became %d: %+v", len(wasm), len(out), info)
			}
			return
		}
		var refused *Refused
		if !errors.As(err, &refused) || len(refused.Reasons) == 0 || len(refused.Reasons) > maxReasons || !utf8.ValidString(err.Error()) {
			t.Errorf("error %q", err)
		}
	})
}

// FuzzInstrument: a module is refused, or the engine takes the plain and the
// metered module, or neither; and then both do the same.
func FuzzInstrument(f *testing.F) {
	fuzzSeeds(f)
	ctx := f.Context()
	runtime := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCoreFeatures(api.CoreFeaturesV2).WithMemoryLimitPages(fuzzConfig().MemoryPages))
	f.Cleanup(func() { runtime.Close(context.Background()) })
	h := &fuzzHost{}
	if _, err := runtime.NewHostModuleBuilder(YieldModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(h.yield), nil, nil).Export(YieldName).Instantiate(ctx); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, wasm []byte) {
		out, info, err := Instrument(wasm, fuzzConfig())
		if err != nil {
			return
		}
		plain, plainErr := runtime.CompileModule(t.Context(), withoutCustom(wasm))
		metered, meteredErr := runtime.CompileModule(t.Context(), out)
		if (plainErr == nil) != (meteredErr == nil) {
			t.Fatalf("plain: %v\nmetered: %v", plainErr, meteredErr)
		}
		if plainErr != nil {
			return
		}
		defer plain.Close(t.Context())
		defer metered.Close(t.Context())
		if info.StatefulTables {
			return // a table that grows ends at the limit of ours, and at the end of all memory
		}
		h.compare(t, runtime, plain, metered)
	})
}

// fuzzHost gives each call a few slices of fuel.
type fuzzHost struct{ left int }

var errSpent = errors.New("fuzz host: the fuel is used up")

func (h *fuzzHost) yield(_ context.Context, mod api.Module, _ []uint64) {
	if h.left--; h.left < 0 || int64(mod.ExportedGlobal(DepthGlobal).Get()) < 0 {
		panic(errSpent)
	}
	mod.ExportedGlobal(FuelGlobal).(api.MutableGlobal).Set(uint64(fuzzConfig().Slice))
}

// compare instantiates both modules and calls each export. What the metered module
// does not finish, the plain one is not asked for: it may never end.
func (h *fuzzHost) compare(t *testing.T, runtime wazero.Runtime, plain, metered wazero.CompiledModule) {
	ctx, cfg := t.Context(), wazero.NewModuleConfig().WithName("").WithStartFunctions()
	h.left = 3
	m, meteredErr := runtime.InstantiateModule(ctx, metered, cfg)
	if errors.Is(meteredErr, errSpent) {
		return
	}
	p, plainErr := runtime.InstantiateModule(ctx, plain, cfg)
	if (plainErr == nil) != (meteredErr == nil) {
		t.Fatalf("instantiate: plain %v, metered %v", plainErr, meteredErr)
	}
	if plainErr != nil {
		return
	}
	defer m.Close(ctx)
	defer p.Close(ctx)
	for _, name := range slices.Sorted(maps.Keys(plain.ExportedFunctions())) {
		args := make([]uint64, len(plain.ExportedFunctions()[name].ParamTypes()))
		for i, typ := range plain.ExportedFunctions()[name].ParamTypes() {
			if typ != api.ValueTypeExternref && typ != typeFunc {
				args[i] = uint64(i) + 3
			}
		}
		h.left = 3
		m.ExportedGlobal(FuelGlobal).(api.MutableGlobal).Set(uint64(fuzzConfig().Slice))
		m.ExportedGlobal(DepthGlobal).(api.MutableGlobal).Set(uint64(fuzzConfig().MaxDepth))
		got, gotErr := m.ExportedFunction(name).Call(ctx, args...)
		if errors.Is(gotErr, errSpent) {
			return // their states differ from here on
		}
		if depth := m.ExportedGlobal(DepthGlobal).Get(); gotErr == nil && depth != uint64(fuzzConfig().MaxDepth) {
			t.Fatalf("%s: depth %d afterwards", name, depth)
		}
		want, wantErr := p.ExportedFunction(name).Call(ctx, args...)
		if trapText(wantErr) != trapText(gotErr) || !references(plain.ExportedFunctions()[name]) && !slices.Equal(want, got) {
			t.Fatalf("%s: plain %v %v, metered %v %v", name, want, wantErr, got, gotErr)
		}
		if !sameMemory(slices.Collect(maps.Keys(plain.ExportedMemories())), p, m) {
			t.Fatalf("%s: the memories differ", name)
		}
	}
}

// references reports whether a function returns references, which are addresses.
func references(f api.FunctionDefinition) bool {
	return slices.ContainsFunc(f.ResultTypes(), func(t api.ValueType) bool { return t == api.ValueTypeExternref || t == typeFunc })
}

// sameMemory compares what a host can see.
func sameMemory(names []string, a, b api.Module) bool {
	for _, name := range names {
		x, _ := a.ExportedMemory(name).Read(0, a.ExportedMemory(name).Size())
		y, _ := b.ExportedMemory(name).Read(0, b.ExportedMemory(name).Size())
		if !bytes.Equal(x, y) {
			return false
		}
	}
	return true
}
