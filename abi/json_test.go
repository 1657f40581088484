package abi

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func TestJSONForm(t *testing.T) {
	r := testRecords()[0]
	const want = `{"event_time":"2026-01-02T03:04:05.000006Z","ingest_time":"2026-01-02T03:04:05.100000Z","source":"plant","address":"line1/temp",` +
		`"protocol":"mqtt","kind":"float64","value":21.5,"status":0,"attrs":[{"key":"unit","kind":"string","value":"°C"},` +
		`{"key":"qos","kind":"int64","value":1},{"key":"retain","kind":"bool","value":true}]}`
	if got := string(AppendJSON(nil, &r)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestJSONIsLossless(t *testing.T) {
	recs := testRecords()
	for _, v := range []Value{
		Int(1<<53 - 1), Int(1 << 53), Int(-1 << 53), Int(math.MinInt64), Uint(1 << 53), Uint(math.MaxUint64),
		Float(math.Inf(1)), Float(math.Inf(-1)), Float(math.NaN()), {kind: KindFloat, num: 0x7ff0000000000001}, {kind: KindFloat, num: 0xfff8000000000000},
		Float(math.Copysign(0, -1)), Float(5e-324), Float(math.MaxFloat64), Float(0.1), Float(1e21), Float(1e-7),
		String("line\nbreak \"quoted\" \\ \x00 \x7f \u2028 😀"), Bytes(nil), Bytes([]byte("\n\xff")), JSON("{\n\t\"a\": [1.0, 2]\n}"), Bool(false), {},
	} {
		recs = append(recs, Record{Value: v, Attrs: []Attr{{"a b\n", v}}})
	}
	recs = append(recs, Record{EventTime: math.MinInt64, IngestTime: math.MaxInt64}, Record{EventTime: -62135596800000000, IngestTime: -62135596800000001})
	for _, r := range recs {
		line := AppendJSON(nil, &r)
		if !json.Valid(line) || strings.ContainsRune(string(line), '\n') {
			t.Errorf("not a line of JSON: %s", line)
		}
		got, err := ParseJSON(line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if string(AppendRecord(nil, &got)) != string(AppendRecord(nil, &r)) {
			t.Errorf("%s became %+v, was %+v", line, got, r)
		}
	}
}

func TestParseJSON(t *testing.T) {
	r, err := ParseJSON([]byte(`  {"address":"a","kind":"int64","value":"12","event_time":"2026-01-02T04:04:05+01:00","ingest_time":7}` + "\n"))
	if err != nil || r.Value != Int(12) || r.EventTime != 1_767_323_045_000_000 || r.IngestTime != 7 {
		t.Errorf("%+v, %v", r, err)
	}
	for line, want := range map[string]string{
		``:                                 "EOF",
		`{} {}`:                            "more than one",
		`{"adress":"x"}`:                   `unknown field "adress"`,
		`{"value":1}`:                      "needs a kind",
		`{"kind":"int64"}`:                 "needs a value",
		`{"kind":"none","value":1}`:        "no value",
		`{"kind":"int32","value":1}`:       "none of",
		`{"kind":"int64","value":1.5}`:     "is no int64",
		`{"kind":"uint64","value":-1}`:     "is no uint64",
		`{"kind":"float64","value":"nan"}`: "is no float64",
		`{"kind":"float64","value":"NaN:0000000000000000"}`:   "is no float64",
		`{"kind":"bool","value":"true"}`:                      "is no bool",
		`{"kind":"string","value":1}`:                         "want a string",
		`{"kind":"bytes","value":"%"}`:                        "is no bytes",
		`{"kind":"json","value":"{"}`:                         "not JSON",
		`{"protocol":"knx"}`:                                  "opcua, mqtt, modbus",
		`{"event_time":"yesterday"}`:                          "event_time",
		`{"attrs":[{"key":"a"},{"key":"a"}]}`:                 "stands twice",
		`{"attrs":[{"key":""}]}`:                              "empty key",
		`{"attrs":[{"key":"a","kind":"int64","value":true}]}`: `attribute "a"`,
	} {
		if _, err := ParseJSON([]byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", line, err, want)
		}
	}
}

// FuzzParseJSON: what is accepted is written and read again as the same record.
func FuzzParseJSON(f *testing.F) {
	for _, r := range testRecords() {
		f.Add(AppendJSON(nil, &r))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := ParseJSON(line)
		if err != nil {
			return
		}
		again, err := ParseJSON(AppendJSON(nil, &r))
		if err != nil || string(AppendRecord(nil, &again)) != string(AppendRecord(nil, &r)) {
			t.Fatalf("%s became %+v and then %+v, %v", line, r, again, err)
		}
	})
}
