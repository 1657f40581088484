package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/sources"
)

// everySourceKey has every key that a source of each protocol was promised.
const everySourceKey = `
sources:
- name: plant_floor_opcua
  protocol: opcua
  enabled: true
  endpoint: opc.tcp://h:4840
  tags: {industry: mining, plc_name: X}
  reconnect: {initial_delay_seconds: 1, max_delay_seconds: 300, backoff_multiplier: 2, jitter: 0.2}
  stale_after_seconds: 0
  opcua:
    security_policy: Basic256Sha256
    security_mode: SignAndEncrypt
    certificate_path: c.der
    private_key_path: k.pem
    trust: {mode: list, dir: certs/opcua/trusted, server_certificate_path: "", check_hostname: false}
    username: u
    password: ${PASSWORD}
    user_certificate_path: ""
    user_private_key_path: ""
    allow_plaintext_password: false
    application_uri: ""
    session_timeout_seconds: 60
    request_timeout_seconds: 10
    keepalive_count: 10
    lifetime_seconds: 600
    mode: subscribe
    publishing_interval_ms: 1000
    publish_requests: 3
    max_notifications_per_publish: 1000
    resume_on_restart: true
    ack: durable
    history_backfill: false
    timestamp: source
    limits: {max_items_per_call: 0, max_nodes_per_read: 0, max_nodes_per_browse: 0}
    defaults: {sampling_interval_ms: 1000, queue_size: 100, discard_oldest: true, deadband: {type: none, value: 0}, trigger: status_value, heartbeat_seconds: 0, skip_first: false}
    nodes:
    - {node_id: "ns=2;s=Temperature", sampling_interval_ms: 1000, name: t1, unit: C, tags: {}}
    - {node_id: "nsu=urn:x;s=Y"}
    - {browse_path: "0:Root/0:Objects/2:ProcessArea", recursive: true, max_depth: 10, include: [], exclude: [], max_nodes: 10000, rebrowse_seconds: 0}
    events: [{node_id: i=2253, fields: [Message, Severity], min_severity: 0}]
- name: m
  protocol: mqtt
  endpoints: []
  endpoint: mqtts://h
  mqtt:
    protocol_version: 3.1.1
    client_id: ""
    clean_session: false
    keep_alive_seconds: 30
    connect_timeout_seconds: 10
    tls: {enabled: true, ca_cert_path: ca, client_cert_path: c, client_key_path: k, server_name: h, min_version: "1.2", insecure_skip_verify: false}
    username: u
    password: ${PASSWORD}
    ack: durable
    buffer_max_messages: 65535
    max_payload_bytes: 1048576
    payload: {format: json, value_path: value, timestamp_path: ts, timestamp_format: auto, unit_path: unit, quality_path: quality, quality_format: auto, flatten: false}
    topics: [{topic: "sensors/+/temperature", qos: 1, shared_group: "", topic_template: "sensors/{line}/{sensor}", payload: {}, tags: {}}]
- name: p
  protocol: modbus
  endpoint: modbus+rtu:///dev/ttyUSB0
  modbus:
    slave_id: 1
    poll_interval_ms: 1000
    timeout_ms: 1000
    retries: 1
    pause_between_requests_ms: 0
    pause_after_connect_ms: 0
    serial: {baud_rate: 19200, data_bits: 8, parity: N, stop_bits: 1}
    addressing: auto
    byte_order: ABCD
    max_gap: 8
    max_registers_per_request: 125
    unit_breaker: {failures: 3, retry_seconds: 10}
    report: always
    heartbeat_seconds: 0
    registers: [{address: 40001, count: 10, register_type: holding, data_type: float32, byte_order: CDAB, slave_id: 2, name: x, scale: 1, offset: 0, scale_factor: 1, unit: "", bit: 0, length: 0, poll_interval_ms: 0}]
`

func TestEverySourceKey(t *testing.T) { load(t, everySourceKey) }

// lineOf is a configuration of one source of each protocol with more keys.
func lineOf(protocol, shared, block string) string {
	text := map[string]string{
		"opcua":  "sources: [{name: a, protocol: opcua, endpoint: 'opc.tcp://h:4840', %s opcua: {nodes: [{node_id: i=1}], %s}}]",
		"mqtt":   "sources: [{name: a, protocol: mqtt, endpoint: 'mqtts://h', %s mqtt: {tls: {enabled: true}, topics: [{topic: t}], %s}}]",
		"modbus": "sources: [{name: a, protocol: modbus, endpoint: 'modbus+tcp://h', %s modbus: {registers: [{address: 40001, register_type: holding}], %s}}]",
	}[protocol]
	text = strings.Replace(text, "%s", shared, 1)
	return strings.Replace(text, "%s", block, 1)
}

// TestWatchOfSources: one shape of configuration for all protocols.
func TestWatchOfSources(t *testing.T) {
	const shared = `stale_after_seconds: 60, stale_overrides: [{address: "x/*", after_seconds: 30.5}], max_clock_skew_seconds: 5, timestamp: ingest,`
	for _, protocol := range protocols {
		c := load(t, lineOf(protocol, shared, ""))
		s := &c.Sources[0]
		want := sources.WatchConfig{StaleAfter: time.Minute, MaxSkew: 5 * time.Second, Ingest: protocol != "opcua",
			Rules: []sources.StaleRule{{Address: "x/*", After: 30500 * time.Millisecond}}}
		if diff := cmp.Diff(want, c.watch(s)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", protocol, diff)
		}
		switch {
		case s.OPCUA != nil:
			if s.OPCUA.Timestamp != "ingest" || *s.OPCUA.Defaults.HeartbeatSeconds != 10 {
				t.Errorf("opcua: timestamp %q, heartbeat %v", s.OPCUA.Timestamp, *s.OPCUA.Defaults.HeartbeatSeconds)
			}
		case s.MQTT != nil:
			if s.MQTT.StaleAfterSeconds != 60 {
				t.Errorf("mqtt watches topics for %v s", s.MQTT.StaleAfterSeconds)
			}
		default:
			if h := s.Modbus.HeartbeatSeconds; h < 10 || h > 10.5 {
				t.Errorf("modbus: heartbeat %v", h)
			}
		}
		c = load(t, lineOf(protocol, "", ""))
		if diff := cmp.Diff(sources.WatchConfig{}, c.watch(&c.Sources[0])); diff != "" {
			t.Errorf("%s without keys (-want +got):\n%s", protocol, diff)
		}
		if s := c.Sources[0]; s.OPCUA != nil && s.OPCUA.Defaults.HeartbeatSeconds != nil || s.Modbus != nil && s.Modbus.HeartbeatSeconds != 0 {
			t.Errorf("%s: heartbeats that nobody asked for", protocol)
		}
	}
	c := load(t, lineOf("mqtt", "", "stale_after_seconds: 9, max_clock_skew_seconds: 7"))
	if w := c.watch(&c.Sources[0]); w.StaleAfter != 9*time.Second || w.MaxSkew != 7*time.Second {
		t.Errorf("keys in the mqtt block: %+v", w)
	}
	c = load(t, lineOf("opcua", "stale_after_seconds: 60,", "defaults: {heartbeat_seconds: 0}"))
	if *c.Sources[0].OPCUA.Defaults.HeartbeatSeconds != 0 {
		t.Error("a heartbeat of 0 that is written is replaced")
	}
	c = load(t, lineOf("modbus", "stale_after_seconds: 60,", "report: on_change, heartbeat_seconds: 0"))
	if c.Sources[0].Modbus.HeartbeatSeconds != 0 {
		t.Error("a heartbeat of 0 that is written is replaced")
	}
}

// TestPointsOfSources: points are known over a restart while the keys that name
// them, or that their records repeat, stay the same.
func TestPointsOfSources(t *testing.T) {
	digest := func(src string) string {
		t.Helper()
		c := load(t, src)
		return c.Sources[0].points()
	}
	seen := map[string]string{}
	for protocol, others := range map[string]struct{ same, change []string }{
		"mqtt":   {[]string{"username: u, password: p", "keep_alive_seconds: 7", "ack: received"}, []string{"payload: {format: number}"}},
		"modbus": {[]string{"timeout_ms: 77", "retries: 2"}, []string{"slave_id: 3"}},
		"opcua":  {[]string{"username: u, password: p, security_policy: Basic256Sha256", "publishing_interval_ms: 200"}, nil},
	} {
		base := digest(lineOf(protocol, "", ""))
		if other, taken := seen[base]; taken || base == "" {
			t.Errorf("%s has the digest %q, that of %q", protocol, base, other)
		}
		seen[base] = protocol
		for _, shared := range []string{"stale_after_seconds: 60,", "max_clock_skew_seconds: 5,", "reconnect: {initial_delay_seconds: 3},", "enabled: false,"} {
			if digest(lineOf(protocol, shared, "")) != base {
				t.Errorf("%s: %s makes other points", protocol, shared)
			}
		}
		for _, block := range others.same {
			if digest(lineOf(protocol, "", block)) != base {
				t.Errorf("%s: %s makes other points", protocol, block)
			}
		}
		for _, block := range others.change {
			if digest(lineOf(protocol, "", block)) == base {
				t.Errorf("%s: %s makes the same points", protocol, block)
			}
		}
		for from, to := range map[string]string{"//h": "//other", "topic: t": "topic: u", "address: 40001": "address: 40002", "i=1": "i=2", "sources: [{": "sources: [{tags: {a: b}, "} {
			src := lineOf(protocol, "", "")
			if changed := strings.Replace(src, from, to, 1); changed != src && digest(changed) == base {
				t.Errorf("%s: %s and %s have the same points", protocol, from, to)
			}
		}
	}
}

func TestWatchOfSourcesRefuses(t *testing.T) {
	for name, c := range map[string]struct{ src, want string }{
		"stale":           {lineOf("mqtt", "stale_after_seconds: -1,", ""), "sources[0].stale_after_seconds: -1 is not between 0"},
		"skew":            {lineOf("modbus", "max_clock_skew_seconds: -1,", ""), "sources[0].max_clock_skew_seconds: -1 is not between 0"},
		"rule":            {lineOf("mqtt", "stale_overrides: [{after_seconds: 1}],", ""), "sources[0].stale_overrides[0].address: is missing"},
		"rule's time":     {lineOf("mqtt", "stale_overrides: [{address: a, after_seconds: -1}],", ""), "sources[0].stale_overrides[0].after_seconds: -1"},
		"twice":           {lineOf("mqtt", "stale_after_seconds: 5,", "stale_after_seconds: 6"), "sources[0].stale_after_seconds: stands beside mqtt.stale_after_seconds; keep one"},
		"timestamp":       {lineOf("mqtt", "timestamp: payload,", ""), `sources[0].timestamp: "payload" is none of source, server, ingest`},
		"server":          {lineOf("modbus", "timestamp: server,", ""), "sources[0].timestamp: server is the clock of an OPC UA server"},
		"two timestamps":  {lineOf("opcua", "timestamp: server,", "timestamp: source"), "sources[0].timestamp: stands beside opcua.timestamp"},
		"opcua too short": {lineOf("opcua", "stale_after_seconds: 2,", ""), "sources[0].stale_after_seconds: 2 is too short for opcua"},
		"opcua heartbeat": {lineOf("opcua", "stale_after_seconds: 10,", "defaults: {heartbeat_seconds: 10}"), "sources[0].opcua.defaults.heartbeat_seconds: 10 leaves no time before stale_after_seconds (10)"},
		"node heartbeat": {`sources: [{name: a, protocol: opcua, endpoint: 'opc.tcp://h:4840', stale_after_seconds: 10, opcua: {nodes: [{node_id: i=1, heartbeat_seconds: 60}]}}]`,
			"sources[0].opcua.nodes[0].heartbeat_seconds: 60 leaves no time"},
		"slow poll":        {lineOf("modbus", "stale_after_seconds: 19,", "poll_interval_seconds: 10"), "sources[0].stale_after_seconds: 19 is less than two polls of 1:40001, which is polled every 10s; write at least 20"},
		"modbus heartbeat": {lineOf("modbus", "stale_after_seconds: 10,", "report: on_change, heartbeat_seconds: 9.5"), "10 is less than heartbeat_seconds and the poll interval of 1:40001 together (10.5s)"},
		"outer key":        {lineOf("modbus", "", "stale_after_seconds: 10"), "sources[0].modbus.stale_after_seconds: unknown key; stale_after_seconds stands one block further out, beside modbus"},
		"outer tags":       {lineOf("mqtt", "", "tags: {a: b}"), "sources[0].mqtt.tags: unknown key; tags stands one block further out, beside mqtt"},
		"max_clock_skew":   {lineOf("opcua", "max_clock_skew: 10,", ""), "sources[0].max_clock_skew: unknown key; did you mean max_clock_skew_seconds?"},
		"per_node key":     {`sources: [{name: a, protocol: mqtt, endpoint: 'mqtts://h', mqtt: {topics: [{topic: t, stale_after_seconds: 3}]}}]`, "unknown key; stale_after_seconds stands one block further out, beside topics[0]"},
	} {
		d := parseConfig("f.yaml", []byte(c.src), anyVariable)
		if !strings.Contains(d.doc.found.Error(), c.want) {
			t.Errorf("%s: %v\nwant %s", name, d.doc.found, c.want)
		}
	}
	ok := lineOf("modbus", `stale_after_seconds: 19, stale_overrides: [{address: "1:4*", after_seconds: 0}],`, "poll_interval_seconds: 10")
	load(t, ok) // the slow point is exempt
}

func TestSparkplugSilenceIsQuestioned(t *testing.T) {
	topics := "payload: {format: sparkplug_b}"
	src := func(shared string) string {
		return strings.Replace(lineOf("mqtt", shared, topics), "topic: t", `topic: "spBv1.0/#"`, 1)
	}
	for shared, want := range map[string]bool{"": false, "stale_after_seconds: 60,": true,
		`stale_after_seconds: 60, stale_overrides: [{address: "g/*", after_seconds: 0}],`: false} {
		if got := strings.Contains(load(t, src(shared)).warnings().Error(), "Sparkplug metric that does not change"); got != want {
			t.Errorf("%q: warned %v, want %v", shared, got, want)
		}
	}
}
