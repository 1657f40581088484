//go:build conformance

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A new module of every language builds with make and does what it says. It needs
// clang with lld, Debian's rustc and cargo with libstd-rust-dev-wasm32, Node.js, and
// AssemblyScript in abi/assemblyscript/node_modules.
func TestSmokeModuleNew(t *testing.T) {
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for lang, env := range map[string][]string{
		"go":   {"GOPROXY=off"},
		"c":    nil,
		"rust": {"PATH=/usr/bin:" + os.Getenv("PATH")},
		"as":   {"ASC=" + filepath.Join(root, "abi/assemblyscript/node_modules/.bin/asc")},
	} {
		t.Run(lang, func(t *testing.T) {
			dir := newModuleFolder(t, lang)
			cmd := exec.CommandContext(t.Context(), "make")
			cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("make: %v\n%s", err, text)
			}
			checkNewModule(t, dir, filepath.Join(dir, "my-module.wasm"))
		})
	}
}
