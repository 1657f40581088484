package sparkplug

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/edgehost/edgehost/abi"
)

// msg writes protobuf messages field by field.
type msg []byte

func (m msg) varint(num protowire.Number, v uint64) msg {
	return protowire.AppendVarint(protowire.AppendTag(m, num, protowire.VarintType), v)
}

func (m msg) float(num protowire.Number, v float32) msg {
	return protowire.AppendFixed32(protowire.AppendTag(m, num, protowire.Fixed32Type), math.Float32bits(v))
}

func (m msg) double(num protowire.Number, v float64) msg {
	return protowire.AppendFixed64(protowire.AppendTag(m, num, protowire.Fixed64Type), math.Float64bits(v))
}

func (m msg) bytes(num protowire.Number, v string) msg {
	return protowire.AppendString(protowire.AppendTag(m, num, protowire.BytesType), v)
}

// metric is a metric with a name (when not ""), an alias (when not 0) and a
// type (when not 0).
func metric(name string, alias uint64, t DataType) msg {
	var m msg
	if name != "" {
		m = m.bytes(1, name)
	}
	if alias != 0 {
		m = m.varint(2, alias)
	}
	if t != 0 {
		m = m.varint(4, uint64(t))
	}
	return m
}

// payload has the timestamp 1767225600123.
func payload(seq uint64, metrics ...msg) []byte {
	p := msg(nil).varint(1, 1767225600123)
	for _, m := range metrics {
		p = p.bytes(2, string(m))
	}
	return p.varint(3, seq)
}

func minus(n int64) uint64 { return uint64(uint32(int32(-n))) }

var valueCases = []struct {
	name string
	m    msg
	want abi.Value
}{
	{"int8", metric("m", 0, Int8).varint(10, minus(3)), abi.Int(-3)},
	{"int8 in 8 bits", metric("m", 0, Int8).varint(10, 0xfd), abi.Int(-3)},
	{"int16", metric("m", 0, Int16).varint(10, minus(300)), abi.Int(-300)},
	{"int16 in 16 bits", metric("m", 0, Int16).varint(10, 65535), abi.Int(-1)},
	{"int32", metric("m", 0, Int32).varint(10, minus(70000)), abi.Int(-70000)},
	{"int32 in 64 bits", metric("m", 0, Int32).varint(10, 0xffffffffffffffff), abi.Int(-1)},
	{"int64", metric("m", 0, Int64).varint(11, 0x8000000000000000), abi.Int(math.MinInt64)},
	{"int64 as int", metric("m", 0, Int64).varint(10, minus(1)), abi.Int(-1)},
	{"uint8", metric("m", 0, UInt8).varint(10, 255), abi.Uint(255)},
	{"uint16", metric("m", 0, UInt16).varint(10, 65535), abi.Uint(65535)},
	{"uint32", metric("m", 0, UInt32).varint(11, 4294967295), abi.Uint(4294967295)},
	{"uint32 as int", metric("m", 0, UInt32).varint(10, 4294967295), abi.Uint(4294967295)},
	{"uint64", metric("m", 0, UInt64).varint(11, math.MaxUint64), abi.Uint(math.MaxUint64)},
	{"float", metric("m", 0, Float).float(12, 1.5), abi.Float(1.5)},
	{"double", metric("m", 0, Double).double(13, math.Inf(1)), abi.Float(math.Inf(1))},
	{"true", metric("m", 0, Boolean).varint(14, 1), abi.Bool(true)},
	{"false", metric("m", 0, Boolean).varint(14, 0), abi.Bool(false)},
	{"string", metric("m", 0, String).bytes(15, "a"), abi.String("a")},
	{"bad UTF-8", metric("m", 0, Text).bytes(15, "a\xff"), abi.String("a\uFFFD")},
	{"datetime", metric("m", 0, DateTime).varint(11, 1767225600123), abi.Int(1767225600123)},
	{"bytes", metric("m", 0, Bytes).bytes(16, "\x00\xff"), abi.Bytes([]byte("\x00\xff"))},
	{"data set", metric("m", 0, DataSet).bytes(17, string(msg(nil).varint(1, 2).bytes(2, "a").bytes(2, "b").varint(3, uint64(Int8)).varint(3, uint64(Double)).
		bytes(4, string(msg(nil).bytes(1, string(msg(nil).varint(1, minus(1)))).bytes(1, string(msg(nil).double(4, 0.5))))).
		bytes(4, string(msg(nil).bytes(1, "").bytes(1, string(msg(nil).double(4, math.NaN()))))))),
		abi.JSON(`{"columns":["a","b"],"types":["Int8","Double"],"rows":[[-1,0.5],[null,"NaN"]]}`)},
	{"data set, packed", metric("m", 0, DataSet).bytes(17, string(msg(nil).bytes(2, "a").bytes(3, "\x01"))), abi.JSON(`{"columns":["a"],"types":["Int8"],"rows":[]}`)},
	{"template", metric("m", 0, Template).bytes(18, string(msg(nil).bytes(1, "v1").bytes(2, string(metric("x", 0, Bytes).bytes(16, "\x01"))).
		bytes(2, string(metric("t", 0, Template).bytes(18, string(msg(nil).bytes(4, "inner"))))).
		bytes(2, string(metric("n", 0, Int8).varint(7, 1))).
		bytes(3, string(msg(nil).bytes(1, "p").varint(2, uint64(UInt32)).varint(4, 7))).bytes(4, "ref").varint(5, 1))),
		abi.JSON(`{"version":"v1","template_ref":"ref","is_definition":true,"metrics":[{"name":"x","type":"Bytes","value":"AQ=="},` +
			`{"name":"t","type":"Template","value":{"template_ref":"inner","is_definition":false,"metrics":[],"parameters":[]}},` +
			`{"name":"n","type":"Int8","value":null}],"parameters":[{"name":"p","type":"UInt32","value":7}]}`)},
	{"int8 array", metric("m", 0, Int8Array).bytes(16, "\xff\x7f"), abi.JSON("[-1,127]")},
	{"int16 array", metric("m", 0, Int16Array).bytes(16, "\xfe\xff\x01\x00"), abi.JSON("[-2,1]")},
	{"uint64 array", metric("m", 0, UInt64Array).bytes(16, "\xff\xff\xff\xff\xff\xff\xff\xff"), abi.JSON("[18446744073709551615]")},
	{"float array", metric("m", 0, FloatArray).bytes(16, "\x00\x00\xc0\x3f"), abi.JSON("[1.5]")},
	{"double array", metric("m", 0, DoubleArray).bytes(16, "\x00\x00\x00\x00\x00\x00\xf8\x7f"), abi.JSON(`["NaN"]`)},
	{"boolean array", metric("m", 0, BooleanArray).bytes(16, "\x09\x00\x00\x00\x80\x80"), abi.JSON("[true,false,false,false,false,false,false,false,true]")},
	{"string array", metric("m", 0, StringArray).bytes(16, "a\x00\x00"), abi.JSON(`["a",""]`)},
	{"datetime array", metric("m", 0, DateTimeArray).bytes(16, "\x01\x00\x00\x00\x00\x00\x00\x00"), abi.JSON("[1]")},
}

func TestValues(t *testing.T) {
	for _, c := range valueCases {
		p, err := Decode(payload(0, c.m))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		v, err := p.Metrics[0].Value(p.Metrics[0].Type)
		if err != nil || v != c.want {
			t.Errorf("%s: %v %s (%v), want %v %s", c.name, v.Kind(), v.Text(), err, c.want.Kind(), c.want.Text())
		}
	}
}

func TestValuesThatAreNone(t *testing.T) {
	for name, c := range map[string]struct {
		m     msg
		words string
	}{
		"type":            {metric("m", 0, Int8).bytes(15, "1"), "a metric of type Int8 came with a string value"},
		"unknown type":    {metric("m", 0, 99).varint(10, 1), "DataType(99)"},
		"property set":    {metric("m", 0, PropertySet).bytes(16, ""), "PropertySet"},
		"torn array":      {metric("m", 0, Int32Array).bytes(16, "abc"), "3 bytes are no Int32Array"},
		"long booleans":   {metric("m", 0, BooleanArray).bytes(16, "\xff\xff\xff\xff\x00"), "less than its count"},
		"endless strings": {metric("m", 0, StringArray).bytes(16, "abc"), "does not end"},
		"long array":      {metric("m", 0, BooleanArray).bytes(16, strings.Repeat("x", maxArray+1)), "more than"},
		"wide row": {metric("m", 0, DataSet).bytes(17, string(msg(nil).varint(3, 1).bytes(4, string(msg(nil).bytes(1, "").bytes(1, ""))))),
			"more elements than columns"},
		"deep template": {deep(maxDepth + 2), "deep"},
	} {
		p, err := Decode(payload(0, c.m))
		if err == nil {
			_, err = p.Metrics[0].Value(p.Metrics[0].Type)
		}
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v does not say %q", name, err, c.words)
		}
	}
	for name, b := range map[string]string{"text": "hello", "torn": string(payload(0, metric("m", 0, Int8)))[:12], "json": `{"value":1}`,
		"wrong wire": string(payload(0, msg(nil).varint(1, 5)))} {
		if _, err := Decode([]byte(b)); err == nil {
			t.Errorf("%s was read as Sparkplug B", name)
		}
	}
}

func deep(n int) msg {
	m := metric("m", 0, Template)
	if n == 0 {
		return m
	}
	return m.bytes(18, string(msg(nil).bytes(2, string(deep(n-1)))))
}

func TestRebirthPayload(t *testing.T) {
	p, err := Decode(Rebirth(1767225600123))
	if err != nil || p.Timestamp != 1767225600123 || p.HasSeq || len(p.Metrics) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	v, err := p.Metrics[0].Value(p.Metrics[0].Type)
	if p.Metrics[0].Name != "Node Control/Rebirth" || err != nil || v != abi.Bool(true) {
		t.Errorf("%+v is %v", p.Metrics[0], v)
	}
}

func TestUnitAndFlags(t *testing.T) {
	props := msg(nil).bytes(1, "low").bytes(1, "engUnit").bytes(2, string(msg(nil).varint(1, 3).varint(3, 1))).bytes(2, string(msg(nil).varint(1, 12).bytes(8, "bar")))
	p, err := Decode(payload(0, metric("m", 7, Int8).varint(3, 5).varint(5, 1).varint(7, 1).bytes(9, string(props))))
	if err != nil {
		t.Fatal(err)
	}
	want := Metric{Name: "m", Alias: 7, HasAlias: true, Timestamp: 5, Type: Int8, Historical: true, Null: true, Unit: "bar"}
	if diff := cmp.Diff(want, p.Metrics[0], cmp.AllowUnexported(Metric{}, raw{})); diff != "" {
		t.Error(diff)
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range valueCases {
		f.Add(payload(3, c.m))
	}
	f.Add(payload(0, deep(maxDepth+2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Decode(b)
		if err != nil {
			return
		}
		for _, m := range p.Metrics {
			for kind := Unknown; kind <= DateTimeArray+1; kind++ {
				if v, err := m.Value(kind); err == nil && v.Kind() == abi.KindJSON && v.Text() == "" {
					t.Errorf("%s has no text", kind)
				}
			}
		}
	})
}
