//go:build conformance

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The commands in the README of each example do what it says: they build the module,
// and module test finds its outcomes as expected.
func TestExampleReadmes(t *testing.T) {
	readmes, err := filepath.Glob("examples/*/README.md")
	if err != nil || len(readmes) < 10 {
		t.Fatalf("%d examples: %v", len(readmes), err)
	}
	fenced := regexp.MustCompile("(?s)\n```\n(.*?)```\n")
	for _, path := range readmes {
		dir := filepath.Dir(path)
		name := filepath.Base(dir)
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			block := fenced.FindStringSubmatch(string(text))
			if block == nil {
				t.Fatal("it has no commands")
			}
			// The module goes where it does not stay.
			commands := strings.ReplaceAll(block[1], name+".wasm", filepath.Join(t.TempDir(), name+".wasm"))
			commands += "edgehost config check " + filepath.Join(dir, "config.yaml") + "\n"
			cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", commands)
			cmd.Env = append(os.Environ(), "REDACT_KEY=0123456789abcdef")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "all as expected") {
				t.Errorf("%v\n%s%s", err, commands, out)
			}
		})
	}
}
