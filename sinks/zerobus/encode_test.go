package zerobus

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
)

// decode reads a row by the descriptor that the schema sends to the service.
func decode(t testing.TB, s Schema, row []byte) map[string]any {
	t.Helper()
	msg := dynamicpb.NewMessage(describeSchema(t, s))
	if err := proto.Unmarshal(row, msg); err != nil {
		t.Fatalf("row %x: %v", row, err)
	}
	if len(msg.GetUnknown()) > 0 {
		t.Fatalf("row %x has unknown fields", row)
	}
	out := map[string]any{}
	msg.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		out[string(f.Name())] = v.Interface()
		return true
	})
	return out
}

func describeSchema(t testing.TB, s Schema) protoreflect.MessageDescriptor {
	t.Helper()
	data, err := s.Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	var msg descriptorpb.DescriptorProto
	if err := proto.Unmarshal(data, &msg); err != nil {
		t.Fatal(err)
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("t.proto"), Syntax: proto.String("proto2"), MessageType: []*descriptorpb.DescriptorProto{&msg}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return file.Messages().Get(0)
}

func bronzeOf(t testing.TB, p abi.Protocol) Schema {
	t.Helper()
	table, _ := BronzeTable(p)
	s, ok := BronzeSchema(table, p)
	if !ok {
		t.Fatalf("no schema for %v", p)
	}
	return s
}

// A152 to A161: every field of the document has the number and the type that the
// document gives it.
func TestBronzeFieldNumbers(t *testing.T) {
	document := map[abi.Protocol]string{
		abi.ProtocolMQTT:   "event_time=1:int64 ingest_time=2:int64 source_name=3:string topic=4:string industry=5:string sensor_name=6:string value=7:double unit=9:string qos=12:int32",
		abi.ProtocolModbus: "event_time=1:int64 ingest_time=2:int64 source_name=3:string slave_id=4:int32 register_address=5:int32 register_type=6:string raw_value=12:double scaled_value=13:int32",
		abi.ProtocolOPCUA:  "event_time=1:int64 ingest_time=2:int64 source_name=3:string endpoint=4:string namespace=5:int32 node_id=6:string status_code=8:int64 value_num=12:double",
	}
	for p, fields := range document {
		md := describeSchema(t, bronzeOf(t, p))
		for _, want := range strings.Fields(fields + " record_id=100:string quality=101:string reason=102:string") {
			name, _, _ := strings.Cut(want, "=")
			f := md.Fields().ByName(protoreflect.Name(name))
			if f == nil {
				t.Errorf("%v: %s is missing", p, name)
				continue
			}
			if got := fmt.Sprintf("%s=%d:%s", f.Name(), f.Number(), f.Kind()); got != want || !f.HasPresence() {
				t.Errorf("%v: %s, want %s, optional %v", p, got, want, f.HasPresence())
			}
		}
	}
	if _, ok := BronzeTable(abi.ProtocolNone); ok {
		t.Error("records without a protocol have a table")
	}
}

func TestEncodeBronze(t *testing.T) {
	id := sinks.ID{Pipeline: [16]byte{15: 7}, Batch: 2, Index: 1}
	const recordID = "00000000000000000000000000000007-0000000000000002-00000001"
	attrs := func(kv ...any) (out []abi.Attr) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, abi.Attr{Key: kv[i].(string), Value: kv[i+1].(abi.Value)})
		}
		return out
	}
	for _, tt := range []struct {
		name string
		rec  abi.Record
		want map[string]any
	}{
		{"mqtt", abi.Record{EventTime: 1, IngestTime: 2, Source: "s", Address: "a/b", Protocol: abi.ProtocolMQTT, Value: abi.Float(0),
			Attrs: attrs("qos", abi.Int(0), "retain", abi.Bool(false), "unit", abi.String(""), "timestamp_ms", abi.Int(5), "sensor_name", abi.String("t"), "other", abi.Int(1))},
			map[string]any{"event_time": int64(1), "ingest_time": int64(2), "source_name": "s", "topic": "a/b", "value": 0.0, "qos": int32(0), "retain": false,
				"unit": "", "timestamp_ms": int64(5), "sensor_name": "t", "quality": "Good", "record_id": recordID}},
		{"mqtt absent is NULL", abi.Record{Protocol: abi.ProtocolMQTT},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "quality": "Good", "record_id": recordID}},
		{"mqtt mended by a module", abi.Record{Protocol: abi.ProtocolMQTT, Attrs: attrs("quality", abi.String("Bad"))},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "quality": "Good", "record_id": recordID}},
		{"mqtt text", abi.Record{Protocol: abi.ProtocolMQTT, Value: abi.String("open")},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "value_string": "open", "quality": "Good", "record_id": recordID}},
		{"mqtt bool", abi.Record{Protocol: abi.ProtocolMQTT, Value: abi.Bool(true)},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "value": 1.0, "quality": "Good", "record_id": recordID}},
		{"modbus", abi.Record{Source: "m", Address: "40001", Protocol: abi.ProtocolModbus, Value: abi.Float(12.34),
			Attrs: attrs("slave_id", abi.Int(3), "register_type", abi.String("holding"), "raw_value", abi.Float(1234), "scale_factor", abi.Int(10))},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "source_name": "m", "slave_id": int32(3), "register_address": int32(40001),
				"register_type": "holding", "raw_value": 1234.0, "scaled_value": int32(123), "scale_factor": int32(10), "quality": "Good", "record_id": recordID}},
		{"modbus clamped", abi.Record{Address: "x", Protocol: abi.ProtocolModbus, Value: abi.Float(-1e12), Attrs: attrs("register_address", abi.Int(7))},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "register_address": int32(7), "raw_value": -1e12,
				"scaled_value": int32(math.MinInt32), "scale_factor": int32(1), "quality": "Good", "record_id": recordID}},
		{"modbus own scaled value", abi.Record{Protocol: abi.ProtocolModbus, Value: abi.Float(1), Attrs: attrs("scaled_value", abi.Int(99))},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "raw_value": 1.0, "scaled_value": int32(99), "scale_factor": int32(1), "quality": "Good", "record_id": recordID}},
		{"modbus bad", abi.Record{Protocol: abi.ProtocolModbus, Status: 0x80000000, Attrs: attrs("quality", abi.String("Bad"), "reason", abi.String("no reply"))},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "reason": "no reply", "quality": "Bad", "record_id": recordID}},
		{"opcua", abi.Record{Address: "ns=2;s=T", Protocol: abi.ProtocolOPCUA, Value: abi.Int(1<<53 + 1), Status: 0x80340000,
			Attrs: attrs("endpoint", abi.String("opc.tcp://h"), "namespace", abi.Int(2), "status", abi.String("BadNodeIdUnknown"), "raw", abi.Bytes([]byte{1, 255}))},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "node_id": "ns=2;s=T", "endpoint": "opc.tcp://h", "namespace": int32(2),
				"status_code": int64(0x80340000), "status": "BadNodeIdUnknown", "value": "9007199254740993", "value_num": float64(1 << 53), "value_type": "int64",
				"raw": []byte{1, 255}, "quality": "Bad", "record_id": recordID}},
		{"opcua uncertain text", abi.Record{Protocol: abi.ProtocolOPCUA, Value: abi.String("é"), Status: 0x40000000, Attrs: attrs("value_type", abi.String("LocalizedText"))},
			map[string]any{"event_time": int64(0), "ingest_time": int64(0), "status_code": int64(0x40000000), "status": "Uncertain", "value": "é", "value_type": "LocalizedText", "quality": "Uncertain", "record_id": recordID}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := bronzeOf(t, tt.rec.Protocol)
			e := newEncoder(s)
			row, err := e.append(nil, &sinks.Record{ID: id, Record: tt.rec})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, decode(t, s, row)); diff != "" {
				t.Error(diff)
			}
			if clamped := tt.name == "modbus clamped"; clamped != (e.clamped == 1) {
				t.Errorf("%d clamped", e.clamped)
			}
		})
	}
}

// Every value into every type: it arrives exactly, or the error names column,
// type and kind and nothing of the value.
func TestConversions(t *testing.T) {
	const secret = "payload-canary"
	type row struct {
		typ  Type
		v    abi.Value
		want any // nil is a refusal
	}
	for _, tt := range []row{
		{"TINYINT", abi.Int(-128), int32(-128)}, {"TINYINT", abi.Int(128), nil}, {"SMALLINT", abi.Uint(32767), int32(32767)}, {"SMALLINT", abi.Int(40000), nil},
		{"INT", abi.Int(math.MinInt32), int32(math.MinInt32)}, {"INT", abi.Uint(1 << 31), nil}, {"INT", abi.Float(3), int32(3)}, {"INT", abi.Float(3.5), nil},
		{"INT", abi.Float(math.NaN()), nil}, {"INT", abi.Bool(true), int32(1)}, {"INT", abi.String(secret), nil}, {"DATE", abi.Int(19000), int32(19000)},
		{"BIGINT", abi.Int(math.MinInt64), int64(math.MinInt64)}, {"BIGINT", abi.Uint(math.MaxInt64), int64(math.MaxInt64)}, {"BIGINT", abi.Uint(1 << 63), nil},
		{"BIGINT", abi.Float(1 << 63), nil}, {"BIGINT", abi.Float(-(1 << 63)), int64(math.MinInt64)}, {"BIGINT", abi.Float(math.Inf(1)), nil}, {"TIMESTAMP", abi.Int(5), int64(5)},
		{"DOUBLE", abi.Int(-7), -7.0}, {"DOUBLE", abi.Float(math.Inf(-1)), math.Inf(-1)}, {"DOUBLE", abi.JSON(secret), nil}, {"DOUBLE", abi.Bytes([]byte(secret)), nil},
		{"FLOAT", abi.Float(0.5), float32(0.5)}, {"FLOAT", abi.Float(1e300), nil}, {"FLOAT", abi.Float(math.Inf(1)), float32(math.Inf(1))},
		{"STRING", abi.Float(0.1), "0.1"}, {"STRING", abi.Int(-5), "-5"}, {"STRING", abi.Uint(math.MaxUint64), "18446744073709551615"}, {"STRING", abi.Bool(true), "true"},
		{"STRING", abi.Bytes([]byte{0xff}), "/w=="}, {"STRING", abi.String("a\xff"), nil}, {"STRING", abi.JSON(`{"a":1}`), `{"a":1}`}, {"STRING", abi.String(""), ""},
		{"BOOLEAN", abi.Bool(false), false}, {"BOOLEAN", abi.Int(1), true}, {"BOOLEAN", abi.Int(2), nil}, {"BOOLEAN", abi.Float(1), nil}, {"BOOLEAN", abi.String("true"), nil},
		{"BINARY", abi.Bytes([]byte{0, 1}), []byte{0, 1}}, {"BINARY", abi.String("ab"), []byte("ab")}, {"BINARY", abi.Int(1), nil},
		{"VARIANT", abi.JSON(`[1]`), `[1]`}, {"VARIANT", abi.JSON("[1"), nil}, {"VARIANT", abi.String("a\"b"), `"a\"b"`}, {"VARIANT", abi.Float(math.NaN()), `"NaN"`}, {"VARIANT", abi.Int(3), "3"},
		{"DECIMAL", abi.String("-12.50"), "-12.50"}, {"DECIMAL", abi.Float(1e21), "1000000000000000000000"}, {"DECIMAL", abi.Float(math.NaN()), nil}, {"DECIMAL", abi.String(secret), nil}, {"DECIMAL", abi.Int(-3), "-3"},
	} {
		s := Schema{Table: "a.b.c", Columns: []Column{{Name: "col", Type: tt.typ, Number: 7, Nullable: true, From: "k"}}}
		r := sinks.Record{Record: abi.Record{Attrs: []abi.Attr{{Key: "k", Value: tt.v}}}}
		out, err := newEncoder(s).append([]byte("before"), &r)
		if tt.want == nil {
			if err == nil || !sinks.IsPermanent(err) || string(out) != "before" {
				t.Errorf("%s from %s: %v, %q", tt.typ, tt.v.Kind(), err, out)
				continue
			}
			for _, part := range []string{"column col", string(tt.typ), "a.b.c", tt.v.Kind().String()} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%q has the payload", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s from %s: %v", tt.typ, tt.v.Kind(), err)
			continue
		}
		if diff := cmp.Diff(map[string]any{"col": tt.want}, decode(t, s, out[len("before"):])); diff != "" {
			t.Errorf("%s from %s: %s", tt.typ, tt.v.Kind(), diff)
		}
	}
}

// A156: a number column without a text column beside it refuses text, and a NOT
// NULL column refuses records without it.
func TestEncodeRefuses(t *testing.T) {
	s := Schema{Table: "a.b.c", Columns: []Column{{Name: "value", Type: "DOUBLE", Number: 1, Nullable: true}, {Name: "site", Type: "STRING", Number: 2}}}
	e := newEncoder(s)
	site := []abi.Attr{{Key: "site", Value: abi.String("x")}}
	if _, err := e.append(nil, &sinks.Record{Record: abi.Record{Value: abi.String("text"), Attrs: site}}); err == nil || !strings.Contains(err.Error(), "column value (DOUBLE)") {
		t.Errorf("text in a number column: %v", err)
	}
	if _, err := e.append(nil, &sinks.Record{}); err == nil || !strings.Contains(err.Error(), "site of a.b.c is NOT NULL") {
		t.Errorf("no value in a NOT NULL column: %v", err)
	}
	if _, err := e.append(nil, &sinks.Record{Record: abi.Record{Value: abi.Int(1), Attrs: site}}); err != nil {
		t.Error(err)
	}
}

// A column can be filled by another name, and by the address of its protocol only.
func TestEncodeSources(t *testing.T) {
	s := Schema{Table: "a.b.c"}
	for i, c := range []struct{ name, from string }{{"t", "topic"}, {"n", "node_id"}, {"a", "address"}, {"p", "protocol"}, {"v", "value_num"}, {"st", "status"}, {"who", "operator"}} {
		s.Columns = append(s.Columns, Column{Name: c.name, From: c.from, Type: "STRING", Number: int32(i + 1), Nullable: true})
	}
	for _, tt := range []struct {
		rec  abi.Record
		want map[string]any
	}{
		{abi.Record{Protocol: abi.ProtocolMQTT, Address: "x", Value: abi.Bool(true)}, map[string]any{"t": "x", "a": "x", "p": "mqtt", "v": "1", "st": "Good"}},
		{abi.Record{Protocol: abi.ProtocolOPCUA, Address: "x", Status: 1 << 31}, map[string]any{"n": "x", "a": "x", "p": "opcua", "st": "Bad"}},
		{abi.Record{Address: "x", Attrs: []abi.Attr{{Key: "operator", Value: abi.Int(4)}, {Key: "topic", Value: abi.String("y")}}},
			map[string]any{"t": "y", "n": "x", "a": "x", "p": "none", "st": "Good", "who": "4"}},
	} {
		row, err := newEncoder(s).append(nil, &sinks.Record{Record: tt.rec})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, decode(t, s, row)); diff != "" {
			t.Error(diff)
		}
	}
}

// FuzzEncode: what the encoder writes, dynamicpb reads, and writes to the same
// bytes when the columns are in the order of their numbers.
func FuzzEncode(f *testing.F) {
	f.Add(uint8(2), "source", "a/b", "text", uint8(4), uint64(0x7ff8000000000001), uint32(0), "unit", int64(1))
	f.Add(uint8(3), "", "40001", "", uint8(2), uint64(1<<63), uint32(1<<31), "scale_factor", int64(-10))
	f.Add(uint8(1), "\xff", "ns=1;i=2", "{}", uint8(7), uint64(0), uint32(1<<30), "raw", int64(0))
	schemas := map[abi.Protocol]Schema{}
	for _, p := range []abi.Protocol{abi.ProtocolMQTT, abi.ProtocolModbus, abi.ProtocolOPCUA} {
		schemas[p] = bronzeOf(f, p)
	}
	f.Fuzz(func(t *testing.T, proto8 uint8, source, address, text string, kind uint8, bits uint64, status uint32, key string, n int64) {
		p := abi.Protocol(proto8%3 + 1)
		values := []abi.Value{{}, abi.Bool(bits&1 == 1), abi.Int(int64(bits)), abi.Uint(bits), abi.Float(math.Float64frombits(bits)), abi.String(text), abi.Bytes([]byte(text)), abi.JSON(text)}
		r := sinks.Record{Seq: 1, ID: sinks.ID{Batch: bits}, Record: abi.Record{
			EventTime: n, IngestTime: int64(bits), Source: source, Address: address, Protocol: p, Value: values[int(kind)%len(values)], Status: status,
			Attrs: []abi.Attr{{Key: key, Value: abi.Int(n)}, {Key: "unit", Value: abi.String(text)}},
		}}
		row, err := newEncoder(schemas[p]).append(nil, &r)
		if err != nil {
			if !sinks.IsPermanent(err) {
				t.Errorf("not permanent: %v", err)
			}
			return
		}
		got := decode(t, schemas[p], row)
		if got["event_time"] != n || got["record_id"] != r.ID.String() {
			t.Errorf("row %v", got)
		}
		msg := dynamicpb.NewMessage(describeSchema(t, schemas[p]))
		if err := proto.Unmarshal(row, msg); err != nil {
			t.Fatal(err)
		}
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
		if err != nil || string(again) != string(row) {
			t.Errorf("%x became %x, %v", row, again, err)
		}
	})
}

func TestRowSize(t *testing.T) {
	for _, n := range []int{0, 1, 127, 128, 20000} {
		row := make([]byte, n)
		if want := len(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), row)); rowSize(row) != want {
			t.Errorf("rowSize of %d is %d, want %d", n, rowSize(row), want)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	e := newEncoder(bronzeOf(b, abi.ProtocolMQTT))
	r := sinks.Record{Record: abi.Record{EventTime: 1_700_000_000_000_000, IngestTime: 1_700_000_000_000_000, Source: "plant", Address: "line/4/press/temperature",
		Protocol: abi.ProtocolMQTT, Value: abi.Float(12.5), Attrs: []abi.Attr{{Key: "qos", Value: abi.Int(1)}, {Key: "retain", Value: abi.Bool(false)}, {Key: "unit", Value: abi.String("C")}}}}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = e.append(buf[:0], &r); err != nil {
			b.Fatal(err)
		}
	}
}
