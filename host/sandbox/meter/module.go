package meter

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Section ids of the specification 2.0, section 5.5.2, and of tags, which
// exception handling adds.
const (
	secCustom = iota
	secType
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
	secTag
	sections = secDataCount + 1
)

// order is the place of each section in a module; custom sections stand anywhere.
var order = [sections]int{secType: 1, secImport: 2, secFunction: 3, secTable: 4, secMemory: 5, secGlobal: 6,
	secExport: 7, secStart: 8, secElement: 9, secDataCount: 10, secCode: 11, secData: 12}

var sectionNames = [sections]string{"custom", "type", "import", "function", "table", "memory", "global",
	"export", "start", "element", "code", "data", "data count"}

const (
	kindFunc = iota
	kindTable
	kindMemory
	kindGlobal
	kindTag
)

var kindNames = [...]string{"func", "table", "memory", "global"}

// funcType is one function type; params and results are value types.
type funcType struct{ params, results []byte }

type limits struct {
	min, max uint32
	bounded  bool // max was declared
}

type tableType struct {
	elem byte
	limits
}

type globalType struct {
	value   byte
	mutable bool
}

// module is a scanned module. The index spaces hold the imported items first.
type module struct {
	cfg     Config
	reasons []string
	scanned bool // every section but code was read

	bodies [sections][]byte // contents of the sections, nil when absent
	bases  [sections]int    // their offsets in the module
	// rewritten holds the contents of the sections that change.
	rewritten [sections][]byte

	types    []funcType // the declared ones, then ours
	declared int
	funcs    []uint32 // type index of each function
	tables   []tableType
	memories []limits
	globals  []globalType

	importedFuncs, importedTables, importedMemories, importedGlobals int

	funcNames map[uint32]string
	info      *Info

	// What the rewritten module has in addition.
	yield, check uint32 // function indices; check is the first of the added
	fuel, depth  uint32 // global indices
	checkType    uint32
	bulkType     uint32
	funcTypes    []byte            // the types of the functions, as they stand in the section
	pieces       bool              // the functions for long operations are needed
	compile      time.Duration     // estimate for all functions
	wrapTypes    map[uint32]uint32 // function type -> type of the block around its body
}

// maxReasons bounds the report on one module.
const maxReasons = 20

// refuse notes a reason and goes on, so that the author learns of all at once.
func (m *module) refuse(format string, args ...any) {
	reason := fmt.Sprintf(format, args...)
	if len(m.reasons) < maxReasons && !slices.Contains(m.reasons, reason) {
		m.reasons = append(m.reasons, reason)
	}
}

const header = "\x00asm\x01\x00\x00\x00"

// checkHeader tells what a file is that is not a core module.
func (m *module) checkHeader(wasm []byte) {
	switch {
	case bytes.HasPrefix(wasm, []byte(header)):
	case bytes.HasPrefix(wasm, []byte("\x00asm\x0d\x00\x01\x00")):
		m.refuse("this is a WebAssembly component; edgehost runs core modules: build with GOOS=wasip1 GOARCH=wasm " +
			"-buildmode=c-shared (Go), --target wasm32-unknown-unknown and crate-type cdylib (Rust), " +
			"--target=wasm32-wasi -mexec-model=reactor (C), or extract the core module with wasm-tools component unbundle")
	case bytes.HasPrefix(wasm, []byte("\x00asm")):
		m.refuse("the WebAssembly version % x is not known: build a core module of version 1", wasm[4:min(8, len(wasm))])
	case strings.HasPrefix(strings.TrimSpace(string(wasm[:min(64, len(wasm))])), "("):
		m.refuse("this is WebAssembly text: assemble it first, for example with wat2wasm")
	case len(wasm) == 0:
		m.refuse("the file is empty")
	default:
		m.refuse("this is not WebAssembly: a module begins with 00 61 73 6d, this file with % x", wasm[:min(4, len(wasm))])
	}
}

// split cuts the module into sections and checks their order and sizes; it
// returns false when it cannot.
func (m *module) split(wasm []byte) (custom []reader, ok bool) {
	r := reader{buf: wasm, pos: len(header)}
	last := 0
	for r.more() {
		at := r.pos
		id := r.byte()
		body := r.bytes(r.u32())
		if r.err != nil {
			m.refuse("section at offset 0x%x: %v", at, r.err)
			return nil, false
		}
		base := r.pos - len(body)
		switch {
		case id == secCustom:
			custom = append(custom, reader{buf: body, base: base})
		case id == secTag:
			m.refuse(needsExceptions)
		case id >= sections:
			m.refuse("section at offset 0x%x: the id %d is not known", at, id)
		case order[id] <= last:
			m.refuse("section at offset 0x%x: the %s section is repeated or out of order", at, sectionNames[id])
			return nil, false
		default:
			last = order[id]
			m.bodies[id], m.bases[id] = body, base
		}
	}
	// What is rewritten in every module must be there.
	for _, id := range []int{secType, secImport, secFunction, secGlobal, secExport, secCode} {
		if m.bodies[id] == nil {
			m.bodies[id] = []byte{0}
		}
	}
	return custom, true
}

// section runs parse over a section that is there, checks that nothing is left
// and reports whether it could be read.
func (m *module) section(id int, parse func(*reader)) bool {
	if m.bodies[id] == nil {
		return true
	}
	r := reader{buf: m.bodies[id], base: m.bases[id]}
	parse(&r)
	err := r.end()
	if err != nil {
		m.refuse("%s section: %v", sectionNames[id], err)
	}
	return err == nil
}

// scan reads every section but code. It returns false where a later section
// could not be understood for want of an earlier one.
func (m *module) scan(custom []reader) bool {
	m.scanCustom(custom)
	for _, s := range []struct {
		id    int
		parse func(*reader)
	}{
		{secType, m.scanTypes}, {secImport, m.scanImports}, {secFunction, m.scanFunctions},
		{secTable, m.scanTables}, {secMemory, m.scanMemories}, {secGlobal, m.scanGlobals},
		{secExport, m.scanExports}, {secStart, m.scanStart}, {secElement, m.scanElements},
		{secDataCount, func(r *reader) { r.u32() }}, {secData, m.scanData},
	} {
		if !m.section(s.id, s.parse) && s.id <= secFunction {
			return false
		}
	}
	m.checkTotals()
	return true
}

// checkTotals holds the index spaces, imports included, to the limits.
func (m *module) checkTotals() {
	if n := len(m.tables); n > m.cfg.Tables {
		m.refuse("it has %d tables, %d are allowed", n, m.cfg.Tables)
	}
	if n := len(m.memories); n > 1 {
		m.refuse("it has %d memories (multi-memory), one is allowed", n)
	}
	if n := len(m.funcs) - m.importedFuncs; n > m.cfg.Functions {
		m.refuse("it defines %d functions, %d are allowed: leave out packages or let the linker drop what is not used", n, m.cfg.Functions)
	}
	m.info.Tables = len(m.tables)
	m.info.Funcs = len(m.funcs) - m.importedFuncs
	m.info.GlobalN = len(m.globals) - m.importedGlobals
	if len(m.memories) > 0 {
		mem := m.memories[0]
		m.info.MemoryMin, m.info.MemoryMax = mem.min, clamp(mem, m.cfg.MemoryPages, maxPages).max
	}
}

// Reasons for the proposals that are not part of the 2.0 core.
const (
	needsExceptions = "it uses exception handling: build without it (C++: -fno-exceptions, Rust: panic=abort)"
	needsThreads    = "it uses threads (shared memory or atomic instructions): build without -pthread and without the atomics feature"
	needsTailCalls  = "it uses tail calls: build without the tail-call feature (clang: -mno-tail-call)"
	needsMemory64   = "it uses a 64-bit memory (memory64): build for wasm32"
	needsMultiMem   = "it uses more than one memory (multi-memory): build with one"
	needsGC         = "it uses garbage-collected or typed reference types: build for the 2.0 core specification without the gc feature"
	needsRelaxed    = "it uses relaxed SIMD: build without the relaxed-simd feature"
)

func (m *module) shift(fn uint32) uint32 {
	if int(fn) < m.importedFuncs {
		return fn
	}
	return fn + 1
}

// funcName is how messages name a function of the module.
func (m *module) funcName(fn uint32) string {
	if name := m.funcNames[fn]; name != "" {
		return fmt.Sprintf("function %d (%.80s)", fn, name)
	}
	return fmt.Sprintf("function %d", fn)
}

const (
	maxPages   = 65_536
	maxEntries = 0xffff_ffff
)

// clamp lowers a maximum to limit. A limit that excludes nothing of what is
// possible at all leaves an absent maximum absent.
func clamp(l limits, limit, possible uint32) limits {
	switch {
	case !l.bounded && limit >= possible:
		return limits{l.min, possible, false}
	case !l.bounded || l.max > limit:
		return limits{l.min, limit, true}
	}
	return l
}

func appendLimits(b []byte, l limits) []byte {
	if !l.bounded {
		return appendU32(append(b, 0), l.min)
	}
	return appendU32(appendU32(append(b, 1), l.min), l.max)
}
