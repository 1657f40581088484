package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sources"
)

var quiet = slog.New(slog.DiscardHandler)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

// TestHealthShape compares /health with the document's example, key by key.
func TestHealthShape(t *testing.T) {
	code, body := get(t, healthHandler(newFakeHost()), "/health")
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != 200 {
		t.Fatalf("HTTP %d, %v:\n%s", code, err, body)
	}
	want := map[string]any{
		"status": "healthy", "sources": map[string]any{"s1": "connected", "s2": "disabled"}, "zerobus": "connected",
		"queue_depth":    45.0, // 40 in the spool, 2 in memory, 3 held
		"uptime_seconds": 3600.0,
		"version":        "v9", "ready": true, "reasons": []any{}, "pipelines": map[string]any{"line1": "running"},
		"destinations": map[string]any{"c.s.t": "connected"}, "dead_letters": 2.0, "ledger_balanced": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// broken is a host that cannot describe itself.
type broken struct{ *fakeHost }

func (broken) Status(context.Context) (control.Status, error) {
	return control.Status{}, errors.New("deadlock")
}

func TestHealthCodes(t *testing.T) {
	host := func(status string, ready bool) control.Backend {
		h := newFakeHost()
		h.status.Status, h.status.Ready = status, ready
		return h
	}
	for name, test := range map[string]struct {
		backend             control.Backend
		health, ready, live int
	}{
		"healthy":   {host(control.Healthy, true), 200, 200, 200},
		"degraded":  {host(control.Degraded, true), 200, 200, 200},
		"unhealthy": {host(control.Unhealthy, true), 503, 503, 200},
		"starting":  {host(control.Healthy, false), 200, 503, 200},
		"broken":    {broken{newFakeHost()}, 503, 503, 503},
	} {
		h := healthHandler(test.backend)
		for path, want := range map[string]int{"/health": test.health, "/readyz": test.ready, "/livez": test.live, "/other": 404} {
			if code, body := get(t, h, path); code != want {
				t.Errorf("%s: %s answers %d, want %d\n%s", name, path, code, want, body)
			}
		}
	}
	if _, body := get(t, healthHandler(broken{newFakeHost()}), "/health"); !strings.Contains(body, "deadlock") || !strings.Contains(body, `"unhealthy"`) {
		t.Errorf("a broken host:\n%s", body)
	}
}

func TestWorst(t *testing.T) {
	for want, states := range map[string][]string{
		"connected":         {"connected", "connected"},
		"circuit_open":      {"connected", "circuit_open", "connecting"},
		"auth_failed":       {"auth_failed", "circuit_open", "held"},
		"something_new":     {"connected", "something_new"},
		notConfigured:       nil,
		"schema_unknown":    {"schema_unknown", "circuit_open"},
		"half_open":         {"half_open", "throttled"},
		"connecting":        {"throttled", "connecting"},
		control.BreakerOpen: {control.BreakerOpen},
	} {
		var d []control.DestinationStatus
		for _, s := range states {
			d = append(d, control.DestinationStatus{Sink: "zerobus", State: s}, control.DestinationStatus{Sink: "file", State: "held"})
		}
		if got := worst(d); got != want {
			t.Errorf("worst of %q = %s, want %s", states, got, want)
		}
	}
}

// TestMetrics compares the document's six names, and some of the others, with
// what a scrape gives.
func TestMetrics(t *testing.T) {
	want := `
# HELP batch_latency_seconds Time from reading a batch to its acknowledgement.
# TYPE batch_latency_seconds histogram
batch_latency_seconds_bucket{destination="c.s.t",le="0.1"} 3
batch_latency_seconds_bucket{destination="c.s.t",le="1"} 4
batch_latency_seconds_bucket{destination="c.s.t",le="+Inf"} 5
batch_latency_seconds_sum{destination="c.s.t"} 2.5
batch_latency_seconds_count{destination="c.s.t"} 5
# HELP connection_status 1 while data can flow, else 0.
# TYPE connection_status gauge
connection_status{kind="destination",name="c.s.t"} 1
connection_status{kind="source",name="s1"} 1
connection_status{kind="source",name="s2"} 0
# HELP destination_queue_records Records that wait for delivery, by where they are; the spool has all of them.
# TYPE destination_queue_records gauge
destination_queue_records{destination="c.s.t",where="memory"} 10
destination_queue_records{destination="c.s.t",where="spool"} 40
# HELP edgehost_healthy 1 healthy, 0.5 degraded, 0 unhealthy.
# TYPE edgehost_healthy gauge
edgehost_healthy 1
# HELP edgehost_source_points Points that are watched for silence.
# TYPE edgehost_source_points gauge
edgehost_source_points{protocol="mqtt",source="s1"} 9
edgehost_source_points{protocol="modbus",source="s2"} 0
# HELP edgehost_source_points_stale Points that are silent for longer than stale_after_seconds.
# TYPE edgehost_source_points_stale gauge
edgehost_source_points_stale{protocol="mqtt",source="s1"} 2
edgehost_source_points_stale{protocol="modbus",source="s2"} 0
# HELP ledger_balanced 1 while the ledger balances.
# TYPE ledger_balanced gauge
ledger_balanced 1
# HELP module_cache_entries Entries of compiled code on disk.
# TYPE module_cache_entries gauge
module_cache_entries 3
# HELP module_cache_hits_total Modules whose compiled code was found on disk.
# TYPE module_cache_hits_total counter
module_cache_hits_total 4
# HELP module_cache_misses_total Modules that were compiled although compiled code is kept on disk.
# TYPE module_cache_misses_total counter
module_cache_misses_total 0
# HELP module_cache_refused_total Entries of compiled code that were damaged or foreign: they were not executed and are gone.
# TYPE module_cache_refused_total counter
module_cache_refused_total 1
# HELP module_faults_by_class_total Faults of a module by class.
# TYPE module_faults_by_class_total counter
module_faults_by_class_total{class="bad_output",module="scale",pipeline="line1"} 0
module_faults_by_class_total{class="batch_error",module="scale",pipeline="line1"} 0
module_faults_by_class_total{class="deadline",module="scale",pipeline="line1"} 0
module_faults_by_class_total{class="depth",module="scale",pipeline="line1"} 0
module_faults_by_class_total{class="fuel",module="scale",pipeline="line1"} 0
module_faults_by_class_total{class="memory",module="scale",pipeline="line1"} 0
module_faults_by_class_total{class="trap",module="scale",pipeline="line1"} 1
# HELP module_faults_total Calls of a module that trapped, ran out of fuel or broke a limit.
# TYPE module_faults_total counter
module_faults_total{module="scale",pipeline="line1"} 1
# HELP mqtt_messages_total See the documentation of the protocol.
# TYPE mqtt_messages_total counter
mqtt_messages_total{protocol="mqtt",source="s1"} 101
# HELP mqtt_unacked See the documentation of the protocol.
# TYPE mqtt_unacked gauge
mqtt_unacked{protocol="mqtt",source="s1"} 3
# HELP queue_depth Records that were read and are not delivered yet, in memory and in the spool.
# TYPE queue_depth gauge
queue_depth 45
# HELP records_failed_total Records that a source could not make, that were dead-lettered, or that were dropped by a policy.
# TYPE records_failed_total counter
records_failed_total{name="",reason="rejected",stage="dead_letters"} 1
records_failed_total{name="",reason="schema",stage="dead_letters"} 2
records_failed_total{name="c.s.t",reason="dropped",stage="destination"} 1
records_failed_total{name="line1",reason="dropped",stage="pipeline"} 1
records_failed_total{name="s1",reason="decode_error",stage="source"} 2
# HELP records_read_total Records read from sources.
# TYPE records_read_total counter
records_read_total{protocol="mqtt",source="s1"} 100
records_read_total{protocol="modbus",source="s2"} 0
# HELP records_written_total Records that a destination acknowledged.
# TYPE records_written_total counter
records_written_total{destination="c.s.t"} 48
# HELP source_lag_seconds How far the last record was behind the clock when it was taken; negative when the device's clock is ahead.
# TYPE source_lag_seconds gauge
source_lag_seconds{protocol="mqtt",source="s1"} 0.25
`
	err := testutil.CollectAndCompare(statusCollector{newFakeHost()}, strings.NewReader(want), "batch_latency_seconds", "connection_status",
		"destination_queue_records", "edgehost_healthy", "ledger_balanced", "module_faults_total", "module_faults_by_class_total", "module_cache_hits_total",
		"module_cache_misses_total", "module_cache_refused_total", "module_cache_entries", "mqtt_messages_total", "mqtt_unacked",
		"queue_depth", "records_failed_total", "records_read_total", "records_written_total", "source_lag_seconds", "edgehost_source_points", "edgehost_source_points_stale")
	if err != nil {
		t.Error(err)
	}
	lint, err := testutil.CollectAndLint(statusCollector{newFakeHost()})
	if err != nil || len(lint) > 0 {
		t.Errorf("lint: %v, %v", lint, err)
	}
}

func TestMetricsHandler(t *testing.T) {
	code, body := get(t, metricsHandler(newFakeHost(), quiet), "/metrics")
	for _, want := range []string{"records_read_total{", "go_goroutines ", "process_", "ledger_records{"} {
		if !strings.Contains(body, want) {
			t.Errorf("HTTP %d, no %s", code, want)
		}
	}
	if code, body := get(t, metricsHandler(broken{newFakeHost()}, quiet), "/metrics"); code != 500 || !strings.Contains(body, "deadlock") {
		t.Errorf("a broken host: HTTP %d\n%s", code, body)
	}
}

// TestMetricsWithALabel: a protocol's own metric can have one, and none that
// spoils the scrape.
func TestMetricsWithALabel(t *testing.T) {
	h := newFakeHost()
	h.status.Sources = []control.SourceStatus{h.status.Sources[0], h.status.Sources[0]}
	h.status.Sources[0].Counters = map[string]float64{
		sources.Labelled("modbus_unit_up", "unit", "7"): 1, sources.Labelled("modbus_unit_up", "unit", "8"): 0,
		sources.Labelled("modbus_unit_requests_total", "unit", "7"): 42, "modbus_polls_total": 5,
		sources.Labelled("broken", "source", "x"): 1, `broken{unit="a"b"}`: 1, "broken{": 1, "Broken": 1,
	}
	h.status.Sources[1].Name, h.status.Sources[1].Counters = "other", map[string]float64{sources.Labelled("modbus_unit_up", "unit", "7"): 1}
	code, body := get(t, metricsHandler(h, quiet), "/metrics")
	first, protocol := h.status.Sources[0].Name, h.status.Sources[0].Protocol
	for _, want := range []string{
		fmt.Sprintf(`modbus_unit_up{protocol=%q,source=%q,unit="7"} 1`, protocol, first),
		fmt.Sprintf(`modbus_unit_up{protocol=%q,source=%q,unit="8"} 0`, protocol, first),
		fmt.Sprintf(`modbus_unit_up{protocol=%q,source="other",unit="7"} 1`, protocol),
		fmt.Sprintf(`modbus_unit_requests_total{protocol=%q,source=%q,unit="7"} 42`, protocol, first),
		"# TYPE modbus_unit_requests_total counter", "# TYPE modbus_unit_up gauge",
		fmt.Sprintf(`modbus_polls_total{protocol=%q,source=%q} 5`, protocol, first),
	} {
		if !strings.Contains(body, want) {
			t.Errorf("HTTP %d, no %s", code, want)
		}
	}
	if code != 200 || strings.Contains(strings.ToLower(body), "broken") {
		t.Errorf("HTTP %d\n%s", code, body)
	}
}

// TestReasonsAreBounded: a module chooses the reasons of its rejections.
func TestReasonsAreBounded(t *testing.T) {
	h := newFakeHost()
	h.status.DeadLetters.Total = map[string]uint64{}
	for i := range 1000 {
		h.status.DeadLetters.Total[strings.Repeat("x", i)] = uint64(i)
	}
	h.status.DeadLetters.Total["\xff"] = 100000
	if n := testutil.CollectAndCount(statusCollector{h}, "records_failed_total"); n > maxReasons+4 {
		t.Errorf("%d series of records_failed_total", n)
	}
	lint, err := testutil.CollectAndLint(statusCollector{h})
	if err != nil || len(lint) > 0 {
		t.Errorf("%v, %v", lint, err)
	}
}

func TestModuleTwiceInAChain(t *testing.T) {
	h := newFakeHost()
	h.status.Pipelines[0].Modules = append(h.status.Pipelines[0].Modules, h.status.Pipelines[0].Modules[0])
	if _, err := testutil.CollectAndLint(statusCollector{h}); err != nil {
		t.Error(err)
	}
}

// serveFake runs serve around a fakeHost until the test calls stop.
func serveFake(t *testing.T, cfg *config, log *slog.Logger) (h *fakeHost, stop func() error) {
	t.Helper()
	h = newFakeHost()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, cfg, h, log) }()
	return h, func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			t.Fatal("serve did not end")
			return nil
		}
	}
}

func httpConfig(t *testing.T, listen string) *config {
	c := newConfig()
	c.Health.Listen, c.Metrics.Listen, c.StateDir = listen, listen, t.TempDir()
	return c
}

func TestServeAnswersAndEnds(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var log syncBuffer
	cfg := httpConfig(t, "127.0.0.1:0")
	h, stop := serveFake(t, cfg, slog.New(slog.NewJSONHandler(&log, nil)))
	health, metrics := awaitListening(t, &log)
	for url, want := range map[string]string{health + "/health": `"status": "healthy"`, metrics + "/metrics": "queue_depth 45"} {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: %v, no %s in\n%s", url, err, want, body)
		}
	}
	client := control.NewClient(cfg.socket())
	defer client.Close()
	if s, err := client.Status(t.Context()); err != nil || s.Version != "v9" {
		t.Errorf("control socket: %+v, %v", s.Version, err)
	}
	if err := stop(); err != nil {
		t.Errorf("serve: %v", err)
	}
	<-h.ended
	if _, err := net.Dial("tcp", health); err == nil {
		t.Error("health is still listening")
	}
}

// TestServeFails: when a listener cannot be opened, serve ends with its reason
// and the host has ended too, without having read anything.
func TestServeFails(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	long := httpConfig(t, off)
	long.Control.Socket = filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	onlyMetrics := httpConfig(t, taken.Addr().String())
	onlyMetrics.Health.Listen = "127.0.0.1:0"
	for name, test := range map[string]struct {
		cfg  *config
		want string
	}{
		"health":  {httpConfig(t, taken.Addr().String()), "set health.listen to a free address"},
		"metrics": {onlyMetrics, "set metrics.listen to a free address"},
		"socket":  {long, "set control.socket to a shorter one"},
	} {
		h := newFakeHost()
		if err := serve(t.Context(), test.cfg, h, quiet); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		select {
		case <-h.ended:
			if h.read {
				t.Errorf("%s: the host read its sources before", name)
			}
		default:
			t.Errorf("%s: the host was left running", name)
		}
	}
}

func TestServeWithoutHTTP(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var log syncBuffer
	_, stop := serveFake(t, httpConfig(t, off), slog.New(slog.NewJSONHandler(&log, nil)))
	if health, metrics := awaitListening(t, &log); health != "" || metrics != "" {
		t.Errorf("listening on %q and %q", health, metrics)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func awaitListening(t *testing.T, log *syncBuffer) (health, metrics string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		wrote := log.wrote()
		for line := range strings.Lines(log.String()) {
			var l struct{ Msg, Health, Metrics string }
			if err := json.Unmarshal([]byte(line), &l); err == nil && l.Msg == "listening" {
				return l.Health, l.Metrics
			}
		}
		select {
		case <-wrote:
		case <-deadline:
			t.Fatalf("it does not listen:\n%s", log.String())
		}
	}
}

// syncBuffer is a bytes.Buffer for several goroutines that tells of writes.
type syncBuffer struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	next chan struct{}
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// wrote is closed by the next write.
func (b *syncBuffer) wrote() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}
