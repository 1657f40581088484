package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks/zerobus"
	"github.com/edgehost/edgehost/sinks/zerobus/zerobustest"
)

// silentSite is a gateway that reads the demo's three devices into the emulator.
type silentSite struct {
	t       *testing.T
	dir     string
	plant   *plant
	press   *press
	oven    *oven
	config  string
	gateway *gateway
	stop    func()   // ends the gateway in order
	talk    sync.Map // topic to bool: whether its sensor speaks
}

// The press refuses one register; the oven is read by a process of its own.
const silentSources = `
state_dir: "DIR/state"
zerobus:
  workspace_host: "https://TOKEN"
  zerobus_endpoint: "https://INGEST"
  ca_cert_path: "DIR/ca.pem"
  auth: {client_id: t, client_secret: "${SECRET}"}
sources:
- name: plant
  protocol: mqtt
  endpoint: "mqtt://BROKER"
  stale_after_seconds: 4
  tags: {industry: mining}
  mqtt: {topics: [{topic: "plant/#", qos: 1, payload: {format: number}, tags: {unit: C}}]}
- name: press
  protocol: modbus
  endpoint: "modbus+tcp://PRESS"
  stale_after_seconds: 4
  modbus:
    poll_interval_ms: 200
    report: on_change
    registers:
    - {address: 30001, register_type: input, name: force}
    - {address: 30900, register_type: input, name: nowhere}
    - {address: 10001, register_type: discrete, name: closed}
- name: oven
  protocol: opcua
  endpoint: "opc.tcp://OVEN"
  stale_after_seconds: 4
  reconnect: {initial_delay_seconds: 0.2, max_delay_seconds: 0.5}
  opcua:` + ovenConfig + `
processing: {batch: {max_size: 500, max_wait_seconds: 0.1}}
`

func newSilentSite(t *testing.T) *silentSite {
	t.Helper()
	s := &silentSite{t: t, dir: t.TempDir()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	e, err := zerobustest.Start(zerobustest.Config{Dir: filepath.Join(s.dir, "tables"), ClientID: "t", ClientSecret: "t"})
	must(err)
	t.Cleanup(func() { must(e.Close()) })
	must(os.WriteFile(filepath.Join(s.dir, "ca.pem"), e.CAPEM(), 0o600))
	s.plant, err = startPlant(1)
	must(err)
	t.Cleanup(func() { must(s.plant.close()) })
	s.press, err = startPress()
	must(err)
	t.Cleanup(func() { must(s.press.close()) })
	s.oven, err = startOven(t.Context())
	must(err)
	t.Cleanup(func() {
		if s.oven != nil {
			must(s.oven.close())
		}
	})
	s.config = replaceWords(silentSources, map[string]string{"DIR": filepath.ToSlash(s.dir), "TOKEN": e.TokenAddr(), "INGEST": e.Addr(),
		"BROKER": s.plant.addr, "PRESS": s.press.addr, "OVEN": s.oven.addr})
	s.start()
	s.speak()
	return s
}

// start runs a gateway on what the one before left.
func (s *silentSite) start() {
	s.t.Helper()
	cfg := parseConfig("test", []byte(s.config), func(string) (string, bool) { return "t", true })
	if len(cfg.doc.found) > 0 {
		s.t.Fatal(cfg.doc.found)
	}
	g, err := openGateway(s.t.Context(), cfg, quiet)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	s.gateway, s.stop = g, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(s.stop)
}

// speak publishes every topic that is to speak, ten times a second.
func (s *silentSite) speak() {
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			s.talk.Range(func(topic, on any) bool {
				if on.(bool) {
					if err := s.plant.server.Publish(topic.(string), []byte("21.5"), false, 1); err != nil {
						s.t.Error(err)
					}
				}
				return true
			})
		}
	})
	s.t.Cleanup(func() { stop(); wg.Wait() })
}

// tableRow is a row of any bronze table, as far as this test looks at it.
type tableRow struct {
	Topic      string   `json:"topic"`
	NodeID     string   `json:"node_id"`
	Register   int      `json:"register_address"`
	Type       string   `json:"register_type"`
	Slave      int      `json:"slave_id"`
	Sensor     string   `json:"sensor_name"`
	Industry   string   `json:"industry"`
	Unit       string   `json:"unit"`
	Value      any      `json:"value"`
	Raw        *float64 `json:"raw_value"`
	Scaled     *int     `json:"scaled_value"`
	StatusCode uint32   `json:"status_code"`
	Status     string   `json:"status"`
	Quality    string   `json:"quality"`
	Reason     string   `json:"reason"`
	EventTime  int64    `json:"event_time"`
}

func (r tableRow) stale() bool { return strings.HasPrefix(r.Reason, "stale: ") }

// rows are those of a table that keep says, in the order of delivery.
func (s *silentSite) rows(table string, keep func(tableRow) bool) (out []tableRow) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "tables", table+".ndjson"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	for text := range strings.Lines(string(b)) {
		if !strings.HasSuffix(text, "\n") {
			continue
		}
		var r tableRow
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			s.t.Fatal(err)
		}
		if keep(r) {
			out = append(out, r)
		}
	}
	return out
}

func (s *silentSite) source(name string) control.SourceStatus {
	s.t.Helper()
	st, err := s.gateway.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, x := range st.Sources {
		if x.Name == name {
			return x
		}
	}
	s.t.Fatalf("no source %s", name)
	return control.SourceStatus{}
}

// until waits for cond.
func (s *silentSite) until(what string, cond func() bool) {
	s.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			st, _ := s.gateway.Status(context.Background())
			for _, x := range st.Sources {
				s.t.Logf("%s %s %q, %d of %d points silent", x.Name, x.State, x.Detail, x.PointsStale, x.Points)
			}
			s.t.Fatalf("waited for %s", what)
		}
	}
}

// TestSilenceReachesTheTables: a point of any protocol that stops becomes one
// bad row of its table, and is good again with its next record.
func TestSilenceReachesTheTables(t *testing.T) {
	t.Parallel()
	s := newSilentSite(t)
	s.talk.Store("plant/steady", true)
	s.talk.Store("plant/stops", true)
	s.until("all points to be known", func() bool {
		return s.source("plant").Points == 2 && s.source("press").Points == 3 && s.source("oven").Points == 3
	})
	s.checkMetrics()
	s.checkRefused()
	s.until("values of all three in the tables", func() bool {
		any := func(r tableRow) bool { return r.Quality == "Good" }
		return len(s.rows(zerobus.MQTTTable, any)) > 2 && len(s.rows(zerobus.ModbusTable, any)) > 2 && len(s.rows(zerobus.OPCUATable, any)) > 2
	})
	// MQTT: one of two topics stops. Modbus: paused. OPC UA: the server goes away.
	s.talk.Store("plant/stops", false)
	if err := s.gateway.PauseSource(t.Context(), "press"); err != nil {
		t.Fatal(err)
	}
	if err := s.oven.close(); err != nil {
		t.Fatal(err)
	}
	s.oven = nil
	stale := func(table string) []tableRow { return s.rows(table, tableRow.stale) }
	s.until("stale rows", func() bool {
		return len(stale(zerobus.MQTTTable)) > 0 && len(stale(zerobus.ModbusTable)) > 1 && len(stale(zerobus.OPCUATable)) > 2
	})
	s.until("states", func() bool {
		return s.source("plant").PointsStale == 1 && s.source("press").PointsStale == 2 && s.source("oven").PointsStale == 3
	})
	if x := s.source("plant"); x.State != "degraded" || !strings.HasPrefix(x.Detail, "1 of 3 points silent since ") || !strings.HasSuffix(x.Detail, ": plant/stops") {
		t.Errorf("plant is %s: %s", x.State, x.Detail)
	}
	if x := s.source("press"); x.State != "paused" || !strings.Contains(x.Detail, "2 of 3 points silent") {
		t.Errorf("press is %s: %s", x.State, x.Detail)
	}
	if x := s.source("oven"); x.State != "reconnecting" || !strings.Contains(x.Detail, "3 of 3 points silent") {
		t.Errorf("oven is %s: %s", x.State, x.Detail)
	}
	// They come back: the topic by a message, the press by its heartbeat at the latest.
	s.talk.Store("plant/stops", true)
	if err := s.gateway.ResumeSource(t.Context(), "press"); err != nil {
		t.Fatal(err)
	}
	s.until("points to be heard again", func() bool { return s.source("plant").State == "connected" && s.source("press").PointsStale == 0 })
	mqtt, modbus, opcua := stale(zerobus.MQTTTable), stale(zerobus.ModbusTable), stale(zerobus.OPCUATable)
	if len(mqtt) != 1 || len(modbus) != 2 || len(opcua) != 3 {
		t.Errorf("%d, %d and %d stale rows, want each point once: %+v %+v %+v", len(mqtt), len(modbus), len(opcua), mqtt, modbus, opcua)
	}
	if r := mqtt[0]; r.Topic != "plant/stops" || r.Quality != "Bad" || r.Value != nil || r.Sensor != "stops" || r.Industry != "mining" || r.Unit != "C" {
		t.Errorf("mqtt: %+v", r)
	}
	for _, r := range modbus {
		if r.Register != 30001 && r.Register != 10001 || r.Slave != 1 || r.Type == "" || r.Raw != nil || r.Scaled != nil || r.Quality != "Bad" || r.Sensor == "" {
			t.Errorf("modbus: %+v", r)
		}
	}
	for _, r := range opcua {
		if !strings.Contains(r.NodeID, "oven.") || r.StatusCode != 0x80310000 || r.Status != "BadNoCommunication" || r.Quality != "Bad" || r.Value != nil {
			t.Errorf("opcua: %+v", r)
		}
	}
	s.until("a good row after the stale one", func() bool {
		after := func(table string, at int64, same func(tableRow) bool) bool {
			return len(s.rows(table, func(r tableRow) bool { return same(r) && r.Quality == "Good" && r.EventTime > at })) > 0
		}
		return after(zerobus.MQTTTable, mqtt[0].EventTime, func(r tableRow) bool { return r.Topic == "plant/stops" }) &&
			after(zerobus.ModbusTable, modbus[0].EventTime, func(r tableRow) bool { return r.Register == modbus[0].Register })
	})
	s.checkRestart()
}

// checkRestart: the other topic stops while the gateway is down; the oven's nodes
// were reported before. A point that is bad, plant/odd, is not kept.
func (s *silentSite) checkRestart() {
	s.t.Helper()
	s.stop()
	s.talk.Store("plant/steady", false)
	s.start()
	s.until("what was known before", func() bool { return s.source("oven").PointsStale == 3 && s.source("plant").Points == 2 })
	s.until("the topic that stopped meanwhile", func() bool { return s.source("plant").PointsStale == 1 })
	fell := func(table string) []tableRow { return s.rows(table, tableRow.stale) }
	s.until("its row", func() bool { return len(fell(zerobus.MQTTTable)) > 1 })
	if rows := fell(zerobus.MQTTTable); len(rows) != 2 || rows[1].Topic != "plant/steady" || rows[1].Unit != "C" || rows[1].Quality != "Bad" {
		s.t.Errorf("mqtt: %+v", rows)
	}
	if rows := fell(zerobus.OPCUATable); len(rows) != 3 {
		s.t.Errorf("opcua: %d stale rows, want each node once: %+v", len(rows), rows)
	}
}

// checkRefused: the register that the press does not have is one bad row.
func (s *silentSite) checkRefused() {
	s.t.Helper()
	refused := func(r tableRow) bool { return r.Register == 30900 }
	s.until("the refused register", func() bool { return len(s.rows(zerobus.ModbusTable, refused)) > 0 })
	for i, r := range s.rows(zerobus.ModbusTable, refused) {
		if i > 0 || r.Quality != "Bad" || !strings.Contains(r.Reason, "illegal data address") || r.Raw != nil || r.Scaled != nil {
			s.t.Errorf("row %d of the refused register: %+v", i, r)
		}
	}
}

// promised are the metrics of each source, and those of each protocol.
var promised = map[string][]string{
	"": {"records_read_total", "connection_status", "reconnects_total", "last_record_timestamp_seconds", "source_lag_seconds", "bytes_read_total",
		"records_failed_total", "edgehost_source_points", "edgehost_source_points_stale", "state_info"},
	"mqtt": {"mqtt_messages_total", "mqtt_redelivered_total", "mqtt_unacked", "mqtt_dropped_total", "mqtt_decode_errors_total"},
	"modbus": {"modbus_polls_total", "modbus_poll_errors_total", "modbus_exceptions_total", "modbus_timeouts_total", "modbus_poll_overruns_total",
		"modbus_poll_duration_seconds_total", "modbus_units_down"},
	"opcua": {"opcua_items", "opcua_items_bad", "opcua_republished_total", "opcua_gaps_total", "opcua_overflow_total", "opcua_session_resumes_total"},
}

// checkMetrics scrapes the gateway for every name that a source was promised.
func (s *silentSite) checkMetrics() {
	s.t.Helper()
	if err := s.plant.server.Publish("plant/odd", []byte("no number"), false, 1); err != nil {
		s.t.Fatal(err)
	}
	scrape := func() (missing []string) {
		w := httptest.NewRecorder()
		metricsHandler(s.gateway, quiet).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for protocol, name := range map[string]string{"mqtt": "plant", "modbus": "press", "opcua": "oven"} {
			for _, m := range append(append([]string(nil), promised[""]...), promised[protocol]...) {
				if !regexp.MustCompile(`(?m)^` + m + `\{[^}]*"` + name + `"`).MatchString(w.Body.String()) {
					missing = append(missing, m+" of "+name)
				}
			}
		}
		return missing
	}
	// Some tell of what has been, and nothing has been at the start.
	s.until("every promised metric", func() bool { return len(scrape()) == 0 })
}
