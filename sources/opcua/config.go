package opcua

import "time"

// Config is the `opcua:` part of a source in the configuration file. The zero
// value of a key means its default; DefaultConfig shows them.
type Config struct {
	// SecurityPolicy is auto, None, Basic256Sha256, Aes128_Sha256_RsaOaep or
	// Aes256_Sha256_RsaPss. auto takes the strongest that the server offers and
	// never None.
	SecurityPolicy string `yaml:"security_policy"`
	// SecurityMode is auto, None, Sign or SignAndEncrypt; auto is
	// SignAndEncrypt where offered, else Sign.
	SecurityMode string `yaml:"security_mode"`
	// AllowDeprecatedPolicies permits Basic256, which the OPC Foundation withdrew.
	AllowDeprecatedPolicies bool `yaml:"allow_deprecated_policies"`
	// CertificatePath and PrivateKeyPath hold our application certificate (PEM
	// or DER) and its RSA key (PKCS#1 or PKCS#8, PEM or DER). Certificates of its
	// issuers in the same file are sent with it. Both are made at the first start
	// when neither exists, and a certificate that we made is renewed
	// CertificateRenewDays before it expires.
	CertificatePath      string      `yaml:"certificate_path"`
	PrivateKeyPath       string      `yaml:"private_key_path"`
	CertificateRenewDays int         `yaml:"certificate_renew_days"`
	Trust                TrustConfig `yaml:"trust"`

	// Username and Password, or the user certificate, or neither: anonymous.
	Username               string `yaml:"username"`
	Password               string `yaml:"password"`
	UserCertificatePath    string `yaml:"user_certificate_path"`
	UserPrivateKeyPath     string `yaml:"user_private_key_path"`
	AllowPlaintextPassword bool   `yaml:"allow_plaintext_password"`

	ApplicationURI             string `yaml:"application_uri"`
	SessionTimeoutSeconds      int    `yaml:"session_timeout_seconds"`
	RequestTimeoutSeconds      int    `yaml:"request_timeout_seconds"`
	KeepaliveCount             int    `yaml:"keepalive_count"`
	LifetimeSeconds            int    `yaml:"lifetime_seconds"`
	Mode                       string `yaml:"mode"` // subscribe | poll
	PublishingIntervalMS       int    `yaml:"publishing_interval_ms"`
	PublishRequests            int    `yaml:"publish_requests"`
	MaxNotificationsPerPublish int    `yaml:"max_notifications_per_publish"`
	// ResumeOnRestart leaves the subscription on the server when we stop, so
	// that the next start takes it over without a hole. Default true.
	ResumeOnRestart *bool `yaml:"resume_on_restart"`
	// Ack says when a notification is acknowledged: durable (default) or
	// received.
	Ack string `yaml:"ack"`
	// HistoryBackfill reads the server's history after a hole, at most
	// HistoryValuesPerSecond.
	HistoryBackfill        bool `yaml:"history_backfill"`
	HistoryValuesPerSecond int  `yaml:"history_values_per_second"`
	// Timestamp names the event time: source (then server, then ingest), server
	// (then ingest) or ingest.
	Timestamp string `yaml:"timestamp"`
	// Enums says how enumeration values are delivered: name (the number in the
	// attribute raw_value) or number.
	Enums string `yaml:"enums"`

	Limits   LimitsConfig  `yaml:"limits"`
	Defaults ItemConfig    `yaml:"defaults"`
	Nodes    []NodeConfig  `yaml:"nodes"`
	Events   []EventConfig `yaml:"events"`
}

// TrustConfig says which server certificates are accepted on secured channels.
type TrustConfig struct {
	// Mode is list (certificates in Dir), ca (issued by a certificate in Dir),
	// pin (exactly the one in ServerCertificatePath), tofu (the first one that a
	// server shows is kept in Dir, a different one is refused later) or insecure.
	Mode                  string `yaml:"mode"`
	Dir                   string `yaml:"dir"`
	ServerCertificatePath string `yaml:"server_certificate_path"`
	CheckHostname         bool   `yaml:"check_hostname"`
}

// LimitsConfig overrides what the server says of its own limits; 0 asks it.
type LimitsConfig struct {
	MaxItemsPerCall         int `yaml:"max_items_per_call"`
	MaxNodesPerRead         int `yaml:"max_nodes_per_read"`
	MaxNodesPerBrowse       int `yaml:"max_nodes_per_browse"`
	MaxItemsPerSubscription int `yaml:"max_items_per_subscription"`
}

// ItemConfig is how one item is read. A nil field takes the value of
// `defaults`, and there the built-in default.
type ItemConfig struct {
	// Mode is subscribe or poll; nil takes the mode of the source.
	Mode               *string         `yaml:"mode"`
	SamplingIntervalMS *int            `yaml:"sampling_interval_ms"`
	QueueSize          *int            `yaml:"queue_size"`
	DiscardOldest      *bool           `yaml:"discard_oldest"`
	Deadband           *DeadbandConfig `yaml:"deadband"`
	// Trigger is status, status_value or status_value_timestamp.
	Trigger          *string `yaml:"trigger"`
	HeartbeatSeconds *int    `yaml:"heartbeat_seconds"`
	// SkipFirst drops the value that a server sends when an item is created.
	SkipFirst *bool `yaml:"skip_first"`
}

// DeadbandConfig suppresses small changes: absolute in engineering units, percent
// of the EURange. The server applies it, or we when we poll; an item for which it
// cannot be applied comes at every change, and the status says so.
type DeadbandConfig struct {
	Type  string  `yaml:"type"`
	Value float64 `yaml:"value"`
}

// NodeConfig is one node, or all variables below one.
type NodeConfig struct {
	// NodeID is ns=<index>;… or nsu=<uri>;… with i=, s=, g= or b=.
	NodeID string `yaml:"node_id"`
	// BrowsePath starts at Root: 0:Root/0:Objects/2:ProcessArea; a slash or
	// colon in a name is written &/ or &:.
	BrowsePath string            `yaml:"browse_path"`
	Name       string            `yaml:"name"`
	Unit       string            `yaml:"unit"`
	Tags       map[string]string `yaml:"tags"`
	ItemConfig `yaml:",inline"`

	Recursive bool `yaml:"recursive"`
	MaxDepth  int  `yaml:"max_depth"`
	MaxNodes  int  `yaml:"max_nodes"`
	// Include and Exclude are globs over the browse path below the start
	// (Line1/*/Temperature): * within one name, ** over several.
	Include []string `yaml:"include"`
	Exclude []string `yaml:"exclude"`
	// Types keeps variables of these built-in types only (Double, Int32, …).
	Types             []string `yaml:"types"`
	IncludeProperties bool     `yaml:"include_properties"`
	// RebrowseSeconds is for servers that do not tell of changes of their
	// address space; model change events are followed in any case.
	RebrowseSeconds int `yaml:"rebrowse_seconds"`
}

// EventConfig subscribes to the events of one node.
type EventConfig struct {
	NodeID string `yaml:"node_id"` // i=2253 is the Server object: all events
	// Fields are browse paths of event fields: Message, Severity,
	// ActiveState/Id, AckedState/Id, and ConditionId, which tells alarms apart. Time,
	// EventType, SourceName, Message, Severity and EventId are always selected.
	Fields      []string `yaml:"fields"`
	EventType   string   `yaml:"event_type"` // node id; "" is BaseEventType
	MinSeverity int      `yaml:"min_severity"`
	// Where holds comparisons that are all to be true.
	Where     []WhereConfig     `yaml:"where"`
	QueueSize int               `yaml:"queue_size"`
	Name      string            `yaml:"name"`
	Tags      map[string]string `yaml:"tags"`
}

// WhereConfig compares one event field with a constant.
type WhereConfig struct {
	Field string `yaml:"field"`
	Op    string `yaml:"op"` // eq | gt | gte | lt | lte | like
	Value any    `yaml:"value"`
}

// DefaultConfig returns the value that an absent key has.
func DefaultConfig() Config {
	return Config{
		SecurityPolicy: "auto", SecurityMode: "auto", CertificateRenewDays: 30,
		Trust:                 TrustConfig{Mode: "list"},
		SessionTimeoutSeconds: 60, RequestTimeoutSeconds: 10, KeepaliveCount: 10, LifetimeSeconds: 600,
		Mode: "subscribe", PublishingIntervalMS: 1000, PublishRequests: 3, MaxNotificationsPerPublish: 1000,
		ResumeOnRestart: new(true), Ack: "durable", HistoryValuesPerSecond: 5000, Timestamp: "source", Enums: "name",
		Defaults: ItemConfig{SamplingIntervalMS: new(1000), QueueSize: new(100), DiscardOldest: new(true),
			Deadband: &DeadbandConfig{Type: "none"}, Trigger: new("status_value"), HeartbeatSeconds: new(0), SkipFirst: new(false)},
	}
}

// withDefaults returns c with every absent key filled in.
func (c Config) withDefaults() Config {
	d := DefaultConfig()
	for _, f := range []struct{ v, def *string }{
		{&c.SecurityPolicy, &d.SecurityPolicy}, {&c.SecurityMode, &d.SecurityMode}, {&c.Trust.Mode, &d.Trust.Mode},
		{&c.Mode, &d.Mode}, {&c.Ack, &d.Ack}, {&c.Timestamp, &d.Timestamp}, {&c.Enums, &d.Enums},
	} {
		if *f.v == "" {
			*f.v = *f.def
		}
	}
	for _, f := range []struct{ v, def *int }{
		{&c.CertificateRenewDays, &d.CertificateRenewDays}, {&c.SessionTimeoutSeconds, &d.SessionTimeoutSeconds},
		{&c.RequestTimeoutSeconds, &d.RequestTimeoutSeconds}, {&c.KeepaliveCount, &d.KeepaliveCount},
		{&c.LifetimeSeconds, &d.LifetimeSeconds}, {&c.PublishingIntervalMS, &d.PublishingIntervalMS},
		{&c.PublishRequests, &d.PublishRequests}, {&c.MaxNotificationsPerPublish, &d.MaxNotificationsPerPublish},
		{&c.HistoryValuesPerSecond, &d.HistoryValuesPerSecond},
	} {
		if *f.v == 0 {
			*f.v = *f.def
		}
	}
	if c.ResumeOnRestart == nil {
		c.ResumeOnRestart = d.ResumeOnRestart
	}
	d.Defaults.Mode = &c.Mode
	c.Defaults = c.Defaults.over(d.Defaults)
	return c
}

// over returns i with its nil fields taken from base.
func (i ItemConfig) over(base ItemConfig) ItemConfig {
	orElse(&i.Mode, base.Mode)
	orElse(&i.SamplingIntervalMS, base.SamplingIntervalMS)
	orElse(&i.QueueSize, base.QueueSize)
	orElse(&i.DiscardOldest, base.DiscardOldest)
	orElse(&i.Deadband, base.Deadband)
	orElse(&i.Trigger, base.Trigger)
	orElse(&i.HeartbeatSeconds, base.HeartbeatSeconds)
	orElse(&i.SkipFirst, base.SkipFirst)
	return i
}

func orElse[T any](v **T, base *T) {
	if *v == nil {
		*v = base
	}
}

func (c Config) requestTimeout() time.Duration {
	return time.Duration(c.RequestTimeoutSeconds) * time.Second
}

func (c Config) publishingInterval() time.Duration {
	return time.Duration(c.PublishingIntervalMS) * time.Millisecond
}
