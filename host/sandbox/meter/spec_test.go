package meter

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// The files of the WebAssembly spec testsuite lie in the module of the engine.
// Every assertion runs on the plain and on the metered module, and both must end
// alike: same values, same trap, same refusal. All of them run with
//
//	go test -tags spectest ./host/sandbox/meter

// specDir returns the folder of one version, "v1" or "v2".
func specDir(t testing.TB, version string) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		t.Fatalf("find the engine's module: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(dir)), "internal/integration_test/spectest", version, "testdata")
}

type specFile struct {
	Commands []specCommand `json:"commands"`
}

type specCommand struct {
	Type       string     `json:"type"`
	Line       int        `json:"line"`
	Name       string     `json:"name"`
	Filename   string     `json:"filename"`
	As         string     `json:"as"`
	Action     specAction `json:"action"`
	ModuleType string     `json:"module_type"`
}

type specAction struct {
	Type   string      `json:"type"`
	Args   []specValue `json:"args"`
	Field  string      `json:"field"`
	Module string      `json:"module"`
}

type specValue struct {
	Type     string `json:"type"`
	LaneType string `json:"lane_type"`
	Value    any    `json:"value"`
}

// words returns the engine's representation: two words for a vector.
func (v specValue) words(t *testing.T) []uint64 {
	lanes, isVector := v.Value.([]any)
	if !isVector {
		return []uint64{scalar(t, v.Type, v.Value)}
	}
	width := map[string]int{"i8": 8, "i16": 16, "i32": 32, "i64": 64, "f32": 32, "f64": 64}[v.LaneType]
	words := make([]uint64, 2)
	for i, lane := range lanes {
		bit := i * width
		words[bit/64] |= scalar(t, v.LaneType, lane) << (bit % 64)
	}
	return words
}

func scalar(t *testing.T, kind string, value any) uint64 {
	text, ok := value.(string)
	switch {
	case !ok || text == "null":
		return 0
	case strings.HasPrefix(text, "nan"):
		if kind == "f32" {
			return 0x7fc00000
		}
		return 0x7ff8000000000000
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		signed, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatalf("value %q: %v", text, err)
		}
		n = uint64(signed)
		if strings.Contains(kind, "32") {
			n = uint64(uint32(n))
		}
	}
	if kind == "externref" {
		n++ // the engine takes 0 for null
	}
	return n
}

type specCount struct{ modules, returns, traps, refused, yields int }

// specSide is one of the two engines that run a file.
type specSide struct {
	runtime wazero.Runtime
	meter   bool
	names   map[string]api.Module
	last    api.Module
	count   *specCount
}

func specConfig() Config {
	return Config{
		ModuleBytes: 64 << 20, BodyBytes: 16 << 20, Functions: 1 << 20, Locals: 60_000, CompileTime: 1 << 50,
		Items: 1 << 20, MemoryPages: maxPages, Tables: 1 << 10, TableEntries: maxEntries,
		MaxDepth: 1 << 40, Slice: 1000,
	}
}

func newSpecSide(t *testing.T, meter bool, features api.CoreFeatures, spectest []byte, count *specCount) *specSide {
	ctx := t.Context()
	s := &specSide{
		runtime: wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCoreFeatures(features)),
		meter:   meter, names: map[string]api.Module{}, count: count,
	}
	t.Cleanup(func() { s.runtime.Close(context.Background()) })
	yield := api.GoModuleFunc(func(_ context.Context, mod api.Module, _ []uint64) {
		count.yields++
		mod.ExportedGlobal(FuelGlobal).(api.MutableGlobal).Set(uint64(specConfig().Slice))
	})
	_, err := s.runtime.NewHostModuleBuilder(YieldModule).
		NewFunctionBuilder().WithGoModuleFunction(yield, nil, nil).Export(YieldName).Instantiate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.runtime.InstantiateWithConfig(ctx, spectest, wazero.NewModuleConfig()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *specSide) instantiate(t *testing.T, wasm []byte, name string) (api.Module, error) {
	if s.meter {
		out, _, err := Instrument(wasm, specConfig())
		if err != nil {
			return nil, err
		}
		wasm = out
	}
	return s.runtime.InstantiateWithConfig(t.Context(), wasm, wazero.NewModuleConfig().WithName(name))
}

// act returns what an action ends with, values or the first line of the error.
func (s *specSide) act(t *testing.T, a specAction) ([]uint64, string) {
	mod := s.last
	if a.Module != "" {
		mod = s.names[a.Module]
	}
	if a.Type == "get" {
		return []uint64{mod.ExportedGlobal(a.Field).Get()}, ""
	}
	var args []uint64
	for _, arg := range a.Args {
		args = append(args, arg.words(t)...)
	}
	results, err := mod.ExportedFunction(a.Field).Call(t.Context(), args...)
	if err != nil {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return nil, text
	}
	return results, ""
}

// runSpec runs one file on both sides.
func runSpec(t *testing.T, dir, name string, features api.CoreFeatures, count *specCount) {
	var file specFile
	text, err := os.ReadFile(filepath.Join(dir, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	spectest, err := os.ReadFile(filepath.Join(dir, "../../testdata/spectest.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	plain := newSpecSide(t, false, features, spectest, &specCount{})
	metered := newSpecSide(t, true, features, spectest, count)
	for i, c := range file.Commands {
		at := fmt.Sprintf("%s:%d %s", name, c.Line, c.Type)
		switch {
		case c.Type == "register", c.ModuleType == "text":
		case c.Filename != "":
			registered := ""
			if i+1 < len(file.Commands) && file.Commands[i+1].Type == "register" {
				registered = file.Commands[i+1].As
			}
			runSpecModule(t, at, dir, c, registered, plain, metered)
		case c.Action.Type != "":
			want, wantErr := plain.act(t, c.Action)
			got, gotErr := metered.act(t, c.Action)
			if wantErr != gotErr || !slices.Equal(want, got) {
				t.Errorf("%s %s: plain %v %q, metered %v %q", at, c.Action.Field, want, wantErr, got, gotErr)
			}
			if wantErr != "" {
				count.traps++
			} else {
				count.returns++
			}
		default:
			t.Errorf("%s: a command that this test does not know", at)
		}
	}
}

// runSpecModule instantiates a module on both sides; both must take it or not.
func runSpecModule(t *testing.T, at, dir string, c specCommand, registered string, plain, metered *specSide) {
	wasm, err := os.ReadFile(filepath.Join(dir, c.Filename))
	if err != nil {
		t.Fatal(err)
	}
	want, wantErr := plain.instantiate(t, wasm, registered)
	got, gotErr := metered.instantiate(t, wasm, registered)
	if (wantErr == nil) != (gotErr == nil) {
		t.Errorf("%s %s: plain %v, metered %v", at, c.Filename, wantErr, gotErr)
	}
	if wantErr != nil || gotErr != nil {
		metered.count.refused++
		return
	}
	metered.count.modules++
	if c.Type == "module" {
		plain.last, metered.last = want, got
		if c.Name != "" {
			plain.names[c.Name], metered.names[c.Name] = want, got
		}
	}
}

// TestSpecSubset runs the files that exercise what the pass rewrites most:
// branches, calls, several results, bulk operations, start functions, elements.
func TestSpecSubset(t *testing.T) {
	var count specCount
	dir := specDir(t, "v2")
	files, returns := []string{"block", "br_table", "bulk", "call_indirect", "elem", "func", "if", "loop",
		"memory_copy", "memory_grow", "return", "start", "table_grow", "binary", "global", "ref_func"}, 4000
	if raced {
		files, returns = []string{"loop", "bulk"}, 100
	}
	for _, name := range files {
		runSpec(t, dir, name, api.CoreFeaturesV2, &count)
	}
	t.Logf("%+v", count)
	if count.returns < returns || count.yields == 0 {
		t.Errorf("too little ran: %+v", count)
	}
}
