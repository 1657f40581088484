package opcua

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
)

// seedConfig is the example of the connector's document.
const seedConfig = `
security_policy: "Basic256Sha256"
security_mode: "SignAndEncrypt"
certificate_path: "certs/opcua/client_cert.der"
private_key_path: "certs/opcua/client_key.pem"
username: "u"
password: "p"
nodes:
  - node_id: "ns=2;s=Temperature"
    sampling_interval_ms: 1000
  - browse_path: "0:Root/0:Objects/2:ProcessArea"
    recursive: true
`

const fullConfig = seedConfig + `
    max_depth: 5
    include: ["**"]
    exclude: ["*/Debug"]
    types: [Double, Integer]
    rebrowse_seconds: 60
  - {node_id: "nsu=urn:x;y;g=72962B91-FA75-4AE6-8D28-B404DC7DAF63", mode: poll, deadband: {type: absolute, value: 0.5}, trigger: status_value_timestamp,
     heartbeat_seconds: 60, skip_first: true, name: t, unit: C, tags: {plc_name: a}, queue_size: 5, discard_oldest: false}
trust: {mode: tofu, dir: x, check_hostname: true}
limits: {max_items_per_call: 5, max_nodes_per_read: 6, max_nodes_per_browse: 7, max_items_per_subscription: 8}
defaults: {sampling_interval_ms: 250}
events: [{node_id: i=2253, fields: [Message, EnabledState/Id], min_severity: 500, where: [{field: SourceName, op: eq, value: pump}]}]
ack: received
history_backfill: true
resume_on_restart: false
`

func parse(t *testing.T, text string) Config {
	t.Helper()
	var c Config
	dec := yaml.NewDecoder(bytes.NewBufferString(text), yaml.DisallowUnknownField())
	if err := dec.Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfigLoads(t *testing.T) {
	for name, text := range map[string]string{"seed": seedConfig, "full": fullConfig} {
		if errs := parse(t, text).Validate(); len(errs) > 0 {
			t.Errorf("%s: %v", name, errs)
		}
	}
	c := parse(t, fullConfig).withDefaults()
	item := c.Nodes[2].over(c.Defaults)
	if *item.SamplingIntervalMS != 250 || *item.QueueSize != 5 || *item.Mode != "poll" || *item.DiscardOldest {
		t.Errorf("item settings %+v: a node's own keys win, then defaults", item)
	}
	if *c.ResumeOnRestart || c.Trust.Mode != "tofu" || c.KeepaliveCount != 10 {
		t.Errorf("config %+v", c)
	}
}

func TestConfigMistakes(t *testing.T) {
	ok := func() Config { return nodes("i=85") }
	cases := map[string]struct {
		change func(*Config)
		path   string
		says   string
	}{
		"nothing":        {func(c *Config) { c.Nodes = nil }, "nodes", "nothing to read"},
		"policy":         {func(c *Config) { c.SecurityPolicy = "Basic265" }, "security_policy", "Basic256Sha256"},
		"deprecated":     {func(c *Config) { c.SecurityPolicy = "Basic256" }, "security_policy", "allow_deprecated_policies"},
		"broken":         {func(c *Config) { c.SecurityPolicy = "Basic128Rsa15"; c.AllowDeprecatedPolicies = true }, "security_policy", "broken"},
		"downgrade":      {func(c *Config) { c.SecurityMode = "None" }, "security_mode", "security_policy: None"},
		"none with sign": {func(c *Config) { c.SecurityPolicy, c.SecurityMode = "None", "Sign" }, "security_mode", "other than None"},
		"half a pair":    {func(c *Config) { c.CertificatePath = "x" }, "private_key_path", "both"},
		"two users":      {func(c *Config) { c.Username = "u"; c.UserCertificatePath, c.UserPrivateKeyPath = "a", "b" }, "username", "choose one"},
		"pin":            {func(c *Config) { c.Trust.Mode = "pin" }, "trust.server_certificate_path", "certificate"},
		"lifetime":       {func(c *Config) { c.LifetimeSeconds = 15 }, "lifetime_seconds", "keepalive"},
		"both ids":       {func(c *Config) { c.Nodes[0].BrowsePath = "0:Root" }, "nodes[0]", "one of them"},
		"bad id":         {func(c *Config) { c.Nodes[0].NodeID = "ns=2;Temperature" }, "nodes[0].node_id", "i=<number>"},
		"bad path":       {func(c *Config) { c.Nodes[0] = NodeConfig{BrowsePath: "a//b"} }, "nodes[0].browse_path", "empty name"},
		"depth":          {func(c *Config) { c.Nodes[0].MaxDepth = 3 }, "nodes[0].max_depth", "recursive"},
		"type":           {func(c *Config) { c.Nodes[0].Recursive = true; c.Nodes[0].Types = []string{"float"} }, "nodes[0].types[0]", "Double"},
		"deadband":       {func(c *Config) { c.Nodes[0].Deadband = &DeadbandConfig{Type: "percent", Value: 101} }, "nodes[0].deadband.value", "100"},
		"reserved tag":   {func(c *Config) { c.Nodes[0].Tags = map[string]string{"browse_path": "x"} }, "nodes[0].tags.browse_path", "protocol"},
		"event op": {func(c *Config) {
			c.Events = []EventConfig{{NodeID: "i=2253", Where: []WhereConfig{{Field: "a", Op: "is", Value: 1}}}}
		}, "events[0].where[0].op", "like"},
		"event value": {func(c *Config) {
			c.Events = []EventConfig{{NodeID: "i=2253", Where: []WhereConfig{{Field: "a", Op: "eq"}}}}
		}, "events[0].where[0].value", "number"},
		"poll too fast":   {func(c *Config) { c.Mode = "poll"; c.Nodes[0].SamplingIntervalMS = new(0) }, "nodes[0].sampling_interval_ms", "10 ms"},
		"publish too few": {func(c *Config) { c.PublishRequests = 21 }, "publish_requests", "20"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := ok()
			tc.change(&c)
			for _, e := range c.Validate() {
				if e.Path == tc.path && strings.Contains(e.Msg, tc.says) {
					return
				}
			}
			t.Errorf("want %s: …%s…, got %v", tc.path, tc.says, c.Validate())
		})
	}
	for _, bad := range []string{"", "http://h:1", "opc.tcp://", "opc.tcp://u:p@h:1", "opc.tcp://h:99:1"} {
		if ValidateEndpoint(bad) == nil {
			t.Errorf("endpoint %q is accepted", bad)
		}
	}
	_, err := New("s", "opc.tcp://h", map[string]string{"quality": "x"}, Config{}, Deps{Logger: slog.New(slog.DiscardHandler), Status: sources.NewStatus("s", protocol)})
	if err == nil || !strings.Contains(err.Error(), "opcua.nodes") || !strings.Contains(err.Error(), "tags.quality") {
		t.Errorf("New lists every mistake: %v", err)
	}
}

func TestNodeIDs(t *testing.T) {
	ns := []string{"http://opcfoundation.org/UA/", "urn:a", "urn:x;y"}
	for text, want := range map[string]string{
		"i=85": "i=85", "ns=2;s=Temperature": "ns=2;s=Temperature", "ns=1;i=70000": "ns=1;i=70000", "nsu=urn:a;s=x;y=z": "ns=1;s=x;y=z",
		"nsu=urn:x;y;i=5": "ns=2;i=5", "ns=1;b=AAEC": "ns=1;b=AAEC", "ns=1;g=72962b91-fa75-4ae6-8d28-b404dc7daf63": "ns=1;g=72962B91-FA75-4AE6-8D28-B404DC7DAF63",
		"s=with space": "s=with space",
	} {
		r, err := parseNodeRef(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		id, err := r.resolve(ns)
		if err != nil || id.String() != want {
			t.Errorf("%q is %v (%v), want %s", text, id, err, want)
		}
	}
	for _, bad := range []string{"", "85", "i=", "i=4294967296", "ns=70000;i=1", "ns=1", "ns=1;x=1", "g=12", "b=!", "nsu=;i=1", "nsu=urn:a", "s="} {
		if r, err := parseNodeRef(bad); err == nil {
			t.Errorf("%q is accepted as %+v", bad, r)
		}
	}
	r, err := parseNodeRef("nsu=urn:unknown;i=1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.resolve(ns); err == nil {
		t.Error("unknown namespace resolved")
	}
}

func TestBrowsePaths(t *testing.T) {
	got, err := parseBrowsePath("0:Root/Objects/2:a&/b&:c&&d")
	want := []nameRef{{0, "Root"}, {0, "Objects"}, {2, "a/b:c&d"}}
	if err != nil || cmp.Diff(want, got, cmp.AllowUnexported(nameRef{})) != "" {
		t.Errorf("%v, %v", got, err)
	}
	if text := pathText(got); text != "0:Root/0:Objects/2:a&/b&:c&&d" {
		t.Errorf("written back as %s", text)
	}
	for _, bad := range []string{"", "a/", "x:a", "a&", "70000:a"} {
		if _, err := parseBrowsePath(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestGlobs(t *testing.T) {
	for _, tc := range []struct {
		path             string
		include, exclude []string
		want             bool
	}{
		{"Line1/Temp", nil, nil, true}, {"Line1/Temp", []string{"*/Temp"}, nil, true}, {"Line1/a/Temp", []string{"*/Temp"}, nil, false},
		{"Line1/a/Temp", []string{"**/Temp"}, nil, true}, {"Temp", []string{"**/Temp"}, nil, true}, {"Line1/Temp", nil, []string{"Line?/*"}, false},
		{"Line12/Temp", nil, []string{"Line?/*"}, true}, {"a/b", []string{"a/**"}, []string{"a/b"}, false}, {"abcabc", []string{"*abc"}, nil, true},
	} {
		if got := wanted(tc.path, tc.include, tc.exclude); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func endpoints(list ...string) []*ua.EndpointDescription {
	var out []*ua.EndpointDescription
	modes := map[string]ua.MessageSecurityMode{"None": 1, "Sign": 2, "SignAndEncrypt": 3}
	for _, e := range list {
		policy, mode, _ := strings.Cut(e, "/")
		out = append(out, &ua.EndpointDescription{EndpointURL: "opc.tcp://x", SecurityPolicyURI: ua.SecurityPolicyURIPrefix + policy, SecurityMode: modes[mode]})
	}
	return out
}

func TestNoSilentDowngrade(t *testing.T) {
	all := endpoints("None/None", "Basic256/SignAndEncrypt", "Basic256Sha256/Sign", "Basic256Sha256/SignAndEncrypt", "Aes256_Sha256_RsaPss/Sign", "Aes128_Sha256_RsaOaep/SignAndEncrypt")
	for _, tc := range []struct{ policy, mode, want string }{
		{"auto", "auto", "Aes128_Sha256_RsaOaep/SignAndEncrypt"}, {"auto", "Sign", "Aes256_Sha256_RsaPss/Sign"}, {"None", "auto", "None/None"},
		{"Basic256Sha256", "auto", "Basic256Sha256/SignAndEncrypt"}, {"Basic256Sha256", "Sign", "Basic256Sha256/Sign"},
		{"Aes256_Sha256_RsaPss", "SignAndEncrypt", ""}, {"Basic256", "SignAndEncrypt", "Basic256/SignAndEncrypt"},
	} {
		e, err := chooseEndpoint(Config{SecurityPolicy: tc.policy, SecurityMode: tc.mode}, all)
		got := ""
		if err == nil {
			got = policyName(e.SecurityPolicyURI) + "/" + modeName(e.SecurityMode)
		} else if !strings.Contains(err.Error(), "Basic256Sha256/Sign") {
			t.Errorf("%+v: the refusal does not list what the server offers: %v", tc, err)
		}
		if got != tc.want {
			t.Errorf("%+v chose %q", tc, got)
		}
	}
	_, err := chooseEndpoint(Config{SecurityPolicy: "auto", SecurityMode: "auto"}, endpoints("None/None"))
	if err == nil || !strings.Contains(err.Error(), "security_policy: None") {
		t.Errorf("auto on an unsecured server: %v", err)
	}
}

func TestChooseToken(t *testing.T) {
	e := endpoints("Basic256Sha256/SignAndEncrypt")[0]
	e.UserIdentityTokens = []*ua.UserTokenPolicy{{PolicyID: "weak", TokenType: ua.UserTokenTypeUserName, SecurityPolicyURI: ua.SecurityPolicyURIBasic256},
		{PolicyID: "none", TokenType: ua.UserTokenTypeUserName, SecurityPolicyURI: ua.SecurityPolicyURINone}, {PolicyID: "channel", TokenType: ua.UserTokenTypeUserName}}
	id, uri, err := chooseToken(e, ua.UserTokenTypeUserName, false)
	if err != nil || id != "channel" || uri != ua.SecurityPolicyURIBasic256Sha256 {
		t.Errorf("chose %s %s, %v; want the channel's policy", id, uri, err)
	}
	if _, _, err := chooseToken(e, ua.UserTokenTypeCertificate, false); err == nil || !strings.Contains(err.Error(), "username") {
		t.Errorf("want a refusal that lists what is accepted: %v", err)
	}
}

// FuzzConfig: no configuration makes Validate panic, and one that it accepts
// can be made into node ids and paths.
func FuzzConfig(f *testing.F) {
	f.Add(seedConfig)
	f.Add(fullConfig)
	f.Add("nodes: [{node_id: \"nsu=a;i=1\", browse_path: \"1:\"}]")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		if yaml.Unmarshal([]byte(text), &c) != nil || len(c.Validate()) > 0 {
			return
		}
		for _, n := range c.Nodes {
			if n.NodeID != "" {
				if _, err := parseNodeRef(n.NodeID); err != nil {
					t.Error(err)
				}
			} else if _, err := parseBrowsePath(n.BrowsePath); err != nil {
				t.Error(err)
			}
		}
		c.withDefaults().hash()
	})
}

// FuzzBrowsePath: what is read is written back to something that reads alike.
func FuzzBrowsePath(f *testing.F) {
	f.Add("0:Root/0:Objects/2:ProcessArea")
	f.Add("a&/b/3:&:")
	f.Fuzz(func(t *testing.T, text string) {
		names, err := parseBrowsePath(text)
		if err != nil {
			return
		}
		again, err := parseBrowsePath(pathText(names))
		if err != nil || cmp.Diff(names, again, cmp.AllowUnexported(nameRef{})) != "" {
			t.Errorf("%q: %v, then %v (%v)", text, names, again, err)
		}
	})
}

// FuzzResume: a resume point is the disk's; nothing in it may panic.
func FuzzResume(f *testing.F) {
	b, err := json.Marshal(resumePoint{Version: 1, Endpoint: "e", Started: 5, Subs: []resumeSub{{1, 2}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"v":1,"subs":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := decodeResume(b, "e", time.Unix(0, 5), slog.New(slog.DiscardHandler))
		if ok && (p.Version != 1 || len(p.Subs) == 0) {
			t.Errorf("accepted %+v", p)
		}
	})
}
