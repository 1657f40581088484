package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// newModuleFolder makes a module with the command and returns its folder.
func newModuleFolder(t *testing.T, lang string) string {
	t.Helper()
	t.Chdir(t.TempDir())
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"edgehost", "module", "new", "--lang", lang, "my-module"}, nil, &out, &errs); code != exitOK {
		t.Fatalf("code %d: %s", code, errs.String())
	}
	dir, err := filepath.Abs("my-module")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// checkNewModule holds the wasm of a new module to its own expectation, and the
// expectation to the records that it is about.
func checkNewModule(t *testing.T, dir, wasm string) {
	t.Helper()
	var out, errs bytes.Buffer
	args := []string{"edgehost", "module", "test", wasm, "--input", filepath.Join(dir, "in.ndjson"), "--expect", filepath.Join(dir, "out.ndjson")}
	if code := run(t.Context(), args, nil, &out, &errs); code != exitOK || !strings.Contains(errs.String(), "3 emitted, 1 rejected, 0 filtered, all as expected") {
		t.Errorf("code %d: %s%s", code, out.String(), errs.String())
	}
	args = append(args, "--set", "factor=2", "--set", "offset=1", "--set", "unit=K")
	if code := run(t.Context(), args, nil, &out, &errs); code != exitFailure || !strings.Contains(out.String(), "value: want float64 70.7, got float64 44\n") ||
		!strings.Contains(out.String(), "attrs.unit: want string \"°F\", got string \"K\"\n") {
		t.Errorf("with a configuration: code %d: %s%s", code, out.String(), errs.String())
	}
}

// Nothing of a template is left unfilled, and what a README names is there.
func TestModuleNewFiles(t *testing.T) {
	for lang, l := range languages {
		t.Run(lang, func(t *testing.T) {
			dir := newModuleFolder(t, lang)
			readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{l.Main, "Makefile", ".gitignore", "in.ndjson", "out.ndjson", "edgehost/abi.md", "edgehost/LICENSE"} {
				text, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil || len(text) == 0 || bytes.Contains(text, []byte("{{")) {
					t.Errorf("%s: %d bytes, %v", file, len(text), err)
				}
			}
			if !bytes.Contains(readme, []byte("`"+l.Main+"`")) || !bytes.Contains(readme, []byte(l.Needs)) {
				t.Errorf("the README names neither %s nor what it needs:\n%s", l.Main, readme)
			}
		})
	}
}
