package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/spool"
)

var someday = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// fakeHost is a host without sources and sinks: it answers from memory. The
// environment makes it unhealthy or refuse to start, as a script needs it.
type fakeHost struct {
	mu      sync.Mutex
	status  control.Status
	modules map[string]control.Module
	letters []control.DeadLetter
	ended   chan struct{}
	read    bool // it ran, and was not only closed; valid once ended is closed
}

func newFakeHost() *fakeHost {
	return &fakeHost{modules: map[string]control.Module{}, ended: make(chan struct{}), letters: []control.DeadLetter{
		{ID: "17", Time: someday, Reason: "schema", Error: "column value: not a number", Source: "s1", Address: "a/b",
			Destination: "c.s.t", EventTime: someday, Bytes: 80, Record: json.RawMessage(`{"value":"x"}`)},
		{ID: "18", Time: someday, Reason: "rejected", Error: "out of\nrange\x1b[31m", Source: "s1", Address: "a/c", Pipeline: "line1", Module: "scale"},
		{ID: "19", Time: someday, Reason: "module_trap", Error: "module poison (revision 0011): trap: wasm error: unreachable in .$3(i32) i32",
			Source: "s1", Address: "a/trap", Pipeline: "line1", Module: "poison", Revision: "00112233445566778899",
			Record: json.RawMessage(`{"source":"s1","address":"a/trap","protocol":"mqtt","kind":"float64","value":1.5}`)},
		{ID: "20", Time: someday, Reason: "rejected", Error: "not wanted here", Source: "s1", Address: "a/reject", Pipeline: "line1", Module: "poison",
			Record: json.RawMessage(`{"source":"s1","address":"a/reject","protocol":"mqtt","kind":"float64","value":1.5}`)},
	}, status: control.Status{
		Version: "v9", StartedAt: someday, UptimeSeconds: 3600.5, Status: control.Healthy, Ready: true,
		Sources: []control.SourceStatus{
			{Name: "s1", Protocol: "mqtt", Pipeline: "line1", State: "connected", LastRead: someday, Records: 100, Bytes: 900, Points: 9, PointsStale: 2, LagSeconds: new(0.25),
				Failed: map[string]uint64{"decode_error": 2}, Counters: map[string]float64{"mqtt_unacked": 3, "mqtt_messages_total": 101, "queue_depth": 7, "Bad Name": 1}},
			{Name: "s2", Protocol: "modbus", Pipeline: "s2", State: "disabled"},
		},
		Pipelines: []control.PipelineStatus{{Name: "line1", State: control.PipelineRunning, Sources: []string{"s1"}, Targets: []string{"c.s.t"},
			Queued:  control.QueueDepth{Records: 2, Bytes: 20},
			Modules: []control.ModuleInUse{{Name: "scale", Digest: "00112233445566778899", Calls: 5, Faults: 1, FaultsByClass: map[string]uint64{"trap": 1}, Seconds: 0.25, Fuel: 1000, Memory: 65536}},
			Ledger:  control.PipelineLedger{Name: "line1", Read: 100, Transformed: 90, Filtered: 5, Rejected: 1, Held: 3, Dropped: 1, Emitted: 91, Balanced: true}}},
		Destinations: []control.DestinationStatus{{Name: "c.s.t", Sink: "zerobus", State: control.DestinationConnected,
			Breaker: control.BreakerStatus{State: control.BreakerClosed}, Queue: control.QueueDepth{Records: 40, Bytes: 4000},
			Memory: control.QueueDepth{Records: 10, Bytes: 1000}, Oldest: someday, LastDelivered: someday, BytesOnDisk: 12345678,
			Latency: control.Histogram{Bounds: []float64{0.1, 1}, Counts: []uint64{3, 4}, Count: 5, Sum: 2.5},
			Ledger:  control.DestinationLedger{Name: "c.s.t", Appended: 91, Delivered: 48, Waiting: 40, DeadLettered: 2, Dropped: 1, Replayed: 6, Balanced: true}}},
		DeadLetters: control.DeadLetterStatus{Entries: 2, Bytes: 100, Cap: 64000000, Total: map[string]uint64{"schema": 2, "rejected": 1}},
		Spool:       control.SpoolStatus{Dir: "spool", Bytes: 12345678, Cap: 1000000000, Encrypted: true, DropPolicy: "reject", SecondsToFull: 7200},
		Ledger:      control.Ledger{Read: 100, Delivered: 48, Waiting: 40, Filtered: 5, DeadLettered: 3, Dropped: 2, Held: 3, Balanced: true},
		ModuleCache: control.ModuleCacheStatus{Hits: 4, Refused: 1, Entries: 3, Bytes: 300},
		NotInForce:  []string{"performance.memory.gc_strategy (accepted, no effect)"},
	}}
}

// openFakeHost is newHost of the test binary. FAKE_START names the way in which
// it cannot start.
func openFakeHost(_ context.Context, cfg *config, log *slog.Logger) (runner, error) {
	switch os.Getenv("FAKE_START") {
	case "wrong key":
		return nil, spool.ErrWrongKey
	case "locked":
		return nil, spool.ErrLocked
	}
	h := newFakeHost()
	h.status.Version, h.status.NotInForce = version, cfg.NotInForce()
	if reason := os.Getenv("FAKE_UNHEALTHY"); reason != "" {
		h.status.Status, h.status.Reasons = control.Unhealthy, []string{reason}
	}
	log.Info("fake host", "component", "host")
	return h, os.MkdirAll(filepath.Clean(cfg.StateDir), 0o700)
}

func (h *fakeHost) Run(ctx context.Context) error {
	h.read = ctx.Err() == nil
	<-ctx.Done()
	close(h.ended)
	return nil
}

func (h *fakeHost) Status(context.Context) (control.Status, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.status
	s.Sources = slices.Clone(s.Sources)
	return s, nil
}

func (h *fakeHost) PushModule(_ context.Context, r control.PushRequest) (control.Module, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(r.Wasm) < 8 {
		return control.Module{}, control.Errorf(control.Refused, "the module is not admitted: it ends after %d bytes", len(r.Wasm))
	}
	sum := sha256.Sum256(r.Wasm)
	m := h.modules[r.Name]
	m.Name = r.Name
	rev := control.Revision{Digest: hex.EncodeToString(sum[:]), Size: int64(len(r.Wasm)), At: someday, By: r.By}
	m.Revisions = slices.Insert(m.Revisions, 0, rev)
	if r.Activate {
		m.Active = rev.Digest
	}
	if r.Name == "scale" {
		m.Pipelines = []string{"line1"}
	}
	h.modules[r.Name] = m
	return m, nil
}

func (h *fakeHost) Modules(context.Context) ([]control.Module, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []control.Module{}
	for _, m := range h.modules {
		out = append(out, m)
	}
	return out, nil
}

func (h *fakeHost) RollbackModule(_ context.Context, name string) (control.Module, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m, ok := h.modules[name]
	if !ok {
		return m, control.Errorf(control.NotFound, "no module is called %s", name)
	}
	if len(m.Revisions) < 2 {
		return m, control.Errorf(control.Invalid, "%s has no earlier revision", name)
	}
	m.Active = m.Revisions[1].Digest
	h.modules[name] = m
	return m, nil
}

func (h *fakeHost) Replay(_ context.Context, r control.ReplayRequest) (control.ReplayResult, error) {
	if r.Destination != "" && r.Destination != "c.s.t" {
		return control.ReplayResult{}, control.Errorf(control.NotFound, "no destination is called %s", r.Destination)
	}
	if r.Rate == 13 {
		return control.ReplayResult{}, control.Errorf(control.Busy, "another replay is under way")
	}
	return control.ReplayResult{DryRun: r.DryRun, Records: 48, Bytes: 4800, Destinations: []control.ReplayDestination{
		{Name: "c.s.t", Records: 48, Bytes: 4800, FirstSeq: r.FromSeq, LastSeq: 47, First: someday, Last: someday}}}, nil
}

func (h *fakeHost) selected(f control.DeadLetterFilter) (out []control.DeadLetter) {
	for _, d := range h.letters {
		if (len(f.IDs) == 0 || slices.Contains(f.IDs, d.ID)) && (f.Reason == "" || f.Reason == d.Reason) && d.ID > f.After &&
			(f.Limit == 0 || len(out) < f.Limit) {
			out = append(out, d)
		}
	}
	return out
}

func (h *fakeHost) DeadLetters(_ context.Context, f control.DeadLetterFilter) ([]control.DeadLetter, error) {
	return h.selected(f), nil
}

func (h *fakeHost) DeadLetter(_ context.Context, id string) (control.DeadLetter, error) {
	found := h.selected(control.DeadLetterFilter{IDs: []string{id}})
	if len(found) == 0 {
		return control.DeadLetter{}, control.Errorf(control.NotFound, "no dead letter has the id %s", id)
	}
	return found[0], nil
}

func (h *fakeHost) ReplayDeadLetters(_ context.Context, f control.DeadLetterFilter) (int, error) {
	return len(h.selected(f)), nil
}

func (h *fakeHost) PurgeDeadLetters(_ context.Context, f control.DeadLetterFilter) (int, error) {
	return len(h.selected(f)), nil
}

func (h *fakeHost) PauseSource(_ context.Context, name string) error {
	return h.setSource(name, "paused")
}

func (h *fakeHost) ResumeSource(_ context.Context, name string) error {
	return h.setSource(name, "connected")
}

func (h *fakeHost) setSource(name, state string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.status.Sources, func(s control.SourceStatus) bool { return s.Name == name })
	switch {
	case i < 0:
		return control.Errorf(control.NotFound, "no source is called %s; there are: s1, s2", name)
	case h.status.Sources[i].State == "disabled":
		return control.Errorf(control.Invalid, "source %s is disabled in the configuration", name)
	}
	h.status.Sources[i].State = state
	return nil
}

func (h *fakeHost) ResetBreaker(_ context.Context, d string) error {
	if d != "c.s.t" {
		return control.Errorf(control.NotFound, "no destination is called %s", d)
	}
	return nil
}
