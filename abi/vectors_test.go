package abi

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rewrite makes the vectors anew from the cases in this file. Vectors of a version
// that has been released never change: add cases.
var rewrite = flag.Bool("rewrite", false, "rewrite testdata/*.json")

// vector is one case of the files in testdata (docs/abi.md, section 12). Each file
// uses some of the fields.
type vector struct {
	Name    string            `json:"name"`
	Base    uint32            `json:"base,omitempty"`    // address of the batch
	Flags   uint32            `json:"flags,omitempty"`   //
	Time    int64             `json:"time,omitempty"`    //
	Seq     uint64            `json:"seq,omitempty"`     //
	Records []json.RawMessage `json:"records"`           // the input
	Image   string            `json:"image,omitempty"`   // what the host writes at base
	Bytes   string            `json:"bytes,omitempty"`   // the records at rest
	Memory  string            `json:"memory,omitempty"`  // the whole memory after the call
	Handles []uint32          `json:"handles,omitempty"` // outputs beside 0
	Out     []vectorOut       `json:"out,omitempty"`     // what the host reads
	Rejects []vectorReject    `json:"rejects,omitempty"` //
	Error   string            `json:"error,omitempty"`   // or part of why it refuses
}

type vectorOut struct {
	Index  int             `json:"index"`
	Handle uint32          `json:"handle"`
	Record json.RawMessage `json:"record"`
}

type vectorReject struct {
	Index  int    `json:"index"`
	Reason string `json:"reason"`
}

func lines(recs []Record) []json.RawMessage {
	out := make([]json.RawMessage, len(recs))
	for i := range recs {
		out[i] = AppendJSON(nil, &recs[i])
	}
	return out
}

func (v *vector) records(t *testing.T) []Record {
	t.Helper()
	recs := make([]Record, len(v.Records))
	for i, line := range v.Records {
		var err error
		if recs[i], err = ParseJSON(line); err != nil {
			t.Fatal(err)
		}
	}
	return recs
}

// vectors reads a file, or writes it first.
func vectors(t *testing.T, file string, make func() []vector) []vector {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *rewrite {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", " ")
		if err := enc.Encode(make()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(b, &vs); err != nil {
		t.Fatal(err)
	}
	if len(vs) == 0 {
		t.Fatal("no vectors")
	}
	return vs
}

func TestLayoutVectors(t *testing.T) {
	vs := vectors(t, "layout.json", func() []vector {
		all := testRecords()
		return []vector{
			{Name: "empty batch", Base: 8, Time: 1, Seq: 2},
			{Name: "tick", Base: 4096, Flags: FlagTick, Time: 1_767_323_045_000_006, Seq: 1 << 40},
			{Name: "every kind", Base: 4096, Time: 1_767_323_045_000_006, Seq: 7, Records: lines(all)},
			{Name: "repeated strings", Base: 1 << 20, Time: 5, Seq: 8, Records: lines([]Record{all[0], all[1], all[0], all[2], all[0]})},
		}
	})
	for i := range vs {
		v := &vs[i]
		image, err := NewArena().Encode(&Batch{Seq: v.Seq, Time: v.Time, Records: v.records(t)}, v.Base, v.Flags)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(image); got != v.Image && !*rewrite {
			t.Errorf("%s:\ngot  %s\nwant %s", v.Name, got, v.Image)
		} else {
			v.Image = got
		}
	}
	if *rewrite {
		vectors(t, "layout.json", func() []vector { return vs })
	}
}

func TestRestVectors(t *testing.T) {
	vs := vectors(t, "rest.json", func() []vector {
		var vs []vector
		for _, r := range testRecords() {
			vs = append(vs, vector{Name: r.Value.Kind().String(), Records: lines([]Record{r}), Bytes: hex.EncodeToString(AppendRecord(nil, &r))})
		}
		return append(vs, vector{Name: "all", Records: lines(testRecords()), Bytes: hex.EncodeToString(AppendRecords(nil, testRecords()))})
	})
	for _, v := range vs {
		b, err := hex.DecodeString(v.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		recs, err := DecodeRecords(b)
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		want := v.records(t)
		if len(recs) != len(want) || !bytes.Equal(AppendRecords(nil, want), b) {
			t.Errorf("%s: %+v, want %+v", v.Name, recs, want)
		}
		for i := range recs {
			if got := AppendJSON(nil, &recs[i]); !sameJSON(got, v.Records[i]) {
				t.Errorf("%s: %s", v.Name, got)
			}
		}
	}
}

func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

func TestOutputVectors(t *testing.T) {
	vs := vectors(t, "output.json", outputCases)
	for i := range vs {
		v := &vs[i]
		a, in := NewArena(), v.records(t)
		if _, err := a.Encode(&Batch{Records: in}, v.Base, v.Flags); err != nil {
			t.Fatal(err)
		}
		mem, err := hex.DecodeString(v.Memory)
		if err != nil {
			t.Fatal(err)
		}
		lim, out := OutputLimits{Handles: map[uint32]bool{}}, Outputs{}
		for _, h := range v.Handles {
			lim.Handles[h] = true
		}
		err = a.Decode(mem, &lim, &out)
		if *rewrite {
			v.fill(&out)
		}
		if v.Error != "" {
			if err == nil || !strings.Contains(err.Error(), v.Error) {
				t.Errorf("%s: error %v, want %q", v.Name, err, v.Error)
			}
			continue
		}
		if err != nil || !v.matches(&out) {
			t.Errorf("%s: %+v, %v", v.Name, out, err)
		}
	}
	if *rewrite {
		vectors(t, "output.json", func() []vector { return vs })
	}
}

func (v *vector) fill(out *Outputs) {
	for i := range out.Out {
		v.Out = append(v.Out, vectorOut{out.Out[i].Index, out.Out[i].Handle, AppendJSON(nil, &out.Out[i].Record)})
	}
	for _, r := range out.Rejects {
		v.Rejects = append(v.Rejects, vectorReject(r))
	}
}

func (v *vector) matches(out *Outputs) bool {
	if len(out.Out) != len(v.Out) || len(out.Rejects) != len(v.Rejects) {
		return false
	}
	for i, o := range out.Out {
		if w := v.Out[i]; o.Index != w.Index || o.Handle != w.Handle || !sameJSON(AppendJSON(nil, &o.Record), w.Record) {
			return false
		}
	}
	for i, r := range out.Rejects {
		if vectorReject(r) != v.Rejects[i] {
			return false
		}
	}
	return true
}

// outputCases are memories as modules leave them.
func outputCases() []vector {
	const base = 16
	in := testRecords()[:3]
	image, _ := NewArena().Encode(&Batch{Records: in}, base, 0)
	left := func(name, wrong string, edit func(mem []byte, row func(int) []byte)) vector {
		mem := append(make([]byte, base), image...)
		for len(mem)%8 != 0 {
			mem = append(mem, 0)
		}
		mem = append(mem, make([]byte, 256)...)
		edit(mem, func(i int) []byte { return mem[base+HeaderSize+i*RowSize:][:RowSize] })
		return vector{Name: name, Base: base, Records: lines(in), Handles: []uint32{2}, Memory: hex.EncodeToString(mem), Error: wrong}
	}
	return []vector{
		left("unchanged", "", func([]byte, func(int) []byte) {}),
		left("scribbled over the strings", "", func(mem []byte, _ func(int) []byte) {
			for i := base + HeaderSize + len(in)*RowSize; i < len(mem); i++ {
				mem[i] = '#'
			}
		}),
		left("new values", "", func(mem []byte, row func(int) []byte) {
			put64(row(0), RowValue, 42)
			row(0)[RowKind] = byte(KindInt)
			put64(row(1), RowValue, place(mem, "running"))
			row(1)[RowKind] = byte(KindString)
			row(2)[RowKind] = byte(KindNone)
		}),
		left("filtered by n_out", "", func(mem []byte, _ func(int) []byte) { put32(mem[base:], HeaderNOut, 1) }),
		left("filtered by moving rows", "", func(mem []byte, row func(int) []byte) {
			copy(row(0), row(2))
			put32(mem[base:], HeaderNOut, 1)
		}),
		left("new address, routed", "", func(mem []byte, row func(int) []byte) {
			put64(row(1), RowAddress, place(mem, "renamed"))
			put32(row(1), RowOutput, 2)
		}),
		left("rejected, with emits of the same record", "", func(mem []byte, row func(int) []byte) {
			copy(row(2), row(0))
			row(2)[RowDisposition] = DispositionReject
			put64(row(2), RowReason, place(mem, "out of range"))
		}),
		left("unknown output", "", func(_ []byte, row func(int) []byte) { put32(row(0), RowOutput, 9) }),
		left("new attribute array, one old and one new", "", func(mem []byte, row func(int) []byte) {
			at := len(mem) - 256
			old := Ref(binary.LittleEndian.Uint64(row(0)[RowAttrs:]))
			copy(mem[at:], mem[old.Ptr():old.Ptr()+AttrSize])
			put64(mem[at+AttrSize:], AttrKey, place(mem, "site"))
			put64(mem[at+AttrSize:], AttrValue, place(mem[:len(mem)-8], "Graz"))
			mem[at+AttrSize+AttrKind] = byte(KindString)
			put64(row(0), RowAttrs, uint64(MakeRef(uint32(at), 2)))
		}),
		left("a row without input", "", func(mem []byte, row func(int) []byte) {
			clear(row(2))
			put32(row(2), RowIndex, NoIndex)
			put64(row(2), RowSource, place(mem, "mean"))
			row(2)[RowKind] = byte(KindBool)
			put64(row(2), RowValue, 1)
		}),
		left("output rows elsewhere", "", func(mem []byte, row func(int) []byte) {
			copy(mem[len(mem)-RowSize:], row(1))
			put32(mem[base:], HeaderOutRows, uint32(len(mem)-RowSize))
			put32(mem[base:], HeaderNOut, 1)
		}),
		left("output rows over the end", "outside the memory", func(mem []byte, _ func(int) []byte) {
			put32(mem[base:], HeaderOutRows, uint32(len(mem)-RowSize+1))
			put32(mem[base:], HeaderNOut, 1)
		}),
		left("address over the end", "row 1: address", func(mem []byte, row func(int) []byte) {
			put64(row(1), RowAddress, uint64(MakeRef(uint32(len(mem)-1), 2)))
		}),
		left("address wraps", "row 1: address", func(_ []byte, row func(int) []byte) {
			put64(row(1), RowAddress, uint64(MakeRef(0xFFFF_FFFF, 2)))
		}),
		left("address is not UTF-8", "not UTF-8", func(mem []byte, row func(int) []byte) {
			put64(row(1), RowAddress, place(mem, "\xc3\x28"))
		}),
		left("index too large", "index 3", func(_ []byte, row func(int) []byte) { put32(row(1), RowIndex, 3) }),
		left("unknown kind", "kind 8", func(_ []byte, row func(int) []byte) { row(1)[RowKind] = 8 }),
		left("a key twice", "stands twice", func(mem []byte, row func(int) []byte) {
			at := len(mem) - 256
			old := Ref(binary.LittleEndian.Uint64(row(0)[RowAttrs:]))
			copy(mem[at:], mem[old.Ptr():old.Ptr()+AttrSize])
			copy(mem[at+AttrSize:], mem[old.Ptr():old.Ptr()+AttrSize])
			put64(row(0), RowAttrs, uint64(MakeRef(uint32(at), 2)))
		}),
	}
}
