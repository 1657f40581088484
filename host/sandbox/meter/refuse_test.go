package meter

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// refusals builds one module for each rule; want is part of the reason.
func refusals() []struct {
	name, want string
	build      func(*asm)
} {
	body := func(b ...byte) func(*asm) {
		return func(a *asm) { a.memory(1, 1); a.fn("f", none, none, none, b) }
	}
	section := func(id byte, content ...byte) func(*asm) {
		return func(a *asm) { a.raw = appendSection(nil, id, content) }
	}
	return []struct {
		name, want string
		build      func(*asm)
	}{
		{"export of ours", `exports "__eh_fuel"`, func(a *asm) { a.fn("__eh_fuel", none, none, none) }},
		{"import of ours", `imports "yield" from "__eh"`, func(a *asm) { a.importFunc("__eh", "yield", none, none) }},
		{"import by our name", `imports "__eh_x" from "env"`, func(a *asm) { a.importFunc("env", "__eh_x", none, none) }},
		{"our local", "local 1 does not exist", func(a *asm) { a.fn("f", oneI32, none, none, local(opLocalGet, 1), []byte{0x1a}) }},
		{"our fuel", "global 0 does not exist", func(a *asm) { a.fn("f", none, none, none, i64(9), local(opGlobalSet, 0)) }},
		{"our fuel in a constant", "global 1 does not exist", func(a *asm) { a.global(typeI64, false, opGlobalGet, 1); a.fn("f", none, none, none) }},
		{"our check", "function 1 does not exist", func(a *asm) { a.fn("f", none, none, none, i64(9), call(1), []byte{0x1a}) }},
		{"our check by reference", "function 1 does not exist", func(a *asm) {
			a.fn("f", none, none, none)
			a.table(1, 1)
			a.elements = append(a.elements, cat([]byte{0}, i32(0), []byte{opEnd}, vec(u(1))))
		}},
		{"our check as start", "function 2 does not exist", func(a *asm) { a.fn("f", none, none, none); a.start = 2 }},
		{"our type", "type 1 does not exist", body(cat(i64(9), i32(0), []byte{opIndirect, 1, 0})...)},
		{"our block type", "type 1 does not exist", body(opBlock, 1, opEnd)},
		{"our global exported", "item 0 of kind 3", func(a *asm) { a.fn("f", none, none, none); a.export("g", kindGlobal, 0) }},
		{"label too far", "label 2 does not exist", body(opBlock, blockEmpty, opBr, 2, opEnd)},
		{"else alone", "else without if", body(opElse)},
		{"code after the end", "after the end", body(opEnd, opEnd)},
		{"no end", "in the middle", body(opBlock, blockEmpty)},
		{"atomics", "threads", body(0xfe, 0x03, 0x00)},
		{"shared memory", "threads", section(secMemory, 1, 3, 1, 1)},
		{"memory64", "memory64", section(secMemory, 1, 4, 1)},
		{"two memories", "multi-memory", func(a *asm) { a.memory(1, 1); a.memory(1, 1); a.fn("f", none, none, none) }},
		{"memory index", "multi-memory", body(opMemorySize, 1, 0x1a)},
		{"memory index in an access", "multi-memory", body(cat(i32(0), []byte{0x28, 0x42, 1, 0, 0x1a})...)},
		{"tail call", "tail calls", body(0x12, 0)},
		{"throw", "exception handling", body(0x08, 0)},
		{"try_table", "exception handling", body(0x1f, blockEmpty, 0, opEnd)},
		{"tags", "exception handling", section(secTag, 1, 0, 0)},
		{"struct type", "garbage-collected", section(secType, 1, 0x5f, 0)},
		{"call_ref", "garbage-collected", body(0x14, 0)},
		{"relaxed SIMD", "relaxed SIMD", body(opVector, 0x80, 0x02)},
		{"vector opcode", "not part of the 2.0 core", body(opVector, 0x9a, 0x01)},
		{"bulk opcode", "not part of the 2.0 core", body(opBulk, 18, 0)},
		{"large memory", "starts with 513 pages", func(a *asm) { a.memory(513, -1); a.fn("f", none, none, none) }},
		{"large table", "65537 entries", func(a *asm) { a.table(65_537, -1); a.fn("f", none, none, none) }},
		{"five tables", "5 tables", func(a *asm) {
			for range 5 {
				a.table(1, 1)
			}
			a.fn("f", none, none, none)
		}},
		{"large body", "body of 131076 bytes", body(make([]byte, 131_074)...)},
		{"many locals", "10001 locals", func(a *asm) {
			a.fn("f", none, none, slices.Repeat(oneI32, 10_001))
		}},
		{"locals beyond 32 bits", "locals", func(a *asm) {
			a.fn("f", none, none, none)
			text := cat(u(2), []byte{0xff, 0xff, 0xff, 0xff, 0x0f, typeI32, 0xff, 0xff, 0xff, 0xff, 0x0f, typeI32, opEnd})
			a.bodies[0] = cat(u(len(text)), text)
		}},
		{"many functions", "20001 functions", func(a *asm) {
			for range 20_001 {
				a.fn("", none, none, none)
			}
		}},
		{"nested loops over many locals", "to compile", func(a *asm) {
			var inner []byte
			for i := range 400 {
				inner = append(inner, cat(local(opLocalGet, i), local(opLocalSet, 399-i))...)
			}
			a.fn("f", none, none, slices.Repeat(oneI32, 400),
				slices.Repeat([]byte{opLoop, blockEmpty}, 250), inner, slices.Repeat([]byte{opEnd}, 250))
		}},
		{"many ifs", "to compile", body(slices.Repeat([]byte{opI32Const, 0, opIf, blockEmpty, opEnd}, 20_000)...)},
		{"unknown section", "id 14", section(14, 0)},
		{"section out of order", "out of order", func(a *asm) {
			a.raw = cat(appendSection(nil, secFunction, []byte{0}), appendSection(nil, secType, []byte{0}))
		}},
		{"section twice", "repeated", func(a *asm) {
			a.raw = cat(appendSection(nil, secType, []byte{0}), appendSection(nil, secType, []byte{0}))
		}},
		{"section too long", "announced", func(a *asm) { a.raw = []byte{secType, 9, 0} }},
		{"junk in a section", "too many", section(secType, 0, 0)},
		{"number too long", "does not fit", section(secType, 0x80, 0x80, 0x80, 0x80, 0x80, 0)},
		{"number too large", "does not fit", section(secType, 0xff, 0xff, 0xff, 0xff, 0x1f)},
		{"vector too long", "announced in", section(secType, 0x7f)},
		{"bodies missing", "0 bodies for 1 functions", func(a *asm) {
			a.raw = cat(appendSection(nil, secType, []byte{1, 0x60, 0, 0}), appendSection(nil, secFunction, []byte{1, 0}))
		}},
		{"name not UTF-8", "not UTF-8", func(a *asm) { a.fn("\xff", none, none, none) }},
	}
}

func TestRefused(t *testing.T) {
	for _, c := range refusals() {
		t.Run(c.name, func(t *testing.T) {
			var a asm
			c.build(&a)
			out, info, err := Instrument(a.build(), DefaultConfig())
			var refused *Refused
			if !errors.As(err, &refused) || out != nil || info != nil {
				t.Fatalf("not refused: %v", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q in it", err, c.want)
			}
		})
	}
}

// TestNotAModule: what people upload by mistake is named.
func TestNotAModule(t *testing.T) {
	for input, want := range map[string]string{
		"":                            "empty",
		"\x00asm\x0d\x00\x01\x00\x00": "component; edgehost runs core modules",
		"\x00asm\x02\x00\x00\x00":     "version",
		"\x00asm":                     "version",
		" (module)":                   "WebAssembly text",
		"\x7fELF\x02":                 "not WebAssembly",
		"package main":                "not WebAssembly",
		header + "\x01":               "section at offset 0x8",
		header + "\x00\x01\x05":       "custom section",
	} {
		_, _, err := Instrument([]byte(input), DefaultConfig())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", input, err, want)
		}
	}
	cfg := DefaultConfig()
	cfg.ModuleBytes = 8
	var a asm
	a.fn("f", none, none, none)
	if _, _, err := Instrument(a.build(), cfg); err == nil || !strings.Contains(err.Error(), "8 are allowed") {
		t.Errorf("a module above the limit: %v", err)
	}
}

// TestEveryReason: the author learns of all reasons at once.
func TestEveryReason(t *testing.T) {
	var a asm
	a.importFunc("__eh", "yield", none, none)
	a.fn("__eh_x", none, none, none, []byte{0x12, 0})
	a.fn("f", none, none, none, []byte{0xfe, 0x03, 0x00})
	a.memory(600, -1)
	a.table(70_000, -1)
	_, _, err := Instrument(a.build(), DefaultConfig())
	var refused *Refused
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	for _, want := range []string{"imports", "exports", "tail calls", "threads", "600 pages", "70000 entries"} {
		if !slices.ContainsFunc(refused.Reasons, func(r string) bool { return strings.Contains(r, want) }) {
			t.Errorf("no reason holds %q: %q", want, refused.Reasons)
		}
	}
}
