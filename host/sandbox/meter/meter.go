// Package meter rewrites a core WebAssembly module at load time so that its
// host can stop it: no loop, call tree, recursion or bulk operation of the
// rewritten module runs on without asking the host again and again.
//
//	bytes --scan--> limits and features --rewrite--> bytes' + Info
//	                 |  refuse, with reasons          |
//	                 v                                v
//	              *Refused         fuel is counted down per basic block; below 0 the module
//	                               calls the imported function __eh.yield, the host's turn
//
// Fuel lives in a register (a local) inside a function and in the exported
// global FuelGlobal across calls. Depth lives in the global DepthGlobal. What
// the scanner cannot parse it refuses: the rewritten module must not be able to
// reach the added locals, globals and functions. Types are left to the engine,
// which validates the rewritten module as it would have the original.
package meter

import (
	"strings"
	"time"
)

// Names that the rewritten module and its host share. A module that uses the
// module name __eh or a name that starts with __eh_ itself is refused.
const (
	// YieldModule and YieldName name the one function that a rewritten module
	// imports in addition, of type () -> ().
	//
	// The module calls it when FuelGlobal is below 0 and when DepthGlobal is
	// below 0. The host reads the depth first: below 0 the module is nested too
	// deeply, and the host aborts the call (by a panic with an error, which the
	// engine returns from the call); if it returns instead, the module traps
	// with "unreachable". Otherwise the slice is used up: the host counts
	// cfg.Slice - fuel as used, checks its deadline and budget, and either
	// sets FuelGlobal to the next slice and returns, or aborts the call. A host
	// that returns without a refill is called again at the next check.
	YieldModule = "__eh"
	YieldName   = "yield"
	// FuelGlobal is the exported mutable i64 that counts down to the next
	// yield. It starts at Config.Slice; the host sets it again before each call,
	// since a call that trapped leaves it anywhere.
	FuelGlobal = "__eh_fuel"
	// DepthGlobal is the exported mutable i64 that holds how many more frames
	// may be nested. It starts at Config.MaxDepth. A call that returns leaves it as it
	// was; the host sets it again after one that does not. A value below 0 after a failed call means that the depth limit
	// ended the call, whatever the engine's error says.
	DepthGlobal = "__eh_depth"
	// reserved starts every name that this package adds.
	reserved = "__eh_"
	// savedGlobal starts the names under which mutable globals are exported.
	savedGlobal = "__eh_g"
)

// Config holds the limits of one module. All of them must be positive.
type Config struct {
	ModuleBytes  int    // size of the whole module
	BodyBytes    int    // size of one function body
	Functions    int    // functions that the module defines
	Locals       int    // parameters and locals of one function
	Items        int    // entries of each other section; a Go module has up to 100,000 data segments
	MemoryPages  uint32 // 64 KiB pages; a larger or missing maximum is lowered to it
	Tables       int    // tables, imported ones included
	TableEntries uint32 // entries of one table; a larger or missing maximum is lowered to it
	MaxDepth     int64  // nested frames; a frame with many locals or a large body counts for more
	Slice        int64  // units of fuel between two yields; a unit is about one simple instruction
	// CompileTime is the most that one function may take to compile by estimate,
	// and a tenth of what all together may take. A body of 5 KB can be built to
	// take minutes, and the engine cannot be stopped inside a function.
	CompileTime time.Duration
}

// DefaultConfig returns limits that every Go, C, Rust, Zig and AssemblyScript
// module measured so far keeps with room to spare.
func DefaultConfig() Config {
	return Config{
		ModuleBytes:  16 << 20,
		BodyBytes:    128 << 10,
		Functions:    20_000,
		Locals:       10_000,
		Items:        100_000,
		MemoryPages:  512,
		Tables:       4,
		TableEntries: 65_536,
		MaxDepth:     2000,
		Slice:        500_000,
		CompileTime:  time.Second,
	}
}

// Refused says why a module was not taken. Reasons holds plain sentences for
// the author of the module, each naming the place and what to do; it lists every
// reason that could be found, not only the first.
type Refused struct {
	Reasons []string
	// Info is what was learned all the same; nil when the sections could not be
	// read up to the code.
	Info *Info
}

func (r *Refused) Error() string { return "module refused: " + strings.Join(r.Reasons, "; ") }

// Instrument checks a module against cfg and returns the metered module with
// what was learned about it. The input is not changed and not kept. An error is
// always a *Refused. Any number of goroutines may call it.
func Instrument(wasm []byte, cfg Config) (out []byte, info *Info, err error) {
	m := &module{cfg: cfg, wrapTypes: map[uint32]uint32{}, info: &Info{
		FuelGlobal: FuelGlobal, DepthGlobal: DepthGlobal,
		Slice: cfg.Slice, MaxDepth: cfg.MaxDepth, Bytes: len(wasm),
	}}
	if m.checkHeader(wasm); len(m.reasons) == 0 {
		out = m.rewrite(wasm)
	}
	if len(m.reasons) > 0 {
		refused := &Refused{Reasons: m.reasons}
		if m.scanned {
			refused.Info = m.info
		}
		return nil, nil, refused
	}
	m.info.OutBytes = len(out)
	return out, m.info, nil
}

// rewrite returns the metered module, or nothing of use when it notes reasons.
func (m *module) rewrite(wasm []byte) []byte {
	if len(wasm) > m.cfg.ModuleBytes {
		m.refuse("it has %d bytes, %d are allowed: strip it (Go: -ldflags=\"-s -w\", C and Rust: strip symbols)", len(wasm), m.cfg.ModuleBytes)
		return nil
	}
	custom, ok := m.split(wasm)
	if !ok || !m.scan(custom) {
		return nil
	}
	m.scanned = true
	code := m.code()
	if len(m.reasons) > 0 {
		return nil
	}
	m.rewritten[secCode] = code
	m.rewritten[secFunction] = m.functionSection()
	m.rewritten[secType] = m.typeSection()
	out := make([]byte, 0, len(wasm)+len(code)-len(m.bodies[secCode])+4096)
	out = append(out, header...)
	for _, id := range []byte{secType, secImport, secFunction, secTable, secMemory, secGlobal, secExport,
		secStart, secElement, secDataCount, secCode, secData} {
		if body := m.rewritten[id]; body != nil {
			out = appendSection(out, id, body)
		} else if m.bodies[id] != nil {
			out = appendSection(out, id, m.bodies[id])
		}
	}
	if names := m.names(); names != nil {
		out = appendSection(out, secCustom, names)
	}
	return out
}

func (m *module) typeSection() []byte {
	out := appendU32(nil, uint32(len(m.types)))
	for _, t := range m.types {
		out = append(appendU32(append(out, 0x60), uint32(len(t.params))), t.params...)
		out = append(appendU32(out, uint32(len(t.results))), t.results...)
	}
	return out
}
