//go:build conformance

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/edgehost/edgehost/host/control"
)

// modbusPeer starts the libmodbus slave of the Modbus suite with float32 values
// from holding register 40001 on, and returns its address.
func modbusPeer(t *testing.T, values []float32) string {
	t.Helper()
	dir := t.TempDir()
	slave := filepath.Join(dir, "slave")
	if out, err := exec.Command("gcc", "-O1", "-I/usr/include/modbus", "-o", slave, "sources/modbus/testdata/libmodbus_server.c", "-lmodbus").CombinedOutput(); err != nil {
		t.Fatalf("build the libmodbus slave (conformance/install-modbus.sh installs what it needs): %v\n%s", err, out)
	}
	var words strings.Builder
	for _, v := range values {
		fmt.Fprintf(&words, "%08x", math.Float32bits(v))
	}
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, fmt.Appendf(nil, "holding %s\n", words.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freePort(t)
	startProcess(t, t.Output(), nil, slave, image, "tcp", port(addr))
	waitFor(t, "the libmodbus slave", func() bool { c, err := net.Dial("tcp", addr); return err == nil && c.Close() == nil })
	return addr
}

// TestSmokeThreeProtocols reads mosquitto, node-opcua and libmodbus at once into
// the emulator's three bronze tables and checks the values one by one.
func TestSmokeThreeProtocols(t *testing.T) {
	opc, freeze := opcuaPeer(t)
	want := []float32{1.5, -2.25, 3e7, 0, 1e-3}
	slave := modbusPeer(t, want)
	var nodes strings.Builder
	for i := range 10 {
		fmt.Fprintf(&nodes, "    - {node_id: 'nsu=urn:edgehost:test;s=Counter%d'}\n", i)
	}
	s := newSiteWith(t, fmt.Sprintf(`
- name: plc
  protocol: modbus
  endpoint: modbus+tcp://%s
  modbus:
    slave_id: 1
    poll_interval_seconds: 0.1
    registers: [{address: 40001, count: 10, register_type: holding, data_type: float32}]
- name: line
  protocol: opcua
  endpoint: %s
  opcua:
    security_policy: None
    security_mode: None
    publishing_interval_ms: 200
    defaults: {sampling_interval_ms: 0, queue_size: 1000}
    nodes:
%s`, slave, opc, nodes.String()), "")
	s.startGateway()
	s.publish(0, 2000)
	defer func() {
		if t.Failed() {
			for _, src := range s.status().Sources {
				t.Logf("%s: %s %s, %d records", src.Name, src.State, src.Detail, src.Records)
			}
		}
	}()
	waitFor(t, "values of all three", func() bool {
		plc, line := s.lines("modbus.scada_data.modbus_events_bronze"), s.lines("opcua.scada_data.opcua_events_bronze")
		return s.judge(bronze).distinct == 2000 && len(plc) >= 50 && len(line) >= 300
	})
	last := freeze()
	counters := map[string][]bool{}
	waitFor(t, "the last value of every counter", func() bool {
		counters = map[string][]bool{}
		full := 0
		for _, text := range s.lines("opcua.scada_data.opcua_events_bronze") {
			var r struct {
				NodeID   string  `json:"node_id"`
				ValueNum float64 `json:"value_num"`
			}
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				t.Fatal(err)
			}
			if n := int(r.ValueNum); n < 0 || n > last {
				t.Fatalf("value %v, the counters stopped at %d: %s", r.ValueNum, last, text)
			}
			if counters[r.NodeID] == nil {
				counters[r.NodeID] = make([]bool, last+1)
			}
			counters[r.NodeID][int(r.ValueNum)] = true
			if int(r.ValueNum) == last {
				full++
			}
		}
		return full >= 10
	})
	var st control.Status
	waitFor(t, "an empty spool", func() bool { st = s.status(); return st.Ledger.Waiting == 0 })
	s.gateway.signal(syscall.SIGTERM)
	lost := 0
	for _, seen := range counters {
		first := 0
		for first < len(seen) && !seen[first] {
			first++
		}
		for _, ok := range seen[first:] {
			if !ok {
				lost++
			}
		}
	}
	polled := s.checkRegisters(want)
	t.Logf("mqtt 2000 of 2000; modbus %d values, all right; opcua %d counters up to %d, %d lost; balanced %v", polled, len(counters), last, lost, st.Ledger.Balanced)
	if lost > 0 || len(counters) != 10 || !st.Ledger.Balanced {
		t.Fatalf("lost %d of %d counters, ledger %+v", lost, len(counters), st.Ledger)
	}
}

// lines returns the whole lines of a table.
func (s *site) lines(table string) (out []string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "tables", table+".ndjson"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasSuffix(line, "\n") {
			out = append(out, line)
		}
	}
	return out
}

// checkRegisters compares every row of the Modbus table with what the slave holds.
func (s *site) checkRegisters(want []float32) int {
	s.t.Helper()
	lines := s.lines("modbus.scada_data.modbus_events_bronze")
	for _, text := range lines {
		var r struct {
			Address  int     `json:"register_address"`
			Type     string  `json:"register_type"`
			SlaveID  int     `json:"slave_id"`
			RawValue float64 `json:"raw_value"`
		}
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			s.t.Fatal(err)
		}
		i := (r.Address - 40001) / 2
		if i < 0 || i >= len(want) || float32(r.RawValue) != want[i] || r.SlaveID != 1 || r.Type != "holding" {
			s.t.Fatalf("row %s, register %d holds %v", text, r.Address, want[max(0, min(i, len(want)-1))])
		}
	}
	return len(lines)
}
