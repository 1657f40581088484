package meter

import "slices"

// asm builds a module from its parts; add functions after imports.
type asm struct {
	types, imports, funcs, tables, memories, globals, exports, elements, bodies, data [][]byte
	start                                                                             int // function index, 0 for none
	custom                                                                            [][]byte
	raw                                                                               []byte // sections that replace all others
	imported                                                                          int    // functions
}

func cat(parts ...[]byte) []byte { return slices.Concat(parts...) }

func vec(items ...[]byte) []byte { return cat(append([][]byte{u(len(items))}, items...)...) }

func u(n int) []byte { return appendU32(nil, uint32(n)) }

func str(s string) []byte { return appendName(nil, s) }

func i32(v int64) []byte { return appendS64([]byte{opI32Const}, v) }

func i64(v int64) []byte { return appendS64([]byte{opI64Const}, v) }

func (a *asm) typ(params, results []byte) int {
	t := cat([]byte{0x60}, u(len(params)), params, u(len(results)), results)
	for i, have := range a.types {
		if slices.Equal(have, t) {
			return i
		}
	}
	a.types = append(a.types, t)
	return len(a.types) - 1
}

func (a *asm) importFunc(module, name string, params, results []byte) int {
	a.imports = append(a.imports, cat(str(module), str(name), []byte{kindFunc}, u(a.typ(params, results))))
	a.imported++
	return a.imported - 1
}

// fn adds a function with one local of each type in locals, exported unless the
// name is empty. The closing end is added.
func (a *asm) fn(export string, params, results, locals []byte, body ...[]byte) int {
	a.funcs = append(a.funcs, u(a.typ(params, results)))
	groups := make([][]byte, len(locals))
	for i, l := range locals {
		groups[i] = []byte{1, l}
	}
	text := cat(vec(groups...), cat(body...), []byte{opEnd})
	a.bodies = append(a.bodies, cat(u(len(text)), text))
	index := a.imported + len(a.funcs) - 1
	if export != "" {
		a.export(export, kindFunc, index)
	}
	return index
}

func (a *asm) export(name string, kind byte, index int) {
	a.exports = append(a.exports, cat(str(name), []byte{kind}, u(index)))
}

// memory adds a memory; max below 0 means none.
func (a *asm) memory(minimum, maximum int) {
	a.memories = append(a.memories, limitsText(minimum, maximum))
}

func (a *asm) table(minimum, maximum int) {
	a.tables = append(a.tables, cat([]byte{typeFunc}, limitsText(minimum, maximum)))
}

func limitsText(minimum, maximum int) []byte {
	if maximum < 0 {
		return cat([]byte{0}, u(minimum))
	}
	return cat([]byte{1}, u(minimum), u(maximum))
}

func (a *asm) global(value byte, mutable bool, init ...byte) int {
	a.globals = append(a.globals, cat([]byte{value, byte(btoi(mutable))}, init, []byte{opEnd}))
	return len(a.globals) - 1
}

func (a *asm) section(out []byte, id byte, items [][]byte) []byte {
	if len(items) == 0 {
		return out
	}
	return appendSection(out, id, vec(items...))
}

func (a *asm) build() []byte {
	out := []byte(header)
	if a.raw != nil {
		return append(out, a.raw...)
	}
	out = a.section(out, secType, a.types)
	out = a.section(out, secImport, a.imports)
	out = a.section(out, secFunction, a.funcs)
	out = a.section(out, secTable, a.tables)
	out = a.section(out, secMemory, a.memories)
	out = a.section(out, secGlobal, a.globals)
	out = a.section(out, secExport, a.exports)
	if a.start > 0 {
		out = appendSection(out, secStart, u(a.start))
	}
	out = a.section(out, secElement, a.elements)
	out = a.section(out, secCode, a.bodies)
	out = a.section(out, secData, a.data)
	for _, c := range a.custom {
		out = appendSection(out, secCustom, c)
	}
	return out
}

// Bodies that several tests use.

// forever is loop { br 0 } around what is to be repeated.
func forever(body ...[]byte) []byte {
	return cat([]byte{opLoop, blockEmpty}, cat(body...), []byte{opBr, 0, opEnd})
}

func call(fn int) []byte { return cat([]byte{opCall}, u(fn)) }

func local(op byte, i int) []byte { return cat([]byte{op}, u(i)) }

// countdown is a loop over local 0, an i32, down to 0.
func countdown(body ...[]byte) []byte {
	return cat([]byte{opLoop, blockEmpty}, cat(body...),
		local(opLocalGet, 0), i32(1), []byte{0x6b}, local(opLocalTee, 0), []byte{opBrIf, 0, opEnd})
}
