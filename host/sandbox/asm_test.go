package sandbox_test

import (
	"encoding/binary"
	"math"
)

// asm assembles small core modules for tests. Function indices count imports
// first, in the order of the calls: all imports before the first function.
type asm struct {
	types, imports, funcs, tables, exports, codes, datas, globals [][]byte
	nImports                                                      int
	start                                                         int // function that runs at instantiation; -1 is none
	min, max                                                      uint32
	memory                                                        string // export name; "" has a memory that is not exported
}

func newAsm() *asm { return &asm{start: -1, min: 16, max: 64, memory: "memory"} }

func uleb(n uint64) []byte { return binary.AppendUvarint(nil, n) }

func sleb(n int64) (out []byte) {
	for {
		b := byte(n & 0x7f)
		n >>= 7
		if (n == 0 && b&0x40 == 0) || (n == -1 && b&0x40 != 0) {
			return append(out, b)
		}
		out = append(out, b|0x80)
	}
}

func cat(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func str(s string) []byte { return append(uleb(uint64(len(s))), s...) }

func valTypes(letters string) []byte {
	out := uleb(uint64(len(letters)))
	for _, c := range letters {
		out = append(out, map[rune]byte{'i': 0x7f, 'I': 0x7e, 'f': 0x7d, 'F': 0x7c}[c])
	}
	return out
}

func (a *asm) typ(params, results string) []byte {
	a.types = append(a.types, cat([]byte{0x60}, valTypes(params), valTypes(results)))
	return uleb(uint64(len(a.types) - 1))
}

func (a *asm) imp(module, name, params, results string) int {
	a.imports = append(a.imports, cat(str(module), str(name), []byte{0}, a.typ(params, results)))
	a.nImports++
	return a.nImports - 1
}

// fn adds a function of a body without its end, exported under name if name is
// not empty. Its locals, beside the parameters, are four i32.
func (a *asm) fn(name, params, results string, body ...[]byte) int {
	index := a.nImports + len(a.funcs)
	a.funcs = append(a.funcs, a.typ(params, results))
	code := cat(uleb(1), uleb(4), []byte{0x7f}, cat(body...), []byte{0x0b})
	a.codes = append(a.codes, append(uleb(uint64(len(code))), code...))
	if name != "" {
		a.exports = append(a.exports, cat(str(name), []byte{0}, uleb(uint64(index))))
	}
	return index
}

func (a *asm) data(at int, s string) {
	a.datas = append(a.datas, cat([]byte{0}, i32(int64(at)), []byte{0x0b}, str(s)))
}

func (a *asm) bytes() []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	section := func(id byte, items [][]byte) {
		if len(items) > 0 {
			body := append(uleb(uint64(len(items))), cat(items...)...)
			out = cat(out, []byte{id}, uleb(uint64(len(body))), body)
		}
	}
	exports := a.exports
	if a.memory != "" {
		exports = append(exports, cat(str(a.memory), []byte{2, 0}))
	}
	section(1, a.types)
	section(2, a.imports)
	section(3, a.funcs)
	section(4, a.tables)
	section(5, [][]byte{cat([]byte{1}, uleb(uint64(a.min)), uleb(uint64(a.max)))})
	section(6, a.globals)
	section(7, exports)
	if a.start >= 0 {
		body := uleb(uint64(a.start))
		out = cat(out, []byte{8}, uleb(uint64(len(body))), body)
	}
	section(10, a.codes)
	section(11, a.datas)
	return out
}

// Instructions.
func i32(n int64) []byte         { return append([]byte{0x41}, sleb(int64(int32(n)))...) }
func i64(n int64) []byte         { return append([]byte{0x42}, sleb(n)...) }
func get(local int) []byte       { return append([]byte{0x20}, uleb(uint64(local))...) }
func set(local int) []byte       { return append([]byte{0x21}, uleb(uint64(local))...) }
func callFn(fn int) []byte       { return append([]byte{0x10}, uleb(uint64(fn))...) }
func load(off int) []byte        { return cat([]byte{0x28, 0}, uleb(uint64(off))) } // i32
func store(off int) []byte       { return cat([]byte{0x36, 0}, uleb(uint64(off))) } // i32
func store8(off int) []byte      { return cat([]byte{0x3a, 0}, uleb(uint64(off))) }
func when(then ...[]byte) []byte { return cat([]byte{0x04, 0x40}, cat(then...), []byte{0x0b}) }
func forever(body ...[]byte) []byte {
	return cat([]byte{0x03, 0x40}, cat(body...), []byte{0x0c, 0, 0x0b})
}

var (
	unreachable = []byte{0x00}
	drop        = []byte{0x1a}
	add         = []byte{0x6a}
	sub         = []byte{0x6b}
	divS        = []byte{0x6d}
	eq          = []byte{0x46}
	eqz         = []byte{0x45}
	gtU         = []byte{0x4b}
	grow        = []byte{0x40, 0}
	fill        = []byte{0xfc, 0x0b, 0}
	copyBytes   = []byte{0xfc, 0x0a, 0, 0}
	gtS         = []byte{0x4a}
	truncS      = []byte{0xaa} // i32.trunc_f64_s
	f64nan      = []byte{0x44, 0, 0, 0, 0, 0, 0, 0xf8, 0x7f}
	ret         = []byte{0x0f}
	f64zero     = []byte{0x44, 0, 0, 0, 0, 0, 0, 0, 0}
)

const allOnes = math.MaxUint32
