package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/bench/wasm/pb"
	"github.com/edgehost/edgehost/host/sandbox/meter"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// How a raw guest is kept from running for ever.
const (
	free    = "unmetered"
	metered = "metered"
	// closing is wazero's own means, WithCloseOnContextDone.
	closing = "close on context done"
)

// raw is a guest on bare wazero: metered, free or closing, and all else equal.
type raw struct {
	runtime wazero.Runtime
	mod     api.Module
	how     string
	fuel    api.MutableGlobal
	slice   uint64
}

func newRaw(wasm []byte, how, op string) (*raw, error) {
	ctx := context.Background()
	r := &raw{how: how, runtime: wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithCloseOnContextDone(how == closing))}
	wasi_snapshot_preview1.MustInstantiate(ctx, r.runtime)
	if _, err := r.runtime.NewHostModuleBuilder(abi.ImportModule).NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, _, _, buf, room uint32) int32 {
		m.Memory().WriteString(buf, op)
		return int32(len(op))
	}).Export("config_get").NewFunctionBuilder().WithFunc(func(uint32, uint32, uint32) int32 { return 0 }).Export("log").
		NewFunctionBuilder().WithFunc(func(uint32, uint32) int32 { return 0 }).Export("output").Instantiate(ctx); err != nil {
		return nil, err
	}
	if how == metered {
		out, info, err := meter.Instrument(wasm, meter.DefaultConfig())
		if err != nil {
			return nil, err
		}
		wasm, r.slice = out, uint64(info.Slice)
		refill := func(_ context.Context, m api.Module, _ []uint64) {
			m.ExportedGlobal(meter.FuelGlobal).(api.MutableGlobal).Set(r.slice)
		}
		if _, err := r.runtime.NewHostModuleBuilder(meter.YieldModule).NewFunctionBuilder().
			WithGoModuleFunction(api.GoModuleFunc(refill), nil, nil).Export(meter.YieldName).Instantiate(ctx); err != nil {
			return nil, err
		}
	}
	compiled, err := r.runtime.CompileModule(ctx, wasm)
	if err != nil {
		return nil, err
	}
	if r.mod, err = r.runtime.InstantiateModule(ctx, compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize", "edgehost_init")); err != nil {
		return nil, err
	}
	if how == metered {
		r.fuel = r.mod.ExportedGlobal(meter.FuelGlobal).(api.MutableGlobal)
	}
	return r, nil
}

// call runs fn as a host must: with fuel, with a deadline, or with nothing.
func (r *raw) call(fn api.Function, stack []uint64) error {
	ctx := context.Background()
	switch r.how {
	case metered:
		r.fuel.Set(r.slice)
	case closing:
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Second)
		defer cancel()
	}
	return fn.CallWithStack(ctx, stack)
}

func (r *raw) close() { r.runtime.Close(context.Background()) }

// flat is a contender with a guest of ours, from records to records.
func (r *raw) flat() (contender, error) {
	process, alloc := r.mod.ExportedFunction(abi.ExportProcess), r.mod.ExportedFunction(abi.ExportAlloc)
	arena, stack := abi.NewArena(), []uint64{1 << 20}
	if err := r.call(alloc, stack); err != nil {
		return contender{}, err
	}
	base := uint32(stack[0])
	var lim abi.OutputLimits
	var out abi.Outputs
	return contender{name: r.how, run: func(b *abi.Batch) error {
		image, err := arena.Encode(b, base, 0)
		if err != nil {
			return err
		}
		r.mod.Memory().Write(base, image)
		stack[0] = uint64(base)
		if err := r.call(process, stack); err != nil {
			return err
		}
		mem, _ := r.mod.Memory().Read(0, r.mod.Memory().Size())
		return arena.Decode(mem, &lim, &out)
	}}, nil
}

// protobuf is a contender with the protobuf guest, from bytes to bytes: it is the
// guest that is measured.
func (r *raw) protobuf(batches []*abi.Batch) (contender, error) {
	stack := make([]uint64, 2)
	if err := r.call(r.mod.ExportedFunction("input"), stack); err != nil {
		return contender{}, err
	}
	at, run := uint32(stack[0]), r.mod.ExportedFunction("run")
	bytes := map[*abi.Batch][]byte{}
	for _, b := range batches {
		bytes[b] = pb.Append(nil, b.Records)
	}
	return contender{name: r.how, run: func(b *abi.Batch) error {
		in := bytes[b]
		r.mod.Memory().Write(at, in)
		stack[0], stack[1] = 's', uint64(len(in))
		if err := r.call(run, stack); err != nil {
			return err
		}
		if stack[0] <= uint64(len(in)) {
			return fmt.Errorf("%d bytes out for %d bytes in", stack[0], len(in))
		}
		return nil
	}}, nil
}

// spins is how many rounds the tight loop turns for a "record".
const spins = 1000

func (r *raw) loop() contender {
	spin, stack := r.mod.ExportedFunction("spin"), make([]uint64, 1)
	return contender{name: r.how, run: func(b *abi.Batch) error {
		stack[0] = spins * uint64(len(b.Records))
		return r.call(spin, stack)
	}}
}

// metering is what the meter costs, and what wazero's own means would.
func metering(r *report, g *guests, rounds int) error {
	for _, c := range []struct {
		name       string
		wasm       []byte
		gate, goal float64
	}{
		{"flat C", g.flat["C"], 1.15, 1.05}, {"flat Rust", g.flat["Rust"], 1.15, 1.05},
		{"flat AssemblyScript", g.flat["AssemblyScript"], 1.15, 1.05}, {"flat Go", g.flat["Go"], 1.15, 1.05},
		{"protobuf C", g.pbC, 1.5, 1.2}, {"tight loop C", g.pbC, 3, 2},
	} {
		batches := plant(4, 1000, false)
		cs := make([]contender, 0, 3)
		for _, how := range []string{free, metered, closing} {
			w, err := newRaw(c.wasm, how, scale)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, how, err)
			}
			defer w.close()
			var one contender
			switch {
			case strings.HasPrefix(c.name, "flat"):
				one, err = w.flat()
			case strings.HasPrefix(c.name, "protobuf"):
				one, err = w.protobuf(batches)
			default:
				one = w.loop()
			}
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, how, err)
			}
			cs = append(cs, one)
		}
		t, err := race(cs, batches, rounds+4)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		for _, one := range cs {
			r.note("cpu/"+c.name+"/"+one.name, t.of(one.name), "ns/record")
		}
		r.most("metered over unmetered/"+c.name, t.over(metered, free), "x", c.gate, c.goal)
		switch c.name {
		case "tight loop C":
			r.least("metered ahead of close on context done/"+c.name, t.over(closing, metered), "x faster", 10, 25)
		case "flat C":
			r.least("metered ahead of close on context done/"+c.name, t.over(closing, metered), "x faster", 2, 2.7)
		}
	}
	return nil
}
