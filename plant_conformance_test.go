//go:build conformance

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks/zerobus"
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
// the emulator's three bronze tables and checks the values one by one; and what
// cannot be read: a register and a node that are not there, a payload that is no
// number, a Sparkplug edge node that dies.
func TestSmokeThreeProtocols(t *testing.T) {
	opc, freeze := opcuaPeer(t)
	want := []float32{1.5, -2.25, 3e7, 0, 1e-3}
	slave := modbusPeer(t, want)
	var nodes strings.Builder
	for i := range 10 {
		fmt.Fprintf(&nodes, "    - {node_id: 'nsu=urn:edgehost:test;s=Counter%d'}\n", i)
	}
	nodes.WriteString("    - {node_id: 'nsu=urn:edgehost:test;s=Nowhere', name: nowhere}\n")
	s := newSiteWith(t, fmt.Sprintf(`
- name: plc
  protocol: modbus
  endpoint: modbus+tcp://%s
  modbus:
    slave_id: 1
    poll_interval_seconds: 0.1
    registers:
    - {address: 40001, count: 10, register_type: holding, data_type: float32}
    - {address: 40101, register_type: holding, data_type: float32, name: nowhere}
- name: odd
  protocol: mqtt
  endpoint: mqtt://BROKER
  mqtt: {topics: [{topic: odd, qos: 1, payload: {format: number}}]}
- name: edge
  protocol: mqtt
  endpoint: mqtt://BROKER
  mqtt: {topics: [{topic: "spBv1.0/#", qos: 1, payload: {format: sparkplug_b, rebirth: false}}]}
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
	s.publishBad()
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
				Quality  string  `json:"quality"`
			}
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				t.Fatal(err)
			}
			if r.Quality != "Good" {
				continue
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
	waitFor(t, "rows of what is bad", func() bool { return len(s.badRows()) >= 5 })
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
	s.checkBad()
	polled := s.checkRegisters(want)
	t.Logf("mqtt 2000 of 2000; modbus %d values, all right; opcua %d counters up to %d, %d lost; balanced %v", polled, len(counters), last, lost, st.Ledger.Balanced)
	if lost > 0 || len(counters) != 10 || !st.Ledger.Balanced {
		t.Fatalf("lost %d of %d counters, ledger %+v", lost, len(counters), st.Ledger)
	}
}

// TestSmokeUnchangedIsNotSilent freezes a real OPC UA server: its keep-alives prove
// that values have not changed, so no point is silent; but for the one whose
// configuration says that a value that does not change is.
func TestSmokeUnchangedIsNotSilent(t *testing.T) {
	opc, freeze := opcuaPeer(t)
	s := newSiteWith(t, fmt.Sprintf(`
- name: line
  protocol: opcua
  endpoint: %s
  stale_after_seconds: 6
  opcua:
    security_policy: None
    security_mode: None
    publishing_interval_ms: 200
    nodes:
    - {node_id: 'nsu=urn:edgehost:test;s=Counter0'}
    - {node_id: 'nsu=urn:edgehost:test;s=Counter1', heartbeat_seconds: 0}
`, opc), "")
	s.startGateway()
	const line, one = "opcua.scada_data.opcua_events_bronze", "nsu=urn:edgehost:test;s=Counter1"
	waitFor(t, "values", func() bool { return len(s.lines(line)) > 20 })
	last := float64(freeze())
	waitFor(t, "the point without a heartbeat to be silent", func() bool { return len(s.badRows()[one]) > 0 })
	beats := func() (n int) {
		for _, text := range s.lines(line) {
			var r struct {
				tableRow
				ValueNum float64 `json:"value_num"`
			}
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				t.Fatal(err)
			}
			if r.NodeID != one && r.ValueNum == last {
				n++
			}
		}
		return n
	}
	// Five of them take longer than silence may last.
	waitFor(t, "heartbeats", func() bool { return beats() >= 5 })
	bad := s.badRows()
	if len(bad) != 1 || len(bad[one]) != 1 || !strings.HasPrefix(bad[one][0].Reason, "stale: no record for 6s") || bad[one][0].Status != "BadNoCommunication" {
		t.Errorf("rows that are not good: %+v, want one of %s", bad, one)
	}
	for _, src := range s.status().Sources {
		if src.Name == "line" && (src.State != "degraded" || src.Points != 2 || src.PointsStale != 1 || !strings.Contains(src.Detail, "1 of 2 points silent since")) {
			t.Errorf("the source is %s: %s", src.State, src.Detail)
		}
	}
}

// publishBad publishes what is no number, and the life of an edge node whose one
// metric is 42 until it dies.
func (s *site) publishBad() {
	s.t.Helper()
	c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + s.broker).SetClientID("bad").SetProtocolVersion(4))
	if tok := c.Connect(); tok.Wait() && tok.Error() != nil {
		s.t.Fatal(tok.Error())
	}
	defer c.Disconnect(250)
	now := uint64(time.Now().UnixMilli())
	for _, m := range []struct {
		topic   string
		payload []byte
	}{
		{"odd", []byte("open")},
		{"spBv1.0/g/NBIRTH/n", sparkplugPayload(now, spMetric{name: "bdSeq", kind: 8}, spMetric{name: "speed", kind: 10, value: 42})},
		{"spBv1.0/g/NDEATH/n", sparkplugPayload(now, spMetric{name: "bdSeq", kind: 8})},
	} {
		if tok := c.Publish(m.topic, 1, false, m.payload); tok.Wait() && tok.Error() != nil {
			s.t.Fatal(tok.Error())
		}
	}
}

// spMetric is a Sparkplug metric of type UInt64 (8) or Double (10).
type spMetric struct {
	name  string
	kind  uint64
	value float64
}

// sparkplugPayload encodes a payload of Sparkplug B with the sequence number 0
// (Sparkplug 3.0, section 6.4).
func sparkplugPayload(ms uint64, metrics ...spMetric) []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), ms)
	for _, m := range metrics {
		f := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), m.name)
		f = protowire.AppendVarint(protowire.AppendTag(f, 3, protowire.VarintType), ms)
		f = protowire.AppendVarint(protowire.AppendTag(f, 4, protowire.VarintType), m.kind)
		if m.kind == 10 {
			f = protowire.AppendFixed64(protowire.AppendTag(f, 13, protowire.Fixed64Type), math.Float64bits(m.value))
		} else {
			f = protowire.AppendVarint(protowire.AppendTag(f, 11, protowire.VarintType), uint64(m.value))
		}
		b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), f)
	}
	return protowire.AppendVarint(protowire.AppendTag(b, 3, protowire.VarintType), 0)
}

// badRows are the rows of all three tables that are not good, by their address.
func (s *site) badRows() map[string][]tableRow {
	s.t.Helper()
	out := map[string][]tableRow{}
	for _, table := range []string{zerobus.MQTTTable, zerobus.ModbusTable, zerobus.OPCUATable} {
		for _, text := range s.lines(table) {
			var r tableRow
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				s.t.Fatal(err)
			}
			if r.Quality != "Good" {
				at := cmp.Or(r.Topic, r.NodeID, strconv.Itoa(r.Register))
				out[at] = append(out[at], r)
			}
		}
	}
	return out
}

// checkBad: each thing that cannot be read is one row, without a value, that says
// how bad it is and why.
func (s *site) checkBad() {
	s.t.Helper()
	bad := s.badRows()
	for at, reason := range map[string]string{"40101": "illegal data address", "odd": "payload is not a number",
		"nsu=urn:edgehost:test;s=Nowhere": "item refused by the server", "g/n/speed": "died", "g/n/bdSeq": "died"} {
		rows := bad[at]
		delete(bad, at)
		if len(rows) != 1 {
			s.t.Errorf("%s has %d rows that are not good, want 1: %+v", at, len(rows), rows)
			continue
		}
		r := rows[0]
		if r.Quality != "Bad" || !strings.Contains(r.Reason, reason) || r.Value != nil || r.Raw != nil || r.Scaled != nil {
			s.t.Errorf("%s: %+v, want a bad row without a value because of %q", at, r, reason)
		}
		if r.NodeID != "" && (r.StatusCode != 0x80340000 || !strings.EqualFold(r.Status, "BadNodeIdUnknown")) {
			s.t.Errorf("%s: status 0x%08X %s", at, r.StatusCode, r.Status)
		}
	}
	if len(bad) > 0 {
		s.t.Errorf("more rows are not good: %+v", bad)
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
		if r.Address == 40101 {
			continue // is not there: checkBad
		}
		i := (r.Address - 40001) / 2
		if i < 0 || i >= len(want) || float32(r.RawValue) != want[i] || r.SlaveID != 1 || r.Type != "holding" {
			s.t.Fatalf("row %s, register %d holds %v", text, r.Address, want[max(0, min(i, len(want)-1))])
		}
	}
	return len(lines)
}
