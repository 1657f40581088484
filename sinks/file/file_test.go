package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const table = "plant.bronze.events"

func newSink(t testing.TB, cfg Config) *Sink {
	t.Helper()
	s, err := New(cfg, table)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func rows(t testing.TB, s *Sink) []map[string]any {
	t.Helper()
	data, err := os.ReadFile(s.Path())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var out []map[string]any
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		dec := json.NewDecoder(strings.NewReader(line))
		dec.UseNumber()
		var row map[string]any
		if err := dec.Decode(&row); err != nil {
			t.Fatalf("row %q: %v", line, err)
		}
		out = append(out, row)
	}
	return out
}

func TestContract(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Destination {
		s := newSink(t, Config{Dir: filepath.Join(t.TempDir(), "made", "later")})
		return sinktest.Destination{
			Sink: s,
			Rows: func() []string {
				var ids []string
				for _, row := range rows(t, s) {
					ids = append(ids, row["record_id"].(string))
				}
				return ids
			},
			Poison: func(r *sinks.Record) { r.Value = abi.JSON("{torn") },
		}
	})
}

func TestRow(t *testing.T) {
	s := newSink(t, Config{Dir: t.TempDir()})
	sinktest.Drain(t, s, []sinks.Record{
		{Seq: 1, ID: sinks.ID{Batch: 2, Index: 3}, Record: abi.Record{
			EventTime: 1, IngestTime: 9007199254740993, Source: "press \"4\"", Address: "ns=2;s=T", Protocol: abi.ProtocolOPCUA,
			Value: abi.Int(math.MinInt64), Status: 0x80000000, Attrs: []abi.Attr{
				{Key: abi.AttrUnit, Value: abi.String("°C")}, {Key: "value", Value: abi.Uint(math.MaxUint64)}, {Key: "empty"},
				{Key: abi.AttrRaw, Value: abi.Bytes([]byte{0, 0xff})}, {Key: "shift", Value: abi.JSON("{ \"a\":\n 1 }")},
				{Key: "nan", Value: abi.Float(math.NaN())}, {Key: "f", Value: abi.Float(1e21)}, {Key: "zero", Value: abi.Bool(false)},
			},
		}},
		{Seq: 2, Record: abi.Record{Protocol: abi.ProtocolMQTT, Address: "a/b"}},
	})
	num := func(s string) json.Number { return json.Number(s) }
	want := []map[string]any{{
		"record_id": "00000000000000000000000000000000-0000000000000002-00000003", "event_time": num("1"), "ingest_time": num("9007199254740993"),
		"source_name": `press "4"`, "node_id": "ns=2;s=T", "protocol": "opcua", "value": num("-9223372036854775808"), "value_type": "int64",
		"status_code": num("2147483648"), "unit": "°C", "attr_value": num("18446744073709551615"), "raw": "AP8=",
		"shift": map[string]any{"a": num("1")}, "nan": "NaN", "f": num("1e+21"), "zero": false,
	}, {
		"record_id": "00000000000000000000000000000000-0000000000000000-00000000", "event_time": num("0"), "ingest_time": num("0"),
		"topic": "a/b", "protocol": "mqtt", "status_code": num("0"),
	}}
	if diff := cmp.Diff(want, rows(t, s)); diff != "" {
		t.Error(diff)
	}
}

// A full file holds the destination; what was acknowledged is there, nothing
// beyond, and with room made it goes on.
func TestCap(t *testing.T) {
	dir := t.TempDir()
	s := newSink(t, Config{Dir: dir, MaxSizeMB: 1})
	big := func(seq uint64) []sinks.Record {
		r := sinktest.Record(seq)
		r.Value = abi.String(strings.Repeat("x", 300_000))
		return []sinks.Record{r}
	}
	st, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seq := uint64(1)
	for ; err == nil && seq < 10; seq++ {
		err = st.Send(t.Context(), big(seq))
	}
	if !sinks.Held(err) || !strings.Contains(err.Error(), "max_size_mb") || seq != 5 {
		t.Fatalf("Send %d: %v", seq, err)
	}
	var acked uint64
	for a := range st.Acks() {
		acked = a.Seq
	}
	if n := uint64(len(rows(t, s))); n != acked || st.Err() == nil {
		t.Errorf("%d rows, %d acknowledged, Err %v", n, acked, st.Err())
	}
	if err := os.WriteFile(s.Path(), bytes.Repeat([]byte("x\n"), 500_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context()); !sinks.Held(err) {
		t.Errorf("Open of a full file: %v", err)
	}
	if err := os.Rename(s.Path(), s.Path()+".1"); err != nil {
		t.Fatal(err)
	}
	sinktest.Drain(t, s, big(9))
	if n := len(rows(t, s)); n != 1 {
		t.Errorf("%d rows", n)
	}
}

func TestTornTail(t *testing.T) {
	for name, test := range map[string]struct{ before, after string }{
		"none":           {"{\"a\":1}\n", "{\"a\":1}\n"},
		"partial row":    {"{\"a\":1}\n{\"a\":", "{\"a\":1}\n"},
		"only partial":   {"{\"a\":", ""},
		"empty":          {"", ""},
		"a long partial": {"{}\n" + strings.Repeat("x", 3*tailBlock), "{}\n"},
		"at a block":     {strings.Repeat("x", tailBlock-1) + "\n" + strings.Repeat("y", tailBlock), strings.Repeat("x", tailBlock-1) + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "t.ndjson")
			if err := os.WriteFile(path, []byte(test.before), 0o600); err != nil {
				t.Fatal(err)
			}
			checkTail(t, path, test.after)
		})
	}
}

func checkTail(t *testing.T, path, want string) {
	t.Helper()
	f, size, err := openFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("next\n"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want+"next\n" || size != int64(len(want)) {
		t.Errorf("%d bytes left, want %d", len(got)-5, len(want))
	}
}

func FuzzTornTail(f *testing.F) {
	for _, seed := range []string{"", "\n", "a", "a\n", "a\nb", "\n\n\n", "{\"a\":1}\n{\"b\""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "t.ndjson")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		checkTail(t, path, string(data[:bytes.LastIndexByte(data, '\n')+1]))
	})
}

func TestConfigErrors(t *testing.T) {
	for _, bad := range []struct {
		cfg   Config
		table string
		want  string
	}{
		{Config{}, table, "dir is missing"},
		{Config{Dir: "x"}, "../../etc/passwd", "not catalog.schema.table"},
		{Config{Dir: "x"}, "a.b", "not catalog.schema.table"},
		{Config{Dir: "x", MaxSizeMB: -1}, table, "max_size_mb"},
	} {
		if _, err := New(bad.cfg, bad.table); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%+v %s: %v", bad.cfg, bad.table, err)
		}
	}
}

// A directory that cannot be written to is an error of Open that says so, and no
// reason to give up for ever.
func TestUnwritable(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSink(t, Config{Dir: filepath.Join(dir, "file", "below")})
	if _, err := s.Open(t.Context()); err == nil || sinks.Held(err) {
		t.Errorf("Open: %v", err)
	}
}

func FuzzRow(f *testing.F) {
	f.Add("source", "a/b", "text", uint8(5), "unit", int64(1), uint32(0))
	f.Add("", "", "{\"a\": [1,\n2]}", uint8(7), "value", int64(-1), uint32(1<<31))
	f.Add("\xff", "\x00", "\xff\xfe", uint8(6), "", int64(0), uint32(0))
	f.Fuzz(func(t *testing.T, source, address, text string, kind uint8, key string, n int64, status uint32) {
		values := []abi.Value{{}, abi.Bool(n != 0), abi.Int(n), abi.Uint(uint64(n)), abi.Float(math.Float64frombits(uint64(n))), abi.String(text), abi.Bytes([]byte(text)), abi.JSON(text)}
		v := values[int(kind)%len(values)]
		r := sinks.Record{Seq: 1, Record: abi.Record{EventTime: n, Source: source, Address: address, Protocol: abi.Protocol(kind % 4), Value: v, Status: status, Attrs: []abi.Attr{{Key: key, Value: v}}}}
		line, err := appendRow(nil, &r)
		if err != nil {
			return
		}
		if !json.Valid(line) || bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Errorf("row %q", line)
		}
	})
}
