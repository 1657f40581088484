package mqtt

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/sources"
)

// seedConfig is the mqtt block of the document that edgehost was built for.
const seedConfig = `
tls:
  enabled: true
  ca_cert_path: "certs/mqtt/ca.crt"
  client_cert_path: "certs/mqtt/client.crt"
  client_key_path: "certs/mqtt/client.key"

username: "u"
password: "p"

topics:
  - topic: "sensors/+/temperature"
    qos: 1
`

const fullConfig = `
endpoints: ["mqtts://b:8883", "wss://c/mqtt"]
protocol_version: 3.1.1
client_id: ""
clean_session: false
keep_alive_seconds: 30
connect_timeout_seconds: 10
stale_after_seconds: 60
tls: {enabled: true, ca_cert_path: a, client_cert_path: b, client_key_path: c, server_name: d, min_version: "1.3", insecure_skip_verify: false}
username: u
password: p
ack: durable
buffer_max_messages: 65535
max_payload_bytes: 1048576
payload: {format: auto, value_path: value, timestamp_path: ts, timestamp_format: auto, unit_path: unit, quality_path: q, quality_format: opcua, flatten: false}
topics:
- topic: "sensors/+/temperature"
  qos: 1
  shared_group: "g"
  topic_template: "sensors/{line}/{sensor}"
  payload: {format: json, flatten: true}
  tags: {industry: mining}
`

func parseConfig(t *testing.T, text string) Config {
	t.Helper()
	var cfg Config
	if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(&cfg); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestConfigLoads(t *testing.T) {
	for name, text := range map[string]string{"seed": seedConfig, "full": fullConfig} {
		cfg := parseConfig(t, text)
		if errs := cfg.Validate(); len(errs) > 0 {
			t.Errorf("%s: %v", name, errs)
		}
		if !cfg.persistent() {
			t.Errorf("%s: qos 1 without a persistent session", name)
		}
	}
	cfg := parseConfig(t, fullConfig).withDefaults()
	if p := cfg.Topics[0].Payload; p.Format != "json" || p.ValuePath != "value" || !*p.Flatten {
		t.Errorf("the topic's payload block does not win over the source's: %+v", p)
	}
}

func TestConfigRefuses(t *testing.T) {
	cases := map[string]string{
		"protocol_version: 3.1":                                 "protocol_version",
		"keep_alive_seconds: 70000":                             "keep_alive_seconds",
		"receive_maximum: 20":                                   "receive_maximum",
		"{protocol_version: '5', receive_maximum: 70000}":       "receive_maximum",
		"connect_timeout_seconds: -1":                           "connect_timeout_seconds",
		"stale_after_seconds: -1":                               "stale_after_seconds",
		"ack: maybe":                                            "ack",
		"buffer_max_messages: 1":                                "buffer_max_messages",
		"max_payload_bytes: 999999999":                          "max_payload_bytes",
		"password: x":                                           "password",
		"endpoints: ['mqtt://a', 'http://b']":                   "endpoints[1]",
		"tls: {min_version: '1.1'}":                             "tls.min_version",
		"tls: {client_cert_path: x}":                            "tls.client_cert_path",
		"payload: {format: xml}":                                "payload.format",
		"payload: {value_path: 'a..b'}":                         "payload.value_path",
		"payload: {timestamp_format: h}":                        "payload.timestamp_format",
		"topics: [{topic: a, qos: 3}]":                          "topics[0].qos",
		"topics: [{topic: ''}]":                                 "topics[0].topic",
		"topics: [{topic: a}, {topic: 'a/#/b'}]":                "topics[1].topic",
		"topics: [{topic: 'a+'}]":                               "topics[0].topic",
		"topics: [{topic: '$share/g/'}]":                        "topics[0].topic",
		"topics: [{topic: '$share//a'}]":                        "topics[0].shared_group",
		"topics: [{topic: '$share/g/a', shared_group: h}]":      "topics[0].shared_group",
		"topics: [{topic: a, shared_group: 'a/b'}]":             "topics[0].shared_group",
		"topics: [{topic: a, topic_template: 'a/{qos}'}]":       "topics[0].topic_template",
		"topics: [{topic: a, topic_template: 'a/x{line}'}]":     "topics[0].topic_template",
		"topics: [{topic: a, topic_template: '{line}/{line}'}]": "topics[0].topic_template",
		"topics: [{topic: a, topic_template: '#/{line}'}]":      "topics[0].topic_template",
		"topics: [{topic: a, tags: {retain: x}}]":               "topics[0].tags.retain",
		"topics: [{topic: a, payload: {unit_path: '.'}}]":       "topics[0].payload.unit_path",
		"topics: [{topic: a, payload: {quality_path: 'a..b'}}]": "topics[0].payload.quality_path",
		"topics: [{topic: a, payload: {quality_format: da}}]":   "topics[0].payload.quality_format",
		"topics: []": "topics",
	}
	for text, want := range cases {
		cfg := parseConfig(t, text)
		if len(cfg.Topics) == 0 && want != "topics" {
			cfg.Topics = []TopicConfig{{Topic: "a"}}
		}
		errs := cfg.Validate()
		if len(errs) != 1 || errs[0].Path != want || errs[0].Msg == "" {
			t.Errorf("%s: %v, want one error at %s", text, errs, want)
		}
	}
}

func TestEndpoints(t *testing.T) {
	cases := []struct {
		raw     string
		enabled bool
		want    string // "": refused
	}{
		{"mqtt://h", false, "mqtt://h:1883"},
		{"tcp://h:1", false, "mqtt://h:1"},
		{"mqtt://192.168.1.200:1883", true, "mqtts://192.168.1.200:1883"},
		{"mqtts://h", false, "mqtts://h:8883"},
		{"ssl://[::1]:9", false, "mqtts://[::1]:9"},
		{"ws://h", false, "ws://h:80/mqtt"},
		{"ws://h/x/y", true, "wss://h:80/x/y"},
		{"wss://h", false, "wss://h:443/mqtt"},
		{"", false, ""}, {"h:1883", false, ""}, {"http://h", false, ""}, {"mqtt://u:p@h", false, ""}, {"mqtt://h/topic", false, ""},
		{"mqtt://h:0", false, ""}, {"mqtt://h:70000", false, ""}, {"mqtt://", false, ""}, {"mqtt://h?x=1", false, ""}, {"mqtt://h:x", false, ""},
	}
	for _, c := range cases {
		e, err := parseEndpoint(c.raw, sources.TLSConfig{Enabled: c.enabled})
		if c.want == "" {
			if err == nil {
				t.Errorf("%q is taken as %s", c.raw, e)
			} else if strings.Contains(err.Error(), "u:p") {
				t.Errorf("%q: the error shows the password: %v", c.raw, err)
			}
			continue
		}
		if err != nil || e.String() != c.want {
			t.Errorf("%q is %s, %v; want %s", c.raw, e, err, c.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	cfg := parseConfig(t, seedConfig)
	paths := func(c Config, endpoint string) []string {
		var out []string
		for _, w := range c.Warnings(endpoint) {
			out = append(out, w.Path)
		}
		return out
	}
	if got := paths(cfg, "mqtt://192.168.1.200:1883"); !slices.Equal(got, []string{"endpoint"}) {
		t.Errorf("the seed's scheme and tls block contradict: %v", got)
	}
	if got := paths(cfg, "mqtts://h"); len(got) != 0 {
		t.Errorf("warnings without reason: %v", got)
	}
	cfg.TLS.Enabled = false
	cfg.CleanSession, cfg.Ack = true, "received"
	cfg.Topics = append(cfg.Topics, TopicConfig{Topic: "+/a/temperature"})
	if got, want := paths(cfg, "mqtt://h"), []string{"tls", "password", "clean_session", "ack", "topics[1].topic"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestNew(t *testing.T) {
	good := Config{Topics: []TopicConfig{{Topic: "a", QoS: 1}}}
	deps := Deps{Status: sources.NewStatus("m", "mqtt"), Logger: slog.New(slog.DiscardHandler), HostID: "h"}
	a, err := New("m", "mqtt://h", nil, good, deps)
	if err != nil {
		t.Fatal(err)
	}
	b, err := New("m", "mqtt://h", nil, good, deps)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New("n", "mqtt://h", nil, good, deps)
	if err != nil {
		t.Fatal(err)
	}
	if a.clientID != b.clientID || a.clientID == c.clientID || len(a.clientID) != 23 {
		t.Errorf("client ids %q, %q, %q: want stable ones of 23 characters, one for each source", a.clientID, b.clientID, c.clientID)
	}
	deps.HostID = ""
	if _, err := New("m", "mqtt://h", nil, good, deps); err == nil || !strings.Contains(err.Error(), "mqtt.client_id") {
		t.Errorf("without a host id: %v", err)
	}
	if _, err := New("m", "gopher://h", map[string]string{"qos": "1"}, Config{}, deps); err == nil {
		t.Error("a wrong configuration is taken")
	} else if diff := cmp.Diff(3, strings.Count(err.Error(), "\n")+1); diff != "" {
		t.Errorf("want endpoint, topics and tags named: %v", err)
	}
}

func TestNewLogsWarnings(t *testing.T) {
	var out bytes.Buffer
	cfg := parseConfig(t, seedConfig)
	_, err := New("m", "mqtt://192.168.1.200:1883", nil, cfg,
		Deps{Status: sources.NewStatus("m", "mqtt"), Logger: slog.New(slog.NewTextHandler(&out, nil)), HostID: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "TLS wins") {
		t.Errorf("log: %s", out.String())
	}
}
