package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// smallModule is a module with a memory, functions without parameters as imports
// (module.name, cut at the first point) and as exports, and empty custom sections.
func smallModule(imports, exports, custom []string) []byte {
	text := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	section := func(id byte, n int, items ...[]byte) []byte {
		body := append([]byte{byte(n)}, bytes.Join(items, nil)...)
		return append([]byte{id, byte(len(body)) | 0x80, byte(len(body) >> 7)}, body...)
	}
	var imported, exported, sections, bodies [][]byte
	for _, name := range imports {
		module, name, _ := strings.Cut(name, ".")
		imported = append(imported, text(module), text(name), []byte{0, 0})
	}
	for _, name := range exports {
		exported = append(exported, text(name), []byte{0, byte(len(imports))})
	}
	bodies = append(bodies, []byte{2, 0, 0x0b})
	sections = append(sections, []byte(coreModule), section(1, 1, []byte{0x60, 0, 0}), section(2, len(imports), imported...), section(3, 1, []byte{0}),
		section(5, 1, []byte{0, 1}), section(7, len(exports)+1, append(exported, text("memory"), []byte{2, 0})...), section(10, 1, bodies...))
	for _, name := range custom {
		sections = append(sections, append([]byte{0, byte(len(name) + 1)}, text(name)...))
	}
	return bytes.Join(sections, nil)
}

// Every way to build the wrong file ends in words that say which one it was and what
// to do, from module test, module inspect and module push alike.
func TestModuleAdvice(t *testing.T) {
	t.Chdir(t.TempDir())
	sdk := []string{"edgehost_abi_v1", "edgehost_alloc", "edgehost_process"}
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":           {nil, "is empty: the build did not finish"},
		"text":            {[]byte("hello, wörld\n"), "it is text: name the .wasm file"},
		"wat":             {[]byte("  (module)\n"), "wat2wasm"},
		"elf":             {[]byte("\x7fELF\x02\x01\x01"), "it is a program for Linux: build it for WebAssembly (Go: GOOS=wasip1"},
		"archive":         {[]byte("!<arch>\n"), "a Go module is a package main"},
		"gzip":            {[]byte("\x1f\x8b\x08"), "gzip: unpack it"},
		"noise":           {[]byte("\x00\xff\x00\xfe"), `does not begin with \0asm`},
		"cut off":         {smallModule(nil, sdk, nil)[:60], "cut off or damaged"},
		"header cut off":  {[]byte("\x00asm"), "cut off or damaged"},
		"component":       {[]byte("\x00asm\x0d\x00\x01\x00rest"), "build a core module"},
		"object file":     {smallModule([]string{"env.memcpy"}, nil, []string{"linking"}), "it is an object file: link it"},
		"GOOS=js":         {smallModule([]string{"gojs.runtime.wasmExit"}, nil, nil), "GOOS=wasip1 in place of GOOS=js"},
		"wasm-bindgen":    {smallModule([]string{"wbg.__wbindgen_throw"}, []string{"process"}, nil), "leave wasm-bindgen and wasm-pack out"},
		"Emscripten":      {smallModule([]string{"env.emscripten_resize_heap", "env.abort"}, nil, nil), "built with Emscripten"},
		"TinyGo":          {smallModule([]string{"env.main.host_log"}, []string{"_start", "malloc", "free"}, nil), "it looks like a module of TinyGo"},
		"AssemblyScript":  {smallModule([]string{"env.abort"}, sdk, nil), "--use abort=edgehost/assembly/host/aborted"},
		"a command":       {smallModule(nil, append([]string{"_start"}, sdk...), nil), `Rust: src/lib.rs with crate-type = ["cdylib"]`},
		"allow-undefined": {smallModule([]string{"env.memcpy"}, sdk, nil), "-mbulk-memory"},
		"half an SDK":     {smallModule(nil, []string{"edgehost_tick"}, nil), "the SDK is only half in it"},
		"misspelt export": {smallModule(nil, []string{"edgehost_alloc", "edgehost_proces"}, nil), "It exports edgehost_proces: should that be edgehost_process?"},
		"no SDK":          {smallModule(nil, []string{"run"}, nil), "edgehost module new --lang go NAME"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "m.wasm")
			if err := os.WriteFile(file, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"test", file, "--input", "-"}, {"inspect", file}, {"bench", file}} {
				var out bytes.Buffer
				code := run(t.Context(), append([]string{"edgehost", "module"}, args...), strings.NewReader("{}\n"), &out, &out)
				if code != exitFailure || !strings.Contains(out.String(), c.want) {
					t.Errorf("module %s: code %d, want %q:\n%s", args[0], code, c.want, out.String())
				}
			}
		})
	}
}

// A long list of reasons is cut in an error; module inspect shows all of it.
func TestModuleReasonsAreCut(t *testing.T) {
	var imports []string
	for _, name := range strings.Fields("a b c d e f g h i j k l") {
		imports = append(imports, "gojs."+name)
	}
	file := filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(file, smallModule(imports, nil, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	var short, long bytes.Buffer
	run(t.Context(), []string{"edgehost", "module", "test", file, "--input", "-"}, strings.NewReader("{}\n"), &short, &short)
	run(t.Context(), []string{"edgehost", "module", "inspect", file}, nil, &long, &long)
	if !strings.Contains(short.String(), "\n  … and 7 more\nWhat to do: it is built for browsers") || strings.Contains(short.String(), "gojs.l ") || !strings.Contains(long.String(), "import gojs.l is unknown") {
		t.Errorf("%s\n%s", short.String(), long.String())
	}
}
