package modbus

import (
	"encoding/binary"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The methods that the package may call of what can write: the library's
// client, in library.go alone, and a connection, in mbap.go alone. Write of a
// connection is looked at on its own.
var (
	ofLibrary    = []string{"Open", "Close", "SetUnitId", "ReadCoils", "ReadDiscreteInputs", "ReadRawBytes"}
	ofConnection = []string{"Close", "SetDeadline", "Read", "Write"}
)

// writers are the names by which the standard library writes to a connection
// otherwise.
var writers = []string{"Copy", "CopyN", "CopyBuffer", "ReadFrom", "SyscallConn", "File", "NewWriter", "NewReadWriter", "Fprint", "Fprintf", "Fprintln", "TeeReader", "Pipe"}

// TestNothingCanWriteToADevice holds the package to read only. Of the library,
// which one file imports, reading methods alone are called. To a connection, one
// line writes, and it writes a readRequest; one function makes readRequests, and
// TestReadRequestsRead says what it can make.
func TestNothingCanWriteToADevice(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var importers, sends, made []string
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			switch i.Path.Value {
			case `"github.com/simonvetter/modbus"`:
				importers = append(importers, name)
				checkLibrary(t, f)
			case `"syscall"`, `"unsafe"`, `"reflect"`, `"golang.org/x/sys/unix"`:
				t.Errorf("%s imports %s, by which anything can be written", name, i.Path.Value)
			}
		}
		sends = append(sends, checkWrites(t, name, f)...)
		made = append(made, readRequestsMade(name, f)...)
	}
	for _, c := range []struct {
		what      string
		got, want []string
	}{
		{"files that import the library", importers, []string{"library.go"}},
		{"writes to a connection", sends, []string{"mbap.go: l.conn.Write(request[:])"}},
		{"functions that make a readRequest", slices.Compact(made), []string{"mbap.go: newReadRequest"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", c.what, c.got, c.want)
		}
	}
}

// TestNothingElseMakesAClient holds the rest of the program to it: the library's
// client, which can write, is made in library.go alone. The demo has its server.
func TestNothingElseMakesAClient(t *testing.T) {
	root := filepath.Join("..", "..")
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() {
			if path != root && (strings.HasPrefix(name, ".") || name == "bench" || name == "node_modules" || name == "testdata") {
				return fs.SkipDir
			}
			return nil
		} else if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !strings.Contains(string(text), `"github.com/simonvetter/modbus"`) {
			return nil
		}
		relative, err := filepath.Rel(root, path)
		found[filepath.ToSlash(relative)] = strings.Contains(string(text), "modbus.NewClient")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"sources/modbus/library.go": true, "demo_devices.go": false}
	if !maps.Equal(found, want) {
		t.Errorf("files that import the library, and whether they make a client: %v, want %v", found, want)
	}
}

// checkLibrary looks at what is called of the library's client, which is c.
func checkLibrary(t *testing.T, f *ast.File) {
	calls := 0
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok || lastName(sel.X) != "c" {
			return true
		}
		calls++
		if !slices.Contains(ofLibrary, sel.Sel.Name) {
			t.Errorf("the library's method %s is called", sel.Sel.Name)
		}
		return true
	})
	if calls < len(ofLibrary) {
		t.Errorf("only %d calls found: the test looks at the wrong place", calls)
	}
}

// checkWrites returns the calls in f of anything named Write.
func checkWrites(t *testing.T, name string, f *ast.File) (sends []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			onConnection := lastName(n.X) == "conn" && name == "mbap.go"
			if onConnection && !slices.Contains(ofConnection, n.Sel.Name) || slices.Contains(writers, n.Sel.Name) {
				t.Errorf("%s uses %s.%s", name, lastName(n.X), n.Sel.Name)
			}
			if strings.HasPrefix(n.Sel.Name, "Write") && !(onConnection && n.Sel.Name == "Write") {
				t.Errorf("%s uses something named %s", name, n.Sel.Name)
			}
		case *ast.CallExpr:
			if sel, ok := n.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Write" {
				sends = append(sends, name+": "+source(n))
			}
		}
		return true
	})
	return sends
}

// readRequestsMade returns the functions of f that make a readRequest, or change
// one: that have one as a variable, and not from newReadRequest.
func readRequestsMade(name string, f *ast.File) (made []string) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && id.Name == "readRequest" {
				made = append(made, name+": "+fn.Name.Name)
			}
			if a, ok := n.(*ast.AssignStmt); ok {
				for i, to := range a.Lhs {
					if lastName(to) == "request" && source(a.Rhs[min(i, len(a.Rhs)-1)]) != "newReadRequest(l.transaction, slave, t, start, count)" {
						made = append(made, name+": "+fn.Name.Name+" changes request")
					}
				}
			}
			return true
		})
	}
	return made
}

// lastName is the last name in x: c of l.c, request of request[7].
func lastName(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return x.Sel.Name
	case *ast.IndexExpr:
		return lastName(x.X)
	case *ast.SliceExpr:
		return lastName(x.X)
	}
	return ""
}

// source is x as it is written.
func source(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return source(x.X) + "." + x.Sel.Name
	case *ast.SliceExpr:
		return source(x.X) + "[:]"
	case *ast.CallExpr:
		var args []string
		for _, a := range x.Args {
			args = append(args, source(a))
		}
		return source(x.Fun) + "(" + strings.Join(args, ", ") + ")"
	}
	return fmt.Sprintf("%T", x)
}

// TestReadRequestsRead makes a request of every table, every unit and many
// ranges, those that Modbus does not have among them.
func TestReadRequestsRead(t *testing.T) {
	functions := map[RegisterType]byte{Coil: 1, Discrete: 2, Holding: 3, Input: 4}
	for _, table := range append(slices.Clone(registerTypes), "", "file", "HOLDING") {
		most := map[bool]int{true: 2000, false: 125}[table.bits()]
		for _, count := range []int{-1, 0, 1, 2, 124, 125, 126, 1999, 2000, 2001, 65535, 65536, 1 << 20} {
			for _, start := range []int{0, 1, 63535, 63536, 65410, 65411, 65535} {
				valid := functions[table] != 0 && count >= 1 && count <= most && start+count <= 65536
				for unit := range 256 {
					r, err := newReadRequest(0x1234, uint8(unit), table, uint16(start), count)
					if (err == nil) != valid {
						t.Fatalf("%q %d+%d: got error %v, want valid %v", table, start, count, err, valid)
					}
					if err != nil {
						if r != (readRequest{}) {
							t.Fatalf("%q %d+%d: a request beside the error", table, start, count)
						}
						continue
					}
					want := []byte{0x12, 0x34, 0, 0, 0, 6, byte(unit), functions[table]}
					want = binary.BigEndian.AppendUint16(want, uint16(start))
					want = binary.BigEndian.AppendUint16(want, uint16(count))
					if !slices.Equal(r[:], want) {
						t.Fatalf("%q %d+%d: got % x, want % x", table, start, count, r, want)
					}
				}
			}
		}
	}
}
