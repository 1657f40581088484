package sandbox

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox/meter"
	"github.com/tetratelabs/wazero/api"
)

var (
	magicModule    = []byte("\x00asm\x01\x00\x00\x00")
	magicComponent = []byte("\x00asm\x0d\x00\x01\x00")
)

// precheck refuses what is not a core module at all, in words that help.
func precheck(wasm []byte, most int) error {
	switch {
	case len(wasm) > most:
		return refuse("the module has %d bytes, at most %d are allowed: strip it (go build -ldflags='-s -w')", len(wasm), most)
	case bytes.HasPrefix(wasm, magicComponent):
		return refuse("this is a WebAssembly component: build a core module (Go: GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared)")
	case !bytes.HasPrefix(wasm, magicModule):
		return refuse("this is not a WebAssembly module: the file does not begin with \\0asm and version 1")
	}
	return nil
}

// exportSet says which optional exports a module has.
type exportSet struct {
	initialize, init, tick, stop bool
}

// signature is the type of a function: i, I, f, F for i32, i64, f32, f64.
type signature struct{ params, results string }

func (s signature) String() string { return spell(s.params) + " -> " + spell(s.results) }

func spell(types string) string {
	words := make([]string, len(types))
	for i, t := range types {
		words[i] = typeNames[t]
	}
	return "(" + strings.Join(words, ", ") + ")"
}

// typeNames are the letters of a signature.
var typeNames = map[rune]string{'i': "i32", 'I': "i64", 'f': "f32", 'F': "f64"}

// valueTypes are the types of a signature.
func valueTypes(letters string) []api.ValueType {
	types := make([]api.ValueType, len(letters))
	for i, t := range letters {
		types[i] = map[rune]api.ValueType{'i': api.ValueTypeI32, 'I': api.ValueTypeI64, 'f': api.ValueTypeF32, 'F': api.ValueTypeF64}[t]
	}
	return types
}

// exportTypes are the functions that the host calls.
var exportTypes = map[string]signature{
	abi.ExportMarker:     {"", ""},
	abi.ExportAlloc:      {"i", "i"},
	abi.ExportProcess:    {"i", "i"},
	abi.ExportInitialize: {"", ""},
	abi.ExportInit:       {"", "i"},
	abi.ExportTick:       {"i", "i"},
	abi.ExportStop:       {"", ""},
}

// checkModule holds a module to the ABI before anything of it runs, and lists
// every reason against it.
func checkModule(info *meter.Info) (has exportSet, reasons []string) {
	exports := map[string]string{}
	var memories []string
	for _, e := range info.Exports {
		switch e.Kind {
		case "func":
			exports[e.Name] = e.Type
		case "memory":
			memories = append(memories, e.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(exportTypes)) {
		have, ok := exports[name]
		switch want := exportTypes[name].String(); {
		case ok && have != want:
			reasons = append(reasons, fmt.Sprintf("the export %s has the type %s, it must be %s", name, have, want))
		case !ok && name == abi.ExportMarker:
			reasons = append(reasons, "the marker export "+name+" is missing: the module is not built for the edgehost record ABI v1")
		case !ok && (name == abi.ExportAlloc || name == abi.ExportProcess):
			reasons = append(reasons, "the export "+name+" is missing")
		}
	}
	exported := func(name string) bool { _, ok := exports[name]; return ok }
	if exported("_start") && !exported(abi.ExportInitialize) {
		reasons = append(reasons, "the module is a command (it exports _start): build a reactor (Go: -buildmode=c-shared, C: -mexec-model=reactor)")
	}
	if !slices.Equal(memories, []string{abi.ExportMemory}) {
		reasons = append(reasons, `the module must export its one memory under the name "memory"`)
	}
	return exportSet{
		initialize: exported(abi.ExportInitialize),
		init:       exported(abi.ExportInit),
		tick:       exported(abi.ExportTick),
		stop:       exported(abi.ExportStop),
	}, append(reasons, checkImports(info.Imports)...)
}

// checkImports lists every import that the host does not offer.
func checkImports(imports []meter.Import) []string {
	var reasons []string
	for _, im := range imports {
		var known map[string]hostFunc
		switch im.Module {
		case abi.ImportModule:
			known = edgehostFuncs
		case abi.ImportWASI:
			known = wasiFuncs
		}
		fn, ok := known[im.Name]
		switch {
		case im.Kind == "memory":
			reasons = append(reasons, "the module imports a memory: it must bring and export its own")
		case !ok || im.Kind != "func":
			reasons = append(reasons, fmt.Sprintf("the import %s.%s is unknown to this host", im.Module, im.Name))
		case im.Type != fn.String():
			reasons = append(reasons, fmt.Sprintf("the import %s.%s has the type %s, it must be %s", im.Module, im.Name, im.Type, fn.String()))
		}
	}
	return reasons
}
