package mqtt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/edgehost/edgehost/sources"
)

// Config is the mqtt block of a source. The zero value of a field means its
// default. Several endpoints are tried one after another, the source's own
// endpoint first; all of them must speak for the same broker or cluster.
type Config struct {
	Endpoints             []string          `yaml:"endpoints"`               // more brokers to fail over to
	ProtocolVersion       string            `yaml:"protocol_version"`        // "3.1.1" (default) | "5"
	ClientID              string            `yaml:"client_id"`               // default: derived from the host and the source's name, stable
	CleanSession          bool              `yaml:"clean_session"`           // true: the broker forgets us between connections
	SessionExpirySeconds  uint32            `yaml:"session_expiry_seconds"`  // how long a broker of MQTT 5 keeps our session; 0 (default): for ever
	ReceiveMaximum        int               `yaml:"receive_maximum"`         // messages that a broker of MQTT 5 may send without our acknowledgement; default 1000
	KeepAliveSeconds      int               `yaml:"keep_alive_seconds"`      // default 30
	ConnectTimeoutSeconds int               `yaml:"connect_timeout_seconds"` // default 10
	MaxClockSkewSeconds   float64           `yaml:"max_clock_skew_seconds"`  // the source's own key of this name; either place will do
	StaleAfterSeconds     float64           `yaml:"stale_after_seconds"`     // likewise. Here: a topic from which nothing ever came is told; 0: not
	TLS                   sources.TLSConfig `yaml:"tls"`
	Username              string            `yaml:"username"`
	Password              string            `yaml:"password"`
	Ack                   string            `yaml:"ack"`                 // durable (default) | received
	BufferMaxMessages     int               `yaml:"buffer_max_messages"` // default 65535: messages held in memory at most
	MaxPayloadBytes       int               `yaml:"max_payload_bytes"`   // default 1 MiB
	Payload               PayloadConfig     `yaml:"payload"`
	Topics                []TopicConfig     `yaml:"topics"`
}

// TopicConfig is one subscription. When several match a message, the first in
// the list decides how its payload is read and which tags it gets.
type TopicConfig struct {
	Topic       string `yaml:"topic"`        // filter with + and #; "$share/group/filter" is shared_group in one string
	QoS         int    `yaml:"qos"`          // 0, 1 or 2
	SharedGroup string `yaml:"shared_group"` // subscribers of one group share the messages
	// TopicTemplate names levels of the topic: "plant/{line}/{sensor_name}" makes
	// the attributes line and sensor_name; + stands for any level, a last # for
	// the rest. Without the attribute sensor_name the topic's last level is it.
	TopicTemplate string            `yaml:"topic_template"`
	Payload       PayloadConfig     `yaml:"payload"` // what is set here wins over the source's payload block
	Tags          map[string]string `yaml:"tags"`    // win over the source's tags
}

// PayloadConfig says how a payload becomes a value.
type PayloadConfig struct {
	// Format is auto, json, text, number, raw or sparkplug_b. auto (default) takes JSON for
	// JSON, then text for UTF-8, then bytes. What does not hold to its format
	// becomes a record of status Bad with the bytes in the attribute raw.
	// sparkplug_b (topics below spBv1.0/) makes a record of each metric, whose
	// address is group/node/metric or group/node/device/metric.
	Format string `yaml:"format"`
	// ValuePath, TimestampPath, UnitPath and QualityPath are dotted paths into JSON
	// objects ("data.readings.0.v"; a dot within a key is written \.). Defaults:
	// value; ts or timestamp; unit; no quality is read. An object without "value" is
	// a JSON value as a whole; when ValuePath is set, it must be there.
	ValuePath     string `yaml:"value_path"`
	TimestampPath string `yaml:"timestamp_path"`
	UnitPath      string `yaml:"unit_path"`
	QualityPath   string `yaml:"quality_path"`
	// TimestampFormat is auto (default; the unit of a number is told from its
	// size), s, ms, us, ns or rfc3339.
	TimestampFormat string `yaml:"timestamp_format"`
	// QualityFormat is auto (default; see parseQuality) or opcua: numbers are status
	// codes of OPC UA.
	QualityFormat string `yaml:"quality_format"`
	// Flatten makes a record of each leaf of a JSON object or array. The leaf's
	// path is the attribute sensor_path and follows the sensor_name after a dot.
	// Elements of an array that hold a value, as a payload does, are read like
	// payloads, with their own times.
	Flatten *bool `yaml:"flatten"`
	// Rebirth true (default) lets a Sparkplug edge node be asked for a rebirth
	// (NCMD Node Control/Rebirth) when messages of it are missing. It is all that
	// this source ever publishes.
	Rebirth *bool `yaml:"rebirth"`
}

const (
	version3 = "3.1.1"
	version5 = "5"

	formatSparkplug = "sparkplug_b"

	// defaultReceiveMaximum lets 200 000 messages a second through when a commit
	// takes 5 ms.
	defaultReceiveMaximum = 1000

	defaultBufferMessages = 65535
	defaultMaxPayload     = 1 << 20
	maxMaxPayload         = 64 << 20
	bufferBytes           = 32 << 20
)

var (
	formats          = []string{"auto", "json", "text", "number", "raw", formatSparkplug}
	timestampFormats = []string{"auto", "s", "ms", "us", "ns", "rfc3339"}
	qualityFormats   = []string{"auto", "opcua"}
	ackModes         = []string{"durable", "received"}
	protocolVersions = []string{version3, version5}
)

func (c Config) withDefaults() Config {
	setDefault(&c.ProtocolVersion, version3)
	setDefault(&c.ReceiveMaximum, defaultReceiveMaximum)
	setDefault(&c.KeepAliveSeconds, 30)
	setDefault(&c.ConnectTimeoutSeconds, 10)
	setDefault(&c.Ack, "durable")
	setDefault(&c.BufferMaxMessages, defaultBufferMessages)
	setDefault(&c.MaxPayloadBytes, defaultMaxPayload)
	c.Topics = slices.Clone(c.Topics)
	for i := range c.Topics {
		t := &c.Topics[i]
		t.Payload = t.Payload.over(c.Payload)
		if group, filter, shared := cutShare(t.Topic); shared {
			t.SharedGroup, t.Topic = group, filter
		}
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// over returns p with the fields that are not set taken from base.
func (p PayloadConfig) over(base PayloadConfig) PayloadConfig {
	setDefault(&p.Format, base.Format)
	setDefault(&p.ValuePath, base.ValuePath)
	setDefault(&p.TimestampPath, base.TimestampPath)
	setDefault(&p.UnitPath, base.UnitPath)
	setDefault(&p.QualityPath, base.QualityPath)
	setDefault(&p.TimestampFormat, base.TimestampFormat)
	setDefault(&p.QualityFormat, base.QualityFormat)
	setDefault(&p.Flatten, base.Flatten)
	setDefault(&p.Rebirth, base.Rebirth)
	return p
}

func (c Config) connectTimeout() time.Duration {
	return time.Duration(c.ConnectTimeoutSeconds) * time.Second
}

// forever is the session expiry interval of a session that does not expire
// (MQTT 5, section 3.1.2.11.2).
const forever = 0xffffffff

func (c Config) sessionExpiry() uint32 {
	if c.SessionExpirySeconds == 0 {
		return forever
	}
	return c.SessionExpirySeconds
}

// persistent reports whether the broker is to keep our session while we are
// away: that is what makes QoS 1 and 2 mean anything.
func (c Config) persistent() bool {
	return !c.CleanSession && slices.ContainsFunc(c.Topics, func(t TopicConfig) bool { return t.QoS > 0 })
}

// Validate returns everything that is wrong with the block, with paths
// relative to it ("topics[0].qos"). It reads no files.
func (c Config) Validate() []sources.FieldError {
	var errs []sources.FieldError
	add := func(path, format string, args ...any) {
		errs = append(errs, sources.FieldError{Path: path, Msg: fmt.Sprintf(format, args...)})
	}
	oneOf := func(path, value string, allowed []string) {
		if value != "" && !slices.Contains(allowed, value) {
			add(path, "%q is none of %s", value, strings.Join(allowed, ", "))
		}
	}
	between := func(path string, value, low, high int) {
		if value != 0 && (value < low || value > high) {
			add(path, "%d is not between %d and %d", value, low, high)
		}
	}
	for i, e := range c.Endpoints {
		if _, err := parseEndpoint(e, c.TLS); err != nil {
			add(fmt.Sprintf("endpoints[%d]", i), "%v", err)
		}
	}
	oneOf("protocol_version", c.ProtocolVersion, protocolVersions)
	oneOf("ack", c.Ack, ackModes)
	between("receive_maximum", c.ReceiveMaximum, 1, 65535)
	between("keep_alive_seconds", c.KeepAliveSeconds, 1, 65535)
	between("connect_timeout_seconds", c.ConnectTimeoutSeconds, 1, 3600)
	between("buffer_max_messages", c.BufferMaxMessages, 100, 10_000_000)
	between("max_payload_bytes", c.MaxPayloadBytes, 1, maxMaxPayload)
	if !(c.StaleAfterSeconds >= 0 && c.StaleAfterSeconds <= 1e7) {
		add("stale_after_seconds", "%v is not a number of seconds; 0 turns the watch off", c.StaleAfterSeconds)
	}
	if !(c.MaxClockSkewSeconds >= 0 && c.MaxClockSkewSeconds <= 1e9) {
		add("max_clock_skew_seconds", "%v is not a number of seconds; 0 turns the comparison off", c.MaxClockSkewSeconds)
	}
	if len(c.ClientID) > 65535 || !utf8.ValidString(c.ClientID) || strings.ContainsRune(c.ClientID, 0) {
		add("client_id", "must be UTF-8 without NUL")
	}
	if c.SessionExpirySeconds > 0 && c.ProtocolVersion != version5 {
		add("session_expiry_seconds", "needs protocol_version: \"5\"; with MQTT 3.1.1 the broker decides")
	}
	if c.ReceiveMaximum > 0 && c.ProtocolVersion != version5 {
		add("receive_maximum", "needs protocol_version: \"5\"; with MQTT 3.1.1 the broker's own setting decides (mosquitto: max_inflight_messages)")
	}
	if c.Password != "" && c.Username == "" && c.ProtocolVersion != version5 {
		add("password", "needs a username: MQTT 3.1.1 has no password without one")
	}
	errs = append(errs, sources.Prefix("tls", c.TLS.Validate())...)
	errs = append(errs, sources.Prefix("payload", c.Payload.validate())...)
	if len(c.Topics) == 0 {
		add("topics", "needs at least one topic")
	}
	for i, t := range c.Topics {
		topic := t.validate()
		t.Payload = t.Payload.over(c.Payload)
		errs = append(errs, sources.Prefix(fmt.Sprintf("topics[%d]", i), append(topic, t.validateSparkplug()...))...)
	}
	return errs
}

func (p PayloadConfig) validate() []sources.FieldError {
	var errs []sources.FieldError
	for _, f := range []struct {
		path, value string
		allowed     []string
	}{{"format", p.Format, formats}, {"timestamp_format", p.TimestampFormat, timestampFormats}, {"quality_format", p.QualityFormat, qualityFormats}} {
		if f.value != "" && !slices.Contains(f.allowed, f.value) {
			errs = append(errs, sources.FieldError{Path: f.path, Msg: fmt.Sprintf("%q is none of %s", f.value, strings.Join(f.allowed, ", "))})
		}
	}
	for _, f := range []struct{ path, value string }{
		{"value_path", p.ValuePath}, {"timestamp_path", p.TimestampPath}, {"unit_path", p.UnitPath}, {"quality_path", p.QualityPath},
	} {
		if f.value == "" {
			continue
		}
		if _, err := parsePath(f.value); err != nil {
			errs = append(errs, sources.FieldError{Path: f.path, Msg: err.Error()})
		}
	}
	return errs
}

func (t TopicConfig) validate() []sources.FieldError {
	var errs []sources.FieldError
	group, filter, shared := cutShare(t.Topic)
	if err := checkFilter(filter); err != nil {
		errs = append(errs, sources.FieldError{Path: "topic", Msg: err.Error()})
	}
	if shared && t.SharedGroup != "" {
		errs = append(errs, sources.FieldError{Path: "shared_group", Msg: "the topic names a group already ($share/" + group + "/…): keep one of the two"})
	}
	if !shared {
		group = t.SharedGroup
	}
	if strings.ContainsAny(group, "/+#") || (shared && group == "") {
		errs = append(errs, sources.FieldError{Path: "shared_group", Msg: fmt.Sprintf("%q must not be empty or hold /, + or #", group)})
	}
	if t.QoS < 0 || t.QoS > 2 {
		errs = append(errs, sources.FieldError{Path: "qos", Msg: fmt.Sprintf("%d is none of 0, 1, 2", t.QoS)})
	}
	if t.TopicTemplate != "" {
		if _, err := parseTemplate(t.TopicTemplate); err != nil {
			errs = append(errs, sources.FieldError{Path: "topic_template", Msg: err.Error()})
		}
	}
	errs = append(errs, sources.Prefix("payload", t.Payload.validate())...)
	return append(errs, sources.Prefix("tags", sources.ValidateTags(t.Tags))...)
}

// validateSparkplug looks at the whole topic, with what it takes from the
// source's payload block.
func (t TopicConfig) validateSparkplug() []sources.FieldError {
	if t.Payload.Format != formatSparkplug {
		return nil
	}
	var errs []sources.FieldError
	group, filter, _ := cutShare(t.Topic)
	if !isSparkplug(filter) {
		errs = append(errs, sources.FieldError{Path: "topic", Msg: fmt.Sprintf("%q is not below %s, where Sparkplug B is published: use spBv1.0/#, or another payload format", filter, sparkplugNamespace)})
	}
	if group+t.SharedGroup != "" {
		errs = append(errs, sources.FieldError{Path: "shared_group", Msg: "cannot be used with sparkplug_b: each host must see all messages of an edge node"})
	}
	return errs
}

// ValidateEndpoint says what is wrong with the source's endpoint.
func (c Config) ValidateEndpoint(endpoint string) error {
	_, err := parseEndpoint(endpoint, c.TLS)
	return err
}

// Warnings returns what works but is probably not meant, with the paths of
// Validate; "endpoint" is the source's own endpoint.
func (c Config) Warnings(endpoint string) []sources.FieldError {
	var out []sources.FieldError
	plain := true
	for i, e := range append([]string{endpoint}, c.Endpoints...) {
		path := "endpoint"
		if i > 0 {
			path = fmt.Sprintf("endpoints[%d]", i-1)
		}
		parsed, err := parseEndpoint(e, c.TLS)
		if err != nil {
			continue
		}
		plain = plain && !parsed.tls
		if parsed.upgraded {
			out = append(out, sources.FieldError{Path: path, Msg: fmt.Sprintf(
				"%s names a plaintext scheme but tls.enabled is true: TLS wins and nothing is ever sent in the clear; write %s to say so", e, parsed)})
		}
	}
	if plain && (c.TLS.CACertPath != "" || c.TLS.ClientCertPath != "") {
		out = append(out, sources.FieldError{Path: "tls", Msg: "certificates are configured but the connection is in the clear: set tls.enabled: true or use mqtts://"})
	}
	if c.TLS.InsecureSkipVerify {
		out = append(out, sources.FieldError{Path: "tls.insecure_skip_verify", Msg: "any broker is believed: for tests only"})
	}
	if c.Password != "" && plain {
		out = append(out, sources.FieldError{Path: "password", Msg: "travels in the clear: use TLS"})
	}
	if c.CleanSession && slices.ContainsFunc(c.Topics, func(t TopicConfig) bool { return t.QoS > 0 }) {
		out = append(out, sources.FieldError{Path: "clean_session", Msg: "true loses what is published while edgehost is away, whatever the qos: leave it out for topics of qos 1 and 2"})
	}
	if c.Ack == "received" {
		out = append(out, sources.FieldError{Path: "ack", Msg: "received acknowledges before the record is durable: a crash loses what is in memory"})
	}
	for i, t := range c.Topics {
		if _, filter, _ := cutShare(t.Topic); isSparkplug(filter) && t.Payload.over(c.Payload).Format != formatSparkplug {
			out = append(out, sources.FieldError{Path: fmt.Sprintf("topics[%d].topic", i), Msg: "is where Sparkplug B is published: set payload.format: sparkplug_b"})
		}
	}
	return append(out, c.overlapWarnings()...)
}

// overlapWarnings names filters that share topics without one covering the
// other: subscriptions cannot be reduced there, and MQTT 3.1.1 leaves it to the
// broker whether it sends a message once or once for each (section 3.3.5).
func (c Config) overlapWarnings() []sources.FieldError {
	var out []sources.FieldError
	for i, t := range c.Topics {
		for _, earlier := range c.Topics[:i] {
			a, b := strings.Split(earlier.Topic, "/"), strings.Split(t.Topic, "/")
			if t.SharedGroup+earlier.SharedGroup == "" && overlap(a, b) && !covers(a, b) && !covers(b, a) {
				out = append(out, sources.FieldError{Path: fmt.Sprintf("topics[%d].topic", i), Msg: fmt.Sprintf(
					"%s and %s select some of the same topics: a few brokers send such messages twice (mosquitto does not), and aedes mixes them up in a persistent session (set clean_session: true there)", t.Topic, earlier.Topic)})
			}
		}
	}
	return out
}

// check is Validate and ValidateEndpoint as one error.
func (c Config) check(endpoint string, tags map[string]string) error {
	var errs []error
	if err := c.ValidateEndpoint(endpoint); err != nil {
		errs = append(errs, fmt.Errorf("endpoint: %w", err))
	}
	for _, e := range append(c.Validate(), sources.Prefix("tags", sources.ValidateTags(tags))...) {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}
