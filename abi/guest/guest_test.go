//go:build !wasip1

package guest

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/edgehost/edgehost/abi"
)

func TestLayoutIsTheABI(t *testing.T) {
	var h header
	var r row
	var a attr
	for name, c := range map[string][2]uintptr{
		"header":             {unsafe.Sizeof(h), abi.HeaderSize},
		"header.version":     {unsafe.Offsetof(h.version), abi.HeaderVersion},
		"header.header_size": {unsafe.Offsetof(h.headerSize), abi.HeaderHeaderSize},
		"header.row_size":    {unsafe.Offsetof(h.rowSize), abi.HeaderRowSize},
		"header.flags":       {unsafe.Offsetof(h.flags), abi.HeaderFlags},
		"header.rows":        {unsafe.Offsetof(h.rows), abi.HeaderRows},
		"header.n_rows":      {unsafe.Offsetof(h.nRows), abi.HeaderNRows},
		"header.out_rows":    {unsafe.Offsetof(h.outRows), abi.HeaderOutRows},
		"header.n_out":       {unsafe.Offsetof(h.nOut), abi.HeaderNOut},
		"header.time":        {unsafe.Offsetof(h.time), abi.HeaderTime},
		"header.seq":         {unsafe.Offsetof(h.seq), abi.HeaderSeq},
		"header.error":       {unsafe.Offsetof(h.err), abi.HeaderError},
		"header.attr_size":   {unsafe.Offsetof(h.attrSize), abi.HeaderAttrSize},
		"row":                {unsafe.Sizeof(r), abi.RowSize},
		"row.event_time":     {unsafe.Offsetof(r.eventTime), abi.RowEventTime},
		"row.ingest_time":    {unsafe.Offsetof(r.ingestTime), abi.RowIngestTime},
		"row.value":          {unsafe.Offsetof(r.value), abi.RowValue},
		"row.source":         {unsafe.Offsetof(r.source), abi.RowSource},
		"row.address":        {unsafe.Offsetof(r.address), abi.RowAddress},
		"row.attrs":          {unsafe.Offsetof(r.attrs), abi.RowAttrs},
		"row.reason":         {unsafe.Offsetof(r.reason), abi.RowReason},
		"row.status":         {unsafe.Offsetof(r.status), abi.RowStatus},
		"row.index":          {unsafe.Offsetof(r.index), abi.RowIndex},
		"row.output":         {unsafe.Offsetof(r.output), abi.RowOutput},
		"row.kind":           {unsafe.Offsetof(r.kind), abi.RowKind},
		"row.protocol":       {unsafe.Offsetof(r.protocol), abi.RowProtocol},
		"row.disposition":    {unsafe.Offsetof(r.disposition), abi.RowDisposition},
		"attribute":          {unsafe.Sizeof(a), abi.AttrSize},
		"attribute.key":      {unsafe.Offsetof(a.key), abi.AttrKey},
		"attribute.value":    {unsafe.Offsetof(a.value), abi.AttrValue},
		"attribute.kind":     {unsafe.Offsetof(a.kind), abi.AttrKind},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %d here, %d in the ABI", name, c[0], c[1])
		}
	}
}

func testBatch() *abi.Batch {
	return &abi.Batch{Seq: 1, Time: 2, Records: []abi.Record{
		{Source: "plant", Address: "a", Protocol: abi.ProtocolMQTT, Value: abi.Float(1.5), Attrs: []abi.Attr{{Key: "unit", Value: abi.String("bar")}, {Key: "qos", Value: abi.Int(1)}}},
		{Source: "plant", Address: "b", Value: abi.Int(-2), Attrs: []abi.Attr{{Key: "unit", Value: abi.String("bar")}, {Key: "qos", Value: abi.Int(1)}}},
		{Source: "plant", Address: "c", Value: abi.String("text")},
		{Source: "plant", Address: "d", Value: abi.Bool(true), Status: 7},
	}}
}

// mustRun runs setup over the test batch.
func mustRun(t *testing.T, setup func()) *abi.Outputs {
	t.Helper()
	out, err := Run(Host{Outputs: map[string]uint32{"second": 2}}, setup, testBatch())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestMapReadsAndWritesEveryField(t *testing.T) {
	in := testBatch().Records
	out := mustRun(t, func() {
		Map(func(r *Record) {
			want := in[r.Index()]
			if r.Source() != want.Source || r.Address() != want.Address || r.Value() != want.Value || r.Status() != want.Status || r.Protocol() != want.Protocol || r.Unit() != textAttr(want) {
				t.Errorf("record %d: %s %s %v", r.Index(), r.Source(), r.Address(), r.Value())
			}
			r.SetEventTime(r.EventTime() + 1)
			r.SetSource("new " + r.Source())
			r.SetAddress(r.Source())
			r.SetStatus(0x80000000)
			switch r.Index() {
			case 0:
				v, _ := r.Float()
				r.SetFloat(v * 2)
			case 1:
				v, _ := r.Int()
				r.SetInt(v * 2)
			case 2:
				v, _ := r.Text()
				r.SetText(v + v)
			case 3:
				v, _ := r.Bool()
				r.SetBool(!v)
			}
		})
	})
	for i, want := range []abi.Value{abi.Float(3), abi.Int(-4), abi.String("texttext"), abi.Bool(false)} {
		if o := out.Out[i]; o.Value != want || o.Source != "new plant" || o.Address != "new plant" || o.EventTime != 1 || o.Status != 0x80000000 {
			t.Errorf("record %d: %+v", i, o)
		}
	}
}

func textAttr(r abi.Record) string {
	v, _ := r.Attr("unit")
	return v.Text()
}

func TestAttributes(t *testing.T) {
	out := mustRun(t, func() {
		Map(func(r *Record) {
			switch r.Index() {
			case 0:
				r.SetUnit("mbar")
				r.SetAttr("x", abi.Float(1))
				r.SetAttr("x", abi.Float(2))
				r.SetAttr("y", abi.String("why"))
				r.SetAttr("z", abi.Bool(true))
				r.DelAttr("qos")
			case 1:
				r.DelAttr("unit")
				r.DelAttr("nothing")
			case 2:
				r.SetUnit("new")
			}
		})
	})
	for i, want := range [][]abi.Attr{
		{{Key: "unit", Value: abi.String("mbar")}, {Key: "x", Value: abi.Float(2)}, {Key: "y", Value: abi.String("why")}, {Key: "z", Value: abi.Bool(true)}},
		{{Key: "qos", Value: abi.Int(1)}},
		{{Key: "unit", Value: abi.String("new")}},
		nil,
	} {
		if got := out.Out[i].Attrs; !reflect.DeepEqual(got, want) {
			t.Errorf("record %d: %+v, want %+v", i, got, want)
		}
	}
}

func TestFilterAndReject(t *testing.T) {
	out := mustRun(t, func() {
		Filter(func(r *Record) bool {
			if r.Address() == "c" {
				r.Reject("no " + r.Address())
			}
			return r.Address() == "b" || r.Address() == "d"
		})
	})
	if len(out.Out) != 2 || out.Out[0].Index != 1 || out.Out[1].Index != 3 || out.Out[0].Address != "b" {
		t.Errorf("out %+v", out.Out)
	}
	if !slices.Equal(out.Rejects, []abi.Reject{{Index: 2, Reason: "no c"}}) {
		t.Errorf("rejects %+v", out.Rejects)
	}
}

func TestFlatMap(t *testing.T) {
	out := mustRun(t, func() {
		second := Handle("second")
		FlatMap(func(r *Record, out *Emitter) {
			switch r.Address() {
			case "a":
				for i := range 40 { // more than the emitter has room for
					r.SetInt(int64(i))
					r.SetAttr("n", abi.Int(int64(i)))
					out.Emit(r)
				}
			case "b":
				r.SetOutput(second)
				out.Emit(r)
			case "c":
				r.Reject("never")
			}
			if r.Index() == 3 {
				n := out.New()
				n.SetAddress("sum")
				n.SetFloat(9)
				out.Emit(n)
			}
		})
	})
	if len(out.Out) != 42 || len(out.Rejects) != 1 {
		t.Fatalf("%d out, %d rejects", len(out.Out), len(out.Rejects))
	}
	for i := range 40 {
		n, _ := out.Out[i].Attr("n")
		if o := out.Out[i]; o.Index != 0 || o.Value != abi.Int(int64(i)) || n != abi.Int(int64(i)) || len(o.Attrs) != 3 {
			t.Errorf("output %d: %+v", i, o)
		}
	}
	if o := out.Out[40]; o.Index != 1 || o.Handle != 2 {
		t.Errorf("b: %+v", o)
	}
	if o := out.Out[41]; o.Index != -1 || o.Address != "sum" || o.EventTime != 2 {
		t.Errorf("new record: %+v", o)
	}
}

// Edits that are shared between records, and records that are held side by side,
// do not leak into each other.
func TestSharedEdits(t *testing.T) {
	out := mustRun(t, func() {
		FlatMap(func(r *Record, out *Emitter) {
			if r.Index() > 1 {
				return
			}
			r.SetUnit("mbar") // the same edit of the same array twice
			if r.Index() == 1 {
				r.SetAttr("more", abi.Int(1))
			}
			out.Emit(r)
			r.SetUnit("Pa")
			out.Emit(r)
			x, y := out.New(), out.New()
			x.SetUnit("K")
			y.SetUnit("K")
			x.SetUnit("°C")
			out.Emit(x)
			x.SetUnit("°F")
			out.Emit(x)
			out.Emit(y)
		})
	})
	var units []string
	for i := range out.Out {
		unit, _ := out.Out[i].Attr("unit")
		units = append(units, unit.Text())
	}
	want := []string{"mbar", "Pa", "°C", "°F", "K", "mbar", "Pa", "°C", "°F", "K"}
	if !slices.Equal(units, want) {
		t.Errorf("units %q, want %q", units, want)
	}
	if len(out.Out[0].Attrs) != 2 || len(out.Out[5].Attrs) != 3 || len(out.Out[6].Attrs) != 3 {
		t.Errorf("attributes %v, %v, %v", out.Out[0].Attrs, out.Out[5].Attrs, out.Out[6].Attrs)
	}
}

func TestRefusals(t *testing.T) {
	for want, setup := range map[string]func(){
		"no operator":           func() {},
		"two operators":         func() { Map(func(*Record) {}); Filter(func(*Record) bool { return true }) },
		"output third":          func() { Map(func(*Record) {}); Handle("third") },
		"config key f: x is no": func() { Map(func(*Record) {}); ConfigFloat("f", 1) },
		"because":               func() { Map(func(*Record) {}); Refuse("because") },
	} {
		_, err := Run(Host{Config: map[string]string{"f": "x"}}, setup, testBatch())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestFail(t *testing.T) {
	_, err := Run(Host{}, func() { Map(func(r *Record) { Fail("no lookup table") }) }, testBatch())
	if err == nil || !strings.Contains(err.Error(), "no lookup table") {
		t.Errorf("error %v", err)
	}
}

func TestStateAndMetrics(t *testing.T) {
	h := Host{KV: map[string][]byte{"n": []byte("1"), "old": nil}, Metrics: map[string]float64{}}
	_, err := Run(h, func() {
		total, last := NewCounter("total"), NewGauge("last")
		Map(func(r *Record) {
			total.Add(1)
			last.Set(float64(r.Index()))
			v, _ := KVGet("n")
			if !KVSet("n", append(v, '1'), 0) || KVSet("", nil, 0) || !KVDelete("old") {
				t.Error("kv")
			}
		})
	}, testBatch())
	if err != nil || string(h.KV["n"]) != "11111" || len(h.KV) != 1 || h.Metrics["total"] != 4 || h.Metrics["last"] != 3 {
		t.Errorf("%v, %v, %v", h.KV, h.Metrics, err)
	}
	_, err = Run(Host{}, func() {
		Map(func(r *Record) {
			if _, ok := KVGet("n"); ok || KVSet("n", nil, 0) || KVDelete("n") {
				t.Error("kv without a grant")
			}
		})
	}, testBatch())
	if err != nil {
		t.Error(err)
	}
}

func TestConfigAndLog(t *testing.T) {
	var lines []string
	_, err := Run(Host{Config: map[string]string{"f": "2.5", "s": "text"}, Log: func(l Level, text string) { lines = append(lines, text) }}, func() {
		if Config("s") != "text" || Config("none") != "" || ConfigFloat("f", 1) != 2.5 || ConfigFloat("none", 7) != 7 {
			t.Error("config")
		}
		Map(func(r *Record) { Log(Info, r.Address()) })
	}, testBatch())
	if err != nil || !slices.Equal(lines, []string{"a", "b", "c", "d"}) {
		t.Errorf("%v, %v", lines, err)
	}
}

// The SDK reads the memory of the ABI's vectors as the records that they hold.
func TestLayoutVectors(t *testing.T) {
	b, err := os.ReadFile("../testdata/layout.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Name, Image string
		Base        uint32
		Records     []json.RawMessage
	}
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors {
		image, err := hex.DecodeString(v.Image)
		if err != nil {
			t.Fatal(err)
		}
		memory = make([]uint64, memorySize/8)
		copy(bytesOf(memory)[v.Base:], image)
		n := 0
		module = operator{}
		Map(func(r *Record) {
			want, err := abi.ParseJSON(v.Records[n])
			if err != nil {
				t.Fatal(err)
			}
			got := abi.Record{EventTime: r.EventTime(), IngestTime: r.IngestTime(), Source: r.Source(), Address: r.Address(),
				Protocol: r.Protocol(), Value: r.Value(), Status: r.Status()}
			for _, a := range want.Attrs {
				v, _ := r.Attr(a.Key)
				got.Attrs = append(got.Attrs, abi.Attr{Key: a.Key, Value: v})
			}
			if !reflect.DeepEqual(abi.AppendRecord(nil, &got), abi.AppendRecord(nil, &want)) || r.row().attrs.n != uint32(len(want.Attrs)) {
				t.Errorf("%s, record %d: %+v, want %+v", v.Name, n, got, want)
			}
			n++
		})
		process(v.Base)
		if n != len(v.Records) {
			t.Errorf("%s: %d records, want %d", v.Name, n, len(v.Records))
		}
	}
}

func TestAttrsAreInOrder(t *testing.T) {
	var seen []string
	mustRun(t, func() {
		Map(func(r *Record) {
			for key, v := range r.Attrs() {
				seen = append(seen, r.Address()+" "+key+"="+v.Text()+strconv.FormatUint(v.Bits(), 10))
				if key == "unit" && r.Address() == "b" {
					break
				}
			}
		})
	})
	if want := []string{"a unit=bar0", "a qos=1", "b unit=bar0"}; !slices.Equal(seen, want) {
		t.Errorf("%q, want %q", seen, want)
	}
}
