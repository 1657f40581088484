//go:build !race

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sinks/file"
	"github.com/edgehost/edgehost/sources"
)

// liveHost is the host of an example's configuration as serve makes it, but that
// its source is the test.
type liveHost struct {
	t    *testing.T
	cfg  *config
	in   chan sources.Batch
	done chan error
	host *gateway
	log  syncBuffer
	stop func()
}

// liveConfig is the configuration of an example with its state in a directory of
// the test. The key lies elsewhere, so that compiled code is kept.
func liveConfig(t *testing.T, name string) *config {
	t.Helper()
	cfg := exampleConfig(t, filepath.Join("examples", name))
	for i := range cfg.Pipelines[0].Modules {
		cfg.Pipelines[0].Modules[i].TickSeconds = 0 // until a test wants ticks
	}
	dir := t.TempDir()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	cfg.StateDir, cfg.Sinks.File.Dir, cfg.Spool.KeyFile = filepath.Join(dir, "state"), filepath.Join(dir, "rows"), filepath.Join(dir, "key")
	if err := os.WriteFile(cfg.Spool.KeyFile, []byte(base64.StdEncoding.EncodeToString(key)), 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func startLive(t *testing.T, cfg *config) *liveHost {
	t.Helper()
	l := &liveHost{t: t, cfg: cfg}
	t.Cleanup(func() { l.stop() })
	l.start()
	return l
}

func (l *liveHost) start() {
	l.t.Helper()
	l.in, l.done = make(chan sources.Batch), make(chan error, 1)
	l.host = &gateway{cfg: l.cfg, log: slog.New(slog.NewTextHandler(io.MultiWriter(l.t.Output(), &l.log), nil))}
	hc, err := l.host.open()
	if err != nil {
		l.t.Fatal(errors.Join(err, l.host.close(context.Background())))
	}
	hc.Sources[0].Source = l
	if l.host.Host, err = host.New(l.t.Context(), hc); err != nil {
		l.t.Fatal(errors.Join(err, l.host.close(context.Background())))
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.host.Run(ctx) }()
	l.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			l.t.Error(err)
		}
		l.stop = func() {}
	}
}

// Run is the source.
func (l *liveHost) Run(ctx context.Context, emit sources.Emit) error {
	for {
		select {
		case b := <-l.in:
			if err := emit(ctx, b, func(err error) { l.done <- err }); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *liveHost) push(name string, wasm []byte) {
	l.t.Helper()
	if _, err := l.host.PushModule(l.t.Context(), control.PushRequest{Name: name, Wasm: wasm, Activate: true}); err != nil {
		l.t.Fatal(err)
	}
}

// give sends one batch and returns when it is durable.
func (l *liveHost) give(recs ...abi.Record) {
	l.t.Helper()
	deadline := time.After(patience)
	select {
	case l.in <- sources.Batch{Time: readAt(&recs[len(recs)-1]), Records: recs}:
	case <-deadline:
		l.t.Fatal("nobody takes the batch")
	}
	select {
	case err := <-l.done:
		if err != nil {
			l.t.Fatal(err)
		}
	case <-deadline:
		l.t.Fatal("the batch is not settled")
	}
}

// delivered waits until n records are, and looks at the ledger.
func (l *liveHost) delivered(n int) {
	l.t.Helper()
	deadline := time.After(patience)
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for {
		s, err := l.host.Status(l.t.Context())
		if err != nil {
			l.t.Fatal(err)
		}
		if s.Ledger.Delivered == uint64(n) && s.Ledger.Waiting == 0 {
			if !s.Ledger.Balanced || s.Pipelines[0].State != control.PipelineRunning {
				l.t.Errorf("the pipeline is %s, ledger %+v", s.Pipelines[0].State, s.Ledger)
			}
			return
		}
		select {
		case <-look.C:
		case <-deadline:
			l.t.Fatalf("%d records are delivered, %d wait, want %d: %v\n%+v", s.Ledger.Delivered, s.Ledger.Waiting, n, s.Reasons, s.Destinations)
		}
	}
}

// rejected lists address and reason of the dead letters.
func (l *liveHost) rejected() (out []string) {
	l.t.Helper()
	letters, err := l.host.DeadLetters(l.t.Context(), control.DeadLetterFilter{})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, d := range letters {
		out = append(out, d.Address+": "+d.Error)
	}
	return out
}

// rows are the lines in the file of a table, without their record ids.
func rows(t *testing.T, dir, table string) (out []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, table+".ndjson"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		_, rest, _ := strings.Cut(string(line), ",")
		out = append(out, strings.TrimSpace(rest))
	}
	return out
}

// rowsOf are the lines that the file sink writes for records.
func rowsOf(t *testing.T, table string, recs []abi.Record) []string {
	t.Helper()
	dir := t.TempDir()
	sink, err := file.New(file.Config{Dir: dir}, table)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := sink.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []sinks.Record
	for i, r := range recs {
		out = append(out, sinks.Record{Seq: uint64(i + 1), Record: r})
	}
	if err := errors.Join(stream.Send(t.Context(), out), stream.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	return rows(t, dir, table)
}

// checkLive sends the records of an example through a live host, half of them
// before a restart, and wants its outcomes in the tables and the dead-letter queue.
func checkLive(t *testing.T, l *liveHost, in []abi.Record, want []outcome) {
	t.Helper()
	plan := l.cfg.plan()[0]
	byTable := map[string][]abi.Record{plan.Target.String(): nil}
	var rejected []string
	for _, o := range want {
		table := plan.Target.String()
		switch {
		case o.Rejected != "":
			rejected = append(rejected, o.Address+": "+o.Rejected)
			continue
		case o.Output != "":
			table = plan.Outputs[o.Output].String()
		}
		byTable[table] = append(byTable[table], o.Record)
	}
	l.give(in[:len(in)/2]...)
	l.stop()
	l.start()
	if !strings.Contains(l.log.String(), "from_cache=true") {
		t.Error("the second start compiled the module again")
	}
	l.give(in[len(in)/2:]...)
	l.delivered(len(want) - len(rejected))
	if diff := cmp.Diff(rejected, l.rejected()); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	l.stop()
	if len(byTable) != 1+len(plan.Outputs) {
		t.Errorf("the example does not fill its %d tables", 1+len(plan.Outputs))
	}
	for table, recs := range byTable {
		if diff := cmp.Diff(rowsOf(t, table, recs), rows(t, l.cfg.Sinks.File.Dir, table)); diff != "" {
			t.Errorf("rows of %s (-want +got):\n%s", table, diff)
		}
	}
}

// checkLiveMinutes: a host ticks by its own clock, so the minutes are of today.
// Windows that were opened before a restart are closed after it, one by a tick and one
// by a record of the next minute.
func checkLiveMinutes(t *testing.T, l *liveHost) {
	t.Helper()
	cfg := l.cfg
	table := cfg.plan()[0].Target.String()
	hour := time.Hour.Microseconds()
	past, future := floor(time.Now().UnixMicro()-hour, minuteMicros), floor(time.Now().UnixMicro()+hour, minuteMicros)
	rec := func(address string, at int64, v float64) abi.Record {
		return abi.Record{EventTime: at, IngestTime: time.Now().UnixMicro(), Source: "plant", Address: address, Protocol: abi.ProtocolMQTT, Value: abi.Float(v)}
	}
	l.give(rec("line1/temperature", future, 20), rec("line1/pressure", past, 3), rec("line1/temperature", future+15e6, 22))
	l.give(rec("line1/pressure", past+30e6, 5))
	l.stop()
	cfg.Pipelines[0].Modules[0].TickSeconds = 0.05
	l.start()
	l.delivered(1) // by a tick; the first run had none
	l.give(rec("line1/pressure", past+40e6, 7), rec("line1/temperature", future+59e6, 27))
	l.give(rec("line1/temperature", future+60e6, 1))
	l.delivered(2)
	if diff := cmp.Diff([]string{"line1/pressure: the minute of this record is closed"}, l.rejected()); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	l.stop()
	var got []string
	for _, line := range rows(t, cfg.Sinks.File.Dir, table) {
		var r struct {
			Address         string
			Source          string `json:"source_name"`
			Begin           int64  `json:"event_time"`
			Value, Min, Max float64
			Count           int
		}
		if err := json.Unmarshal([]byte("{"+line), &r); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s %d: %v of %d, %v to %v", r.Source, r.Address, r.Begin, r.Value, r.Count, r.Min, r.Max))
	}
	want := []string{fmt.Sprintf("plant line1/pressure %d: 4 of 2, 3 to 5", past), fmt.Sprintf("plant line1/temperature %d: 23 of 3, 20 to 27", future)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

const minuteMicros = 60_000_000
