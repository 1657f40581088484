package abi

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
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
			{Name: "numbers at their edges", Base: 4096, Time: math.MinInt64, Seq: math.MaxUint64, Records: lines(edgeNumbers())},
			{Name: "empty and absent", Base: 4096, Records: lines(emptyRecords())},
			{Name: "many attributes", Base: 4096, Records: lines([]Record{fullRecord()})},
			{Name: "reserved attributes", Base: 4096, Records: lines(reservedRecords())},
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
		vs = append(vs, vector{Name: "all", Records: lines(testRecords()), Bytes: hex.EncodeToString(AppendRecords(nil, testRecords()))})
		for _, more := range []struct {
			name string
			recs []Record
		}{
			{"none", nil}, {"numbers at their edges", edgeNumbers()}, {"empty and absent", emptyRecords()},
			{"many attributes", []Record{fullRecord()}}, {"reserved attributes", reservedRecords()},
		} {
			vs = append(vs, vector{Name: more.name, Records: lines(more.recs), Bytes: hex.EncodeToString(AppendRecords(nil, more.recs))})
		}
		return vs
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

// edgeNumbers are records with numbers that are easily lost.
func edgeNumbers() (recs []Record) {
	for _, v := range []Value{
		Int(math.MinInt64), Int(math.MaxInt64), Int(-1), Int(1<<53 + 1), Uint(0), Uint(math.MaxUint64), Float(0), Float(math.Copysign(0, -1)), Float(math.NaN()),
		Float(math.Float64frombits(0x7FF8_0000_0000_0002)), Float(math.Inf(1)), Float(math.Inf(-1)), Float(math.MaxFloat64), Float(math.SmallestNonzeroFloat64),
	} {
		recs = append(recs, Record{Address: "edge", Value: v, Attrs: []Attr{{"again", v}}})
	}
	// The difference of the times is larger than 63 bits.
	return append(recs, Record{EventTime: math.MinInt64, IngestTime: math.MaxInt64 - 2, Address: "edge", Status: math.MaxUint32, Value: Bool(false)})
}

// emptyRecords are records with nothing where something else would be nothing too.
func emptyRecords() []Record {
	return []Record{
		{Value: String("")}, {Value: Bytes(nil)}, {Value: JSON(`""`)}, {Value: Int(0)}, {Value: Bool(false)}, {},
		{Source: "s", Value: String("")}, {Address: "a"},
		{Attrs: []Attr{{"text", String("")}, {"bytes", Bytes(nil)}, {"none", Value{}}, {"zero", Float(0)}}},
		{Value: String("\x00"), Attrs: []Attr{{"\x00", String("\x00\x00")}}}, // 0 ends no text
	}
}

// fullRecord has so many attributes that the four which the SDKs' modules add make
// as many as a record may have, a long address and nested JSON.
func fullRecord() Record {
	r := Record{Source: "plant", Address: strings.Repeat("ä", 128), Protocol: ProtocolMQTT, Value: JSON(strings.Repeat("[", 40) + strings.Repeat("]", 40))}
	for i := range MaxAttrs - 4 {
		r.Attrs = append(r.Attrs, Attr{fmt.Sprintf("key %d", i), Int(int64(i))})
	}
	return r
}

// reservedRecords have the attributes of docs/abi.md, section 9, one record a
// protocol.
func reservedRecords() []Record {
	text := func(keys ...string) (attrs []Attr) {
		for _, key := range keys {
			attrs = append(attrs, Attr{key, String("the " + key)})
		}
		return attrs
	}
	plc := text("plc_name", "plc_vendor", "plc_model", "quality", "reason")
	flags := []Attr{{"stale", Bool(true)}, {"backfilled", Bool(false)}, {"overflow", Bool(true)}, {"event", Bool(false)}}
	return []Record{
		{Source: "s", Address: "a", Protocol: ProtocolMQTT, Value: Float(1), Attrs: slices.Concat(plc, text("unit", "industry", "sensor_name", "sensor_type"),
			[]Attr{{"qos", Int(2)}, {"retain", Bool(true)}, {"timestamp_ms", Int(1_767_323_045_000)}})},
		{Source: "s", Address: "40001", Protocol: ProtocolModbus, Value: Int(2), Attrs: slices.Concat(plc, text("unit", "sensor_path", "register_type"),
			[]Attr{{"slave_id", Int(247)}, {"register_address", Int(40001)}, {"raw_value", Float(0.5)}, {"scaled_value", Int(5)}, {"scale_factor", Int(10)}})},
		{Source: "s", Address: "i=1", Protocol: ProtocolOPCUA, Value: Uint(3), Attrs: slices.Concat(plc, text("endpoint", "browse_path", "status"),
			[]Attr{{"namespace", Int(65535)}, {"raw", Bytes([]byte{0})}, {"server_time", Int(-1)}}, flags)},
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
	leftWith := func(room int, name, wrong string, edit func(mem []byte, row func(int) []byte)) vector {
		mem := append(make([]byte, base), image...)
		for len(mem)%8 != 0 {
			mem = append(mem, 0)
		}
		mem = append(mem, make([]byte, room)...)
		edit(mem, func(i int) []byte { return mem[base+HeaderSize+i*RowSize:][:RowSize] })
		return vector{Name: name, Base: base, Records: lines(in), Handles: []uint32{2}, Memory: hex.EncodeToString(mem), Error: wrong}
	}
	left := func(name, wrong string, edit func(mem []byte, row func(int) []byte)) vector {
		return leftWith(256, name, wrong, edit)
	}
	// attr makes a new array of one attribute for row 0.
	attr := func(mem []byte, row func(int) []byte, key string, kind Kind, value uint64) {
		at := len(mem) - 256
		put64(mem[at:], AttrKey, place(mem, key))
		put64(mem[at:], AttrValue, value)
		mem[at+AttrKind] = byte(kind)
		put64(row(0), RowAttrs, uint64(MakeRef(uint32(at), 1)))
	}
	made := func(row []byte) {
		clear(row)
		put32(row, RowIndex, NoIndex)
	}
	return append([]vector{
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
	}, []vector{
		left("no rows", "", func(mem []byte, _ func(int) []byte) { put32(mem[base:], HeaderNOut, 0) }),
		left("more rows than allowed", "at most 1072 rows", func(mem []byte, _ func(int) []byte) { put32(mem[base:], HeaderNOut, 1073) }),
		left("rows in another order, one twice", "", func(_ []byte, row func(int) []byte) {
			copy(row(1), row(0))
			copy(row(0), row(2))
			copy(row(2), row(1))
		}),
		left("what a module may not set changes nothing", "", func(mem []byte, row func(int) []byte) {
			for i := range HeaderSize {
				if at := i &^ 3; at != HeaderOutRows && at != HeaderNOut {
					mem[base+i] = 0xEE
				}
			}
			row(0)[RowProtocol], row(1)[RowDisposition+1] = byte(ProtocolModbus), 1 // the flags follow the disposition
			put64(row(2), RowSize-8, 1)
		}),
		left("rows at an odd address", "", func(mem []byte, row func(int) []byte) {
			copy(mem[len(mem)-RowSize-3:], row(1))
			put32(mem[base:], HeaderOutRows, uint32(len(mem)-RowSize-3))
			put32(mem[base:], HeaderNOut, 1)
		}),
		left("floats at their edges", "", func(_ []byte, row func(int) []byte) {
			for i, v := range []float64{math.Copysign(0, -1), math.Float64frombits(0x7FF8_0000_0000_0002), math.Inf(-1)} {
				put64(row(i), RowValue, math.Float64bits(v))
				row(i)[RowKind] = byte(KindFloat)
			}
		}),
		left("whole numbers at their edges, a bool of 2", "", func(_ []byte, row func(int) []byte) {
			put64(row(0), RowValue, 1<<63)
			row(0)[RowKind] = byte(KindInt)
			put64(row(1), RowValue, math.MaxUint64)
			row(1)[RowKind] = byte(KindUint)
			put64(row(2), RowValue, 2)
			row(2)[RowKind] = byte(KindBool)
		}),
		left("empty text anywhere", "", func(_ []byte, row func(int) []byte) {
			put64(row(0), RowValue, uint64(MakeRef(math.MaxUint32, 0)))
			row(0)[RowKind] = byte(KindString)
			put64(row(1), RowSource, 0)
			put64(row(1), RowAttrs, uint64(MakeRef(math.MaxUint32, 0)))
		}),
		left("bytes need not be UTF-8", "", func(mem []byte, row func(int) []byte) {
			put64(row(0), RowValue, place(mem, "\xff\x00\xfe"))
			row(0)[RowKind] = byte(KindBytes)
		}),
		left("a value that is not UTF-8", "row 0: value: text at", func(mem []byte, row func(int) []byte) {
			put64(row(0), RowValue, place(mem, "\xed\xa0\x80")) // half a surrogate pair
			row(0)[RowKind] = byte(KindString)
		}),
		left("a value that is not JSON", "not JSON", func(mem []byte, row func(int) []byte) {
			put64(row(0), RowValue, place(mem, "{"))
			row(0)[RowKind] = byte(KindJSON)
		}),
		left("a key that is empty", "an empty key", func(mem []byte, row func(int) []byte) { attr(mem, row, "", KindInt, 1) }),
		left("a key that is not UTF-8", "key 0: text at", func(mem []byte, row func(int) []byte) { attr(mem, row, "\xff", KindInt, 1) }),
		left("an attribute of unknown kind", `"k": unknown kind 9`, func(mem []byte, row func(int) []byte) { attr(mem, row, "k", 9, 1) }),
		left("an attribute over the end", `"k": 2 bytes`, func(mem []byte, row func(int) []byte) {
			attr(mem, row, "k", KindBytes, uint64(MakeRef(uint32(len(mem)-1), 2)))
		}),
		left("attributes over the end", "reach outside the memory", func(mem []byte, row func(int) []byte) {
			put64(row(0), RowAttrs, uint64(MakeRef(uint32(len(mem)-AttrSize+1), 1)))
		}),
		left("too many attributes", "65, at most 64", func(mem []byte, row func(int) []byte) { put64(row(0), RowAttrs, uint64(MakeRef(base, MaxAttrs+1))) }),
		left("rejected without a reason", "", func(_ []byte, row func(int) []byte) { row(1)[RowDisposition] = DispositionReject }),
		leftWith(1200, "a reason that is too long and not UTF-8", "", func(mem []byte, row func(int) []byte) {
			row(1)[RowDisposition] = DispositionReject
			put64(row(1), RowReason, place(mem, "\xff"+strings.Repeat("ä", 550))) // ends in the middle of a letter
		}),
		left("a reason over the end", "row 1: reason", func(mem []byte, row func(int) []byte) {
			row(1)[RowDisposition] = DispositionReject
			put64(row(1), RowReason, uint64(MakeRef(uint32(len(mem)-1), 2)))
		}),
		left("unknown disposition", "disposition 2", func(_ []byte, row func(int) []byte) { row(1)[RowDisposition] = 2 }),
		left("rejected, but of no input", "no input row", func(_ []byte, row func(int) []byte) {
			made(row(2))
			row(2)[RowDisposition] = DispositionReject
		}),
		left("of no input, to an unknown output", "unknown output 9", func(_ []byte, row func(int) []byte) {
			made(row(2))
			put32(row(2), RowOutput, 9)
		}),
		left("of no input, routed, with nothing in it", "", func(_ []byte, row func(int) []byte) {
			made(row(2))
			put32(row(2), RowOutput, 2)
			row(2)[RowProtocol] = byte(ProtocolOPCUA)
		}),
	}...)
}
