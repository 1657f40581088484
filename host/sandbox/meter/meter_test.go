package meter

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero/api"
)

// TestEmptyModule: a module without any section gets what its host needs.
func TestEmptyModule(t *testing.T) {
	h := newTestHost(t)
	mod, info := h.load(t, []byte(header))
	if got := mod.ExportedGlobal(info.FuelGlobal).Get(); int64(got) != info.Slice {
		t.Errorf("fuel starts at %d", got)
	}
	if got := mod.ExportedGlobal(info.DepthGlobal).Get(); int64(got) != info.MaxDepth {
		t.Errorf("depth starts at %d", got)
	}
}

// TestInputStays: Instrument neither changes nor keeps its input.
func TestInputStays(t *testing.T) {
	var a asm
	fibonacci(&a)
	wasm := a.build()
	before := slices.Clone(wasm)
	first, _, err := Instrument(wasm, DefaultConfig())
	if err != nil || !slices.Equal(wasm, before) {
		t.Fatalf("the input changed, or %v", err)
	}
	kept := slices.Clone(first)
	clear(wasm)
	if !slices.Equal(first, kept) {
		t.Error("the output shares memory with the input")
	}
	again, _, err := Instrument(before, DefaultConfig())
	if err != nil || !slices.Equal(first, again) {
		t.Error("the same module gave another result", err)
	}
	if _, _, err := Instrument(first, DefaultConfig()); err == nil {
		t.Error("a metered module was metered again")
	}
}

// TestMaximaAreLowered: a module that names no maximum, or a larger one, is held
// to the limit; a smaller one stays.
func TestMaximaAreLowered(t *testing.T) {
	for _, c := range []struct{ memory, table, wantMemory, wantTable int }{
		{-1, -1, 512, 65_536}, {65_536, 1 << 30, 512, 65_536}, {3, 5, 3, 5},
	} {
		var a asm
		a.memory(1, c.memory)
		a.table(1, c.table)
		a.fn("memory", oneI32, oneI32, none, local(opLocalGet, 0), []byte{opMemoryGrow, 0})
		a.fn("table", oneI32, oneI32, none, []byte{opRefNull, typeFunc}, local(opLocalGet, 0), []byte{opBulk, bulkTableGrow, 0})
		h := newTestHost(t)
		mod, info := h.load(t, a.build())
		if info.MemoryMin != 1 || int(info.MemoryMax) != c.wantMemory || info.Tables != 1 || !info.StatefulTables {
			t.Errorf("%+v: %+v", c, info)
		}
		for name, most := range map[string]int{"memory": c.wantMemory, "table": c.wantTable} {
			if got, err := h.call(t, mod, name, uint64(most)); err != nil || int32(got[0]) != -1 {
				t.Errorf("%+v: %s grew by %d to more than %d: %v %v", c, name, most, most, got, err)
			}
			if got, err := h.call(t, mod, name, uint64(most-1)); err != nil || got[0] != 1 {
				t.Errorf("%+v: %s did not grow by %d to %d: %v %v", c, name, most-1, most, got, err)
			}
		}
	}
}

// TestTrapsNameFunctions: the names keep to their functions though all indices
// move by one.
func TestTrapsNameFunctions(t *testing.T) {
	var a asm
	imported := a.importFunc("env", "host", none, none)
	inner := a.fn("", none, none, none, []byte{opUnreachable})
	outer := a.fn("run", none, none, none, call(imported), call(inner))
	names := cat(u(3), u(imported), str("the.import"), u(inner), str("the.inner"), u(outer), str("the.outer"))
	a.custom = append(a.custom, cat(str("name"), []byte{0}, u(5), str("demo"), []byte{1}, u(len(names)), names),
		cat(str("producers"), u(1), str("language"), u(1), str("Tin"), str("7")),
		cat(str("name"), []byte{1, 9, 0})) // torn: dropped
	h := newTestHost(t)
	_, err := h.runtime.NewHostModuleBuilder("env").NewFunctionBuilder().
		WithGoFunction(api.GoFunc(func(_ context.Context, _ []uint64) {}), nil, nil).Export("host").Instantiate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mod, info := h.load(t, a.build())
	if info.Name != "demo" || !slices.Equal(info.Producers, []string{"language: Tin 7"}) || !slices.Equal(info.Custom, []string{"name", "producers", "name"}) {
		t.Errorf("%+v", info)
	}
	_, err = h.call(t, mod, "run")
	if err == nil || !strings.Contains(err.Error(), "the.inner()") || !strings.Contains(err.Error(), "the.outer()") {
		t.Errorf("the trap reads %v", err)
	}
}

// TestOpaque: what a snapshot cannot hold is told.
func TestOpaque(t *testing.T) {
	var a asm
	a.global(typeFunc, true, opRefNull, typeFunc)
	a.fn("f", none, none, none)
	_, info, err := Instrument(a.build(), DefaultConfig())
	if err != nil || !info.OpaqueGlobals || len(info.Globals) != 0 {
		t.Errorf("%+v %v", info, err)
	}
	for name, body := range map[string][]byte{
		"elem.drop": {opBulk, bulkElemDrop, 0}, "table.set": cat(i32(0), []byte{opRefNull, typeFunc, opTableSet, 0}),
	} {
		var a asm
		a.table(1, 1)
		a.elements = append(a.elements, []byte{1, 0, 0})
		a.fn("f", none, none, none, body)
		if _, info, err := Instrument(a.build(), DefaultConfig()); err != nil || !info.StatefulTables {
			t.Errorf("%s: %+v %v", name, info, err)
		}
	}
}

// TestRefusedIsAnError: the reasons are there for a program and read as a sentence.
func TestRefusedIsAnError(t *testing.T) {
	_, _, err := Instrument(nil, DefaultConfig())
	var refused *Refused
	if !errors.As(err, &refused) || len(refused.Reasons) != 1 || err.Error() != "module refused: the file is empty" {
		t.Errorf("%v", err)
	}
}
