package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// poisoned is the size of the batch that hostile modules act upon; they pass
// every other batch on unchanged.
const poisoned = 100

// guest is a module that passes batches on, but runs process for a poisoned one.
type guest struct {
	imports          func(a *asm)
	process, alloc   [][]byte // alloc runs for arenas over 8 KiB
	always           [][]byte // runs for every batch, before process
	initialize, init [][]byte
	start            [][]byte
	functions        func(a *asm) // functions 0.. after the imports
	marker           string
	memory           string
	pages            uint32 // the memory's maximum; 0 is that of newAsm
	table            bool   // has a table of one function
}

func (g guest) bytes() []byte {
	a := newAsm()
	if g.imports != nil {
		g.imports(a)
	}
	if g.functions != nil {
		g.functions(a)
	}
	if g.marker == "" {
		g.marker = abi.ExportMarker
	}
	if g.memory != "" {
		a.memory = g.memory
	}
	if g.pages != 0 {
		a.max = g.pages
	}
	if g.table {
		a.tables = append(a.tables, []byte{0x70, 0, 1})
	}
	a.fn(g.marker, "", "")
	a.fn(abi.ExportAlloc, "i", "i", get(0), i32(8<<10), gtU, when(g.alloc...), i32(4096))
	a.fn(abi.ExportProcess, "i", "i", cat(g.always...), get(0), load(abi.HeaderNRows), i32(poisoned), eq, when(g.process...), i32(0))
	if g.initialize != nil {
		a.fn(abi.ExportInitialize, "", "", g.initialize...)
	}
	if g.init != nil {
		a.fn(abi.ExportInit, "", "i", g.init...)
	}
	if g.start != nil {
		a.start = a.fn("", "", "", g.start...)
	}
	a.data(64, "bad \xff text, good text")
	return a.bytes()
}

// setRow stores v at an offset of the first row.
func setRow(off int, v int64) []byte {
	return cat(get(0), load(abi.HeaderRows), i32(v), store(off))
}

// setHeader stores v at an offset of the header.
func setHeader(off int, v int64) []byte { return cat(get(0), i32(v), store(off)) }

func body(parts ...[]byte) [][]byte { return parts }

func wasi(name, params, results string) func(a *asm) {
	return func(a *asm) { a.imp(abi.ImportWASI, name, params, results) }
}

func edgehost(name, params, results string) func(a *asm) {
	return func(a *asm) { a.imp(abi.ImportModule, name, params, results) }
}

func checkFault(t *testing.T, err error, class sandbox.Class, message string) {
	t.Helper()
	if class == "" {
		if err != nil {
			t.Errorf("error %v", err)
		}
		return
	}
	var f *sandbox.Fault
	if !errors.As(err, &f) {
		t.Fatalf("error %v, want a fault of class %s", err, class)
	}
	if f.Class != class || !strings.Contains(f.Message, message) || f.Module != "hostile" {
		t.Errorf("fault %+v, want class %s and %q", f, class, message)
	}
}

func TestUnknownOutputIsARejectNotAFault(t *testing.T) {
	m := compile(t, newHost(t), guest{process: body(setRow(abi.RowOutput, 7))}.bytes())
	i := instantiate(t, m, sandbox.Env{Outputs: map[string]uint32{"second": 1}})
	res, err := i.Process(t.Context(), batch(poisoned))
	if err != nil || len(res.Out) != poisoned-1 || len(res.Rejects) != 1 || res.Rejects[0].Index != 0 || !strings.Contains(res.Rejects[0].Reason, "unknown output 7") {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestHostileStarts(t *testing.T) {
	h := newHost(t)
	quick := sandbox.Limits{InitDeadline: 100 * time.Millisecond}
	for name, c := range map[string]struct {
		guest
		class sandbox.Class
	}{
		"trap in start":        {guest{start: body(unreachable)}, sandbox.ClassTrap},
		"trap in _initialize":  {guest{initialize: body(unreachable)}, sandbox.ClassTrap},
		"trap in init":         {guest{init: body(unreachable)}, sandbox.ClassTrap},
		"loop in start":        {guest{start: body(forever())}, sandbox.ClassDeadline},
		"loop in _initialize":  {guest{initialize: body(forever())}, sandbox.ClassDeadline},
		"loop in init":         {guest{init: body(forever(), i32(0))}, sandbox.ClassDeadline},
		"recursion in start":   {guest{start: body(callFn(0)), functions: func(a *asm) { a.fn("", "", "", callFn(0)) }}, sandbox.ClassDepth},
		"proc_exit from start": {guest{imports: wasi("proc_exit", "i", ""), start: body(i32(0), callFn(0))}, sandbox.ClassTrap},
	} {
		t.Run(name, func(t *testing.T) {
			m := compile(t, h, c.guest.bytes())
			defer m.Close(context.Background())
			begin := time.Now()
			_, err := m.Instantiate(t.Context(), sandbox.Env{Name: "hostile", Limits: quick, Logger: slog.New(slog.DiscardHandler)})
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("it took %s", took)
			}
			checkFault(t, err, c.class, "")
		})
	}
}

func TestInitRefuses(t *testing.T) {
	m := compile(t, newHost(t), guest{init: body(i32(3))}.bytes())
	_, err := m.Instantiate(t.Context(), sandbox.Env{Logger: slog.New(slog.DiscardHandler)})
	var r *sandbox.Refusal
	if !errors.As(err, &r) || !strings.Contains(err.Error(), "code 3") {
		t.Errorf("error %v", err)
	}
}

func TestCompileRefuses(t *testing.T) {
	h := newHost(t)
	good := guest{}.bytes()
	for name, c := range map[string]struct {
		wasm    []byte
		reasons []string
	}{
		"nothing":      {nil, []string{"not a WebAssembly module"}},
		"text":         {[]byte("(module)"), []string{"not a WebAssembly module"}},
		"component":    {[]byte("\x00asm\x0d\x00\x01\x00rest"), []string{"component"}},
		"cut short":    {good[:len(good)-9], []string{""}},
		"garbage":      {append(bytes.Clone(good[:8]), 0xff, 0xff, 0xff), []string{""}},
		"too large":    {make([]byte, 16<<20+1), []string{"strip it"}},
		"no marker":    {guest{marker: "other"}.bytes(), []string{abi.ExportMarker + " is missing"}},
		"memory named": {guest{memory: "mem"}.bytes(), []string{`under the name "memory"`}},
		"imports": {guest{imports: func(a *asm) {
			a.imp("env", "abort", "", "")
			a.imp(abi.ImportModule, "launch", "", "")
			a.imp(abi.ImportModule, "log", "ii", "i")
			a.imp(abi.ImportWASI, "random_get", "II", "i")
			a.imp(abi.ImportWASI, "nothing", "", "")
		}}.bytes(), []string{"env.abort is unknown", "edgehost.launch is unknown", "edgehost.log has the type (i32, i32) -> (i32), it must be (i32, i32, i32) -> (i32)",
			"random_get has the type", "preview1.nothing is unknown"}},
		"export types": {func() []byte {
			a := newAsm()
			a.fn(abi.ExportMarker, "", "")
			a.fn(abi.ExportAlloc, "I", "i", i32(0))
			a.fn(abi.ExportInit, "", "")
			return a.bytes()
		}(), []string{"edgehost_alloc has the type (i64)", "edgehost_init has the type", "edgehost_process is missing"}},
		"command": {func() []byte {
			a := newAsm()
			a.fn("_start", "", "")
			return a.bytes()
		}(), []string{"is a command"}},
		"reserved names": {func() []byte {
			a := newAsm()
			a.fn("__eh_fuel", "", "")
			return a.bytes()
		}(), []string{"__eh_"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.Compile(t.Context(), c.wasm)
			var r *sandbox.Refusal
			if !errors.As(err, &r) {
				t.Fatalf("error %v, want a refusal", err)
			}
			for _, want := range c.reasons {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

// A host that ends is no fault of the module.
func TestCancelledCallIsNoFault(t *testing.T) {
	m := compile(t, newHost(t), guest{process: body(forever())}.bytes())
	i := instantiate(t, m, sandbox.Env{Limits: sandbox.Limits{Fuel: 1 << 50, Deadline: time.Minute}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := i.Process(ctx, batch(poisoned))
	var f *sandbox.Fault
	if errors.As(err, &f) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if res, err := i.Process(t.Context(), batch(2)); err != nil || len(res.Out) != 2 {
		t.Errorf("the next batch: %v, %v", res, err)
	}
}

// While a guest spins, the garbage collector, and with it every other part of the
// process, goes on.
func TestSpinningGuestDoesNotPauseTheProcess(t *testing.T) {
	m := compile(t, newHost(t), guest{process: body(forever())}.bytes())
	i := instantiate(t, m, sandbox.Env{Limits: sandbox.Limits{Fuel: 1 << 50, Deadline: 2 * time.Second}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		i.Process(context.Background(), batch(poisoned))
	}()
	var worst time.Duration
	for spinning := true; spinning; {
		begin := time.Now()
		runtime.GC()
		worst = max(worst, time.Since(begin))
		select {
		case <-done:
			spinning = false
		default:
		}
	}
	// The law is 10 ms; a loaded machine takes its time for the collection itself, but
	// a guest that could not be stopped would take its whole deadline.
	if worst > time.Second {
		t.Errorf("a collection took %s", worst)
	}
}

func TestLogFloodIsCutAndCounted(t *testing.T) {
	var out bytes.Buffer
	m := compile(t, newHost(t), guest{
		imports: func(a *asm) { a.imp(abi.ImportModule, "log", "iii", "i") },
		process: body(i32(5000), set(1), cat([]byte{0x03, 0x40}, i32(1), i32(64+12), i32(9), callFn(0), drop, get(1), i32(1), sub, cat([]byte{0x22}, uleb(1)), []byte{0x0d, 0, 0x0b})),
	}.bytes())
	i := instantiate(t, m, sandbox.Env{Name: "chatty", Revision: "r1", Logger: slog.New(slog.NewJSONHandler(&out, nil))})
	if _, err := i.Process(t.Context(), batch(poisoned)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "good text"); n == 0 || n > 1000 {
		t.Errorf("%d lines", n)
	}
	if !strings.Contains(out.String(), "dropped") || !strings.Contains(out.String(), `"module":"chatty"`) {
		t.Errorf("log: %s", out.String()[max(0, out.Len()-300):])
	}
}

// After a fault the module is as it was after init, whatever it changed: globals,
// memory, the size of its memory, its tables.
func TestFaultLeavesNoTrace(t *testing.T) {
	h := newHost(t)
	mutableI32 := cat([]byte{0x7f, 1}, i32(5), []byte{0x0b})
	funcTable := []byte{0x70, 0, 1} // funcref, at least 1
	for name, c := range map[string]struct {
		functions func(a *asm)
		probe     []byte // an i32 that tells of the state
		mutate    []byte
		want      uint32
	}{
		"global":      {func(a *asm) { a.globals = [][]byte{mutableI32} }, []byte{0x23, 0}, cat(i32(9), []byte{0x24, 0}), 5},
		"memory":      {nil, cat(i32(0), load(2048)), cat(i32(2048), i32(9), store(0)), 0},
		"memory size": {nil, []byte{0x3f, 0}, cat(i32(1), grow, drop), 16},
		"table size": {func(a *asm) { a.tables = [][]byte{funcTable} }, []byte{0xfc, 0x10, 0},
			cat([]byte{0xd0, 0x70}, i32(3), []byte{0xfc, 0x0f, 0}, drop), 1},
	} {
		t.Run(name, func(t *testing.T) {
			setStatus := cat(get(0), load(abi.HeaderRows), c.probe, store(abi.RowStatus))
			g := guest{functions: c.functions, process: body(c.mutate, unreachable), always: body(setStatus)}
			i := instantiate(t, compile(t, h, g.bytes()), sandbox.Env{Name: "hostile"})
			for range 3 {
				res, err := i.Process(t.Context(), batch(1))
				if err != nil {
					t.Fatal(err)
				}
				if got := res.Out[0].Status; got != c.want {
					t.Errorf("the state is %d, want %d", got, c.want)
				}
				_, err = i.Process(t.Context(), batch(poisoned))
				checkFault(t, err, sandbox.ClassTrap, "")
			}
		})
	}
}

// Many instances of one module run side by side and do not see each other.
func TestInstancesAreIndependent(t *testing.T) {
	m := compile(t, newHost(t), guest{
		always:  body(cat(get(0), load(abi.HeaderRows), cat(i32(0), load(2048)), store(abi.RowStatus)), cat(i32(2048), i32(0), load(2048), i32(1), add, store(0))),
		process: body(unreachable),
	}.bytes())
	var wg sync.WaitGroup
	for range 8 {
		i := instantiate(t, m, sandbox.Env{Name: "hostile"})
		wg.Go(func() {
			for k := range 200 {
				res, err := i.Process(context.Background(), batch(2))
				if err != nil || res.Out[0].Status != uint32(k) {
					t.Errorf("call %d: %+v, %v", k, res, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
