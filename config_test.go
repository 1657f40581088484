package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/sinks/zerobus"
)

func readTestdata(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// anyVariable is an environment in which every variable is set to its own name.
func anyVariable(name string) (string, bool) { return name, true }

func load(t *testing.T, src string) *config {
	t.Helper()
	c := parseConfig("f.yaml", []byte(src), anyVariable)
	if len(c.doc.found) > 0 {
		t.Fatalf("problems:\n%v", c.doc.found)
	}
	return c
}

// TestDocument loads every fragment of the document as it stands, and all of
// them as one file.
func TestDocument(t *testing.T) {
	fragments, err := filepath.Glob("testdata/config/document/*.yaml")
	if err != nil || len(fragments) != 12 {
		t.Fatalf("%d fragments, %v", len(fragments), err)
	}
	for _, f := range fragments {
		load(t, string(readTestdata(t, f)))
	}

	c := load(t, string(readTestdata(t, "testdata/config/document.yaml")))
	if err := c.checkComplete(); err != nil {
		t.Errorf("serve would refuse the document's own file: %v", err)
	}
	check := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s = %v, want %v", what, got, want)
		}
	}
	check("target", c.Zerobus.Target, zerobus.Target{Catalog: "iot_data", Schema: "bronze", Table: "sensor_events"})
	check("client_id", c.Zerobus.Auth.ClientID, "DATABRICKS_CLIENT_ID")
	check("client_secret", c.Zerobus.Auth.ClientSecret.Reveal(), "DATABRICKS_CLIENT_SECRET")
	check("sources", len(c.Sources), 3)
	check("opcua.nodes", len(c.Sources[0].OPCUA.Nodes), 2)
	check("opcua.password", c.Sources[0].OPCUA.Password, "OPCUA_PASSWORD")
	check("mqtt.tls", c.Sources[1].MQTT.TLS.Enabled, true)
	check("mqtt.qos", c.Sources[1].MQTT.Topics[0].QoS, 1)
	check("modbus.address", string(c.Sources[2].Modbus.Registers[0].Address), "40001")
	check("memory_queue", c.Backpressure.MemoryQueue.MaxSize, 10000)
	check("drop_policy", c.Backpressure.MemoryQueue.DropPolicy, dropOldest)
	check("max_size_mb", c.Backpressure.DiskSpool.MaxSizeMB, 1000)
	check("failure_threshold", c.Resilience.CircuitBreaker.FailureThreshold, 5)
	check("max_delay_seconds", c.Resilience.Reconnect.MaxDelaySeconds, 300.0)
	check("required_outbound", len(c.Security.Network.RequiredOutbound), 2)
	check("otlp", c.Monitoring.Tracing.OTLP.Endpoint, "http://localhost:4318")
	check("file_path", c.Monitoring.Logging.FilePath, "logs/connector.log")
	check("batch", c.Processing.Batch.MaxSize, 100)
	check("max_heap_mb", c.Performance.Memory.MaxHeapMB, 2048)

	// Nothing of it is ignored without a word.
	var keys []string
	for _, k := range c.NotInForce() {
		keys = append(keys, strings.Fields(k)[0])
	}
	for _, want := range []string{"performance.memory.gc_strategy", "performance.workers.writer_threads", "monitoring.tracing", "security.network.required_outbound"} {
		if !slices.Contains(keys, want) {
			t.Errorf("NotInForce = %q lacks %s", keys, want)
		}
	}
	if got := load(t, "").NotInForce(); len(got) > 0 {
		t.Errorf("NotInForce of an empty file = %q", got)
	}
}

// TestDocumentWithoutVariables: each unset variable is one problem with its line.
func TestDocumentWithoutVariables(t *testing.T) {
	c := parseConfig("f.yaml", readTestdata(t, "testdata/config/document.yaml"), func(string) (string, bool) { return "", false })
	var got []string
	for _, p := range c.doc.found {
		got = append(got, p.path)
		if p.line == 0 || !strings.Contains(p.msg, "is not set") {
			t.Errorf("%v", p)
		}
	}
	want := []string{"zerobus.auth.client_id", "zerobus.auth.client_secret", "sources[0].opcua.username", "sources[0].opcua.password",
		"sources[1].mqtt.username", "sources[1].mqtt.password"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestExampleIsComplete: the example loads, and every key that the program knows
// stands in it, be it in a comment.
func TestExampleIsComplete(t *testing.T) {
	src := string(readTestdata(t, "examples/connector.yaml"))
	c := load(t, src)
	if err := c.checkComplete(); err != nil {
		t.Error(err)
	}
	if w := c.warnings(); len(w) > 0 {
		t.Errorf("warnings:\n%v", w)
	}
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`\b(\w+):|\bor (\w+)`).FindAllStringSubmatch(src, -1) {
		shown[m[1]+m[2]] = true
	}
	for _, key := range slices.Sorted(maps.Keys(keysOf(reflect.TypeFor[config](), map[string]bool{}))) {
		if !shown[key] {
			t.Errorf("examples/connector.yaml does not show the key %s", key)
		}
	}
}

func keysOf(t reflect.Type, keys map[string]bool) map[string]bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		keysOf(t.Elem(), keys)
	case reflect.Struct:
		for _, f := range fieldsOf(t) {
			keys[f.name] = true
			keysOf(f.typ, keys)
		}
	}
	return keys
}

// TestExampleDefaults: where the example shows a default, it is the default.
func TestExampleDefaults(t *testing.T) {
	got, want := load(t, string(readTestdata(t, "examples/connector.yaml"))), newConfig()
	for name, pair := range map[string][2]any{
		"state_dir": {got.StateDir, want.StateDir}, "health": {got.Health, want.Health}, "metrics": {got.Metrics, want.Metrics},
		"backpressure": {got.Backpressure, want.Backpressure}, "circuit_breaker": {got.Resilience.CircuitBreaker, want.Resilience.CircuitBreaker},
		"processing": {got.Processing, want.Processing}, "certificates": {got.Security.Certificates, want.Security.Certificates},
	} {
		if diff := cmp.Diff(pair[1], pair[0]); diff != "" {
			t.Errorf("%s (-default +example):\n%s", name, diff)
		}
	}
}

// TestEverythingAtOnce: what cannot be read and what is not allowed are told
// together, in the order of the lines, and one mistake is one problem.
func TestEverythingAtOnce(t *testing.T) {
	c := parseConfig("f.yaml", []byte(`
helth: {listen: "off"}
metrics: {listen: 9090}
zerobus: {workspace_host: https://w, auth: {client_id: "${NOT_SET}", client_secret: x}}
sources:
- {name: a, protocol: mqtt, endpoint: mqtt://h, mqtt: {topic: a}}
- {name: b, protocol: mqtt, endpoint: modbus://h, mqtt: {topics: [{topic: a, qos: high}]}}
- {name: c, protocol: mqtt, endpoit: mqtt://h, mqtt: {topics: [{topic: a}]}}
- {name: "${NOT_SET}", protocol: mqtt, endpoint: mqtt://h, mqtt: {topics: [{topic: a}]}}
pipelines:
- {name: p, sources: [d]}
backpressure: {disk_spool: {max_size_mb: 1}, memory_queue: {max_size: ten}}
`), func(string) (string, bool) { return "", false })
	var got []string
	for _, p := range c.doc.found {
		got = append(got, fmt.Sprint(p.line, " ", p.path))
	}
	want := []string{"2 helth", "3 metrics.listen", "4 zerobus.zerobus_endpoint", "4 zerobus.auth.client_id", "6 sources[0].mqtt.topic", "7 sources[1].endpoint",
		"7 sources[1].mqtt.topics[0].qos", "8 sources[2].endpoit", "9 sources[3].name", "12 backpressure.disk_spool.max_size_mb", "12 backpressure.memory_queue.max_size"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s\n%v", diff, c.doc.found)
	}
}

const threeSources = `
sources:
- {name: m1, protocol: mqtt, endpoint: "mqtt://h", mqtt: {topics: [{topic: a}]}}
- {name: m2, protocol: mqtt, endpoint: "mqtt://h", mqtt: {topics: [{topic: a}]}, target: {table: own}}
- {name: plc, protocol: modbus, endpoint: "modbus+tcp://h", modbus: {registers: [{address: 40001, register_type: holding}]}}
`

const someZerobus = `
zerobus:
  workspace_host: https://w.cloud.databricks.com
  zerobus_endpoint: 1.zerobus.us-west-2.cloud.databricks.com
  auth: {client_id: a, client_secret: b}
`

func TestPlan(t *testing.T) {
	target := func(name string) zerobus.Target {
		got, ok := parseTarget(name)
		if !ok {
			t.Fatal(name)
		}
		return got
	}
	direct := func(name, table string) pipelinePlan {
		return pipelinePlan{Name: name, Sources: []string{name}, Targets: map[string]zerobus.Target{name: target(table)}, Target: target(table),
			Outputs: map[string]zerobus.Target{}}
	}
	for name, test := range map[string]struct {
		src  string
		want []pipelinePlan
	}{
		"no pipelines, no target": {threeSources, []pipelinePlan{
			direct("m1", "mqtt.scada_data.mqtt_events_bronze"), direct("m2", "mqtt.scada_data.own"), direct("plc", "modbus.scada_data.modbus_events_bronze")}},
		"one target": {threeSources + someZerobus + "  target: {catalog: c, schema: s, table: t}\n", []pipelinePlan{
			direct("m1", "c.s.t"), direct("m2", "c.s.own"), direct("plc", "c.s.t")}},
		"half a target": {threeSources + someZerobus + "  target: {catalog: c}\n", []pipelinePlan{
			direct("m1", "c.scada_data.mqtt_events_bronze"), direct("m2", "c.scada_data.own"), direct("plc", "c.scada_data.modbus_events_bronze")}},
		"globs and outputs": {threeSources + `
pipelines:
- name: line
  sources: [plc, "m*", m1]
  modules: [scale, {name: threshold, config: {limit: "80"}, limits: {fuel: 5}}]
  on_missing: bypass
  outputs: {bad: {catalog: x, schema: y, table: z}}
`, []pipelinePlan{{Name: "line", Sources: []string{"plc", "m1", "m2"}, Bypass: true,
			Modules: []moduleConfig{{OnFault: "hold", Stateless: "relaxed", Name: "scale"}, {OnFault: "hold", Stateless: "relaxed", Name: "threshold", Config: map[string]string{"limit": "80"}, Limits: limitsConfig{Fuel: 5}}},
			Targets: map[string]zerobus.Target{"plc": target("modbus.scada_data.modbus_events_bronze"), "m1": target("mqtt.scada_data.mqtt_events_bronze"), "m2": target("mqtt.scada_data.own")},
			Target:  target("modbus.scada_data.modbus_events_bronze"), Outputs: map[string]zerobus.Target{"bad": target("x.y.z")}}}},
		"pipeline's target": {threeSources + someZerobus + `  target: {catalog: c, schema: s}
pipelines:
- name: line
  sources: [m1, plc]
  target: {table: t}
  outputs: {bad: {table: z}}
`, []pipelinePlan{{Name: "line", Sources: []string{"m1", "plc"}, Targets: map[string]zerobus.Target{"m1": target("c.s.t"), "plc": target("c.s.t")},
			Target: target("c.s.t"), Outputs: map[string]zerobus.Target{"bad": target("c.s.z")}}, direct("m2", "c.s.own")}},
	} {
		t.Run(name, func(t *testing.T) {
			c := load(t, test.src)
			if diff := cmp.Diff(test.want, c.plan()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	c := load(t, threeSources+someZerobus+"  target: {catalog: c, schema: s, table: t}\n")
	var names []string
	for _, x := range targets(c.plan()) {
		names = append(names, x.String())
	}
	if diff := cmp.Diff([]string{"c.s.own", "c.s.t"}, names); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
}

func TestConfigProblems(t *testing.T) {
	source := func(more string) string {
		return "sources:\n- name: a\n  protocol: mqtt\n  endpoint: mqtt://h\n  mqtt: {topics: [{topic: t}]}\n" + more
	}
	pipeline := func(more string) string { return threeSources + "pipelines:\n- name: p\n  sources: [m1]\n" + more }
	for name, test := range map[string]struct{ src, want string }{
		"empty state_dir":  {`state_dir: ""`, `state_dir: is empty`},
		"tab":              {"sinks:\n\tfile: {dir: x}", "f.yaml:2:1: a tab stands here; indent with spaces"},
		"latin-1":          {"sinks:\n  file: {dir: \xb0}", "f.yaml:2:1: this is not UTF-8 text; save the file as UTF-8"},
		"utf-16":           {"s\x00i\x00", "f.yaml:1:1: this is not UTF-8 text"},
		"protocol missing": {"sources: [{name: a}]", "sources[0].protocol: is missing; use one of opcua, mqtt, modbus"},
		"protocol spelt":   {"sources: [{name: a, protocol: opc-ua}]", "use one of opcua, mqtt, modbus; did you mean opcua?"},
		"key cut short":    {source("  stale: 5\n"), "did you mean stale_after_seconds?"},
		"listen":           {"health: {listen: 8080}", `f.yaml:1:18: health.listen: "8080" is not host:port`},
		"port":             {`metrics: {listen: "h:70000"}`, `metrics.listen: "h:70000" is not host:port`},
		"one port for two": {`health: {listen: ":1"}` + "\n" + `metrics: {listen: ":1"}`, "metrics.listen: is the address of health.listen"},
		"two sinks":        {someZerobus + "sinks: {file: {dir: d}}", "sinks.file: stands beside zerobus"},
		"file without dir": {"sinks: {file: {max_size_mb: 1}}", "sinks.file.dir: is missing"},
		"no secret":        {strings.Replace(someZerobus, ", client_secret: b", "", 1), "zerobus.auth.client_secret: missing"},
		"two secrets":      {strings.Replace(someZerobus, "client_secret: b", "client_secret: b, client_secret_file: f", 1), "zerobus.auth.client_secret_file: stands beside client_secret"},
		"plain endpoint":   {strings.Replace(someZerobus, "1.zerobus", "http://1.zerobus", 1), "zerobus.zerobus_endpoint: http:// is refused"},
		"bad catalog":      {someZerobus + "  target: {catalog: a-b}\n", `f.yaml:6:21: zerobus.target.catalog: "a-b" is not an identifier`},
		"sink back-off":    {someZerobus + "  reconnect: {initial_delay_seconds: 5, max_delay_seconds: 1}\n", "zerobus.reconnect.max_delay_seconds: 1 is not between 5 and 86400"},
		"table name":       {"tables: [{name: a.b, columns: []}]", `tables[0].name: "a.b" is not catalog.schema.table`},
		"table twice":      {"tables: [{name: a.b.c, columns: [{name: x, type: int}]}, {name: A.b.c, columns: [{name: x, type: int}]}]", "tables[1].name: A.b.c is described twice"},
		"no columns":       {"tables: [{name: a.b.c}]", "tables[0].columns: missing"},
		"column type":      {"tables: [{name: a.b.c, columns: [{name: x, type: ARRAY}]}]", `f.yaml:1:50: tables[0].columns[0].type: column type "ARRAY" is not supported`},
		"no name":          {"sources: [{protocol: mqtt}]", "f.yaml:1:11: sources[0].name: is missing"},
		"bad name":         {"sources: [{name: a/b, protocol: mqtt}]", `sources[0].name: "a/b" cannot be a name`},
		"protocol":         {"sources: [{name: a, protocol: mqqt}]", `sources[0].protocol: "mqqt" is not a protocol that edgehost speaks; use one of opcua, mqtt, modbus`},
		"no block":         {"sources: [{name: a, protocol: opcua}]", "sources[0]: the block opcua: is missing"},
		"foreign block":    {"sources: [{name: a, protocol: opcua, mqtt: {}}]", "sources[0].mqtt: is the block of another protocol"},
		"foreign endpoint": {"sources: [{name: a, protocol: opcua, endpoint: 'mqtt://h', opcua: {nodes: [{node_id: i=1}]}}]", "f.yaml:1:48: sources[0].endpoint: "},
		"mqtt endpoint":    {source("  endpoints: [':']\n"), "sources[0].mqtt.endpoints[0]: "},
		"two endpoints":    {strings.Replace(source("  endpoints: ['mqtt://i']\n"), "mqtt: {", "mqtt: {endpoints: ['mqtt://j'], ", 1), "sources[0].endpoints: stands beside mqtt.endpoints"},
		"isolation":        {"sources: [{name: a, protocol: opcua, endpoint: 'opc.tcp://h:4840', isolation: thread, opcua: {nodes: [{node_id: i=1}]}}]", `sources[0].isolation: "thread" is none of process, none`},
		"isolated mqtt":    {source("  isolation: process\n"), "f.yaml:6:14: sources[0].isolation: only opcua sources can run in a process of their own"},
		"no topics":        {strings.Replace(source(""), "[{topic: t}]", "[]", 1), "f.yaml:5:10: sources[0].mqtt.topics: needs at least one topic"},
		"qos":              {strings.Replace(source(""), "topic: t", "topic: t, qos: 3", 1), "f.yaml:5:35: sources[0].mqtt.topics[0].qos: 3 is none of 0, 1, 2"},
		"registers":        {"sources: [{name: a, protocol: modbus, endpoint: 'modbus+tcp://h', modbus: {registers: [{address: 40001, register_type: input}]}}]", "sources[0].modbus.registers[0]"},
		"modbus endpoint":  {"sources: [{name: a, protocol: modbus, endpoint: 'http://h', modbus: {registers: [{address: 1, register_type: input}]}}]", "f.yaml:1:49: sources[0].endpoint: "},
		"endpoints of plc": {"sources: [{name: a, protocol: modbus, endpoint: 'modbus+tcp://h', endpoints: [b], modbus: {registers: [{address: 1, register_type: input}]}}]", "sources[0].endpoints: only mqtt sources can fail over"},
		"tags":             {source("  tags: {qos: '1'}\n"), "f.yaml:6:15: sources[0].tags.qos: "},
		"reconnect":        {source("  reconnect: {max_delay_seconds: 0.5}\n"), "sources[0].reconnect.initial_delay_seconds: 1 is longer than max_delay_seconds"},
		"jitter":           {"resilience: {reconnect: {jitter: 1}}", "f.yaml:1:34: resilience.reconnect.jitter: "},
		"source's target":  {source("  target: {table: a.b}\n"), "sources[0].target.table: "},
		"no pipeline name": {threeSources + "pipelines: [{sources: [m1]}]", `pipelines[0].name: "" cannot be a name`},
		"pipeline twice":   {pipeline("- {name: p, sources: [m2]}"), `pipelines[1].name: "p" is the name of another pipeline too`},
		"no sources":       {threeSources + "pipelines: [{name: p}]", "pipelines[0].sources: is empty"},
		"unknown source":   {threeSources + "pipelines: [{name: p, sources: [plcc]}]", `pipelines[0].sources[0]: no source is called "plcc"; did you mean plc?`},
		"empty glob":       {threeSources + "pipelines: [{name: p, sources: ['x*']}]", `no source is called "x*"; known here: m1, m2, plc`},
		"bad glob":         {threeSources + "pipelines: [{name: p, sources: ['[']}]", "is not a pattern"},
		"two pipelines":    {pipeline("- {name: q, sources: ['m*']}"), "pipelines[1].sources[0]: source m1 belongs to pipeline p already"},
		"name of a source": {pipeline("- {name: plc, sources: [m2]}"), `sources[2].name: "plc" is the name of a pipeline that does not read it`},
		"on_missing":       {pipeline("  on_missing: wait"), `pipelines[0].on_missing: "wait" is none of hold, bypass`},
		"module name":      {pipeline("  modules: [Scale]"), `pipelines[0].modules[0].name: bad module name "Scale"`},
		"module limits":    {pipeline("  modules: [{name: a, limits: {memory_mb: 5000}}]"), "pipelines[0].modules[0].limits.memory_mb: 5000 is not between 0 and 4096"},
		"module config":    {pipeline("  modules: [{name: a, config: {x: [1]}}]"), "pipelines[0].modules[0].config.x: must be text, not a list"},
		"two targets":      {threeSources + "pipelines: [{name: p, sources: [m2], target: {table: t}}]", "pipelines[0].target: source m2 has a target of its own"},
		"output name":      {pipeline("  outputs: {'a b': {catalog: c, schema: s, table: t}}"), `"a b" cannot be the name of an output`},
		"output's table":   {pipeline("  outputs: {bad: {catalog: c}}"), "pipelines[0].outputs.bad: table is missing"},
		"output's catalog": {pipeline("  outputs: {bad: {table: t}}"), "pipelines[0].outputs.bad.catalog: missing; write it here"},
		"memory queue":     {"backpressure: {memory_queue: {max_size: 0}}", "f.yaml:1:41: backpressure.memory_queue.max_size: 0 is not between 1 and 10000000"},
		"drop policy":      {"backpressure: {memory_queue: {drop_policy: some}}", `"some" is none of oldest, newest, reject`},
		"spool size":       {"backpressure: {disk_spool: {max_size_mb: 1}}", "backpressure.disk_spool.max_size_mb: 1 is not between 16"},
		"retention":        {"backpressure: {disk_spool: {retention_seconds: -1}}", "retention_seconds: -1 is not between 0"},
		"dead letters":     {"backpressure: {dead_letter_queue: {max_size_mb: 0}}", "max_size_mb: 0 is not between 1"},
		"threshold":        {"resilience: {circuit_breaker: {failure_threshold: 0}}", "failure_threshold: 0 is not between 1"},
		"timeout":          {"resilience: {circuit_breaker: {timeout_seconds: 0}}", "timeout_seconds: 0 is not between 0.001"},
		"batch":            {"processing: {batch: {max_size: 0}}", "processing.batch.max_size: 0 is not between 1 and 100000"},
		"wait":             {"processing: {batch: {max_wait_seconds: 4000}}", "max_wait_seconds: 4000 is not between 0 and 3600"},
		"heap":             {"performance: {memory: {max_heap_mb: 1}}", "performance.memory.max_heap_mb: 1 is not between 64"},
		"stateless":        {pipeline("  modules: [{name: m, stateless: very}]"), `pipelines[0].modules[0].stateless: "very" is none of relaxed, strict`},
		"threads":          {"performance: {workers: {reader_threads: -1}}", "reader_threads: -1 is not between 0"},
		"rotation":         {"security: {certificates: {rotation_days_before_expiry: 0}}", "rotation_days_before_expiry: 0 is not between 1"},
		"otlp":             {"monitoring: {tracing: {otlp: {endpoint: 'localhost:4318'}}}", "monitoring.tracing.otlp.endpoint: is not an address"},
		"level":            {"monitoring: {logging: {level: LOUD}}", `monitoring.logging.level: "LOUD" is none of DEBUG, INFO, WARN, ERROR`},
		"format":           {"monitoring: {logging: {format: xml}}", `monitoring.logging.format: "xml" is none of json, text`},
		"log size":         {"monitoring: {logging: {max_size_mb: 0}}", "max_size_mb: 0 is not between 1"},
		"two keys":         {"spool: {key_env: A, key_file: b}", "spool: key_env, key_file and passphrase_env exclude each other"},
		"key in the file":  {"spool: {key_env: 'c2VjcmV0Cg=='}", "spool.key_env: is not the name of an environment variable"},
	} {
		t.Run(name, func(t *testing.T) {
			c := parseConfig("f.yaml", []byte(test.src), anyVariable)
			if len(c.doc.found) == 0 || !strings.Contains(c.doc.found.Error(), test.want) {
				t.Errorf("problems:\n%v\nwant one with:\n%s", c.doc.found, test.want)
			}
			if strings.Contains(c.doc.found.Error(), "c2VjcmV0") {
				t.Error("the problem shows a secret")
			}
			for _, p := range c.doc.found {
				if p.line == 0 && test.src != "" && !strings.HasPrefix(p.path, "state_dir") {
					t.Errorf("%v has no place in the file", p)
				}
			}
		})
	}
}

func TestStrict(t *testing.T) {
	c := parseConfig("f.yaml", []byte(`
sources:
- {name: a, protocol: mqtt, endpoint: "mqtt://h", mqtt: {topics: [{topic: t}], username: u, password: hunter2}}
- {name: b, protocol: mqtt, endpoint: "mqtts://h", mqtt: {tls: {enabled: true, insecure_skip_verify: true}, topics: [{topic: t}]}}
- {name: c, protocol: opcua, endpoint: "opc.tcp://h:4840", opcua: {security_policy: None, security_mode: None, trust: {mode: insecure}, nodes: [{node_id: i=1}]}}
- {name: d, protocol: opcua, endpoint: "opc.tcp://h:4840", isolation: none, opcua: {security_mode: Sign, nodes: [{node_id: i=1}]}}
- {name: e, protocol: modbus, endpoint: "modbus+tcp://h", modbus: {registers: [{address: 1, register_type: input}]}}
- {name: f, protocol: modbus, endpoint: "modbus+tls://h", modbus: {tls: {enabled: true, ca_cert_path: ca, client_cert_path: c, client_key_path: k}, registers: [{address: 1, register_type: input}]}}
monitoring: {tracing: {enabled: true, otlp: {endpoint: "http://collector:4318"}}}
`), anyVariable)
	if len(c.doc.found) > 0 {
		t.Fatal(c.doc.found)
	}
	var got []string
	for _, p := range c.strict() {
		got = append(got, p.path)
	}
	slices.Sort(got)
	want := []string{"monitoring.tracing.otlp.endpoint", "sources[0].endpoint", "sources[0].mqtt.password", "sources[1].mqtt.tls.insecure_skip_verify",
		"sources[2].opcua", "sources[2].opcua.trust.mode", "sources[3].isolation", "sources[3].opcua.security_mode", "sources[4].endpoint",
		"spool"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	safe := load(t, `
spool: {key_env: EDGEHOST_SPOOL_KEY}
sources:
- {name: a, protocol: mqtt, endpoint: "mqtts://h", mqtt: {tls: {enabled: true}, topics: [{topic: t}], username: u, password: "${MQTT_PASSWORD}"}}
- {name: c, protocol: opcua, endpoint: "opc.tcp://h:4840", opcua: {nodes: [{node_id: i=1}]}}
- {name: e, protocol: modbus, endpoint: "modbus+rtu:///dev/ttyUSB0", modbus: {registers: [{address: 1, register_type: input}]}}
monitoring: {tracing: {enabled: true, otlp: {endpoint: "http://localhost:4318"}}}
`)
	if bad := safe.strict(); len(bad) > 0 {
		t.Errorf("a safe configuration:\n%v", bad)
	}
}

func TestSharedKeys(t *testing.T) {
	c := load(t, `
security: {certificates: {rotation_days_before_expiry: 60, auto_rotation: false}}
resilience: {reconnect: {initial_delay_seconds: 2, max_delay_seconds: 100}}
backpressure: {enabled: false, disk_spool: {encryption: false, enabled: false}}
sources:
- {name: a, protocol: mqtt, endpoint: "mqtt://h", endpoints: ["mqtt://i"], stale_after_seconds: 9, mqtt: {topics: [{topic: t}]}, reconnect: {max_delay_seconds: 50}}
- {name: c, protocol: opcua, endpoint: "opc.tcp://h:4840", opcua: {nodes: [{node_id: i=1}]}}
- {name: d, protocol: opcua, endpoint: "opc.tcp://h:4840", opcua: {certificate_renew_days: 7, nodes: [{node_id: i=1}]}}
- {name: e, protocol: modbus, stale_after_seconds: 9, endpoint: "modbus+tcp://h", modbus: {registers: [{address: 1, register_type: input}]}}
`)
	if m := c.Sources[0].MQTT; len(m.Endpoints) != 1 || m.StaleAfterSeconds != 9 {
		t.Errorf("mqtt = %+v", m)
	}
	if a, b := c.Sources[1].OPCUA.CertificateRenewDays, c.Sources[2].OPCUA.CertificateRenewDays; a != 60 || b != 7 {
		t.Errorf("certificate_renew_days = %d, %d; want 60, 7", a, b)
	}
	if r := c.reconnect(&c.Sources[0]); r.InitialDelaySeconds != 2 || r.MaxDelaySeconds != 50 {
		t.Errorf("reconnect = %+v", r)
	}
	all := strings.Join(c.NotInForce(), "\n")
	for _, want := range []string{"security.certificates.auto_rotation", "backpressure.enabled",
		"backpressure.disk_spool.enabled", "backpressure.disk_spool.encryption"} {
		if !strings.Contains(all, want) {
			t.Errorf("NotInForce lacks %s:\n%s", want, all)
		}
	}
}

func TestCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	a := authConfig{ClientID: "id", ClientSecretFile: path}
	if _, _, err := a.credentials(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("no file: %v", err)
	}
	for _, secret := range []string{"first", "second"} { // a rotated secret is seen without a restart
		if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, got, err := a.credentials(); id != "id" || got != secret || err != nil {
			t.Errorf("credentials = %q, %q, %v", id, got, err)
		}
	}
	if err := os.WriteFile(path, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.credentials(); err == nil {
		t.Error("an empty file: no error")
	}
	if id, secret, err := (authConfig{ClientID: "id", ClientSecret: "s"}).credentials(); id != "id" || secret != "s" || err != nil {
		t.Errorf("credentials = %q, %q, %v", id, secret, err)
	}
}

func TestSocketOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	none := func(string) (string, bool) { return "", false }
	for src, want := range map[string]string{
		"": "spool/control.sock",
		"state_dir: /var/lib/edgehost\nzerobus: {auth: {client_secret: \"${NOT_SET}\"}}\nunknown: 1": "/var/lib/edgehost/control.sock",
		"control: {socket: /run/e.sock}": "/run/e.sock",
	} {
		if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := socketOf(path, none); got != want || err != nil {
			t.Errorf("socketOf(%q) = %q, %v; want %q", src, got, err, want)
		}
	}
	if err := os.WriteFile(path, []byte("state_dir: ${NOT_SET}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := socketOf(path, none); err == nil {
		t.Error("an unset variable in state_dir: no error")
	}
}

func TestReadConfig(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, make([]byte, maxConfigSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "is a directory", big: "more than a configuration can have", filepath.Join(dir, "none"): "there is no configuration file"} {
		if _, err := loadConfig(path, anyVariable); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestSecret tries every way in which a secret could be printed.
func TestSecret(t *testing.T) {
	c := struct {
		S Secret
		P *Secret
	}{S: "hunter2"}
	c.P = &c.S
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "s", c.S, "p", c.P, "c", c)
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "s", c.S, "p", c.P, "c", c)
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	all := log.String() + string(encoded) + fmt.Sprint(c.S, c) + fmt.Sprintf("%v %+v %#v %s %q %v", c, c, c, c.S, c.S, &c) + fmt.Errorf("e: %v", c.S).Error()
	if strings.Contains(all, "hunter2") {
		t.Errorf("the secret shows:\n%s", all)
	}
	if !strings.Contains(all, redacted) || c.S.Reveal() != "hunter2" || Secret("").String() != "" {
		t.Error("a secret is not recognisable as one")
	}
}
