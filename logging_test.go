package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestLogger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "connector.log")
	c := newConfig().Monitoring.Logging
	c.FilePath = path
	var stderr strings.Builder
	var level slog.LevelVar
	log, file, err := newLogger(c, &stderr, &level)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("too quiet")
	log.With("component", "source", "source", "m1").Info("connected", "records", 5, "error", errors.New("two\nlines"))
	level.Set(slog.LevelDebug) // while it runs
	log.Debug("loud enough")
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	written, err := os.ReadFile(path)
	if err != nil || string(written) != stderr.String() {
		t.Errorf("file and stderr differ: %v\n%s\n%s", err, written, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2:\n%s", len(lines), stderr.String())
	}
	var line struct {
		TS               time.Time
		Level, Msg       string
		Component, Error string
	}
	if err := json.Unmarshal([]byte(lines[0]), &line); err != nil {
		t.Fatal(err)
	}
	if line.TS.IsZero() || line.TS.Location() != time.UTC || line.Level != "INFO" || line.Msg != "connected" || line.Component != "source" || line.Error != "two\nlines" {
		t.Errorf("line = %+v", line)
	}
}

func TestLoggerText(t *testing.T) {
	c := newConfig().Monitoring.Logging
	c.Format, c.Level = "text", "warning"
	var stderr strings.Builder
	log, _, err := newLogger(c, &stderr, new(slog.LevelVar))
	if err != nil {
		t.Fatal(err)
	}
	log.Info("too quiet")
	log.Warn("heard", "a", 1)
	if got := stderr.String(); !strings.Contains(got, "level=WARN msg=heard a=1") || strings.Contains(got, "quiet") {
		t.Errorf("%s", got)
	}
}

func TestLoggerRefuses(t *testing.T) {
	inFile := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(inFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]loggingConfig{
		"level":     {Level: "LOUD"},
		"no dir":    {Level: "INFO", FilePath: filepath.Join(inFile, "x", "log")},
		"directory": {Level: "INFO", FilePath: t.TempDir()},
	} {
		if _, _, err := newLogger(c, new(strings.Builder), new(slog.LevelVar)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// failing is a file on a full disk.
type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// TestLogOnFullDisk: stderr has every line although the file takes none.
func TestLogOnFullDisk(t *testing.T) {
	var stderr strings.Builder
	level := new(slog.LevelVar)
	log := slog.New(slog.NewMultiHandler(logHandler("json", failing{}, level), logHandler("json", &stderr, level)))
	log.Info("still here")
	if !strings.Contains(stderr.String(), "still here") {
		t.Error("the line is lost")
	}
}

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

// twice returns the first key that an object has twice, "" when none.
func twice(object string) string {
	d := json.NewDecoder(strings.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return object
	}
	seen := map[any]bool{}
	for d.More() {
		key, err := d.Token()
		var value json.RawMessage
		if err != nil || d.Decode(&value) != nil || seen[key] {
			return fmt.Sprint(key)
		}
		seen[key] = true
	}
	return ""
}

// closedPort is an address of this machine at which nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// waitBytes waits until bytes of a source are counted.
func waitBytes(t *testing.T, h runner, source string) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := h.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range st.Sources {
			if s.Name == source && s.Bytes > 0 {
				return
			}
		}
		select {
		case <-deadline:
			t.Fatalf("no byte of source %s was counted", source)
		case <-tick.C:
		}
	}
}

// TestLogKeysOnce runs sources of every protocol, in the host's process and in
// their own, and sources that reach nobody: each line names its source, and has
// no key twice. Of those that reach somebody the bytes are counted.
func TestLogKeysOnce(t *testing.T) {
	dir := t.TempDir()
	var devices demoSystem
	if err := devices.startDevices(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(devices.plant.close(), devices.press.close(), devices.oven.close()); err != nil {
			t.Error(err)
		}
	}()
	devices.plant.run()
	nobody := closedPort(t)
	// Its server cannot translate a browse path, of which the source itself writes.
	const oven = "security_policy: None, security_mode: None, mode: poll, nodes: [{browse_path: Objects/2:x}, {node_id: i=2258}]"
	cfg := load(t, fmt.Sprintf(`
state_dir: %q
sinks: {file: {dir: %q}}
resilience: {reconnect: {initial_delay_seconds: 0.05, max_delay_seconds: 0.05}}
sources:
- {name: mqtt, protocol: mqtt, endpoint: "mqtt://%s", mqtt: {topics: [{topic: "plant/#"}]}}
- {name: modbus, protocol: modbus, endpoint: "modbus+tcp://%s", modbus: {registers: [{address: 30001, register_type: input}, {address: 39999, register_type: input}]}}
- {name: opcua, protocol: opcua, isolation: none, endpoint: "opc.tcp://%s", opcua: {%s}}
- {name: isolated, protocol: opcua, endpoint: "opc.tcp://%s", opcua: {%s}}
- {name: no-mqtt, protocol: mqtt, endpoint: "mqtt://%s", mqtt: {topics: [{topic: "plant/#"}]}}
- {name: no-modbus, protocol: modbus, endpoint: "modbus+tcp://%s", modbus: {registers: [{address: 30001, register_type: input}]}}
- {name: no-opcua, protocol: opcua, endpoint: "opc.tcp://%s", opcua: {nodes: [{node_id: i=2258}]}}
`, filepath.Join(dir, "state"), filepath.Join(dir, "rows"), devices.plant.addr, devices.press.addr, devices.oven.addr, oven, devices.oven.addr, oven, nobody, nobody, nobody))
	cfg.Spool.KeyEnv = ""
	var log lines
	ctx, cancel := context.WithCancel(t.Context())
	h, err := newHost(ctx, cfg, slog.New(logHandler("json", &log, slog.LevelDebug)))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	want := map[string]string{"mqtt": "source connected", "modbus": "source degraded", "opcua": "server does not translate", "isolated": "server does not translate",
		"no-mqtt": "source reconnecting", "no-modbus": "source reconnecting", "no-opcua": "source reconnecting"}
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for len(want) > 0 {
		select {
		case <-deadline:
			t.Fatalf("not in the log: %v\n%s", want, strings.Join(log.all(), "\n"))
		case <-tick.C:
		}
		for _, l := range log.all() {
			var line struct{ Source, Msg string }
			if json.Unmarshal([]byte(l), &line) == nil && want[line.Source] != "" && strings.HasPrefix(line.Msg, want[line.Source]) {
				delete(want, line.Source)
			}
		}
	}
	for _, name := range []string{"mqtt", "modbus", "opcua", "isolated"} {
		waitBytes(t, h, name)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, l := range log.all() {
		if key := twice(l); key != "" {
			t.Errorf("%q is twice in %s", key, l)
		}
	}
}
