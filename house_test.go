package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/edgehost/edgehost"

// mayImport is the house rule: which of our packages a package may import,
// written as path prefixes. Imports run downward; a package that is not listed
// here fails the test, so that a new room is put on the plan before it is built.
// Test files may in addition import the test kits (sourcetest, sinktest,
// zerobustest) and what tests is set to.
var mayImport = map[string][]string{
	".":                         {"abi", "modules", "host", "spool", "sources", "sinks", "examples"},
	"abi":                       {},
	"abi/guest":                 {"abi"},
	"modules":                   {},
	"spool":                     {},
	"sources":                   {"abi"},
	"sources/sourcetest":        {"abi", "sources"},
	"sources/mqtt":              {"abi", "sources", "sources/mqtt/sparkplug"},
	"sources/mqtt/sparkplug":    {"abi"},
	"sources/modbus":            {"abi", "sources"},
	"sources/opcua":             {"abi", "sources"},
	"sources/isolate":           {"abi", "sources"},
	"sinks":                     {"abi"},
	"sinks/sinktest":            {"abi", "sinks"},
	"sinks/file":                {"abi", "sinks"},
	"sinks/zerobus":             {"abi", "sinks"},
	"sinks/zerobus/zerobustest": {},
	"host":                      {"abi", "modules", "spool", "sources", "sinks", "host/sandbox", "host/control"},
	"host/sandbox":              {"abi", "host/sandbox/meter"},
	"host/sandbox/meter":        {},
	"host/control":              {},
}

// testKits may be imported by the test files of any package.
var testKits = []string{"sources/sourcetest", "sinks/sinktest", "sinks/zerobus/zerobustest"}

// never lists packages of the protocols: nobody below main may know them.
var never = []string{"sources/mqtt", "sources/modbus", "sources/opcua", "sinks/zerobus", "sinks/file"}

func TestHouse(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || name == "examples" || name == "bench") {
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(path, ".go") {
			checkImports(t, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkImports(t *testing.T, path string) {
	t.Helper()
	dir := filepath.ToSlash(filepath.Dir(path))
	allowed, known := mayImport[dir]
	if !known {
		t.Errorf("%s: package %s is not on the plan: add it to mayImport in house_test.go", path, dir)
		return
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return
	}
	isTest := strings.HasSuffix(path, "_test.go")
	for _, spec := range f.Imports {
		name := strings.Trim(spec.Path.Value, `"`)
		rel, ours := strings.CutPrefix(name, module+"/")
		if !ours || rel == dir {
			continue
		}
		if isTest && (within(rel, testKits) || within(rel, allowed)) {
			continue
		}
		if !exactly(rel, allowed) && !(dir == "." && within(rel, allowed)) {
			t.Errorf("%s imports %s: %s may import only %v", path, rel, dir, allowed)
		}
		if dir != "." && !isTest && exactly(rel, never) {
			t.Errorf("%s imports the protocol package %s", path, rel)
		}
	}
}

func exactly(rel string, list []string) bool {
	for _, a := range list {
		if rel == a {
			return true
		}
	}
	return false
}

func within(rel string, list []string) bool {
	for _, a := range list {
		if rel == a || strings.HasPrefix(rel, a+"/") {
			return true
		}
	}
	return false
}
