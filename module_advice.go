package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// What went wrong when a module cannot run is seldom what the sandbox sees: it sees
// a missing export, its author forgot a flag. Here is what the common mistakes look
// like, and what to do about each.

// notWasm says what a file is that is no WebAssembly module.
func notWasm(file []byte) string {
	if len(file) == 0 {
		return "it is empty: the build did not finish"
	}
	for _, known := range []struct{ magic, what string }{
		{"\x7fELF", "it is a program for Linux: " + buildForWasm},
		{"\xcf\xfa\xed\xfe", "it is a program for macOS: " + buildForWasm},
		{"\xca\xfe\xba\xbe", "it is a program for macOS: " + buildForWasm},
		{"MZ", "it is a program for Windows: " + buildForWasm},
		{"!<arch>", "it is an archive of object files: a Go module is a package main, built with -buildmode=c-shared; objects are linked with wasm-ld"},
		{"BC\xc0\xde", "it is LLVM bitcode: leave -emit-llvm and -flto away, and link it"},
		{"\x1f\x8b", "it is compressed with gzip: unpack it"},
		{"PK\x03\x04", "it is a zip file: unpack it"},
	} {
		if bytes.HasPrefix(file, []byte(known.magic)) {
			return known.what
		}
	}
	head := file[:min(len(file), 512)]
	switch text := strings.TrimSpace(string(head)); {
	case strings.HasPrefix(text, "(module"), strings.HasPrefix(text, ";;"), strings.HasPrefix(text, "(;"):
		return "it is WebAssembly as text: wat2wasm makes a module of it"
	case utf8.Valid(head[:len(head)-min(len(head)-1, utf8.UTFMax)]) && !bytes.ContainsRune(head, 0):
		return "it is text: name the .wasm file that the build wrote"
	}
	return `it does not begin with \0asm`
}

const buildForWasm = "build it for WebAssembly (Go: GOOS=wasip1 GOARCH=wasm and -buildmode=c-shared; C: --target=wasm32; Rust: --target wasm32-unknown-unknown)"

// looks is what a module looks like from outside.
type looks struct {
	imports []string // module.name
	exports []string
	custom  []string // names of custom sections
	built   string   // the tools that built it, as far as they say
}

func looksOf(info *sandbox.Info) looks {
	l := looks{custom: info.Custom, built: strings.Join(info.Producers, ", ")}
	for _, i := range info.Imports {
		l.imports = append(l.imports, i.Module+"."+i.Name)
	}
	for _, e := range info.Exports {
		l.exports = append(l.exports, e.Name)
	}
	return l
}

// importing reports whether an import begins with one of the prefixes.
func (l looks) importing(prefixes ...string) bool {
	return slices.ContainsFunc(l.imports, func(name string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	})
}

func (l looks) exporting(name string) bool { return slices.Contains(l.exports, name) }

// mistakes are ways to build a module wrongly. The first that was made explains the
// others.
var mistakes = []struct {
	made   func(l looks) bool
	advice string
}{
	{func(l looks) bool { return slices.Contains(l.custom, "linking") }, "it is an object file: link it (clang without -c, or wasm-ld)"},
	{func(l looks) bool { return l.importing("gojs.", "go.") }, "it is built for browsers: GOOS=wasip1 in place of GOOS=js, and -buildmode=c-shared"},
	{func(l looks) bool { return l.importing("wbg.", "__wbindgen") },
		"it is built with wasm-bindgen, for browsers: leave wasm-bindgen and wasm-pack out, and build with cargo build --release --target wasm32-unknown-unknown"},
	{func(l looks) bool { return l.importing("env.emscripten_", "env.invoke_") },
		"it is built with Emscripten: build with clang --target=wasm32 -nostdlib -Wl,--no-entry"},
	{func(l looks) bool { return l.importing("extism:") }, "it is a plug-in for Extism: use an SDK of edgehost"},
	{func(l looks) bool {
		return strings.Contains(l.built, "TinyGo") || l.importing("env.main.", "env.runtime.")
	},
		"it looks like a module of TinyGo; the SDK is for the compiler of Go itself: GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared"},
	{func(l looks) bool { return l.importing("env.abort") },
		"AssemblyScript needs --use abort=edgehost/assembly/host/aborted, as in the Makefile that edgehost module new --lang as NAME makes"},
	{func(l looks) bool { return l.exporting("_start") && !l.exporting(abi.ExportInitialize) },
		"it is a program with a main, which runs once and ends; a module is called again and again. Go: -buildmode=c-shared; C: -mexec-model=reactor; " +
			"Rust: src/lib.rs with crate-type = [\"cdylib\"] in place of src/main.rs"},
	{func(l looks) bool { return l.importing("env.") },
		"imports from env are functions that nothing in the module defines. C: -mbulk-memory makes instructions of memcpy and memset, and leave --allow-undefined away"},
	{func(l looks) bool {
		return !l.exporting(abi.ExportMarker) && strings.Contains(strings.Join(l.exports, " "), "edgehost")
	},
		"the SDK is only half in it. C: EDGEHOST_PROCESS, once; Rust: edgehost::module!, once; AssemblyScript: export { edgehost_abi_v1, edgehost_alloc } from the SDK"},
	{func(l looks) bool { return !l.exporting(abi.ExportMarker) },
		"it uses no SDK of edgehost: edgehost module new --lang go NAME (or c, rust, as) makes a module to start from"},
}

// adviceOn says what the author of a module that is not admitted can do, "" when the
// reasons say it all.
func adviceOn(ctx context.Context, wasm []byte) (advice string, err error) {
	h, err := sandbox.New(sandbox.Config{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	found, err := h.Inspect(ctx, wasm)
	if err != nil {
		return "", err
	}
	return adviceFor(wasm, found), nil
}

// adviceFor is adviceOn for a module that was inspected.
func adviceFor(wasm []byte, found sandbox.Inspection) string {
	switch {
	case len(found.Reasons) == 0:
		return ""
	case found.Info == nil:
		if readable := len(wasm) > len(coreModule) && !bytes.HasPrefix(wasm, []byte(coreModule)); readable || len(wasm) > sandbox.DefaultLimits().ModuleBytes {
			return "" // of another kind, or too large
		}
		return "the file seems to be cut off or damaged: build it again, or copy it again in binary mode"
	}
	l := looksOf(found.Info)
	for _, m := range mistakes {
		if m.made(l) {
			return m.advice + l.misspelt()
		}
	}
	return ""
}

// coreModule is what a module that is no component begins with.
const coreModule = "\x00asm\x01\x00\x00\x00"

// misspelt names an export that was probably meant to be one of the contract's.
func (l looks) misspelt() string {
	contract := []string{abi.ExportMarker, abi.ExportAlloc, abi.ExportProcess, abi.ExportInit, abi.ExportTick, abi.ExportStop}
	others := slices.DeleteFunc(slices.Clone(l.exports), func(name string) bool { return slices.Contains(contract, name) })
	for _, name := range contract[:3] { // those that must be there
		if near := nearest(name, others); near != "" && !l.exporting(name) {
			return fmt.Sprintf(". It exports %s: should that be %s?", near, name)
		}
	}
	return ""
}

// faultAdvice says, by class, what can be done about a fault.
var faultAdvice = map[sandbox.Class]string{
	sandbox.ClassBatchError: "the module refused the whole call; to refuse one record, reject it with a reason",
	sandbox.ClassTrap:       "a trap discards all that the call did; test what can be missing, and reject a record that cannot be handled. There are no files and no network",
	sandbox.ClassFuel:       "if it is no endless loop: edgehost module bench shows what the module costs, and limits: of the pipeline raise fuel and fuel_per_row (here: --limit)",
	sandbox.ClassDeadline:   "if it is no endless loop: edgehost module bench shows how long the module takes, and limits: of the pipeline raise deadline_ms (here: --limit)",
	sandbox.ClassDepth:      "end the recursion, or make a loop of it",
	sandbox.ClassMemory:     "keep less in memory; state belongs into kv. limits: of the pipeline raise memory_mb (here: --limit)",
	sandbox.ClassBadOutput:  "what the module left in its memory breaks the contract (docs/abi.md, sections 2 to 4): set values through the SDK",
}
