package abi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

const testBase = 0x1000

// testRecords hold every kind and shape once.
func testRecords() []Record {
	return []Record{
		{EventTime: 1_767_323_045_000_006, IngestTime: 1_767_323_045_100_000, Source: "plant", Address: "line1/temp", Protocol: ProtocolMQTT,
			Value: Float(21.5), Attrs: []Attr{{AttrUnit, String("°C")}, {AttrQoS, Int(1)}, {AttrRetain, Bool(true)}}},
		{EventTime: 1, IngestTime: 2, Source: "plant", Address: "line1/temp", Protocol: ProtocolMQTT,
			Value: Int(-7), Attrs: []Attr{{AttrUnit, String("°C")}, {AttrQoS, Int(1)}, {AttrRetain, Bool(true)}}},
		{EventTime: -1, Source: "press", Address: "40001", Protocol: ProtocolModbus, Value: Uint(math.MaxUint64), Status: 0x80000000},
		{Source: "press", Address: "ns=2;s=Ω", Protocol: ProtocolOPCUA, Value: Bool(true)},
		{Value: String("running")},
		{Value: Bytes([]byte{0, 0xFF, 0xFE}), Attrs: []Attr{{AttrRaw, Bytes([]byte{1, 2, 3})}, {"empty", String("")}, {"none", Value{}}}},
		{Value: JSON(`{"a":[1,2]}`), Attrs: []Attr{{"big", Uint(1 << 63)}, {"nan", Float(math.NaN())}, {"doc", JSON("null")}}},
		{},
	}
}

// run lays recs out in a memory, lets edit change it as a guest would, and reads
// the result.
func run(t *testing.T, recs []Record, lim OutputLimits, edit func(mem []byte)) (Outputs, error) {
	t.Helper()
	a := NewArena()
	image, err := a.Encode(&Batch{Seq: 3, Time: 4, Records: recs}, testBase, 0)
	if err != nil {
		t.Fatal(err)
	}
	mem := make([]byte, testBase+len(image)+1<<16)
	copy(mem[testBase:], image)
	if edit != nil {
		edit(mem)
	}
	var out Outputs
	err = a.Decode(mem, &lim, &out)
	return out, err
}

// row is the row i in a memory of run.
func row(mem []byte, i int) []byte { return mem[testBase+HeaderSize+i*RowSize:][:RowSize] }

func put32(b []byte, at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
func put64(b []byte, at int, v uint64) { binary.LittleEndian.PutUint64(b[at:], v) }

// place writes s at the end of the memory and refers to it.
func place(mem []byte, s string) uint64 {
	at := len(mem) - len(s)
	copy(mem[at:], s)
	return uint64(MakeRef(uint32(at), uint32(len(s))))
}

func TestUnchangedRowsAreTheHostsOwn(t *testing.T) {
	in := testRecords()
	out, err := run(t, in, OutputLimits{}, func(mem []byte) {
		// A guest that scribbles over strings and attributes changes nothing.
		for i := testBase + HeaderSize + len(in)*RowSize; i < len(mem); i++ {
			mem[i] = 'x'
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Out) != len(in) || len(out.Rejects) != 0 {
		t.Fatalf("%d out, %d rejects", len(out.Out), len(out.Rejects))
	}
	for i, o := range out.Out {
		if o.Index != i || o.Handle != 0 || !reflect.DeepEqual(fmt.Sprint(o.Record), fmt.Sprint(in[i])) {
			t.Errorf("record %d: %+v, want %+v", i, o.Record, in[i])
		}
	}
}

func TestRepeatedStringsAreWrittenOnce(t *testing.T) {
	recs := make([]Record, 1000)
	for i := range recs {
		// Fresh strings each time, as from a wire.
		recs[i] = Record{Source: "plant", Address: fmt.Sprintf("line1/pump%d/temperature", i%20), Value: Float(float64(i)),
			Attrs: []Attr{{AttrUnit, String(fmt.Sprint("°C", i%2))}, {AttrQoS, Int(1)}}}
	}
	image, err := NewArena().Encode(&Batch{Records: recs}, 8, 0)
	if err != nil {
		t.Fatal(err)
	}
	if perRecord := float64(len(image)) / 1000; perRecord > 90 {
		t.Errorf("%.1f bytes a record, want at most 90", perRecord)
	}
}

func TestChangedRows(t *testing.T) {
	in := testRecords()
	out, err := run(t, in, OutputLimits{Handles: map[uint32]bool{2: true}}, func(mem []byte) {
		put64(row(mem, 0), RowValue, math.Float64bits(70.7))
		put64(row(mem, 1), RowAddress, place(mem, "renamed"))
		put32(row(mem, 2), RowOutput, 2)
		put32(row(mem, 3), RowStatus, 0x40000000)
		row(mem, 3)[RowProtocol] = 77 // read-only: no effect
		row(mem, 4)[RowKind] = byte(KindNone)
		row(mem, 5)[RowDisposition] = DispositionReject
		// A new attribute array with one old key and value and one new.
		old := Ref(binary.LittleEndian.Uint64(row(mem, 0)[RowAttrs:]))
		at := len(mem) / 2 &^ 7
		copy(mem[at:], mem[old.Ptr():old.Ptr()+AttrSize])
		put64(mem, at+AttrSize+AttrKey, place(mem[:len(mem)-100], "note"))
		put64(mem, at+AttrSize+AttrValue, math.Float64bits(2))
		mem[at+AttrSize+AttrKind] = byte(KindFloat)
		put64(row(mem, 6), RowAttrs, uint64(MakeRef(uint32(at), 2)))
		put32(row(mem, 7), RowIndex, 0) // a copy of row 7 that claims to come from row 0
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Rejects) != 1 || out.Rejects[0].Index != 5 || out.Rejects[0].Reason == "" {
		t.Errorf("rejects: %+v", out.Rejects)
	}
	if len(out.Out) != 7 {
		t.Fatalf("%d out", len(out.Out))
	}
	want := func(k int, ok bool) {
		if !ok {
			t.Errorf("output %d: %+v", k, out.Out[k])
		}
	}
	want(0, out.Out[0].Value == Float(70.7) && out.Out[0].Address == "line1/temp" && len(out.Out[0].Attrs) == 3)
	want(1, out.Out[1].Address == "renamed" && out.Out[1].Value == Int(-7))
	want(2, out.Out[2].Handle == 2 && out.Out[2].Index == 2)
	want(3, out.Out[3].Status == 0x40000000 && out.Out[3].Protocol == ProtocolOPCUA)
	want(4, out.Out[4].Value.IsNone())
	want(5, reflect.DeepEqual(out.Out[5].Attrs, []Attr{{AttrUnit, String("°C")}, {"note", Float(2)}}))
	want(6, out.Out[6].Index == 0 && out.Out[6].Source == "" && out.Out[6].Value.IsNone() && out.Out[6].Protocol == ProtocolMQTT)
}

func TestRowsWithoutInput(t *testing.T) {
	out, err := run(t, testRecords()[:1], OutputLimits{}, func(mem []byte) {
		r := row(mem, 0)
		clear(r)
		put32(r, RowIndex, NoIndex)
		put64(r, RowAddress, place(mem, "mean"))
		r[RowProtocol] = byte(ProtocolMQTT)
		r[RowKind] = byte(KindInt)
		put64(r, RowValue, 5)
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Record{Address: "mean", Value: Int(5)}
	if len(out.Out) != 1 || out.Out[0].Index != -1 || !reflect.DeepEqual(out.Out[0].Record, want) {
		t.Errorf("%+v", out.Out)
	}
}

// A record that is emitted and rejected is rejected, once.
func TestRejectTakesTheWholeRecord(t *testing.T) {
	out, err := run(t, testRecords()[:3], OutputLimits{}, func(mem []byte) {
		copy(row(mem, 2), row(mem, 0))
		row(mem, 2)[RowDisposition] = DispositionReject
		put64(row(mem, 2), RowReason, place(mem, "bad \xff bytes"))
		copy(row(mem, 1), row(mem, 2))
		put32(row(mem, 1), RowOutput, 99)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Out) != 0 || len(out.Rejects) != 1 || out.Rejects[0] != (Reject{0, "bad  bytes"}) {
		t.Errorf("%+v", out)
	}
}

func TestUnknownOutputRejectsTheRow(t *testing.T) {
	out, err := run(t, testRecords()[:2], OutputLimits{}, func(mem []byte) { put32(row(mem, 1), RowOutput, 9) })
	if err != nil || len(out.Out) != 1 || len(out.Rejects) != 1 || out.Rejects[0] != (Reject{1, "unknown output 9"}) {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestBadOutput(t *testing.T) {
	header := func(at int, v uint32) func([]byte) {
		return func(mem []byte) { put32(mem[testBase:], at, v) }
	}
	ref := func(at int, ptr, n uint32) func([]byte) {
		return func(mem []byte) { put64(row(mem, 0), at, uint64(MakeRef(ptr, n))) }
	}
	attrs := func(fill func(mem, array []byte), n uint32) func([]byte) {
		return func(mem []byte) {
			at := len(mem) / 2 &^ 7
			fill(mem, mem[at:])
			put64(row(mem, 0), RowAttrs, uint64(MakeRef(uint32(at), n)))
		}
	}
	for name, edit := range map[string]func([]byte){
		"out_rows at the end":     header(HeaderOutRows, math.MaxUint32-7),
		"n_out of 2^32-1":         header(HeaderNOut, math.MaxUint32),
		"one row too many":        header(HeaderNOut, 16*9+1024+1),
		"index out of range":      func(mem []byte) { put32(row(mem, 0), RowIndex, 9) },
		"disposition 2":           func(mem []byte) { row(mem, 0)[RowDisposition] = 2 },
		"kind 8":                  func(mem []byte) { row(mem, 0)[RowKind] = 8 },
		"source wraps":            ref(RowSource, math.MaxUint32, 16),
		"address over the end":    ref(RowAddress, 1<<20, 1),
		"address too long":        ref(RowAddress, 0, MaxString+1),
		"reason outside":          func(mem []byte) { ref(RowReason, math.MaxUint32-3, 8)(mem); row(mem, 0)[RowDisposition] = 1 },
		"address is no UTF-8":     func(mem []byte) { put64(row(mem, 0), RowAddress, place(mem, "a\xff")) },
		"value is no UTF-8":       func(mem []byte) { put64(row(mem, 4), RowValue, place(mem, "a\xff")) },
		"value is no JSON":        func(mem []byte) { put64(row(mem, 6), RowValue, place(mem, "{")) },
		"attributes outside":      ref(RowAttrs, math.MaxUint32-8, 1),
		"65 attributes":           ref(RowAttrs, 0, 65),
		"2^32-1 attributes":       ref(RowAttrs, 0, math.MaxUint32),
		"attribute without a key": attrs(func(_, _ []byte) {}, 1),
		"attribute key twice": attrs(func(mem, array []byte) {
			put64(array, 0, place(mem, "k"))
			put64(array, AttrSize, place(mem, "k"))
		}, 2),
		"attribute of kind 9": attrs(func(mem, array []byte) {
			put64(array, 0, place(mem, "k"))
			array[AttrKind] = 9
		}, 1),
		"rejects a row without input": func(mem []byte) {
			put32(row(mem, 0), RowIndex, NoIndex)
			row(mem, 0)[RowDisposition] = DispositionReject
		},
		"unknown output without input": func(mem []byte) {
			put32(row(mem, 0), RowIndex, NoIndex)
			put32(row(mem, 0), RowOutput, 3)
		},
		"too many bytes by repeating an input row": func(mem []byte) {
			// Row 8 has a value of 60,000 bytes.
			put32(mem[testBase:], HeaderOutRows, 0)
			put32(mem[testBase:], HeaderNOut, 25)
			for i := range 25 {
				copy(mem[i*RowSize:], row(mem, 8))
			}
		},
		"too many bytes by repeating attributes": func(mem []byte) {
			at := len(mem) - MaxString - 64
			put64(mem[at:], AttrKey, place(mem, "k"))
			put64(mem[at:], AttrValue, place(mem[:len(mem)-1], strings.Repeat("y", 60_000)))
			mem[at+AttrKind] = byte(KindString)
			put32(mem[testBase:], HeaderOutRows, 0)
			put32(mem[testBase:], HeaderNOut, 25)
			for i := range 25 {
				put64(row(mem, 0), RowAttrs, uint64(MakeRef(uint32(at), 1)))
				copy(mem[i*RowSize:], row(mem, 0))
			}
		},
		"too many bytes": func(mem []byte) {
			big := place(mem, strings.Repeat("y", MaxString-1)) // more than internMax, so each is a copy
			at := 0
			for i := range 8 {
				r := mem[at+i*RowSize:]
				copy(r, row(mem, 4))
				put64(r, RowValue, big)
			}
			// The same rows again and again, 64 KiB each.
			put32(mem[testBase:], HeaderOutRows, 0)
			put32(mem[testBase:], HeaderNOut, 40)
			for i := range 40 {
				copy(mem[i*RowSize:], mem[:RowSize])
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := append(testRecords(), Record{Value: String(strings.Repeat("v", 60_000))})
			out, err := run(t, in, OutputLimits{}, edit)
			if !errors.Is(err, ErrBadOutput) || (strings.HasPrefix(name, "too many bytes") && !strings.Contains(err.Error(), "more bytes")) {
				t.Errorf("error %v", err)
			}
			if len(out.Out)+len(out.Rejects) != 0 {
				t.Error("outputs beside an error")
			}
		})
	}
}

func TestBatchTooLarge(t *testing.T) {
	long := strings.Repeat("z", 1<<20)
	recs := make([]Record, 70)
	for i := range recs {
		recs[i].Value = String(long)
	}
	if _, err := NewArena().Encode(&Batch{Records: recs}, 8, 0); !errors.Is(err, ErrBatchTooLarge) {
		t.Errorf("error %v", err)
	}
}

func TestBatchError(t *testing.T) {
	a := NewArena()
	image, _ := a.Encode(&Batch{}, 0, 0)
	mem := append([]byte(nil), image...)
	if msg := a.BatchError(mem); msg != "" {
		t.Errorf("message %q", msg)
	}
	mem = append(mem, "no database"...)
	put64(mem, HeaderError, uint64(MakeRef(HeaderSize, 11)))
	if msg := a.BatchError(mem); msg != "no database" {
		t.Errorf("message %q", msg)
	}
	put64(mem, HeaderError, uint64(MakeRef(math.MaxUint32, 11)))
	if msg := a.BatchError(mem); msg != "" {
		t.Errorf("message %q", msg)
	}
}

// TestImagesOfALongLivedArena: what one arena lays out, batch after batch of one record
// or several, at one address or another, says what the records say.
func TestImagesOfALongLivedArena(t *testing.T) {
	a, rng := NewArena(), rand.New(rand.NewPCG(1, 2))
	all := testRecords()
	for _, r := range testRecords() { // with the attributes of others
		r.Attrs = all[rng.IntN(len(all))].Attrs
		r.Source = strings.Clone(r.Source)
		all = append(all, r)
	}
	for turn := range 2000 {
		n := 1
		if rng.IntN(8) == 0 {
			n = rng.IntN(4)
		}
		in := &Batch{}
		for range n {
			in.Records = append(in.Records, all[rng.IntN(len(all))])
		}
		base := uint32(testBase + 8*(turn/50%3))
		image, err := a.Encode(in, base, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range in.Records {
			if got := readRow(image, base, i); !reflect.DeepEqual(got, saysOf(r)) {
				t.Fatalf("turn %d, record %d: %q, want %q", turn, i, got, saysOf(r))
			}
		}
	}
}

// saysOf is r in the terms of readRow.
func saysOf(r Record) []string {
	says := []string{r.Source, r.Address, sayValue(r.Value), fmt.Sprint(r.EventTime, r.IngestTime, r.Status, r.Protocol)}
	for _, at := range r.Attrs {
		says = append(says, at.Key, sayValue(at.Value))
	}
	return says
}

func sayValue(v Value) string { return fmt.Sprint(v.Kind(), v.Bits(), v.Text()) }

// readRow reads a row as a guest would.
func readRow(image []byte, base uint32, i int) []string {
	le := binary.LittleEndian
	text := func(bits uint64) string {
		if ref := Ref(bits); ref.Len() > 0 {
			return string(image[ref.Ptr()-base:][:ref.Len()])
		}
		return ""
	}
	value := func(kind byte, bits uint64) string {
		if Kind(kind).isText() {
			return fmt.Sprint(Kind(kind), 0, text(bits))
		}
		return fmt.Sprint(Kind(kind), bits, "")
	}
	row := image[HeaderSize+i*RowSize:]
	says := []string{text(le.Uint64(row[RowSource:])), text(le.Uint64(row[RowAddress:])), value(row[RowKind], le.Uint64(row[RowValue:])),
		fmt.Sprint(int64(le.Uint64(row[RowEventTime:])), int64(le.Uint64(row[RowIngestTime:])), le.Uint32(row[RowStatus:]), Protocol(row[RowProtocol]))}
	ref := Ref(le.Uint64(row[RowAttrs:]))
	for k := range ref.Len() {
		at := image[ref.Ptr()-base+k*AttrSize:]
		says = append(says, text(le.Uint64(at[AttrKey:])), value(at[AttrKind], le.Uint64(at[AttrValue:])))
	}
	return says
}

// FuzzDecode gives the host random memory: it must never panic, and what it
// accepts must be sound.
func FuzzDecode(f *testing.F) {
	f.Add(uint64(1), []byte{})
	f.Add(uint64(2), []byte{0, 0, 0, 0xFF, 0x0F, 1})
	f.Add(uint64(7<<8|3), []byte{0, 0, 0, 64, 0, 1})
	f.Fuzz(func(t *testing.T, seed uint64, edits []byte) {
		in := testRecords()
		in = in[int(seed>>8)%len(in):]
		rng := rand.New(rand.NewPCG(seed, 1))
		out, err := run(t, in, OutputLimits{}, func(mem []byte) {
			size := testBase + HeaderSize + len(in)*RowSize + 600
			for len(edits) >= 3 {
				at := testBase + int(binary.LittleEndian.Uint16(edits))%(size-testBase)
				mem[at] = edits[2]
				edits = edits[3:]
			}
			for range seed % 16 { // whole words, often addresses that are nearly right
				at := testBase + rng.IntN(size-testBase-8)
				put64(mem, at, uint64(MakeRef(uint32(rng.IntN(len(mem)+8)), uint32(rng.IntN(70)))))
			}
		})
		if err != nil {
			if !errors.Is(err, ErrBadOutput) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if len(out.Out) > 16*len(in)+1024 {
			t.Fatalf("%d rows out", len(out.Out))
		}
		for _, o := range out.Out {
			if o.Index < -1 || o.Index >= len(in) || o.Handle != 0 || len(o.Attrs) > MaxAttrs || o.Value.Kind() > KindJSON {
				t.Fatalf("output %+v", o)
			}
		}
	})
}

func benchRecords(n int) []Record {
	recs := make([]Record, n)
	for i := range recs {
		recs[i] = Record{EventTime: int64(i), IngestTime: int64(i), Source: "plant", Address: fmt.Sprintf("line1/pump%d/temperature", i%100), Protocol: ProtocolMQTT,
			Attrs: []Attr{{AttrQoS, Int(1)}, {AttrUnit, String([]string{"°C", "bar", "l/min"}[i%100%3])}}}
		switch {
		case i%10 < 8:
			recs[i].Value = Float(float64(i))
		case i%10 == 8:
			recs[i].Value = Int(int64(i))
		default:
			recs[i].Value = String("running")
		}
	}
	return recs
}

// BenchmarkPass lays a batch of 1000 records out and reads it back unchanged.
func BenchmarkPass(b *testing.B) { benchmarkArena(b, func([]byte) {}) }

// BenchmarkScale lets every record have a new value in between.
func BenchmarkScale(b *testing.B) {
	benchmarkArena(b, func(mem []byte) {
		for i := range 1000 {
			r := row(mem, i)
			put64(r, RowValue, 2*binary.LittleEndian.Uint64(r[RowValue:])+1)
			r[RowKind] = byte(KindFloat)
		}
	})
}

func benchmarkArena(b *testing.B, edit func(mem []byte)) {
	batch := &Batch{Records: benchRecords(1000)}
	a, mem, out := NewArena(), make([]byte, 1<<20), new(Outputs)
	b.ReportAllocs()
	for b.Loop() {
		image, err := a.Encode(batch, testBase, 0)
		if err != nil {
			b.Fatal(err)
		}
		copy(mem[testBase:], image)
		edit(mem)
		if err := a.Decode(mem, &OutputLimits{}, out); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
}
