//go:build conformance

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sources"
)

// shortSignature is a frame that is shorter than the signature which it ends in.
// The keys are not needed for it.
var shortSignature = attack{first: "MSG", secured: true, opening: "protection is broken", forge: func(frame []byte) net.Buffers {
	binary.LittleEndian.PutUint32(frame[4:], 16)
	return net.Buffers{frame[:16]}
}}

// TestSmokeHostileServers runs the gateway with mosquitto, a libmodbus slave and
// one OPC UA source for each attack, all on one node-opcua server, and makes the
// server hostile while they connect and while they work. Nobody else notices;
// afterwards no value is lost that the server kept.
func TestSmokeHostileServers(t *testing.T) {
	endpoint, freeze := opcuaPeer(t)
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	slave := modbusPeer(t, []float32{1.5, -2.25})
	all := maps.Clone(attacks())
	all["short-signature"] = shortSignature
	relays := map[string]*hostileRelay{}
	conf := fmt.Sprintf("\n- name: plc\n  protocol: modbus\n  endpoint: modbus+tcp://%s\n  modbus:\n    poll_interval_seconds: 0.1\n    registers: [{address: 40001, count: 4, register_type: holding, data_type: float32}]\n", slave)
	for name, a := range all {
		relays[name] = startHostileRelay(t, u.Host, a)
		relays[name].strike(a.first)
		security := "security_policy: None\n    security_mode: None"
		if a.secured {
			security = "security_policy: Basic256Sha256\n    security_mode: Sign\n    trust: {mode: tofu}"
		}
		conf += fmt.Sprintf("- name: %s\n  protocol: opcua\n  endpoint: opc.tcp://%s%s\n  opcua:\n    %s\n    publishing_interval_ms: 200\n    defaults: {sampling_interval_ms: 0, queue_size: 1000}\n    nodes:\n    - {node_id: 'nsu=urn:edgehost:test;s=Counter0'}\n    - {node_id: 'nsu=urn:edgehost:test;s=Counter1'}\n",
			name, relays[name].addr, u.Path, security)
	}
	s := newSiteWith(t, conf, "")
	s.startGateway()
	stop, published := make(chan struct{}), make(chan int)
	go func() { published <- s.publishAt(0, 1_000_000, 500, stop) }()
	waitFor(t, "the good sources", func() bool { return s.sourceNow("plant").Records > 500 && s.sourceNow("plc").Records > 20 })
	before := memoryOf(t, s.gateway.cmd.Process.Pid)
	began := time.Now()
	await := func(what string, ok func(name string, now control.SourceStatus) bool) {
		t.Helper()
		done := map[string]bool{}
		waitFor(t, what, func() bool {
			for _, now := range s.status().Sources {
				if relays[now.Name] != nil && ok(now.Name, now) {
					done[now.Name] = true
				}
			}
			return len(done) == len(relays)
		})
	}
	told := func(words func(attack) string) func(string, control.SourceStatus) bool {
		return func(name string, now control.SourceStatus) bool {
			if want := words(all[name]); want != "" {
				return regexp.MustCompile(want).MatchString(now.Detail)
			}
			return true
		}
	}
	flows := func(_ string, now control.SourceStatus) bool {
		return now.State == string(sources.Connected) && now.Records > 20
	}
	await("what happens to be told", told(func(a attack) string { return a.opening }))
	for _, r := range relays {
		r.behave()
	}
	await("values once the server behaves", flows)
	for name, r := range relays {
		if all[name].secured {
			r.strike("MSG")
		} else if all[name].first == "OPN" { // ends the next process too, at its first frame
			r.strike("OPN")
			r.cut()
		}
	}
	await("what happens to be told again", told(func(a attack) string {
		if a.first == "ACK" {
			return ""
		}
		return a.opening
	}))
	for _, r := range relays {
		r.behave()
	}
	await("values once the server behaves again", flows)
	s.hostileVerdict(freeze(), slices.Sorted(maps.Keys(all)))
	close(stop)
	sent := <-published
	waitFor(t, "every MQTT message", func() bool { return s.judge(bronze).distinct == sent })
	after := memoryOf(t, s.gateway.cmd.Process.Pid)
	t.Logf("%d attacks twice each in %v; mqtt %d of %d; the gateway's memory peaked at %d MiB, %d before", len(all), time.Since(began).Round(time.Second), sent, sent, after, before)
	if after > before+256 {
		t.Errorf("the gateway grew from %d to %d MiB", before, after)
	}
}

func (s *site) sourceNow(name string) control.SourceStatus {
	s.t.Helper()
	for _, now := range s.status().Sources {
		if now.Name == name {
			return now
		}
	}
	s.t.Fatalf("no source %s", name)
	return control.SourceStatus{}
}

// hostileVerdict waits for the last value of both counters from every source,
// looks for holes in them, and for gaps in time of the good sources.
func (s *site) hostileVerdict(last int, names []string) {
	s.t.Helper()
	type row struct {
		Source string  `json:"source_name"`
		NodeID string  `json:"node_id"`
		Value  float64 `json:"value_num"`
		Ingest int64   `json:"ingest_time"`
	}
	read := func(table string) (rows []row) {
		for _, text := range s.lines(table) {
			var r row
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				s.t.Fatal(err)
			}
			rows = append(rows, r)
		}
		return rows
	}
	seen := map[string]map[int]bool{}
	waitFor(s.t, "the last value from every source", func() bool {
		full := 0
		clear(seen)
		for _, r := range read("opcua.scada_data.opcua_events_bronze") {
			key := r.Source + strings.TrimPrefix(r.NodeID, "nsu=urn:edgehost:test;s=")
			if seen[key] == nil {
				seen[key] = map[int]bool{}
			}
			if n := int(r.Value); !seen[key][n] {
				if seen[key][n] = true; n == last {
					full++
				}
			}
		}
		return full == 2*len(names)
	})
	lost := 0
	for _, numbers := range seen {
		for n := slices.Min(slices.Collect(maps.Keys(numbers))); n <= last; n++ {
			if !numbers[n] {
				lost++
			}
		}
	}
	for _, table := range []string{bronze, "modbus.scada_data.modbus_events_bronze"} {
		var longest time.Duration
		rows := read(table)
		slices.SortFunc(rows, func(a, b row) int { return int(a.Ingest - b.Ingest) })
		for i, r := range rows[1:] {
			longest = max(longest, time.Duration(r.Ingest-rows[i].Ingest)*time.Microsecond)
		}
		s.t.Logf("%s: %d rows, at most %v apart", table, len(rows), longest)
		if longest > 5*time.Second {
			s.t.Errorf("%s has a gap of %v", table, longest)
		}
	}
	s.t.Logf("opcua: counters up to %d of %d sources, %d values lost", last, len(names), lost)
	if lost > 0 {
		s.t.Errorf("%d values are lost", lost)
	}
	for _, name := range []string{"plant", "plc"} {
		if now := s.sourceNow(name); now.State != string(sources.Connected) || now.Counters[sources.MetricReconnects] != 0 {
			s.t.Errorf("%s is %s %q, %v reconnects", name, now.State, now.Detail, now.Counters[sources.MetricReconnects])
		}
	}
}
