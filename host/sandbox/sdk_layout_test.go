//go:build conformance

package sandbox_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// rawModule is a module without a sandbox around it, so that a test decides where a
// batch lies and how it is laid out. Its data lies above the batch.
type rawModule struct {
	mod api.Module
	op  string
}

func newRawModule(t *testing.T, wasm []byte, op string) *rawModule {
	t.Helper()
	ctx := t.Context()
	m := &rawModule{op: op}
	runtime := wazero.NewRuntime(ctx)
	t.Cleanup(func() { runtime.Close(context.Background()) })
	compiled, err := runtime.CompileModule(ctx, wasm)
	if err != nil {
		t.Fatal(err)
	}
	builders := map[string]wazero.HostModuleBuilder{}
	for _, f := range compiled.ImportedFunctions() {
		module, name, _ := f.Import()
		if builders[module] == nil {
			builders[module] = runtime.NewHostModuleBuilder(module)
		}
		builders[module].NewFunctionBuilder().WithGoModuleFunction(m.host(name), f.ParamTypes(), f.ResultTypes()).Export(name)
	}
	for _, b := range builders {
		if _, err := b.Instantiate(ctx); err != nil {
			t.Fatal(err)
		}
	}
	m.mod, err = runtime.InstantiateModule(ctx, compiled, wazero.NewModuleConfig().WithStartFunctions("_initialize"))
	if err != nil {
		t.Fatal(err)
	}
	if init := m.mod.ExportedFunction(abi.ExportInit); init != nil {
		if code, err := init.Call(ctx); err != nil || code[0] != 0 {
			t.Fatalf("init: %v %v", code, err)
		}
	}
	return m
}

// host stands in for the functions of the host: config_get knows one key, the rest
// is not granted.
func (m *rawModule) host(name string) api.GoModuleFunction {
	return api.GoModuleFunc(func(_ context.Context, mod api.Module, stack []uint64) {
		if name == "config_get" && uint32(stack[3]) >= uint32(len(m.op)) {
			mod.Memory().Write(uint32(stack[2]), []byte(m.op))
			stack[0] = uint64(len(m.op))
			return
		}
		if len(stack) > 0 {
			denied := int32(abi.ErrnoDenied)
			stack[0] = uint64(uint32(denied))
		}
	})
}

// process writes an image at base, calls the module and returns its memory.
func (m *rawModule) process(t *testing.T, image []byte, base uint32) []byte {
	t.Helper()
	if !m.mod.Memory().Write(base, image) {
		t.Fatal("the image does not fit into the module's memory")
	}
	code, err := m.mod.ExportedFunction(abi.ExportProcess).Call(t.Context(), uint64(base))
	if err != nil || code[0] != 0 {
		t.Fatalf("process: %v %v", code, err)
	}
	mem, _ := m.mod.Memory().Read(0, m.mod.Memory().Size())
	return mem
}

// TestSDKVectors: the module gets the very bytes of the vectors where the
// vectors have them.
func TestSDKVectors(t *testing.T) {
	eachSDK(t, func(t *testing.T, s *sdk) {
		wasm := s.wasm(t, s.check, true)
		for _, op := range []string{"pass", "copy", "edit", "attrs", "filter", "reject", "fan", "share"} {
			m := newRawModule(t, wasm, op)
			for _, v := range readVectors(t, "layout.json") {
				image, err := hex.DecodeString(v.Image)
				if err != nil {
					t.Fatal(err)
				}
				arena, out := abi.NewArena(), abi.Outputs{}
				if _, err := arena.Encode(&abi.Batch{Seq: v.Seq, Time: v.Time, Records: v.Records}, v.Base, v.Flags); err != nil {
					t.Fatal(err)
				}
				if err := arena.Decode(m.process(t, image, v.Base), &abi.OutputLimits{}, &out); err != nil {
					t.Fatalf("%s, %s: %v", op, v.Name, err)
				}
				sameOutputs(t, op+", "+v.Name, sdkOps[op](v.Records), out.Out, out.Rejects)
			}
		}
	})
}

// A later host has larger structures. What this version does not know is filled
// with filler, which a module must neither read as its own nor lose.
const (
	laterHeader, laterRow, laterAttr = abi.HeaderSize + 16, abi.RowSize + 24, abi.AttrSize + 16
	laterBase                        = 8192
	filler                           = 0xee
)

// laterImage lays records out as a later host might.
func laterImage(recs []abi.Record) []byte {
	le := binary.LittleEndian
	image := bytes.Repeat([]byte{filler}, laterHeader+len(recs)*laterRow)
	put := func(s string) uint64 {
		if s == "" {
			return 0
		}
		at := laterBase + uint32(len(image))
		image = append(image, s...)
		return uint64(abi.MakeRef(at, uint32(len(s))))
	}
	bits := func(v abi.Value) uint64 {
		if v.Kind() >= abi.KindString {
			return put(v.Text())
		}
		return v.Bits()
	}
	for i, v := range []uint32{abi.Version, laterHeader, laterRow, 0, laterBase + laterHeader, uint32(len(recs)),
		laterBase + laterHeader, uint32(len(recs)), 0, 0, 0, 0, 0, 0, laterAttr, 0} {
		le.PutUint32(image[4*i:], v)
	}
	for i, r := range recs {
		attrs := bytes.Repeat([]byte{filler}, laterAttr*len(r.Attrs))
		for k, a := range r.Attrs {
			le.PutUint64(attrs[k*laterAttr:], put(a.Key))
			le.PutUint64(attrs[k*laterAttr+abi.AttrValue:], bits(a.Value))
			le.PutUint64(attrs[k*laterAttr+abi.AttrKind:], uint64(a.Value.Kind()))
		}
		for len(image)%8 != 0 {
			image = append(image, 0)
		}
		attrsRef := uint64(abi.MakeRef(laterBase+uint32(len(image)), uint32(len(r.Attrs))))
		image = append(image, attrs...)
		known := make([]byte, abi.RowSize)
		le.PutUint64(known[abi.RowEventTime:], uint64(r.EventTime))
		le.PutUint64(known[abi.RowIngestTime:], uint64(r.IngestTime))
		le.PutUint64(known[abi.RowValue:], bits(r.Value))
		le.PutUint64(known[abi.RowSource:], put(r.Source))
		le.PutUint64(known[abi.RowAddress:], put(r.Address))
		le.PutUint64(known[abi.RowAttrs:], attrsRef)
		le.PutUint32(known[abi.RowStatus:], r.Status)
		le.PutUint32(known[abi.RowIndex:], uint32(i))
		known[abi.RowKind], known[abi.RowProtocol] = byte(r.Value.Kind()), byte(r.Protocol)
		copy(image[laterHeader+i*laterRow:], known)
	}
	return image
}

// laterOutputs reads what a module left. It fails where filler was lost or read.
func laterOutputs(t *testing.T, mem []byte) (out []abi.Output) {
	t.Helper()
	le := binary.LittleEndian
	text := func(ref uint64) string { return string(mem[uint32(ref):][:ref>>32]) }
	value := func(kind byte, bits uint64) abi.Value {
		switch abi.Kind(kind) {
		case abi.KindBool:
			return abi.Bool(bits != 0)
		case abi.KindInt:
			return abi.Int(int64(bits))
		case abi.KindUint:
			return abi.Uint(bits)
		case abi.KindFloat:
			return abi.Float(api.DecodeF64(bits))
		case abi.KindString:
			return abi.String(text(bits))
		case abi.KindBytes:
			return abi.Bytes([]byte(text(bits)))
		case abi.KindJSON:
			return abi.JSON(text(bits))
		}
		return abi.Value{}
	}
	// extra must be what came in, or 0 in what the module made.
	extra := func(what string, b []byte) {
		if !bytes.Equal(b, bytes.Repeat([]byte{filler}, len(b))) && !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("%s: what this version does not know became % x", what, b)
		}
	}
	rows, n := le.Uint32(mem[laterBase+abi.HeaderOutRows:]), le.Uint32(mem[laterBase+abi.HeaderNOut:])
	for i := range n {
		row := mem[rows+i*laterRow:][:laterRow]
		extra("row", row[abi.RowSize:])
		o := abi.Output{Index: int(int32(le.Uint32(row[abi.RowIndex:]))), Record: abi.Record{
			EventTime: int64(le.Uint64(row)), IngestTime: int64(le.Uint64(row[abi.RowIngestTime:])),
			Source: text(le.Uint64(row[abi.RowSource:])), Address: text(le.Uint64(row[abi.RowAddress:])),
			Protocol: abi.Protocol(row[abi.RowProtocol]), Status: le.Uint32(row[abi.RowStatus:]),
			Value: value(row[abi.RowKind], le.Uint64(row[abi.RowValue:])),
		}}
		attrs := le.Uint64(row[abi.RowAttrs:])
		for k := range uint32(attrs >> 32) {
			a := mem[uint32(attrs)+k*laterAttr:][:laterAttr]
			extra("attribute", a[abi.AttrSize:])
			o.Attrs = append(o.Attrs, abi.Attr{Key: text(le.Uint64(a)), Value: value(a[abi.AttrKind], le.Uint64(a[abi.AttrValue:]))})
		}
		out = append(out, o)
	}
	return out
}

// TestSDKLaterHost: modules built today run on a host whose structures have grown.
func TestSDKLaterHost(t *testing.T) {
	recs := readVectors(t, "layout.json")[2].Records
	if len(recs) < 8 {
		t.Fatalf("%d records", len(recs))
	}
	eachSDK(t, func(t *testing.T, s *sdk) {
		wasm := s.wasm(t, s.check, true)
		for _, op := range []string{"pass", "copy", "edit", "attrs", "filter", "fan", "grow", "share"} {
			m := newRawModule(t, wasm, op)
			for range 2 {
				out := laterOutputs(t, m.process(t, laterImage(recs), laterBase))
				sameOutputs(t, op, sdkOps[op](recs), out, nil)
			}
		}
	})
}
