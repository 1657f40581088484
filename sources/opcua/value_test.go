package opcua

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/gopcua/opcua/ua"
)

func TestValues(t *testing.T) {
	at := time.Date(2024, 2, 29, 12, 34, 56, 789012300, time.UTC)
	for name, tc := range map[string]struct {
		in   any
		want abi.Value
	}{
		"bool": {true, abi.Bool(true)}, "sbyte": {int8(-128), abi.Int(-128)}, "byte": {uint8(255), abi.Uint(255)},
		"int16": {int16(-5), abi.Int(-5)}, "uint16": {uint16(5), abi.Uint(5)}, "int32": {int32(-5), abi.Int(-5)}, "uint32": {uint32(5), abi.Uint(5)},
		"int64": {int64(math.MinInt64), abi.Int(math.MinInt64)}, "uint64": {uint64(math.MaxUint64), abi.Uint(math.MaxUint64)},
		"float": {float32(0.1), abi.Float(0.1)}, "double": {math.Pi, abi.Float(math.Pi)}, "string": {"a\xff", abi.String("a\uFFFD")},
		"time": {at, abi.String("2024-02-29T12:34:56.7890123Z")}, "guid": {ua.NewGUID("72962B91-FA75-4AE6-8D28-B404DC7DAF63"), abi.String("72962B91-FA75-4AE6-8D28-B404DC7DAF63")},
		"bytes": {[]byte{1, 2}, abi.Bytes([]byte{1, 2})}, "xml": {ua.XMLElement("<a/>"), abi.String("<a/>")},
		"node id": {ua.NewStringNodeID(2, "x"), abi.String("ns=2;s=x")}, "status": {ua.StatusBadNodeIDUnknown, abi.Uint(0x80340000)},
		"qualified": {&ua.QualifiedName{NamespaceIndex: 2, Name: "n"}, abi.String("2:n")}, "text": {ua.NewLocalizedTextWithLocale("t", "de"), abi.String("t")},
		"expanded":   {ua.NewExpandedNodeID(ua.NewStringNodeID(2, "x"), "urn:a", 0), abi.String("nsu=urn:a;s=x")},
		"ints":       {[]int32{1, -2}, abi.JSON("[1,-2]")},
		"empty":      {[]int32{}, abi.JSON("[]")},
		"floats":     {[]float64{1.5, math.NaN(), math.Inf(-1)}, abi.JSON(`[1.5,"NaN","-Infinity"]`)},
		"matrix":     {[][]float64{{1, 2}, {3, 4}}, abi.JSON("[[1,2],[3,4]]")},
		"strings":    {[]string{"a\"\n"}, abi.JSON(`["a\"\u000a"]`)},
		"byte array": {ua.ByteArray{1, 255}, abi.JSON("[1,255]")},
		"bools":      {[]bool{true, false}, abi.JSON("[true,false]")},
		"times":      {[]time.Time{at}, abi.JSON(`["2024-02-29T12:34:56.7890123Z"]`)},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := ua.NewVariant(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			if got := newTypeSystem().convert(v, nil); got.value != tc.want {
				t.Errorf("%v %q, want %v %q", got.value.Kind(), got.value.Text(), tc.want.Kind(), tc.want.Text())
			}
		})
	}
	if got := newTypeSystem().convert(ua.MustVariant(int32(1)), enumNames{1: "Open"}); got.value != abi.String("Open") || got.number != 1 {
		t.Errorf("enumeration: %+v", got)
	}
	if got := newTypeSystem().convert(&ua.Variant{}, nil); !got.value.IsNone() {
		t.Errorf("null: %+v", got)
	}
}

func TestRecordAttributes(t *testing.T) {
	it := &item{node: ua.NewStringNodeID(2, "x"), address: "ns=2;s=x", path: "0:Root/0:Objects/2:x", types: newTypeSystem(), enum: enumNames{3: "Suspended"}}
	it.describe("opc.tcp://h:4840", "x", "bar", map[string]string{"plc_name": "p1", "sensor_name": "tag"})
	now := time.UnixMicro(1_700_000_000_000_000)
	cfg := DefaultConfig()
	source, server := now.Add(-2*time.Second), now.Add(-time.Second)
	r := it.record("s", &cfg, &ua.DataValue{Value: ua.MustVariant(int32(3)), Status: 0x40000480, SourceTimestamp: source, ServerTimestamp: server}, now, new(attrArena))
	want := map[string]abi.Value{abi.AttrEndpoint: abi.String("opc.tcp://h:4840"), abi.AttrNamespace: abi.Int(2), abi.AttrBrowsePath: abi.String(it.path),
		abi.AttrSensorName: abi.String("x"), abi.AttrUnit: abi.String("bar"), abi.AttrPLCName: abi.String("p1"), abi.AttrQuality: abi.String("Uncertain"),
		abi.AttrStatus: abi.String("Uncertain"), abi.AttrOverflow: abi.Bool(true), abi.AttrRawValue: abi.Float(3), abi.AttrServerTime: abi.Int(server.UnixMicro())}
	for key, v := range want {
		if got, ok := r.Attr(key); !ok || got != v {
			t.Errorf("%s is %v, want %v", key, got, v)
		}
	}
	if r.EventTime != source.UnixMicro() || r.IngestTime != now.UnixMicro() || r.Status != 0x40000480 || r.Value != abi.String("Suspended") {
		t.Errorf("record %+v", r)
	}
	seen := map[string]bool{}
	for _, a := range r.Attrs {
		if seen[a.Key] {
			t.Errorf("attribute %s twice", a.Key)
		}
		seen[a.Key] = true
	}
	r = it.record("s", &cfg, &ua.DataValue{Value: ua.MustVariant(int32(4))}, now, new(attrArena))
	if from, _ := r.Attr(attrEventTimeFrom); from != abi.String("ingest") || r.EventTime != now.UnixMicro() || r.Value != abi.Int(4) {
		t.Errorf("a record without timestamps says so: %+v", r)
	}
	good := it.record("s", &cfg, &ua.DataValue{Value: ua.MustVariant(int32(4)), SourceTimestamp: source, ServerTimestamp: source}, now, new(attrArena))
	if &good.Attrs[0] != &it.good[0] || cap(good.Attrs) != len(good.Attrs) {
		t.Error("Good records share their attributes, clipped")
	}
}

// le builds the body of a structure.
type le struct{ b []byte }

func (l *le) u32(v uint32) *le { l.b = binary.LittleEndian.AppendUint32(l.b, v); return l }
func (l *le) u16(v uint16) *le { l.b = binary.LittleEndian.AppendUint16(l.b, v); return l }
func (l *le) u8(v uint8) *le   { l.b = append(l.b, v); return l }
func (l *le) f64(v float64) *le {
	l.b = binary.LittleEndian.AppendUint64(l.b, math.Float64bits(v))
	return l
}
func (l *le) str(s string) *le { l.u32(uint32(len(s))); l.b = append(l.b, s...); return l }

// shapes is a type system with one structure of each kind.
func shapes() *typeSystem {
	ts := newTypeSystem()
	b := func(id uint32) *dataType { return &dataType{builtin: id} }
	point := &structDef{name: "Point", fields: []fieldDef{{name: "x", typ: b(11), rank: -1}, {name: "n", typ: b(12), rank: -1}}}
	ts.byEncoding["ns=1;i=1"] = point
	ts.byEncoding["ns=1;i=2"] = &structDef{name: "Opt", kind: structOptional, fields: []fieldDef{{name: "a", typ: b(5), rank: -1},
		{name: "b", typ: b(5), rank: -1, optional: true}, {name: "c", typ: b(5), rank: -1, optional: true}}}
	ts.byEncoding["ns=1;i=3"] = &structDef{name: "Uni", kind: structUnion, fields: []fieldDef{{name: "i", typ: b(6), rank: -1}, {name: "p", typ: &dataType{builtin: 22, def: point}, rank: -1}}}
	ts.byEncoding["ns=1;i=4"] = &structDef{name: "All", fields: []fieldDef{{name: "points", typ: &dataType{builtin: 22, def: point}, rank: 1},
		{name: "m", typ: b(5), rank: 2}, {name: "v", typ: b(24), rank: -1}, {name: "e", typ: &dataType{builtin: 29, enum: enumNames{1: "On"}}, rank: -1},
		{name: "t", typ: b(21), rank: -1}, {name: "s", typ: b(22), rank: -1}, {name: "d", typ: b(23), rank: -1}}}
	return ts
}

func structure(ts *typeSystem, id string, body []byte) decoded {
	n, err := parseNodeRef(id)
	if err != nil {
		panic(err)
	}
	node, err := n.resolve(nil)
	if err != nil {
		panic(err)
	}
	return ts.convert(ua.MustVariant(&ua.ExtensionObject{TypeID: &ua.ExpandedNodeID{NodeID: node}, EncodingMask: 1, Value: &rawBody{b: body}}), nil)
}

func TestStructures(t *testing.T) {
	point := new(le).f64(1.5).str("p").b
	inner := append(append([]byte{1, 1, 1, 0}, 1), new(le).u32(uint32(len(point))).b...)
	all := new(le).u32(2)
	all.b = append(append(all.b, point...), point...)
	all.u32(2).u32(1).u32(2).u16(7).u16(8)            // matrix of 1 × 2
	all.u8(0xC4).u32(4).u16(1).u16(2).u16(3).u16(4)   // variant: Int16 matrix
	all.u32(2).u32(2).u32(2)                          // of 2 × 2
	all.u32(1).u8(2).str("hi")                        // enumeration, text
	all.b = append(append(all.b, inner...), point...) // structure in a structure
	all.u8(3).u8(6).u32(9).u32(0x80000000)            // data value
	for _, tc := range []struct {
		id   string
		body []byte
		want string
	}{
		{"ns=1;i=1", point, `{"x":1.5,"n":"p"}`},
		{"ns=1;i=2", new(le).u32(2).u16(1).u16(3).b, `{"a":1,"c":3}`},
		{"ns=1;i=3", new(le).u32(1).u32(7).b, `{"i":7}`}, {"ns=1;i=3", new(le).u32(0).b, `null`},
		{"ns=1;i=3", append(new(le).u32(2).b, point...), `{"p":{"x":1.5,"n":"p"}}`},
		{"ns=1;i=4", all.b, `{"points":[{"x":1.5,"n":"p"},{"x":1.5,"n":"p"}],"m":[[7,8]],"v":[[1,2],[3,4]],"e":"On","t":"hi","s":{"x":1.5,"n":"p"},"d":{"value":9,"status":2147483648}}`},
	} {
		if d := structure(shapes(), tc.id, tc.body); d.value != abi.JSON(tc.want) || d.raw != nil {
			t.Errorf("%s is %s (%s), want %s", tc.id, d.value.Text(), d.reason, tc.want)
		}
	}
	for name, tc := range map[string]struct {
		id   string
		body []byte
	}{
		"unknown": {"ns=1;i=99", point}, "short": {"ns=1;i=1", point[:5]}, "long": {"ns=1;i=1", append(point[:len(point):len(point)], 0)},
		"huge array": {"ns=1;i=4", new(le).u32(1 << 30).b}, "union out of range": {"ns=1;i=3", new(le).u32(3).b},
	} {
		d := structure(shapes(), tc.id, tc.body)
		if !d.value.IsNone() || string(d.raw) != string(tc.body) || d.reason == "" {
			t.Errorf("%s: value %v raw %x reason %q; want no value, the bytes and a reason", name, d.value, d.raw, d.reason)
		}
	}
}

// FuzzStructure: whatever a server sends, a structure becomes valid JSON or
// keeps its bytes.
func FuzzStructure(f *testing.F) {
	f.Add(uint8(1), new(le).f64(1.5).str("p").b)
	f.Add(uint8(2), new(le).u32(2).u16(1).u16(3).b)
	f.Add(uint8(3), new(le).u32(1).u32(7).b)
	f.Add(uint8(4), new(le).u32(0).u32(2).u32(1).u32(1).u16(1).u8(0xC4).u32(1).u16(1).u32(1).u32(1).u32(1).u8(0).u16(0).u8(0).u8(0).b)
	f.Fuzz(func(t *testing.T, id uint8, body []byte) {
		d := structure(shapes(), "ns=1;i="+string('0'+rune(id%5)), body)
		switch {
		case d.value.IsNone() && d.reason == "":
			t.Error("neither a value nor a reason")
		case !d.value.IsNone() && !json.Valid([]byte(d.value.Text())):
			t.Errorf("invalid JSON %q", d.value.Text())
		}
	})
}

// FuzzVariant: what the library decodes, we convert without a panic.
func FuzzVariant(f *testing.F) {
	for _, v := range []any{int32(1), "a", []float64{1, 2}, [][]int16{{1}, {2}}, &ua.DataValue{}, ua.NewLocalizedText("x")} {
		b, err := ua.MustVariant(v).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(base64.StdEncoding.EncodeToString([]byte("x"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		v := new(ua.Variant)
		if !decodes(v, b) {
			return
		}
		if d := shapes().convert(v, enumNames{1: "a"}); d.value.Kind() == abi.KindJSON && !json.Valid([]byte(d.value.Text())) {
			t.Errorf("invalid JSON %q of %x", d.value.Text(), b)
		}
	})
}

// decodes reports whether the library can decode b. It panics on some bytes,
// which is why the source runs in a process of its own.
func decodes(v *ua.Variant, b []byte) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	if len(b) > 1000 {
		return false
	}
	_, err := v.Decode(b)
	return err == nil
}

func TestEventFilter(t *testing.T) {
	f, err := makeEventFilter(EventConfig{NodeID: "i=2253", EventType: "i=2041", Fields: []string{"Message", "EnabledState/Id"}, MinSeverity: 500,
		Where: []WhereConfig{{Field: "SourceName", Op: "eq", Value: "pump"}, {Field: "Severity", Op: "lt", Value: 900}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(f.fields, ",") != "Time,EventType,SourceName,Message,Severity,EventId,EnabledState/Id" || len(f.filter.SelectClauses[6].BrowsePath) != 2 {
		t.Errorf("fields %v", f.fields)
	}
	// Four terms: three Ands, each of one term and the rest.
	el := f.filter.WhereClause.Elements
	if len(el) != 7 {
		t.Fatalf("%d elements", len(el))
	}
	var reach func(i uint32) int
	reach = func(i uint32) int {
		if el[i].FilterOperator != ua.FilterOperatorAnd {
			return 1
		}
		n := 0
		for _, op := range el[i].FilterOperands {
			next := op.Value.(*ua.ElementOperand).Index
			if next <= i {
				t.Fatalf("element %d refers back to %d", i, next)
			}
			n += reach(next)
		}
		return n
	}
	if n := reach(0); n != 4 {
		t.Errorf("the root reaches %d terms, want 4", n)
	}
}

// TestStatusNames holds names to the spelling of Part 6, annex A.2: what people
// search for.
func TestStatusNames(t *testing.T) {
	for status, want := range map[ua.StatusCode]string{
		0: "Good", ua.StatusBadNodeIDUnknown: "BadNodeIdUnknown", ua.StatusBadTCPEndpointURLInvalid: "BadTcpEndpointUrlInvalid",
		ua.StatusBadCertificateURIInvalid: "BadCertificateUriInvalid", ua.StatusBadNoData: "BadNoData", ua.StatusBadSessionIDInvalid: "BadSessionIdInvalid",
		ua.StatusBadOutOfService | overflowBits: "BadOutOfService", ua.StatusUncertainLastUsableValue: "UncertainLastUsableValue", 0x80FF0000: "0x80FF0000",
	} {
		if got := statusName(status); got != want {
			t.Errorf("%08X is named %s, want %s", uint32(status), got, want)
		}
	}
}
