package meter

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

var (
	none   []byte
	oneI32 = []byte{typeI32}
)

// hostile builds modules whose export "run" would keep a thread for seconds,
// hours or ever.
func hostile() map[string]func(*asm) {
	bulk := func(sub byte, rest ...byte) []byte { return cat([]byte{opBulk, sub}, rest) }
	return map[string]func(*asm){
		"loop": func(a *asm) { a.fn("run", none, none, none, forever()) },
		"loop by br_table": func(a *asm) {
			a.fn("run", none, none, none, []byte{opLoop, blockEmpty}, i32(7), []byte{opBrTable, 1, 0, 0, opEnd})
		},
		"jumps back": func(a *asm) { dispatching(a, 0) },
		"jump to a block that is closed, from another in its place": func(a *asm) {
			dispatching(a, 0, opBlock, blockEmpty, opI32Const, 0, opLocalSet, 0, opBr, 2, opEnd)
		},
		"jump back by another local": func(a *asm) {
			dispatching(a, 0, opI32Const, 1, opLocalSet, 1, opBr, 1)
		},
		"jump back behind a jump forward": func(a *asm) {
			dispatching(a, 0, opI32Const, 1, opLocalSet, 0, opLocalGet, 1, opLocalSet, 0, opBr, 1)
		},
		"jump back, which one condition decides": func(a *asm) {
			dispatching(a, 0, opI32Const, 1, opLocalSet, 0, opLocalGet, 1, opI32Const, 0, opLocalSet, 0, opBrIf, 1, opI32Const, 0, opLocalSet, 0, opBr, 1)
		},
		"jump of the dispatch to itself": func(a *asm) {
			a.fn("run", none, none, oneI32, []byte{opLoop, blockEmpty, opBlock, blockEmpty}, local(opLocalGet, 0), []byte{opBrTable, 1, 1, 0, opEnd, opEnd})
		},
		"call tree": func(a *asm) {
			level := []byte{}
			for range 40 {
				next := a.imported + len(a.funcs)
				if len(a.funcs) == 0 {
					a.fn("", none, none, none, level)
					continue
				}
				level = cat(call(next-1), call(next-1))
				a.fn("", none, none, none, level)
			}
			a.fn("run", none, none, none, level)
		},
		"indirect call tree": func(a *asm) {
			again := cat(local(opLocalGet, 0), i32(1), []byte{0x6b}, i32(0), []byte{opIndirect}, u(a.typ(oneI32, none)), u(0))
			f := a.fn("", oneI32, none, none, local(opLocalGet, 0), []byte{opIf, blockEmpty}, again, again, []byte{opEnd})
			a.table(1, -1)
			a.elements = append(a.elements, cat([]byte{0}, i32(0), []byte{opEnd}, vec(u(f))))
			a.fn("run", none, none, none, i32(1500), call(f))
		},
		"small calls in a row": func(a *asm) {
			leaf := a.fn("", none, none, none, i32(1), []byte{0x1a})
			row := make([]byte, 0, 120_000)
			for range 60_000 {
				row = append(row, call(leaf)...)
			}
			middle := a.fn("", none, none, none, row)
			row = row[:0]
			for range 60_000 {
				row = append(row, call(middle)...)
			}
			a.fn("run", none, none, none, row)
		},
		"memory.fill": func(a *asm) {
			a.memory(512, 512)
			a.fn("run", none, none, none, forever(i32(0), i32(1), i32(512<<16), bulk(bulkMemoryFill, 0)))
		},
		"memory.fill in a row": func(a *asm) {
			a.memory(512, 512)
			fill := cat(i32(0), i32(1), i32(512<<16), bulk(bulkMemoryFill, 0))
			row := make([]byte, 0, 16_000)
			for range 1000 {
				row = append(row, fill...)
			}
			a.fn("run", none, none, none, row)
		},
		"memory.copy": func(a *asm) {
			a.memory(512, 512)
			a.fn("run", none, none, none, forever(i32(1), i32(0), i32(256<<16), bulk(bulkMemoryCopy, 0, 0)))
		},
		"memory.grow": func(a *asm) {
			a.memory(1, -1)
			a.fn("run", none, none, none, forever(i32(1), []byte{opMemoryGrow, 0, 0x1a}))
		},
		"table.fill": func(a *asm) {
			a.table(65_536, -1)
			a.fn("run", none, none, none, forever(i32(0), []byte{opRefNull, typeFunc}, i32(65_536), bulk(bulkTableFill, 0)))
		},
		"table.grow": func(a *asm) {
			a.table(1, -1)
			a.fn("run", none, none, none, forever([]byte{opRefNull, typeFunc}, i32(1), bulk(bulkTableGrow, 0), []byte{0x1a}))
		},
		"chained loads": func(a *asm) {
			a.memory(512, 512)
			load := []byte{0x28, 2, 0}
			a.fn("run", none, none, oneI32, forever(local(opLocalGet, 0), cat(load, load, load, load), local(opLocalSet, 0)))
		},
		"division": func(a *asm) {
			a.fn("run", none, none, []byte{typeI64}, forever(i64(-7), local(opLocalGet, 0), i64(3), []byte{opI64Or, 0x7f}, local(opLocalSet, 0)))
		},
	}
}

// dispatching is an endless dispatch over local 0: part 0 runs body and falls through
// to part 1, which sets the local to next and branches back.
func dispatching(a *asm, next byte, body ...byte) {
	a.fn("run", none, none, []byte{typeI32, typeI32},
		[]byte{opLoop, blockEmpty, opBlock, blockEmpty, opBlock, blockEmpty}, local(opLocalGet, 0), []byte{opBrTable, 1, 0, 1, opEnd},
		body,
		[]byte{opEnd, opI32Const, next, opLocalSet, 0, opBr, 0, opEnd})
}

// TestForwardJumps: a jump that leads forward does not ask for fuel, and what it
// uses is charged all the same.
func TestForwardJumps(t *testing.T) {
	var a asm
	const parts = 100
	body := []byte{opLoop, blockEmpty}
	for range parts {
		body = append(body, opBlock, blockEmpty)
	}
	body = append(cat(body, local(opLocalGet, 0), []byte{opBrTable}, u(parts-1)), cat(labelsUpTo(parts), []byte{opEnd})...)
	for i := range parts - 1 { // each part skips nothing: it jumps to the next
		body = cat(body, i32(int64(i+1)), local(opLocalSet, 0), []byte{opBr}, u(parts-1-i), []byte{opEnd})
	}
	a.fn("run", oneI32, none, none, body, []byte{opEnd})
	h := newTestHost(t)
	mod, _ := h.load(t, a.build())
	fuel := mod.ExportedGlobal(FuelGlobal).(api.MutableGlobal)
	use := func(from uint64) int64 {
		h.yields = 0
		fuel.Set(1)
		if _, err := mod.ExportedFunction("run").Call(t.Context(), from); err != nil {
			t.Fatal(err)
		}
		return 1 - int64(fuel.Get())
	}
	const jump = 3 + 4 // const, set, br; get, br_table
	if got := use(0) - use(10); got != 10*jump || h.yields != 0 {
		t.Errorf("10 jumps used %d, want %d; %d yields", got, 10*jump, h.yields)
	}
}

// labelsUpTo are the labels 0 to n-1.
func labelsUpTo(n int) (out []byte) {
	for i := range n {
		out = append(out, u(i)...)
	}
	return out
}

// hung is longer than a call takes that ends by itself, on a machine that is busy:
// how soon one ends is for the benchmark.
const hung = 5 * time.Second

// TestStopped: each hostile module is ended by the deadline that yield checks.
func TestStopped(t *testing.T) {
	const deadline = 20 * time.Millisecond
	for name, build := range hostile() {
		t.Run(name, func(t *testing.T) {
			var a asm
			build(&a)
			h := newTestHost(t)
			mod, _ := h.load(t, a.build())
			start := time.Now()
			h.deadline = start.Add(deadline)
			_, err := h.call(t, mod, "run")
			late := time.Since(start) - deadline
			if !errors.Is(err, errDeadline) {
				t.Fatalf("the call ended with %v after %v", err, late+deadline)
			}
			t.Logf("%v after the deadline, %d yields", late, h.yields)
			if late > hung {
				t.Errorf("stopped %v after the deadline, %v are allowed", late, hung)
			}
		})
	}
}

// TestStartIsStopped: a start function runs before the host has the instance.
func TestStartIsStopped(t *testing.T) {
	var a asm
	a.fn("", none, none, none)
	a.start = a.fn("", none, none, none, forever())
	out, info, err := Instrument(a.build(), DefaultConfig())
	if err != nil || !info.Start {
		t.Fatal(info, err)
	}
	h := newTestHost(t)
	h.deadline = time.Now().Add(20 * time.Millisecond)
	if _, err = h.runtime.InstantiateWithConfig(t.Context(), out, wazero.NewModuleConfig()); !errors.Is(err, errDeadline) {
		t.Errorf("instantiate: %v", err)
	}
}

// TestDepth: recursion ends at the limit, and the host can tell why.
func TestDepth(t *testing.T) {
	var a asm
	self := a.imported
	a.fn("run", none, oneI32, none, call(self), i32(1), []byte{0x6a})
	// 100 frames of 3000 locals are as deep as 1100 small ones.
	deep := self + 1
	locals := make([]byte, 3000)
	for i := range locals {
		locals[i] = typeI64
	}
	a.fn("big", oneI32, none, locals, local(opLocalGet, 0), []byte{opIf, blockEmpty},
		local(opLocalGet, 0), i32(1), []byte{0x6b}, call(deep), []byte{opEnd})
	h := newTestHost(t)
	mod, _ := h.load(t, a.build())
	depth := func() int64 { return int64(mod.ExportedGlobal(DepthGlobal).Get()) }

	start := time.Now()
	if _, err := h.call(t, mod, "run"); !errors.Is(err, errDepth) || depth() >= 0 {
		t.Errorf("recursion ended with %v, depth %d", err, depth())
	}
	if took := time.Since(start); took > hung {
		t.Errorf("recursion took %v", took)
	}
	h.lenient = true
	_, err := h.call(t, mod, "run")
	if err == nil || !strings.Contains(err.Error(), "unreachable") || depth() >= 0 {
		t.Errorf("recursion of a host that looks away ended with %v, depth %d", err, depth())
	}
	h.lenient = false
	if _, err := h.call(t, mod, "big", 100); err != nil || depth() != DefaultConfig().MaxDepth {
		t.Errorf("100 large frames: %v, depth %d", err, depth())
	}
	if _, err := h.call(t, mod, "big", 1000); !errors.Is(err, errDepth) {
		t.Errorf("1000 large frames: %v", err)
	}
}

// TestPause: while a module spins, the garbage collector gets its turn.
func TestPause(t *testing.T) {
	var a asm
	a.fn("run", none, none, none, forever())
	h := newTestHost(t)
	mod, _ := h.load(t, a.build())
	h.deadline = time.Now().Add(2 * time.Second)
	ended := make(chan error)
	go func() {
		_, err := mod.ExportedFunction("run").Call(t.Context())
		ended <- err
	}()
	var longest time.Duration
	for time.Now().Before(h.deadline) {
		start := time.Now()
		runtime.GC()
		longest = max(longest, time.Since(start))
	}
	if err := <-ended; !errors.Is(err, errDeadline) {
		t.Errorf("the call ended with %v", err)
	}
	t.Logf("longest collection %v", longest)
	// A module that could not be stopped would keep it for the whole two seconds.
	if longest > time.Second {
		t.Errorf("a collection took %v while a module ran", longest)
	}
}

// TestFuelIsExact: what a loop uses grows by the same amount with each turn, and
// a path that is not taken costs nothing.
func TestFuelIsExact(t *testing.T) {
	var a asm
	nothing := make([]byte, 0, 600)
	for range 200 {
		nothing = append(nothing, cat(i32(1), []byte{0x1a})...)
	}
	a.fn("loop", oneI32, none, none, countdown())
	a.fn("skip", oneI32, none, none, countdown(i32(0), []byte{opIf, blockEmpty}, nothing, []byte{opEnd}))
	h := newTestHost(t)
	mod, _ := h.load(t, a.build())
	use := func(name string, n uint64) int64 {
		if _, err := h.call(t, mod, name, n); err != nil {
			t.Fatal(err)
		}
		return h.used
	}
	if got := use("loop", 1_000_001) - use("loop", 1); got != 5_000_000 {
		t.Errorf("1,000,000 turns of 5 instructions used %d", got)
	}
	if got := use("skip", 1_001) - use("skip", 1); got != 7_000 {
		t.Errorf("1,000 turns of 7 instructions used %d", got)
	}
	if h.yields != 0 {
		t.Errorf("%d yields", h.yields)
	}
	if use("loop", 1_000_000); h.yields < 9 || h.yields > 10 {
		t.Errorf("%d yields for 5,000,000 units", h.yields)
	}
}

// TestPieces: copies and fills that are done in pieces leave the same bytes and
// trap alike, whichever way they overlap.
func TestPieces(t *testing.T) {
	var a asm
	a.memory(17, 17)
	a.export("memory", kindMemory, 0)
	three := []byte{typeI32, typeI32, typeI32}
	args := cat(local(opLocalGet, 0), local(opLocalGet, 1), local(opLocalGet, 2))
	a.fn("fill", three, none, none, args, []byte{opBulk, bulkMemoryFill, 0})
	a.fn("copy", three, none, none, args, []byte{opBulk, bulkMemoryCopy, 0, 0})
	wasm := a.build()
	h := newTestHost(t)
	metered, _ := h.load(t, wasm)
	plain, err := h.runtime.InstantiateWithConfig(t.Context(), wasm, wazero.NewModuleConfig().WithName(""))
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	bytes := func(mod api.Module) []byte {
		b, _ := mod.Memory().Read(0, 17<<16)
		return b
	}
	for i, m := range []api.Module{plain, metered} {
		for at, b := 0, bytes(m); at < len(b); at++ {
			b[at] = byte(at * at >> 7)
		}
		if i == 1 && !slices.Equal(bytes(plain), bytes(metered)) {
			t.Fatal("the memories differ before the test")
		}
	}
	traps := 0
	for range 300 {
		size := []uint64{inlineBytes, pieceBytes, 4 * pieceBytes, 17 << 16}[random.IntN(4)]
		to, from, n := random.Uint64N(17<<16), random.Uint64N(17<<16), random.Uint64N(size+2)
		name := []string{"fill", "copy", "copy", "copy"}[random.IntN(4)]
		_, want := plain.ExportedFunction(name).Call(t.Context(), to, from, n)
		_, got := h.call(t, metered, name, to, from, n)
		if (want == nil) != (got == nil) || !slices.Equal(bytes(plain), bytes(metered)) {
			t.Fatalf("%s(%d, %d, %d): plain %v, metered %v, same bytes %v", name, to, from, n, want, got,
				slices.Equal(bytes(plain), bytes(metered)))
		}
		traps += btoi(want != nil)
	}
	if traps < 30 || traps > 270 {
		t.Errorf("%d of 300 operations trapped", traps)
	}
}

// TestLargeAmounts: an amount that cannot succeed fails as without metering.
func TestLargeAmounts(t *testing.T) {
	var a asm
	a.memory(1, -1)
	a.fn("grow", none, oneI32, none, i32(-1), []byte{opMemoryGrow, 0})
	a.fn("fill", none, none, none, i32(0), i32(0), i32(-1), []byte{opBulk, bulkMemoryFill, 0})
	h := newTestHost(t)
	mod, _ := h.load(t, a.build())
	if got, err := h.call(t, mod, "grow"); err != nil || uint32(got[0]) != 0xffff_ffff {
		t.Errorf("grow: %v %v", got, err)
	}
	_, err := h.call(t, mod, "fill")
	if err == nil || !strings.Contains(err.Error(), "out of bounds memory access") {
		t.Errorf("fill: %v", err)
	}
	if h.used > 20_000_000 {
		t.Errorf("a fill that trapped used %d", h.used)
	}
}

// TestSnapshotGlobals: every mutable number is exported under a name in Info.
func TestSnapshotGlobals(t *testing.T) {
	var a asm
	a.global(typeI32, false, i32(1)...)
	a.global(typeI32, true, i32(2)...)
	a.global(typeF64, true, opF64Const, 0, 0, 0, 0, 0, 0, 8, 64)
	a.fn("get", none, oneI32, none, local(opGlobalGet, 1))
	h := newTestHost(t)
	mod, info := h.load(t, a.build())
	if len(info.Globals) != 2 || info.OpaqueGlobals || info.GlobalN != 3 {
		t.Fatalf("%+v", info)
	}
	if got := api.DecodeF64(mod.ExportedGlobal(info.Globals[1]).Get()); got != 3 {
		t.Errorf("the f64 holds %v", got)
	}
	mod.ExportedGlobal(info.Globals[0]).(api.MutableGlobal).Set(77)
	if got, err := h.call(t, mod, "get"); err != nil || got[0] != 77 {
		t.Errorf("the module reads %v %v", got, err)
	}
}
