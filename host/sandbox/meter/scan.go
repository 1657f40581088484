package meter

import (
	"bytes"
	"strings"
)

// items reads the length of a section's vector and holds it to the config.
func (m *module) items(r *reader, what string) int {
	n := r.count(what)
	if n > m.cfg.Items && r.err == nil {
		m.refuse("it has %d %s, %d are allowed", n, what, m.cfg.Items)
	}
	return n
}

func isRef(t byte) bool { return t == typeFunc || t == typeExt }

func isValueType(t byte) bool {
	return t >= typeV128 && t <= typeI32 || isRef(t)
}

// valueType reads a value type of the 2.0 core.
func (m *module) valueType(r *reader) byte {
	t := r.byte()
	if r.err == nil && !isValueType(t) {
		if t >= 0x63 && t <= 0x74 {
			m.refuse(needsGC)
		}
		r.fail("0x%02x is not a value type", t)
	}
	return t
}

// maxArity bounds parameters and results of a function type; it is the bound
// of the JavaScript embedding, appendix "implementation limitations".
const maxArity = 1000

func (m *module) valueTypes(r *reader, what string) []byte {
	n := r.count(what)
	if n > maxArity {
		r.fail("%d %s, %d are allowed", n, what, maxArity)
		return nil
	}
	for range n {
		m.valueType(r)
	}
	return r.buf[r.pos-n*btoi(r.err == nil) : r.pos]
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (m *module) scanTypes(r *reader) {
	n := m.items(r, "types")
	m.types = make([]funcType, 0, n+4)
	for i := range n {
		switch form := r.byte(); {
		case r.err != nil:
			return
		case form == 0x60:
			params := m.valueTypes(r, "parameters")
			m.types = append(m.types, funcType{params, m.valueTypes(r, "results")})
		case form == 0x50 || form == 0x4f || form == 0x4e || form == 0x5f || form == 0x5e:
			m.refuse(needsGC)
			r.fail("type %d is not a function type", i)
		default:
			r.fail("type %d: 0x%02x is not a function type", i, form)
		}
		if r.err != nil {
			return
		}
	}
	m.declared = n
}

// scanImports notes the imports and adds the yield behind them.
func (m *module) scanImports(r *reader) {
	n := m.items(r, "imports")
	start := r.pos
	for range n {
		im := Import{Module: r.name(), Name: r.name()}
		kind := r.byte()
		if r.err != nil {
			return
		}
		if im.Module == YieldModule || strings.HasPrefix(im.Module, reserved) || strings.HasPrefix(im.Name, reserved) {
			m.refuse("it imports %.80q from %.80q: names that begin with __eh belong to the host", im.Name, im.Module)
		}
		switch kind {
		case kindFunc:
			t := m.typeIndex(r)
			if r.err != nil {
				return
			}
			m.funcs = append(m.funcs, t)
			m.importedFuncs++
			im.Type = m.types[t].String()
		case kindTable:
			t := m.tableType(r)
			m.tables = append(m.tables, t)
			m.importedTables++
			im.Type = t.String()
		case kindMemory:
			l := m.memoryType(r)
			m.memories = append(m.memories, l)
			m.importedMemories++
			im.Type = l.String()
		case kindGlobal:
			g := m.globalType(r)
			m.globals = append(m.globals, g)
			m.importedGlobals++
			im.Type = g.String()
		case kindTag:
			m.refuse(needsExceptions)
			r.fail("import of a tag")
		default:
			r.fail("import kind %d is not known", kind)
		}
		if r.err != nil {
			return
		}
		im.Kind = kindNames[kind]
		m.info.Imports = append(m.info.Imports, im)
	}
	m.yield = uint32(m.importedFuncs)
	out := append(appendU32(nil, uint32(n+1)), r.buf[start:r.pos]...)
	out = appendName(appendName(out, YieldModule), YieldName)
	m.rewritten[secImport] = appendU32(append(out, kindFunc), m.addType(funcType{}))
}

// addType returns the index of a function type, adding it when it is new.
func (m *module) addType(want funcType) uint32 {
	for i, t := range m.types {
		if bytes.Equal(t.params, want.params) && bytes.Equal(t.results, want.results) {
			return uint32(i)
		}
	}
	m.types = append(m.types, want)
	return uint32(len(m.types) - 1)
}

func (m *module) typeIndex(r *reader) uint32 {
	t := r.u32()
	if int64(t) >= int64(m.declared) {
		r.fail("type %d does not exist", t)
	}
	return t
}

// limits reads limits that may not use what threads and memory64 add.
func (m *module) limits(r *reader) (l limits) {
	flags := r.byte()
	switch {
	case flags&2 != 0 && flags < 8:
		m.refuse(needsThreads)
	case flags&4 != 0 && flags < 8:
		m.refuse(needsMemory64)
	}
	if flags > 1 {
		r.fail("limits of kind 0x%02x", flags)
		return l
	}
	l.min = r.u32()
	if l.bounded = flags == 1; l.bounded {
		if l.max = r.u32(); l.max < l.min {
			r.fail("the minimum %d is above the maximum %d", l.min, l.max)
		}
	}
	return l
}

func (m *module) tableType(r *reader) (t tableType) {
	t.elem = r.byte()
	if r.err == nil && !isRef(t.elem) {
		m.refuse(needsGC)
		r.fail("0x%02x is not a table's element type", t.elem)
		return t
	}
	t.limits = m.limits(r)
	if r.err == nil && t.min > m.cfg.TableEntries {
		m.refuse("a table has %d entries, %d are allowed", t.min, m.cfg.TableEntries)
	}
	return t
}

func (m *module) memoryType(r *reader) limits {
	l := m.limits(r)
	if l.min > maxPages || l.bounded && l.max > maxPages {
		r.fail("a memory has at most %d pages", maxPages)
	} else if l.min > m.cfg.MemoryPages {
		m.refuse("its memory starts with %d pages of 64 KiB, %d are allowed: lower the linker's initial memory and stack size", l.min, m.cfg.MemoryPages)
	}
	return l
}

func (m *module) globalType(r *reader) globalType {
	t := m.valueType(r)
	mut := r.byte()
	if mut > 1 {
		r.fail("0x%02x is not a mutability", mut)
	}
	return globalType{t, mut == 1}
}

// scanFunctions notes the types of the functions and what the added ones need. A
// function with several results needs a type for the block that
// its body is wrapped into.
func (m *module) scanFunctions(r *reader) {
	n := r.count("functions")
	start := r.pos
	for range n {
		t := m.typeIndex(r)
		if r.err != nil {
			return
		}
		m.funcs = append(m.funcs, t)
		if _, known := m.wrapTypes[t]; !known && len(m.types[t].results) > 1 {
			m.wrapTypes[t] = m.addType(funcType{results: m.types[t].results})
		}
	}
	m.check = uint32(len(m.funcs)) + 1
	m.funcTypes = r.buf[start:r.pos]
	m.checkType = m.addType(funcType{[]byte{typeI64}, []byte{typeI64}})
	m.bulkType = m.addType(funcType{[]byte{typeI32, typeI32, typeI32}, nil})
}

func (m *module) scanTables(r *reader) {
	n := m.items(r, "tables")
	out := appendU32(nil, uint32(n))
	for range n {
		t := m.tableType(r)
		if r.err != nil {
			return
		}
		m.tables = append(m.tables, t)
		out = appendLimits(append(out, t.elem), clamp(t.limits, m.cfg.TableEntries, maxEntries))
	}
	m.rewritten[secTable] = out
}

func (m *module) scanMemories(r *reader) {
	n := m.items(r, "memories")
	out := appendU32(nil, uint32(n))
	for range n {
		l := m.memoryType(r)
		if r.err != nil {
			return
		}
		m.memories = append(m.memories, l)
		out = appendLimits(out, clamp(l, m.cfg.MemoryPages, maxPages))
	}
	m.rewritten[secMemory] = out
}

// scanGlobals notes the globals and adds the two counters behind them.
func (m *module) scanGlobals(r *reader) {
	n := m.items(r, "globals")
	out := appendU32(nil, uint32(n+2))
	for range n {
		start := r.pos
		g := m.globalType(r)
		out = m.constExpr(r, append(out, r.buf[start:r.pos]...))
		if r.err != nil {
			return
		}
		m.globals = append(m.globals, g)
	}
	m.fuel = uint32(len(m.globals))
	m.depth = m.fuel + 1
	for _, start := range []int64{m.cfg.Slice, m.cfg.MaxDepth} {
		out = append(appendS64(append(out, typeI64, 1, opI64Const), start), opEnd)
	}
	m.rewritten[secGlobal] = out
}

// constExpr reads a constant expression and appends it to out with the function
// indices moved.
func (m *module) constExpr(r *reader, out []byte) []byte {
	for {
		start := r.pos
		switch o := r.byte(); {
		case r.err != nil:
			return out
		case o == opEnd:
			return append(out, opEnd)
		case o == opI32Const:
			r.signed(32)
		case o == opI64Const:
			r.signed(64)
		case o == opF32Const:
			r.bytes(4)
		case o == opF64Const:
			r.bytes(8)
		case o == opRefNull:
			m.refType(r)
		case o == opGlobalGet:
			if g := r.u32(); int64(g) >= int64(len(m.globals)) {
				r.fail("global %d does not exist", g)
			}
		case o == opRefFunc:
			f := m.funcIndex(r)
			out = appendU32(append(out, opRefFunc), m.shift(f))
			continue
		case o == opVector && r.u32() == 0x0c:
			r.bytes(16)
		default:
			r.fail("0x%02x is not allowed in a constant expression", o)
		}
		if r.err != nil {
			return out
		}
		out = append(out, r.buf[start:r.pos]...)
	}
}

func (m *module) refType(r *reader) byte {
	t := r.byte()
	if r.err == nil && !isRef(t) {
		m.refuse(needsGC)
		r.fail("0x%02x is not a reference type", t)
	}
	return t
}

func (m *module) funcIndex(r *reader) uint32 {
	f := r.u32()
	if int64(f) >= int64(len(m.funcs)) {
		r.fail("function %d does not exist", f)
	}
	return f
}
