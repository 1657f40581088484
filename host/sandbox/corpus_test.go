package sandbox_test

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

const (
	// slack is what a module may run on after its deadline.
	slack = 20 * time.Millisecond
	// patience is how much longer a busy machine may take for anything.
	patience = 40
	// heapMost is how much Go heap may be left of one module's misbehaviour.
	heapMost = 32 << 20
)

// quick stops a module by its deadline.
var quick = sandbox.Limits{Fuel: 1 << 50, Deadline: 30 * time.Millisecond}

// hostileModule misbehaves on a poisoned batch and passes every other on.
type hostileModule struct {
	guest
	limits  sandbox.Limits
	class   sandbox.Class // "" means that it gets away with it
	message string
	kv      bool // state is granted
}

// setRow8 stores the byte v at an offset of the first row.
func setRow8(off int, v int64) []byte { return cat(get(0), load(abi.HeaderRows), i32(v), store8(off)) }

// setRef makes a reference at an offset of the first row.
func setRef(off int, ptr, n int64) []byte { return cat(setRow(off, ptr), setRow(off+4, n)) }

// untilEnd calls an import for ever; its parameters are put before.
func untilEnd(params ...int64) []byte {
	var call []byte
	for _, p := range params {
		call = cat(call, i32(p))
	}
	return forever(call, callFn(0), drop)
}

var hostile = map[string]hostileModule{
	"endless loop": {guest: guest{process: body(forever())}, class: sandbox.ClassFuel, message: "endless loop"},
	"endless loop with much fuel": {guest: guest{process: body(forever())}, limits: quick,
		class: sandbox.ClassDeadline, message: "longer than 30ms"},
	"exponential call tree": {guest: guest{process: body(i32(40), callFn(0), drop), functions: func(a *asm) {
		a.fn("", "i", "i", get(0), eqz, when(i32(1), ret), get(0), i32(1), sub, callFn(0), get(0), i32(1), sub, callFn(0), add)
	}}, class: sandbox.ClassFuel},
	"endless recursion": {guest: guest{process: body(callFn(0)), functions: func(a *asm) { a.fn("", "", "", callFn(0)) }},
		class: sandbox.ClassDepth, message: "recursion"},
	"memory.fill for ever": {guest: guest{process: body(forever(i32(65536), i32(0), i32(900_000), fill))},
		limits: quick, class: sandbox.ClassDeadline},
	"unreachable":    {guest: guest{process: body(unreachable)}, class: sandbox.ClassTrap, message: "unreachable"},
	"divide by zero": {guest: guest{process: body(i32(1), i32(0), divS, drop)}, class: sandbox.ClassTrap, message: "divide by zero"},
	"load outside":   {guest: guest{process: body(i32(-4), load(0), drop)}, class: sandbox.ClassTrap, message: "out of bounds"},
	"proc_exit": {guest: guest{imports: wasi("proc_exit", "i", ""), process: body(i32(0), callFn(0))},
		class: sandbox.ClassTrap, message: "proc_exit(0)"},
	"batch error": {guest: guest{process: body(setHeader(abi.HeaderError, 64+12), setHeader(abi.HeaderError+4, 9), i32(5), ret)},
		class: sandbox.ClassBatchError, message: "good text (code 5)"},
	"batch error without words": {guest: guest{process: body(i32(-1), ret)}, class: sandbox.ClassBatchError, message: "no message (code -1)"},
	"memory bomb": {guest: guest{process: body(forever(i32(1), grow, i32(-1), eq, when(unreachable)))},
		limits: sandbox.Limits{MemoryPages: 32}, class: sandbox.ClassMemory},
	"memory bomb that gives up": {guest: guest{process: body(forever(i32(1), grow, i32(-1), eq, when(i32(0), ret)))}},
	"alloc traps":               {guest: guest{alloc: body(unreachable)}, class: sandbox.ClassTrap},
	"alloc returns 0":           {guest: guest{alloc: body(i32(0), ret)}, class: sandbox.ClassMemory, message: "returned 0"},
	"alloc out of range":        {guest: guest{alloc: body(i32(-8), ret)}, class: sandbox.ClassBadOutput, message: "outside the memory"},
	"alloc near the end":        {guest: guest{alloc: body(i32(16<<16-1024), ret)}, class: sandbox.ClassBadOutput, message: "outside the memory"},
	"alloc unaligned":           {guest: guest{alloc: body(i32(4097), ret)}, class: sandbox.ClassBadOutput, message: "multiple of 8"},
	"alloc loops":               {guest: guest{alloc: body(forever())}, class: sandbox.ClassFuel},
	"out_rows at the end":       {guest: guest{process: body(setHeader(abi.HeaderOutRows, allOnes-7))}, class: sandbox.ClassBadOutput},
	"n_out of 2^32-1":           {guest: guest{process: body(setHeader(abi.HeaderNOut, allOnes))}, class: sandbox.ClassBadOutput, message: "n_out"},
	"ref wraps":                 {guest: guest{process: body(setRow(abi.RowAddress, allOnes-3), setRow(abi.RowAddress+4, 8))}, class: sandbox.ClassBadOutput, message: "row 0: address"},
	"bad UTF-8":                 {guest: guest{process: body(setRow(abi.RowAddress, 64), setRow(abi.RowAddress+4, 9))}, class: sandbox.ClassBadOutput, message: "UTF-8"},
	"index too large":           {guest: guest{process: body(setRow(abi.RowIndex, poisoned))}, class: sandbox.ClassBadOutput, message: "index 100"},
	"poll_oneoff for an hour": {guest: guest{imports: wasi("poll_oneoff", "iiii", "i"),
		process: body(i32(1024+24), i32(0x7fff_ffff), store(0), i32(1024), i32(2048), i32(1), i32(3000), callFn(0), when(unreachable))}},
	"random for ever": {guest: guest{imports: wasi("random_get", "ii", "i"), process: body(forever(i32(65536), i32(900_000), callFn(0), drop))},
		limits: quick, class: sandbox.ClassDeadline},
	"random outside": {guest: guest{imports: wasi("random_get", "ii", "i"), process: body(i32(-16), i32(64), callFn(0), eqz, when(unreachable))}},
	"fd_write of 2^32-1 pieces": {guest: guest{imports: wasi("fd_write", "iiii", "i"),
		process: body(i32(1), i32(0), i32(-1), i32(0), callFn(0), eqz, when(unreachable))}},
	"log for ever": {guest: guest{imports: edgehost("log", "iii", "i"), process: body(forever(i32(1), i32(0), i32(1024), callFn(0), drop))},
		limits: quick, class: sandbox.ClassDeadline},
	"log outside": {guest: guest{imports: edgehost("log", "iii", "i"), process: body(i32(1), i32(-8), i32(1024), callFn(0), eqz, when(unreachable))}},
	"config_get outside": {guest: guest{imports: edgehost("config_get", "iiii", "i"),
		process: body(i32(-8), i32(16), i32(0), i32(0), callFn(0), i32(abi.ErrnoMemory), eq, eqz, when(unreachable))}},

	// Time.
	"loop in a loop":          {guest: guest{process: body(forever(forever()))}, class: sandbox.ClassFuel},
	"loop of calls":           {guest: guest{process: body(forever(callFn(0))), functions: func(a *asm) { a.fn("", "", "") }}, class: sandbox.ClassFuel},
	"loop of calls, deadline": {guest: guest{process: body(forever(callFn(0))), functions: func(a *asm) { a.fn("", "", "") }}, limits: quick, class: sandbox.ClassDeadline},
	"loop in a called function": {guest: guest{process: body(callFn(0)), functions: func(a *asm) { a.fn("", "", "", forever()) }},
		limits: quick, class: sandbox.ClassDeadline},
	"call tree, deadline": {guest: guest{process: body(i32(60), callFn(0)), functions: func(a *asm) {
		a.fn("", "i", "", get(0), when(get(0), i32(1), sub, callFn(0), get(0), i32(1), sub, callFn(0)))
	}}, limits: quick, class: sandbox.ClassDeadline},
	"mutual recursion": {guest: guest{process: body(callFn(0)), functions: func(a *asm) { a.fn("", "", "", callFn(1)); a.fn("", "", "", callFn(0)) }},
		class: sandbox.ClassDepth},
	"recursion of process":   {guest: guest{process: body(get(0), callFn(2), drop)}, class: sandbox.ClassDepth},
	"recursion by the alloc": {guest: guest{alloc: body(get(0), callFn(1), drop)}, class: sandbox.ClassDepth},
	"memory.copy for ever":   {guest: guest{process: body(forever(i32(65536), i32(65544), i32(900_000), copyBytes))}, limits: quick, class: sandbox.ClassDeadline},
	"memory.fill of the whole memory, grown": {guest: guest{process: body(i32(48), grow, drop, forever(i32(0), i32(0), i32(64<<16), fill))},
		limits: quick, class: sandbox.ClassDeadline},
	"clock for ever": {guest: guest{imports: wasi("clock_time_get", "iIi", "i"), process: body(forever(i32(0), i64(1), i32(2048), callFn(0), drop))},
		limits: quick, class: sandbox.ClassDeadline},
	"sched_yield for ever": {guest: guest{imports: wasi("sched_yield", "", "i"), process: body(untilEnd())}, limits: quick, class: sandbox.ClassDeadline},
	"fd_write for ever":    {guest: guest{imports: wasi("fd_write", "iiii", "i"), process: body(untilEnd(2, 1024, 1, 2048))}, limits: quick, class: sandbox.ClassDeadline},
	"poll_oneoff for ever": {guest: guest{imports: wasi("poll_oneoff", "iiii", "i"), process: body(untilEnd(1024, 2048, 1, 3000))}, limits: quick, class: sandbox.ClassDeadline},
	"config_get for ever":  {guest: guest{imports: edgehost("config_get", "iiii", "i"), process: body(untilEnd(64+12, 9, 0, 0))}, limits: quick, class: sandbox.ClassDeadline},
	"output for ever":      {guest: guest{imports: edgehost("output", "ii", "i"), process: body(untilEnd(64+12, 9))}, limits: quick, class: sandbox.ClassDeadline},
	"metric for ever":      {guest: guest{imports: edgehost("metric", "iii", "i"), process: body(untilEnd(0, 64+12, 9))}, limits: quick, class: sandbox.ClassDeadline},
	"kv_get for ever":      {guest: guest{imports: edgehost("kv_get", "iiii", "i"), process: body(untilEnd(64+12, 9, 0, 0))}, limits: quick, class: sandbox.ClassDeadline, kv: true},
	"kv_set for ever, a new key each time": {guest: guest{imports: edgehost("kv_set", "iiiiI", "i"), process: body(
		forever(i32(2048), get(1), i32(1), add, set(1), get(1), store(0), i32(2048), i32(4), i32(65536), i32(60_000), i64(0), callFn(0), drop))},
		limits: quick, class: sandbox.ClassDeadline, kv: true},

	"kv_set for ever, short keys": {guest: guest{imports: edgehost("kv_set", "iiiiI", "i"), process: body(
		forever(i32(2048), get(1), i32(1), add, set(1), get(1), i32(0x7f7f7f), []byte{0x71}, store(0), i32(2048), i32(3), i32(0), i32(0), i64(0), callFn(0), drop))},
		limits: quick, class: sandbox.ClassDeadline, kv: true},

	// Traps.
	"store outside":              {guest: guest{process: body(i32(-4), i32(1), store(0))}, class: sandbox.ClassTrap, message: "out of bounds"},
	"load across the end":        {guest: guest{process: body(i32(16<<16-2), load(0), drop)}, class: sandbox.ClassTrap, message: "out of bounds"},
	"address that wraps":         {guest: guest{process: body(i32(-4), load(allOnes), drop)}, class: sandbox.ClassTrap, message: "out of bounds"},
	"memory.fill outside":        {guest: guest{process: body(i32(65536), i32(0), i32(-1), fill)}, class: sandbox.ClassTrap, message: "out of bounds"},
	"memory.copy outside":        {guest: guest{process: body(i32(-16), i32(0), i32(64), copyBytes)}, class: sandbox.ClassTrap, message: "out of bounds"},
	"integer overflow":           {guest: guest{process: body(i32(-1<<31), i32(-1), divS, drop)}, class: sandbox.ClassTrap, message: "overflow"},
	"a number that is none":      {guest: guest{process: body(f64nan, truncS, drop)}, class: sandbox.ClassTrap, message: "invalid conversion"},
	"proc_exit with a code":      {guest: guest{imports: wasi("proc_exit", "i", ""), process: body(i32(3), callFn(0))}, class: sandbox.ClassTrap, message: "proc_exit(3)"},
	"proc_exit in the alloc":     {guest: guest{imports: wasi("proc_exit", "i", ""), alloc: body(i32(0), callFn(0))}, class: sandbox.ClassTrap, message: "proc_exit(0)"},
	"trap with a larger memory":  {guest: guest{process: body(i32(1), grow, drop, unreachable)}, class: sandbox.ClassTrap, message: "unreachable"},
	"trap with scribbled memory": {guest: guest{process: body(i32(0), i32(255), i32(16<<16), fill, unreachable)}, class: sandbox.ClassTrap, message: "unreachable"},
	"table.grow bomb": {guest: guest{functions: func(a *asm) { a.tables = [][]byte{{0x70, 0, 1}} },
		process: body(forever([]byte{0xd0, 0x70}, i32(10_000), []byte{0xfc, 0x0f, 0}, i32(-1), eq, when(unreachable)))}, class: sandbox.ClassTrap},

	// Memory.
	"memory.grow by 2^32-1":       {guest: guest{process: body(i32(-1), grow, i32(-1), eq, eqz, when(unreachable))}, class: sandbox.ClassFuel},
	"memory.grow over the limit":  {guest: guest{process: body(i32(17), grow, i32(-1), eq, eqz, when(unreachable))}, limits: sandbox.Limits{MemoryPages: 32}},
	"all memory, written":         {guest: guest{process: body(i32(48), grow, drop, i32(16<<16), i32(7), i32(48<<16), fill)}},
	"alloc returns its size":      {guest: guest{alloc: body(get(0), ret)}},
	"alloc returns the last byte": {guest: guest{alloc: body(i32(16<<16-8), ret)}, class: sandbox.ClassBadOutput, message: "outside the memory"},
	"alloc over the data":         {guest: guest{alloc: body(i32(8), ret)}},

	// Output.
	"out_rows outside":        {guest: guest{process: body(setHeader(abi.HeaderOutRows, 16<<16))}, class: sandbox.ClassBadOutput, message: "outside the memory"},
	"out_rows off by one":     {guest: guest{process: body(cat(get(0), get(0), load(abi.HeaderRows), i32(1), add, store(abi.HeaderOutRows)))}},
	"out_rows of zeroes":      {guest: guest{process: body(setHeader(abi.HeaderOutRows, 1<<19))}},
	"n_out over the limit":    {guest: guest{process: body(setHeader(abi.HeaderNOut, 16*poisoned+1024+1))}, class: sandbox.ClassBadOutput, message: "n_out"},
	"n_out one too many":      {guest: guest{process: body(setHeader(abi.HeaderNOut, poisoned+1))}},
	"header of ones":          {guest: guest{process: body(get(0), i32(255), i32(64), fill)}, class: sandbox.ClassBadOutput, message: "n_out"},
	"header of zeroes":        {guest: guest{process: body(get(0), i32(0), i32(64), fill)}},
	"rows of ones":            {guest: guest{process: body(get(0), load(abi.HeaderRows), i32(255), i32(80*poisoned), fill)}, class: sandbox.ClassBadOutput, message: "disposition"},
	"texts scribbled over":    {guest: guest{process: body(get(0), load(abi.HeaderRows), i32(80*poisoned), add, i32(255), i32(200), fill)}},
	"reject of no input":      {guest: guest{process: body(setRow(abi.RowIndex, allOnes), setRow8(abi.RowDisposition, 1))}, class: sandbox.ClassBadOutput, message: "no input row"},
	"unknown disposition":     {guest: guest{process: body(setRow8(abi.RowDisposition, 2))}, class: sandbox.ClassBadOutput, message: "disposition 2"},
	"unknown kind":            {guest: guest{process: body(setRow8(abi.RowKind, 99))}, class: sandbox.ClassBadOutput, message: "unknown kind 99"},
	"new row to nowhere":      {guest: guest{process: body(setRow(abi.RowIndex, allOnes), setRow(abi.RowOutput, 9))}, class: sandbox.ClassBadOutput, message: "unknown output 9"},
	"json that is none":       {guest: guest{process: body(setRow8(abi.RowKind, 7), setRef(abi.RowValue, 64+12, 9))}, class: sandbox.ClassBadOutput, message: "not JSON"},
	"text over the limit":     {guest: guest{process: body(setRow8(abi.RowKind, 5), setRef(abi.RowValue, 0, 65<<10))}, class: sandbox.ClassBadOutput, message: "at most"},
	"source outside":          {guest: guest{process: body(setRef(abi.RowSource, 16<<16-4, 8))}, class: sandbox.ClassBadOutput, message: "source"},
	"reason outside":          {guest: guest{process: body(setRow8(abi.RowDisposition, 1), setRef(abi.RowReason, -8, 100))}, class: sandbox.ClassBadOutput, message: "reason"},
	"reason that is no text":  {guest: guest{process: body(setRow8(abi.RowDisposition, 1), setRef(abi.RowReason, 64, 9))}},
	"65 attributes":           {guest: guest{process: body(setRef(abi.RowAttrs, 1<<19, 65))}, class: sandbox.ClassBadOutput, message: "65, at most 64"},
	"attributes outside":      {guest: guest{process: body(setRef(abi.RowAttrs, 16<<16-24, 2))}, class: sandbox.ClassBadOutput, message: "outside the memory"},
	"attribute without a key": {guest: guest{process: body(setRef(abi.RowAttrs, 1<<19, 1))}, class: sandbox.ClassBadOutput, message: "empty key"},
	"batch error out of words": {guest: guest{process: body(setHeader(abi.HeaderError, -8), setHeader(abi.HeaderError+4, 100), i32(1), ret)},
		class: sandbox.ClassBatchError, message: "no message (code 1)"},

	// Host functions.
	"log of 2^32-1 bytes":        {guest: guest{imports: edgehost("log", "iii", "i"), process: body(i32(1), i32(0), i32(-1), callFn(0), when(unreachable))}},
	"log of an unknown level":    {guest: guest{imports: edgehost("log", "iii", "i"), process: body(i32(99), i32(0), i32(8), callFn(0), eqz, when(unreachable))}},
	"random_get of 2^32-1 bytes": {guest: guest{imports: wasi("random_get", "ii", "i"), process: body(i32(8), i32(-1), callFn(0), eqz, when(unreachable))}},
	"clock outside":              {guest: guest{imports: wasi("clock_time_get", "iIi", "i"), process: body(i32(0), i64(1), i32(-4), callFn(0), eqz, when(unreachable))}},
	"output with a long name":    {guest: guest{imports: edgehost("output", "ii", "i"), process: body(i32(0), i32(-1), callFn(0), i32(abi.ErrnoTooLarge), eq, eqz, when(unreachable))}},
	"config_get into nowhere": {guest: guest{imports: edgehost("config_get", "iiii", "i"),
		process: body(i32(64+12), i32(9), i32(-8), i32(100), callFn(0), i32(abi.ErrnoMemory), eq, eqz, when(unreachable))}},
	"metric of an unknown kind": {guest: guest{imports: edgehost("metric", "iii", "i"), process: body(i32(77), i32(64+12), i32(9), callFn(0), i32(0), gtS, when(unreachable))}},
	"state that is not granted": {guest: guest{imports: edgehost("kv_set", "iiiiI", "i"),
		process: body(i32(64), i32(1), i32(64), i32(1), i64(0), callFn(0), i32(abi.ErrnoDenied), eq, eqz, when(unreachable))}},
	"state of 2^32-1 bytes": {guest: guest{imports: edgehost("kv_set", "iiiiI", "i"),
		process: body(i32(64+12), i32(4), i32(0), i32(-1), i64(0), callFn(0), i32(abi.ErrnoTooLarge), eq, eqz, when(unreachable))}, kv: true},
	"a file": {guest: guest{imports: wasi("path_open", "iiiiiIIii", "i"),
		process: body(i32(3), i32(0), i32(64+12), i32(4), i32(0), i64(-1), i64(-1), i32(0), i32(2048), callFn(0), eqz, when(unreachable))}},
	"a socket": {guest: guest{imports: wasi("sock_accept", "iii", "i"), process: body(i32(3), i32(0), i32(2048), callFn(0), eqz, when(unreachable))}},
}

// neighbour is a module beside the hostile one: it counts its batches in its memory.
func neighbour() guest {
	return guest{always: body(cat(get(0), load(abi.HeaderRows), cat(i32(0), load(2048)), store(abi.RowStatus)), cat(i32(2048), i32(0), load(2048), i32(1), add, store(0)))}
}

func TestHostileModules(t *testing.T) {
	if len(hostile) < 60 {
		t.Errorf("the corpus has %d modules", len(hostile))
	}
	h := newHost(t)
	beside := instantiate(t, compile(t, h, neighbour().bytes()), sandbox.Env{Name: "neighbour"})
	served := uint32(0)
	for name, c := range hostile {
		t.Run(name, func(t *testing.T) {
			if c.limits == (sandbox.Limits{}) {
				c.limits = sandbox.Limits{Fuel: 5_000_000, FuelPerRow: 1000}
			}
			m := compile(t, h, c.guest.bytes())
			defer m.Close(context.Background())
			env := sandbox.Env{Name: "hostile", Revision: "r1", Limits: c.limits, Config: map[string]string{"good text": "value"}}
			if c.kv {
				env.KV = mapKV{}
			}
			i := instantiate(t, m, env)
			defer i.Close(context.Background())
			before := heap()
			for range 3 { // mending must work more than once
				begin := time.Now()
				_, err := i.Process(t.Context(), batch(poisoned))
				checkTime(t, time.Since(begin), c.limits.Deadline)
				checkFault(t, err, c.class, c.message)
				if most := uint64(64) << 16; i.MemoryBytes() > most { // what the module declares
					t.Errorf("%d bytes of memory", i.MemoryBytes())
				}
				res, err := i.Process(t.Context(), batch(2))
				if err != nil || len(res.Out) != 2 || res.Out[1].Address != "line1/pump1/temperature" || res.Out[1].Value != abi.Float(1) {
					t.Fatalf("the next batch: %+v, %v", res, err)
				}
				res, err = beside.Process(t.Context(), batch(2))
				if err != nil || len(res.Out) != 2 || res.Out[0].Status != served || res.Out[1].Value != abi.Float(1) {
					t.Fatalf("the neighbour's batch: %+v, %v", res, err)
				}
				served++
			}
			checkHeap(t, before)
		})
	}
}

// checkHeap waits until the heap is back to where it was: what another test left
// behind, a compilation that was given up, may still be under way.
func checkHeap(t *testing.T, before uint64) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ; <-tick.C {
		after := heap()
		if after <= before+heapMost {
			return
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("%d MiB of heap are left", (after-before)>>20)
		}
	}
}

// checkTime holds a call to its deadline.
func checkTime(t *testing.T, took, deadline time.Duration) {
	t.Helper()
	if deadline == 0 {
		deadline = sandbox.DefaultLimits().Deadline
	}
	if most := patience * (deadline + slack); took > most {
		t.Errorf("it took %s, at most %s are allowed: %d times the deadline and %s", took, most, patience, slack)
	}
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapInuse
}
