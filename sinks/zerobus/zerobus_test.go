package zerobus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sinks/zerobus"
	"github.com/edgehost/edgehost/sinks/zerobus/zerobustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline bounds everything that a test waits for; it is generous, since many
// tests share the machine.
const deadline = 2 * time.Minute

// bench is an emulator and what a sink needs to reach it.
type bench struct {
	*zerobustest.Emulator
	dir  string
	ca   string
	id   string
	mu   sync.Mutex
	pass string
	log  *bytes.Buffer
}

func newBench(t testing.TB, cfg zerobustest.Config) *bench {
	t.Helper()
	dir := t.TempDir()
	cfg.Dir = filepath.Join(dir, "tables")
	e, err := zerobustest.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{Emulator: e, dir: cfg.Dir, ca: filepath.Join(dir, "ca.pem"), id: "client", pass: "canary-" + t.Name(), log: &bytes.Buffer{}}
	if cfg.ClientSecret != "" {
		b.id, b.pass = cfg.ClientID, cfg.ClientSecret
	}
	if err := os.WriteFile(b.ca, e.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// credentials may be rotated by a test.
func (b *bench) credentials() (string, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.id, b.pass, nil
}

// target is the MQTT bronze table.
var target = zerobus.Target{Catalog: "mqtt", Schema: "scada_data", Table: "mqtt_events_bronze"}

func mqttSchema() func(context.Context) (zerobus.Schema, error) {
	schema, _ := zerobus.BronzeSchema(zerobus.MQTTTable, abi.ProtocolMQTT)
	return zerobus.Fixed(schema)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// options are those of a sink for the MQTT bronze table.
func (b *bench) options() zerobus.Options {
	return zerobus.Options{
		Config: zerobus.Config{WorkspaceHost: b.Workspace(), ZerobusEndpoint: b.Addr(), CACertPath: b.ca, Target: target},
		Schema: mqttSchema(), Credentials: b.credentials,
		Log: slog.New(slog.NewTextHandler(b.log, nil)),
	}
}

func (b *bench) sink(t testing.TB, change func(*zerobus.Options)) *zerobus.Sink {
	t.Helper()
	o := b.options()
	if change != nil {
		change(&o)
	}
	s, err := zerobus.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rows are the rows of a table, in the order in which they became durable.
func (b *bench) rows(t *testing.T, table string) []map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, table+".ndjson"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var rows []map[string]any
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
		rows = append(rows, row)
	}
	return rows
}

// record is the MQTT record number seq.
func record(seq uint64) sinks.Record {
	return sinks.Record{Seq: seq, ID: sinks.ID{Pipeline: [16]byte{0xed, 0x9e}, Batch: seq / 100, Index: uint32(seq)}, Record: abi.Record{
		EventTime: 1_700_000_000_000_000 + int64(seq), IngestTime: 1_700_000_000_000_100 + int64(seq),
		Source: "plant", Address: fmt.Sprintf("line/%d", seq), Protocol: abi.ProtocolMQTT, Value: abi.Float(float64(seq) / 4),
		Attrs: []abi.Attr{{Key: abi.AttrQoS, Value: abi.Int(1)}, {Key: abi.AttrRetain, Value: abi.Bool(false)}},
	}}
}

func records(from, to uint64) []sinks.Record {
	var out []sinks.Record
	for seq := from; seq <= to; seq++ {
		out = append(out, record(seq))
	}
	return out
}

// open opens a stream or fails the test.
func open(t *testing.T, s sinks.Sink) sinks.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	st, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// closing closes a stream or fails the test.
func closing(t *testing.T, st sinks.Stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), deadline)
	defer cancel()
	if err := st.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// awaitAck reads acks until seq is settled and returns the refusals on the way.
func awaitAck(t *testing.T, st sinks.Stream, seq uint64) []sinks.Refusal {
	t.Helper()
	var refused []sinks.Refusal
	timeout := time.After(deadline)
	for {
		select {
		case a, ok := <-st.Acks():
			if !ok {
				t.Fatalf("the stream ended before the ack of %d: %v", seq, st.Err())
			}
			refused = append(refused, a.Refused...)
			if a.Seq >= seq {
				return refused
			}
		case <-timeout:
			t.Fatalf("no ack of %d", seq)
		}
	}
}

func TestDeliver(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	s := b.sink(t, nil)
	st := open(t, s)
	if err := st.Send(t.Context(), records(1, 1000)); err != nil {
		t.Fatal(err)
	}
	if refused := awaitAck(t, st, 1000); len(refused) > 0 {
		t.Errorf("refused: %v", refused)
	}
	closing(t, st)
	if st.Err() != nil {
		t.Errorf("Err after Close: %v", st.Err())
	}
	rows := b.rows(t, zerobus.MQTTTable)
	if len(rows) != 1000 {
		t.Fatalf("%d rows", len(rows))
	}
	want := map[string]any{
		"event_time": json.Number("1700000000000003"), "ingest_time": json.Number("1700000000000103"), "source_name": "plant", "topic": "line/3",
		"value": json.Number("0.75"), "qos": json.Number("1"), "retain": false,
		"quality": "Good", "record_id": "ed9e0000000000000000000000000000-0000000000000000-00000003",
	}
	if diff := cmp.Diff(want, rows[2]); diff != "" {
		t.Error(diff)
	}
	st2 := s.Stats()
	if st2.Requests != 10 || st2.Sent != 1000 || st2.Acked != 1000 || st2.TokenMints != 1 || st2.Resent != 0 || st2.WindowBytes != 0 {
		t.Errorf("stats: %+v", st2)
	}
	if v := b.Stats().Violations; len(v) > 0 {
		t.Errorf("violations: %v", v)
	}
}
