package meter

import (
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// BenchmarkInstrument is the time to scan and rewrite a Go module.
func BenchmarkInstrument(b *testing.B) {
	wasm := buildGoGuest(b)
	b.SetBytes(int64(len(wasm)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Instrument(wasm, DefaultConfig()); err != nil {
			b.Fatal(err)
		}
	}
}

// rowScale is a flat transform: f64 values 80 bytes apart, 1000 of them, times a
// constant, those above a limit counted.
func rowScale(a *asm) {
	a.memory(2, 2)
	row := local(opLocalGet, 1)
	value := cat(row, []byte{0x2b, 3, 16})
	a.fn("run", oneI32, oneI32, []byte{typeI32, typeI32},
		[]byte{opLoop, blockEmpty},
		row, value, []byte{opF64Const, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0xa2}, []byte{0x39, 3, 16},
		value, []byte{opF64Const, 0, 0, 0, 0, 0, 0, 0x49, 0x40, 0x64, opIf, blockEmpty},
		local(opLocalGet, 2), i32(1), []byte{opI32Add}, local(opLocalSet, 2), []byte{opEnd},
		row, i32(80), []byte{opI32Add}, local(opLocalSet, 1),
		local(opLocalGet, 0), i32(1), []byte{opI32Sub}, local(opLocalTee, 0), []byte{opBrIf, 0, opEnd},
		local(opLocalGet, 2))
}

func fibonacci(a *asm) {
	self := a.imported
	n := local(opLocalGet, 0)
	a.fn("run", oneI32, oneI32, none, n, i32(2), []byte{opI32LtU, opIf, typeI32}, n, []byte{opElse},
		n, i32(1), []byte{opI32Sub}, call(self), n, i32(2), []byte{opI32Sub}, call(self), []byte{opI32Add, opEnd})
}

// BenchmarkRun compares plain and metered code: a bare call, a loop that only
// counts, a flat transform, a call tree, and a Go guest.
func BenchmarkRun(b *testing.B) {
	for _, c := range []struct {
		name  string
		build func(*asm)
		arg   uint64
	}{
		{"call", func(a *asm) { a.fn("run", oneI32, oneI32, none, local(opLocalGet, 0)) }, 1},
		{"loop of 1000", func(a *asm) { a.fn("run", oneI32, none, none, countdown()) }, 1000},
		{"1000 rows", rowScale, 1000},
		{"fibonacci 15", fibonacci, 15},
		{"Go guest", nil, 1000},
	} {
		wasm := []byte(nil)
		if c.build == nil {
			wasm = buildGoGuest(b)
		} else {
			var a asm
			c.build(&a)
			wasm = a.build()
		}
		metered, _, err := Instrument(wasm, DefaultConfig())
		if err != nil {
			b.Fatal(err)
		}
		b.Run(c.name+"/plain", func(b *testing.B) { benchmarkCall(b, wasm, c.arg) })
		b.Run(c.name+"/metered", func(b *testing.B) { benchmarkCall(b, metered, c.arg) })
	}
}

func benchmarkCall(b *testing.B, wasm []byte, arg uint64) {
	ctx := b.Context()
	runtime := wazero.NewRuntime(ctx)
	defer runtime.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, runtime)
	h := &testHost{runtime: runtime}
	_, err := runtime.NewHostModuleBuilder(YieldModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(h.yield), nil, nil).Export(YieldName).Instantiate(ctx)
	if err != nil {
		b.Fatal(err)
	}
	mod, err := runtime.InstantiateWithConfig(ctx, wasm, wazero.NewModuleConfig().WithStartFunctions("_initialize"))
	if err != nil {
		b.Fatal(err)
	}
	run := mod.ExportedFunction("run")
	stack := make([]uint64, 1)
	for b.Loop() {
		stack[0] = arg
		if err := run.CallWithStack(ctx, stack); err != nil {
			b.Fatal(err)
		}
	}
}
