package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// guests are the built modules.
type guests struct {
	dir    string
	flat   map[string][]byte // by language
	pbC    []byte            // protobuf without a framework
	extism map[string][]byte
	plugin string // a path: go-plugin loads files
}

// build makes every guest from source, as its author would.
func build(dir, asc string) (*guests, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	dir = abs(dir)
	clang := []string{"clang-14", "--target=wasm32", "-nostdlib", "-O2", "-mbulk-memory", "-I", "../../abi/c",
		"-Wl,--no-entry", "-Wl,--strip-all"}
	rustc := []string{"/usr/bin/rustc", "--target=wasm32-unknown-unknown", "--crate-type=cdylib", "-O", "-Cpanic=abort", "-Cstrip=symbols",
		"-Ctarget-feature=+bulk-memory", "-Clinker=wasm-ld-14", "-Clink-arg=-zstack-size=65536"}
	assembly := []string{asc, "-O3", "--runtime", "stub", "--use", "abort="}
	gobuild := []string{"go", "build", "-buildmode=c-shared", "-ldflags=-s -w"}
	g := &guests{dir: dir, flat: map[string][]byte{}, extism: map[string][]byte{}}
	for _, b := range []struct {
		command []string
		source  string
		put     func(wasm []byte)
	}{
		{clang, "guests/flatc/flat.c", func(w []byte) { g.flat["C"] = w }},
		{rustc, "guests/flatrust/flat.rs", func(w []byte) { g.flat["Rust"] = w }},
		{assembly, "guests/flatas/flat.ts", func(w []byte) { g.flat["AssemblyScript"] = w }},
		{gobuild, "./guests/flatgo", func(w []byte) { g.flat["Go"] = w }},
		{clang, "guests/pb/raw.c", func(w []byte) { g.pbC = w }},
		{clang, "guests/pb/extism.c", func(w []byte) { g.extism["C"] = w }},
		{gobuild, "./guests/extismgo", func(w []byte) { g.extism["Go"] = w }},
		{gobuild, "./guests/plugingo", func([]byte) { g.plugin = filepath.Join(dir, "plugingo.wasm") }},
	} {
		out := filepath.Join(dir, filepath.Base(b.source)+".wasm")
		cmd := exec.Command(b.command[0], append(append(b.command[1:len(b.command):len(b.command)], "-o", out), b.source)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b.command[0] == "go" {
			cmd.Env = append(cmd.Env, "GOOS=wasip1", "GOARCH=wasm")
		}
		if msg, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s(conformance/install-wasm.sh installs the compilers)", b.source, err, msg)
		}
		wasm, err := os.ReadFile(out)
		if err != nil {
			return nil, err
		}
		b.put(wasm)
	}
	return g, nil
}
