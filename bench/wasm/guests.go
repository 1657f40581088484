package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// guests are the built modules.
type guests struct {
	dir     string
	flat    map[string][]byte // by language
	bareGo  []byte            // the smallest Go guest
	hostile []byte            // what a module must not be able to do
	pbC     []byte            // protobuf without a framework
	extism  map[string][]byte
	plugin  string // a path: go-plugin loads files
}

// build makes every guest from source, as its author would.
func build(dir string) (*guests, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	dir = abs(dir)
	clang := []string{"clang-14", "--target=wasm32", "-nostdlib", "-O2", "-mbulk-memory", "-I", "../../abi/c",
		"-Wl,--no-entry", "-Wl,--strip-all"}
	rustc := []string{"/usr/bin/rustc", "--edition=2021", "--target=wasm32-unknown-unknown", "-O", "-Cpanic=abort", "-Cstrip=symbols",
		"-Ctarget-feature=+bulk-memory", "-Clinker=wasm-ld-14"}
	crate := append(rustc[:len(rustc):len(rustc)], "--crate-type=rlib", "--crate-name=edgehost", "--cfg", `feature="std"`)
	module := append(rustc[:len(rustc):len(rustc)], "--crate-type=cdylib", "-Clto=fat", "-Clink-arg=-zstack-size=65536",
		"--extern", "edgehost="+filepath.Join(dir, "libedgehost.rlib"))
	assembly := []string{"../../abi/assemblyscript/node_modules/.bin/asc", "-O3", "--enable", "bulk-memory", "--runtime", "incremental",
		"--use", "abort=../../abi/assemblyscript/assembly/host/aborted"}
	gobuild := []string{"go", "build", "-buildmode=c-shared", "-ldflags=-s -w"}
	g := &guests{dir: dir, flat: map[string][]byte{}, extism: map[string][]byte{}}
	for _, b := range []struct {
		command []string
		source  string
		put     func(wasm []byte)
	}{
		{clang, "guests/flatc/flat.c", func(w []byte) { g.flat["C"] = w }},
		{clang, "guests/flatc/hostile.c", func(w []byte) { g.hostile = w }},
		{crate, "../../abi/rust/src/lib.rs", func([]byte) {}},
		{module, "guests/flatrust/flat.rs", func(w []byte) { g.flat["Rust"] = w }},
		{assembly, "guests/flatas/flat.ts", func(w []byte) { g.flat["AssemblyScript"] = w }},
		{gobuild, "./guests/flatgo", func(w []byte) { g.flat["Go"] = w }},
		{clang, "guests/pb/raw.c", func(w []byte) { g.pbC = w }},
		{clang, "guests/pb/extism.c", func(w []byte) { g.extism["C"] = w }},
		{gobuild, "./guests/barego", func(w []byte) { g.bareGo = w }},
		{gobuild, "./guests/extismgo", func(w []byte) { g.extism["Go"] = w }},
		{gobuild, "./guests/plugingo", func([]byte) { g.plugin = filepath.Join(dir, "plugingo.wasm") }},
	} {
		out := filepath.Join(dir, filepath.Base(b.source)+".wasm")
		if b.source == "../../abi/rust/src/lib.rs" {
			out = filepath.Join(dir, "libedgehost.rlib")
		}
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
