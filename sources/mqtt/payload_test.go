package mqtt

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/edgehost/edgehost/abi"
)

func testDecoder(t testing.TB, p PayloadConfig) *decoder {
	t.Helper()
	d, err := newDecoder(p)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func yes() *bool { v := true; return &v }

func TestDecode(t *testing.T) {
	const ts = 1767225600_000000 // 2026-01-01T00:00:00Z
	quality := PayloadConfig{QualityPath: "q"}
	flatQuality := PayloadConfig{QualityPath: "q", Flatten: yes()}
	cases := []struct {
		name    string
		cfg     PayloadConfig
		payload string
		want    []sample
		problem string
	}{
		{"auto integer", PayloadConfig{}, "42", []sample{{value: abi.Int(42)}}, ""},
		{"auto big unsigned", PayloadConfig{}, "18446744073709551615", []sample{{value: abi.Uint(math.MaxUint64)}}, ""},
		{"auto float", PayloadConfig{}, " 23.5\n", []sample{{value: abi.Float(23.5)}}, ""},
		{"auto odd number", PayloadConfig{}, "+5.", []sample{{value: abi.Float(5)}}, ""},
		{"auto bool", PayloadConfig{}, "true", []sample{{value: abi.Bool(true)}}, ""},
		{"auto text", PayloadConfig{}, "RUN ing", []sample{{value: abi.String("RUN ing")}}, ""},
		{"auto nan is a word", PayloadConfig{}, "nan", []sample{{value: abi.String("nan")}}, ""},
		{"auto hex is a word", PayloadConfig{}, "0x10", []sample{{value: abi.String("0x10")}}, ""},
		{"auto empty", PayloadConfig{}, "", []sample{{}}, ""},
		{"auto not UTF-8", PayloadConfig{}, "\xff\x00", []sample{{value: abi.Bytes([]byte("\xff\x00")), raw: true}}, ""},
		{"auto broken JSON", PayloadConfig{}, `{"value":`, []sample{{value: abi.String(`{"value":`)}}, ""},
		{"auto beyond float64", PayloadConfig{}, "1e999", []sample{{value: abi.JSON("1e999")}}, ""},
		{"seconds", PayloadConfig{}, `{"value": 1.5, "ts": 1767225600, "unit": "C"}`, []sample{{value: abi.Float(1.5), time: ts, unit: "C"}}, ""},
		{"milliseconds", PayloadConfig{}, `{"value": 1, "timestamp": 1767225600000}`, []sample{{value: abi.Int(1), time: ts}}, ""},
		{"null", PayloadConfig{}, `{"value": null}`, []sample{{}}, ""},
		{"no value path", PayloadConfig{}, ` {"temp": 1} `, []sample{{value: abi.JSON(`{"temp": 1}`)}}, ""},
		{"paths", PayloadConfig{ValuePath: "d.1.v", TimestampPath: "m.t", UnitPath: `m.u\.x`},
			`{"d":[{"v":1},{"v":"on"}],"m":{"t":"2026-01-01T01:00:00+01:00","u.x":"bar"},"value":9}`, []sample{{value: abi.String("on"), time: ts, unit: "bar"}}, ""},
		{"path into a scalar", PayloadConfig{ValuePath: "a.b"}, `{"a":1}`, nil, `payload has no "a.b", where value_path says that its value is`},
		{"path beyond an array", PayloadConfig{ValuePath: "a.3"}, `{"a":[1]}`, nil, `payload has no "a.3", where value_path says that its value is`},
		{"path into an array", PayloadConfig{ValuePath: "1.v"}, `[0,{"v":2}]`, []sample{{value: abi.Int(2)}}, ""},
		{"path and no document", PayloadConfig{ValuePath: "v"}, `7`, []sample{{value: abi.Int(7)}}, ""},
		{"path and spaces", PayloadConfig{ValuePath: "v"}, ` `, []sample{{value: abi.String(" ")}}, ""},
		{"path and broken JSON", PayloadConfig{ValuePath: "v"}, `{"v": NaN}`, nil, "payload is not valid JSON"},
		{"object value", PayloadConfig{}, `{"value": {"x": 1}}`, []sample{{value: abi.JSON(`{"x": 1}`)}}, ""},
		{"unreadable timestamp", PayloadConfig{}, `{"value": 1, "ts": "yesterday"}`, []sample{{value: abi.Int(1), noTime: true}}, ""},
		{"a timestamp of the year 10000", PayloadConfig{TimestampFormat: "s"}, `{"value": 1, "ts": 253402300800}`, []sample{{value: abi.Int(1), noTime: true}}, ""},
		{"bad by word", quality, `{"value": 1, "q": "BadSensorFailure"}`,
			[]sample{{value: abi.Int(1), status: 0x80000000, reason: `the payload says so: "BadSensorFailure"`}}, ""},
		{"a quality that is none", quality, `{"value": 1, "q": [1]}`,
			[]sample{{value: abi.Int(1), status: 0x40000000, reason: "the quality of the payload is not understood: [1]"}}, ""},
		{"no quality", quality, `{"value": 1}`, []sample{{value: abi.Int(1)}}, ""},
		{"array", PayloadConfig{}, `[1,2]`, []sample{{value: abi.JSON(`[1,2]`)}}, ""},
		{"json", PayloadConfig{Format: "json"}, `"a\u00e9"`, []sample{{value: abi.String("aé")}}, ""},
		{"json broken", PayloadConfig{Format: "json"}, `{`, nil, "payload is not valid JSON"},
		{"json of bad UTF-8", PayloadConfig{Format: "json"}, "\"\xff\"", nil, "payload is not valid JSON"},
		{"text", PayloadConfig{Format: "text"}, "42", []sample{{value: abi.String("42")}}, ""},
		{"text of bytes", PayloadConfig{Format: "text"}, "\xff", nil, "payload is not UTF-8 text"},
		{"number", PayloadConfig{Format: "number"}, " -7 ", []sample{{value: abi.Int(-7)}}, ""},
		{"number of text", PayloadConfig{Format: "number"}, "warm", nil, "payload is not a number: invalid syntax"},
		{"number of nothing", PayloadConfig{Format: "number"}, "", nil, "payload is not a number: invalid syntax"},
		{"raw", PayloadConfig{Format: "raw"}, "42", []sample{{value: abi.Bytes([]byte("42"))}}, ""},
		{"flatten", PayloadConfig{Flatten: yes()}, `{"ts":1767225600,"unit":"C","a":{"x":1,"y":[true,null]},"b":"z"}`, []sample{
			{value: abi.Int(1), path: "a.x", time: ts, unit: "C"},
			{value: abi.Bool(true), path: "a.y.0", time: ts, unit: "C"},
			{path: "a.y.1", time: ts, unit: "C"},
			{value: abi.String("z"), path: "b", time: ts, unit: "C"}}, ""},
		{"flatten a value path", PayloadConfig{Flatten: yes(), ValuePath: "d"}, `{"d":[1,2.5],"e":9}`,
			[]sample{{value: abi.Int(1), path: "0"}, {value: abi.Float(2.5), path: "1"}}, ""},
		{"flatten an array of payloads", flatQuality, `[{"value":1,"ts":1767225600,"q":192},{"value":{"x":2},"q":0},{"v":3}, 4]`, []sample{
			{value: abi.Int(1), time: ts}, {value: abi.Int(2), path: "x", status: 0x80000000, reason: "the payload says so: 0"},
			{value: abi.Int(3), path: "2.v"}, {value: abi.Int(4), path: "3"}}, ""},
		{"flatten an empty array", PayloadConfig{Flatten: yes()}, `[]`, []sample{{value: abi.JSON("[]")}}, ""},
		{"flatten too many payloads", PayloadConfig{Flatten: yes()}, "[" + strings.Repeat(`{"value":[1,2]},`, maxLeaves/2) + "1]", nil, "payload flattens to more than 10000 values"},
		{"flatten a scalar", PayloadConfig{Flatten: yes()}, `7`, []sample{{value: abi.Int(7)}}, ""},
		{"flatten nothing", PayloadConfig{Flatten: yes()}, `{}`, []sample{{value: abi.JSON(`{}`)}}, ""},
		{"flatten too much", PayloadConfig{Flatten: yes()}, "[" + strings.Repeat("1,", maxLeaves) + "1]", nil, "payload flattens to more than 10000 values"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := testDecoder(t, c.cfg).decode([]byte(c.payload))
			if c.problem != "" {
				if err == nil || err.Error() != c.problem {
					t.Fatalf("error %v, want %s", err, c.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(c.want) {
				t.Fatalf("%d samples, want %d: %v", len(got), len(c.want), got)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Errorf("sample %d is %+v, want %+v", i, got[i], c.want[i])
				}
			}
		})
	}
}

func TestParseQuality(t *testing.T) {
	const good, uncertain, bad = 0, 0x40000000, 0x80000000
	understood := map[string]map[string]uint32{
		"auto": {
			`"Good"`: good, `" GOOD "`: good, `"GoodClamped"`: good, `"uncertain"`: uncertain, `"Bad"`: bad, `true`: good, `false`: bad, `"false"`: bad,
			`192`: good, `216`: good, `"192"`: good, `64`: uncertain, `0`: bad, `24`: bad,
			`1073741824`: uncertain, `2150891520`: 0x80340000, `-2144075776`: 0x80340000,
		},
		"opcua": {`0`: good, `192`: 192, `1024`: 1024, `2150891520`: 0x80340000, `"Bad"`: bad},
	}
	for format, cases := range understood {
		for in, want := range cases {
			status, reason := parseQuality(format, node(in))
			if status != want || (reason == "") != (want>>30 == 0) || reason != "" && !strings.Contains(reason, "says so: "+in) {
				t.Errorf("%s %s: %#x, %q; want %#x", format, in, status, reason, want)
			}
		}
	}
	for _, in := range []string{`"fine"`, `""`, `null`, `{}`, `[]`, `1.5`, `128`, `256`, `500`, `4294967296`, `-2147483649`, `1e999`, `"` + strings.Repeat("é", 200) + `"`} {
		status, reason := parseQuality("auto", node(in))
		if status != uncertain || !strings.Contains(reason, "not understood") || len(reason) > 200 || !utf8.ValidString(reason) {
			t.Errorf("%s: %#x, %q", in, status, reason)
		}
	}
}

func TestFlattenStopsAtDepth(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200)
	got, err := testDecoder(t, PayloadConfig{Flatten: yes()}).decode([]byte(deep))
	if err != nil || len(got) != 1 || got[0].value.Kind() != abi.KindJSON {
		t.Errorf("%v, %v: want one JSON value", got, err)
	}
}

func TestParseTime(t *testing.T) {
	cases := []struct {
		format, in string
		want       int64 // 0: refused
	}{
		{"auto", "1767225600", 1767225600_000000},
		{"auto", "1767225600.123456", 1767225600_123456},
		{"auto", "1767225600123", 1767225600_123000},
		{"auto", "1767225600123456", 1767225600_123456},
		{"auto", "1767225600123456789", 1767225600_123456},
		{"auto", `"1767225600123"`, 1767225600_123000},
		{"auto", `"2026-01-01T00:00:00Z"`, 1767225600_000000},
		{"auto", `"2026-01-01T00:00:00.5"`, 1767225600_500000},
		{"auto", `"2026-01-01 01:00:00+01:00"`, 1767225600_000000},
		{"auto", "1.7672256e9", 1767225600_000000},
		{"auto", "-86400", -86400_000000},
		{"s", "1767225600", 1767225600_000000},
		{"ms", "1767225600.5", 1767225600500},
		{"us", "1767225600", 1767225600},
		{"ns", "1767225600999", 1767225600},
		{"rfc3339", `"2026-01-01T00:00:00Z"`, 1767225600_000000},
		{"rfc3339", "1767225600", 0}, {"s", `"2026-01-01T00:00:00Z"`, 0}, {"auto", `"now"`, 0}, {"auto", "true", 0}, {"auto", "null", 0},
		{"auto", "0", 0}, {"auto", "1e-999999999", 0}, {"s", "1e18", 0}, {"auto", "1e300", 0}, {"auto", `"NaN"`, 0}, {"auto", `"0x10"`, 0}, {"auto", `""`, 0}, {"auto", "{}", 0},
		{"auto", `"0000-12-31T23:59:59Z"`, 0}, {"auto", `"0001-01-01T00:00:00Z"`, minTime}, {"auto", `"9999-12-31T23:59:59.999999Z"`, maxTime},
		{"ms", "253402300800000", 0}, {"s", "-62135596801", 0}, {"auto", "9223372036854775807", 9223372036854775},
	}
	for _, c := range cases {
		got, err := parseTime(c.format, json.RawMessage(c.in))
		if got != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("%s %s: %d, %v; want %d", c.format, c.in, got, err, c.want)
		}
	}
}

// FuzzDecode: whatever arrives becomes samples or a reason, text stays UTF-8
// and JSON stays JSON.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{"value":1.5,"ts":1767225600,"unit":"C"}`, `[1,[2,{"a":null}]]`, "23.5", "\xff\xfe", "", `"\ud800"`, "1e999", `{"":{"":0}}`, "nan", `{"ts":"1e999999999"}`, `{"ts":1e-999999999}`, `[{"value":1,"ts":0,"q":"Bad"},{"q":-1}]`} {
		for format := range formats {
			f.Add([]byte(seed), byte(format), true)
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte, format byte, flatten bool) {
		d := testDecoder(t, PayloadConfig{Format: formats[int(format)%len(formats)], Flatten: &flatten, QualityPath: "q"})
		got, err := d.decode(payload)
		if (err == nil) == (len(got) == 0) {
			t.Fatalf("%d samples and error %v", len(got), err)
		}
		for _, s := range got {
			switch text := s.value.Text(); s.value.Kind() {
			case abi.KindString:
				if !utf8.ValidString(text) {
					t.Errorf("a string that is not UTF-8: %q", text)
				}
			case abi.KindJSON:
				if !json.Valid([]byte(text)) {
					t.Errorf("a JSON value that is not JSON: %q", text)
				}
			}
			if !utf8.ValidString(s.path) || !utf8.ValidString(s.unit) || !utf8.ValidString(s.reason) {
				t.Errorf("path %q, unit %q, reason %q", s.path, s.unit, s.reason)
			}
			if (s.reason == "") != (s.status>>30 == 0) || s.time < minTime || s.time > maxTime {
				t.Errorf("status %#x for the reason %q at %d", s.status, s.reason, s.time)
			}
		}
	})
}

// FuzzMember holds member to what encoding/json finds.
func FuzzMember(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, ` {"a" : [1,{"a":"}"}] , "b\\u0041":"\\"x" ,"a":null}`, `{"":-1.5e3,"\\\\":{}}`, "{\"a\":true\n}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		text = bytes.TrimSpace(text)
		if !utf8.Valid(text) || !json.Valid(text) || text[0] != '{' {
			return
		}
		all := node(text).object()
		for key, want := range all {
			if got, ok := node(text).member(key); !ok || !bytes.Equal(got, want) {
				t.Errorf("%s: %q is %s (%v), want %s", text, key, got, ok, want)
			}
		}
		if _, ok := node(text).member("none such"); ok != (all["none such"] != nil) {
			t.Errorf("%s has a member that it has not", text)
		}
	})
}
