package sandbox

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox/meter"
	"github.com/tetratelabs/wazero"
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
var typeNames = map[rune]string{'i': "i32", 'I': "i64", 'f': "f32", 'F': "f64", '?': "other"}

func typesOf(types []api.ValueType) string {
	b := make([]byte, len(types))
	for i, t := range types {
		switch t {
		case api.ValueTypeI32:
			b[i] = 'i'
		case api.ValueTypeI64:
			b[i] = 'I'
		case api.ValueTypeF32:
			b[i] = 'f'
		case api.ValueTypeF64:
			b[i] = 'F'
		default:
			b[i] = '?'
		}
	}
	return string(b)
}

// valueTypes is the reverse of typesOf.
func valueTypes(letters string) []api.ValueType {
	types := make([]api.ValueType, len(letters))
	for i, t := range letters {
		types[i] = map[rune]api.ValueType{'i': api.ValueTypeI32, 'I': api.ValueTypeI64, 'f': api.ValueTypeF32, 'F': api.ValueTypeF64}[t]
	}
	return types
}

func signatureOf(f api.FunctionDefinition) signature {
	return signature{typesOf(f.ParamTypes()), typesOf(f.ResultTypes())}
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

// checkModule holds a compiled module to the ABI before anything of it runs.
func checkModule(c wazero.CompiledModule) (exportSet, error) {
	var reasons []string
	exports := c.ExportedFunctions()
	for _, name := range slices.Sorted(maps.Keys(exportTypes)) {
		f, ok := exports[name]
		switch want := exportTypes[name]; {
		case ok && signatureOf(f) != want:
			reasons = append(reasons, fmt.Sprintf("the export %s has the type %s, it must be %s", name, signatureOf(f), want))
		case !ok && name == abi.ExportMarker:
			reasons = append(reasons, "the marker export "+name+" is missing: the module is not built for the edgehost record ABI v1")
		case !ok && (name == abi.ExportAlloc || name == abi.ExportProcess):
			reasons = append(reasons, "the export "+name+" is missing")
		}
	}
	if exports["_start"] != nil && exports[abi.ExportInitialize] == nil {
		reasons = append(reasons, "the module is a command (it exports _start): build a reactor (Go: -buildmode=c-shared, C: -mexec-model=reactor)")
	}
	if len(c.ExportedMemories()) != 1 || c.ExportedMemories()[abi.ExportMemory] == nil {
		reasons = append(reasons, `the module must export its one memory under the name "memory"`)
	}
	reasons = append(reasons, checkImports(c)...)
	if len(reasons) > 0 {
		return exportSet{}, &Refusal{Reasons: reasons}
	}
	return exportSet{
		initialize: exports[abi.ExportInitialize] != nil,
		init:       exports[abi.ExportInit] != nil,
		tick:       exports[abi.ExportTick] != nil,
		stop:       exports[abi.ExportStop] != nil,
	}, nil
}

// checkImports lists every import that the host does not offer.
func checkImports(c wazero.CompiledModule) []string {
	var reasons []string
	for _, f := range c.ImportedFunctions() {
		module, name, _ := f.Import()
		var want signature
		ok := false
		switch module {
		case abi.ImportModule:
			fn, found := edgehostFuncs[name]
			want, ok = fn.signature, found
		case abi.ImportWASI:
			fn, found := wasiFuncs[name]
			want, ok = fn.signature, found
		case meter.YieldModule:
			continue // added by the meter, which refuses modules that bring their own
		}
		switch {
		case !ok:
			reasons = append(reasons, fmt.Sprintf("the import %s.%s is unknown to this host", module, name))
		case signatureOf(f) != want:
			reasons = append(reasons, fmt.Sprintf("the import %s.%s has the type %s, it must be %s", module, name, signatureOf(f), want))
		}
	}
	if len(c.ImportedMemories()) > 0 {
		reasons = append(reasons, "the module imports a memory: it must bring and export its own")
	}
	return reasons
}

// openCache opens a directory of compiled code, which must be closed to others.
func openCache(dir string) (wazero.CompilationCache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create module cache: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open module cache: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("open module cache %s: others may enter it, and its content is executed: chmod 700 it", dir)
	}
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open module cache: %w", err)
	}
	return cache, nil
}
