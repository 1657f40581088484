package meter

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

const goGuest = `package main

import "strconv"

var words = map[string]int{}

//go:wasmexport run
func run(n int32) int64 {
	var all []byte
	for i := range n {
		all = strconv.AppendInt(all, int64(i*i), 7)
		words[string(all[max(0, len(all)-6):])]++
	}
	sum := int64(len(words))
	for _, c := range all {
		sum = sum*31 + int64(c)
	}
	return sum
}

//go:wasmexport deep
func deep(n int32) int32 {
	if n == 0 {
		return 0
	}
	return deep(n-1) + 1
}

func main() {}
`

// buildGoGuest compiles the module above, once for all tests.
func buildGoGuest(t testing.TB) []byte {
	t.Helper()
	wasm, err := builtGuest()
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

var builtGuest = sync.OnceValues(func() (wasm []byte, err error) {
	dir, err := os.MkdirTemp("", "guest")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, text := range map[string]string{"go.mod": "module guest\n\ngo 1.26\n", "main.go": goGuest} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	build := exec.Command("go", "build", "-buildmode=c-shared", "-o", "guest.wasm", ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guest: %w\n%s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "guest.wasm"))
})

// TestGoGuest: a Go module returns the same plain and metered; its recursion
// ends at the depth limit; a trap names its functions.
func TestGoGuest(t *testing.T) {
	wasm := buildGoGuest(t)
	start := time.Now()
	out, info, err := Instrument(wasm, DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes became %d in %v", len(wasm), len(out), time.Since(start))
	if info.MemoryMin == 0 || info.MemoryMax != 512 || len(info.Globals) == 0 || info.StatefulTables || info.OpaqueGlobals ||
		!slices.ContainsFunc(info.Producers, func(p string) bool { return strings.HasPrefix(p, "language: Go go1.") }) {
		t.Errorf("%+v", info)
	}
	if !slices.Contains(info.Exports, Export{"run", "func", "(i32) -> (i64)"}) ||
		!slices.ContainsFunc(info.Imports, func(i Import) bool { return i.Name == "fd_write" && i.Type == "(i32, i32, i32, i32) -> (i32)" }) {
		t.Errorf("%+v %+v", info.Imports, info.Exports)
	}

	h := newTestHost(t)
	ctx := t.Context()
	wasi_snapshot_preview1.MustInstantiate(ctx, h.runtime)
	reactor := wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize")
	plain, err := h.runtime.InstantiateWithConfig(ctx, wasm, reactor)
	if err != nil {
		t.Fatal(err)
	}
	metered, err := h.runtime.InstantiateWithConfig(ctx, out, reactor)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{0, 1, 17, 3000, 50_000} {
		want, err := plain.ExportedFunction("run").Call(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.call(t, metered, "run", n)
		if err != nil || got[0] != want[0] {
			t.Errorf("run(%d) = %v %v, plain %v", n, got, err, want)
		}
	}
	if h.yields == 0 {
		t.Error("the last call did not use up a slice")
	}
	if got, err := h.call(t, metered, "deep", 100); err != nil || got[0] != 100 {
		t.Errorf("deep(100) = %v %v", got, err)
	}
	_, err = h.call(t, metered, "deep", 1_000_000)
	if err == nil || int64(metered.ExportedGlobal(DepthGlobal).Get()) >= 0 || !strings.Contains(err.Error(), "main.deep(") {
		t.Errorf("deep(1,000,000) ended with %v", err)
	}
}

// TestSnapshotOfGoGuest: memory and the globals of Info are the whole state.
func TestSnapshotOfGoGuest(t *testing.T) {
	h := newTestHost(t)
	ctx := t.Context()
	wasi_snapshot_preview1.MustInstantiate(ctx, h.runtime)
	out, info, err := Instrument(buildGoGuest(t), DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	mod, err := h.runtime.InstantiateWithConfig(ctx, out, wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize"))
	if err != nil {
		t.Fatal(err)
	}
	memory, _ := mod.Memory().Read(0, mod.Memory().Size())
	memory = slices.Clone(memory)
	var globals []uint64
	for _, name := range info.Globals {
		globals = append(globals, mod.ExportedGlobal(name).Get())
	}
	first, err := h.call(t, mod, "run", 500)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := h.call(t, mod, "run", 100); err != nil || again[0] == first[0] {
		t.Errorf("the module keeps no state: %v %v", again, err)
	}
	h.call(t, mod, "deep", 1_000_000) // leaves the guest's stack anywhere
	mod.Memory().Write(0, memory)
	for i, name := range info.Globals {
		mod.ExportedGlobal(name).(api.MutableGlobal).Set(globals[i])
	}
	if restored, err := h.call(t, mod, "run", 500); err != nil || restored[0] != first[0] {
		t.Errorf("after the restore %v %v, before %v", restored, err, first)
	}
}
