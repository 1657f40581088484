package modbus

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// allowed are the methods of the library's client that the package may call.
// Whatever writes to a device is not among them.
var allowed = []string{"Open", "Close", "SetUnitId", "ReadCoils", "ReadDiscreteInputs", "ReadRawBytes"}

// TestNothingCanWriteToADevice holds the package to read only: one file
// imports the library, the client stays in it, and only reading methods are called.
func TestNothingCanWriteToADevice(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	importers := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), ".Write") && name != "link.go" {
			t.Errorf("%s calls something named Write", name)
		}
		if !strings.Contains(string(text), `"github.com/simonvetter/modbus"`) {
			continue
		}
		importers++
		f, err := parser.ParseFile(token.NewFileSet(), name, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		checkCalls(t, f)
	}
	if importers != 1 {
		t.Errorf("%d files import the library, want link.go alone", importers)
	}
}

func checkCalls(t *testing.T, f *ast.File) {
	calls := 0
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		onClient := false
		switch x := sel.X.(type) {
		case *ast.SelectorExpr:
			onClient = x.Sel.Name == "c" // client.c
		case *ast.Ident:
			onClient = x.Name == "c"
		}
		if onClient && !slices.Contains(allowed, sel.Sel.Name) {
			t.Errorf("the library's method %s is called", sel.Sel.Name)
		}
		if onClient {
			calls++
		}
		if strings.HasPrefix(sel.Sel.Name, "Write") {
			t.Errorf("something named %s is used", sel.Sel.Name)
		}
		return true
	})
	if calls < len(allowed) {
		t.Errorf("only %d calls found: the test looks at the wrong place", calls)
	}
}
