//go:build conformance

package mqtt

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/sourcetest"
)

func TestSmokeQoS(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_queued_messages 0").start()
	for i := range 6 {
		qos, version := i%3, protocolVersions[i/3]
		t.Run(fmt.Sprintf("%s qos %d", version, qos), func(t *testing.T) { everyMessageOnce(t, &m.broker, m.url(), version, qos) })
	}
}

// everyMessageOnce reads 2000 messages of b from endpoint: all, in order, none
// twice, and all of them acknowledged.
func everyMessageOnce(t *testing.T, b *broker, endpoint, version string, qos int) {
	cfg := oneTopic(fmt.Sprintf("n/%d/+", qos), qos)
	cfg.ProtocolVersion, cfg.ClientID = version, t.Name()
	s, st := newTestSource(t, endpoint, cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	want := numbers("m", 2000)
	b.mustPublish(fmt.Sprintf("n/%d/x", qos), qos, want)
	awaitAll(t, &k, want, 30*time.Second)
	checkArrived(t, k.texts(), want, true)
	for _, r := range k.records() {
		if v, ok := r.Attr(abi.AttrQoS); !ok || v.AsInt() != int64(qos) {
			t.Fatalf("attribute qos is %v, want %d", v, qos)
		}
	}
	eventually(t, "no message without acknowledgement", func() bool { _, unacked := s.buf.counts(); return unacked == 0 })
}

func TestSmokeRetainedAndLarge(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true").start()
	m.mustPublish("r/last", 1, []string{"kept"}, "-r")
	s, st := newTestSource(t, m.url(), oneTopic("r/#", 1))
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	eventually(t, "the retained message", func() bool { return len(k.records()) == 1 })
	if v, _ := k.records()[0].Attr(abi.AttrRetain); !v.AsBool() {
		t.Error("attribute retain is not set")
	}
	for _, size := range []int{1 << 20, 1<<20 + 1, 20 << 20} {
		m.publishOne("r/large", fill(size))
	}
	m.mustPublish("r/after", 1, []string{"after"})
	eventually(t, "the record after the large ones", func() bool { return len(k.records()) == 5 })
	recs := k.records()
	if len(recs[1].Value.Text()) != 1<<20 || recs[1].Status != 0 {
		t.Errorf("1 MiB arrived as %d bytes with status %#x", len(recs[1].Value.Text()), recs[1].Status)
	}
	for i, want := range []string{"payload too large (1048577 bytes)", "payload too large (20971520 bytes)"} {
		if v, _ := recs[2+i].Attr(abi.AttrReason); v.Text() != want || recs[2+i].Status>>30 != 2 {
			t.Errorf("reason %q with status %#x, want %q", v.Text(), recs[2+i].Status, want)
		}
	}
}

func TestSmokeUserProperties(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true").start()
	cfg := oneTopic("p", 1)
	cfg.ProtocolVersion = version5
	s, st := newTestSource(t, m.url(), cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	m.mustPublish("p", 1, []string{"1"}, "-V", "5", "-D", "publish", "user-property", "line", "7", "-D", "publish", "content-type", "text/plain")
	eventually(t, "the record", func() bool { return len(k.records()) == 1 })
	for key, want := range map[string]string{"user.line": "7", "content_type": "text/plain"} {
		if v, _ := k.records()[0].Attr(key); v.Text() != want {
			t.Errorf("%s is %q, want %q", key, v.Text(), want)
		}
	}
}

func TestSmokeOverlappingFiltersDoNotDouble(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_queued_messages 0").start()
	overlappingFilters(t, &m.broker, Config{Topics: crossingTopics})
}

var crossingTopics = []TopicConfig{{Topic: "a/+", QoS: 1}, {Topic: "+/b", QoS: 1}, {Topic: "a/#", QoS: 0}, {Topic: "a/b", QoS: 2}}

func overlappingFilters(t *testing.T, m *broker, cfg Config) {
	s, st := newTestSource(t, m.url(), cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	want := numbers("m", 200)
	m.mustPublish("a/b", 2, want)
	m.mustPublish("a/end", 1, []string{"z"})
	awaitAll(t, &k, append(want, "z"), 20*time.Second)
	checkArrived(t, k.texts(), want, true)
}

func TestSmokeCredentialsAndACL(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous false", "password_file %DIR%/passwd", "acl_file %DIR%/acl")
	passwd := filepath.Join(m.dir, "passwd")
	m.write("passwd", "u:secret\npub:secret\n")
	m.write("acl", "user u\ntopic read open/#\nuser pub\ntopic write #\n")
	if out, err := runCommand("mosquitto_passwd", "-U", passwd); err != nil {
		t.Fatalf("mosquitto_passwd: %v: %s", err, out)
	}
	m.start()
	cases := []struct {
		name, user, password string
		state                sources.State
	}{
		{"right", "u", "secret", sources.Connected},
		{"wrong password", "u", "guess", sources.AuthFailed},
		{"no user", "", "", sources.AuthFailed},
	}
	for _, c := range cases {
		cfg := oneTopic("open/x", 1)
		cfg.Username, cfg.Password = c.user, c.password
		s, st := newTestSource(t, m.url(), cfg)
		stop := run(t, s, new(sink).emit)
		snap := awaitState(t, st, c.state)
		if c.state == sources.AuthFailed && !strings.Contains(snap.Detail, "mqtt.username") {
			t.Errorf("%s: %s", c.name, snap.Detail)
		}
		if strings.Contains(snap.Detail, "guess") {
			t.Errorf("%s: the password shows: %s", c.name, snap.Detail)
		}
		stop()
	}
	for password, state := range map[string]sources.State{"secret": sources.Connected, "guess": sources.AuthFailed} {
		cfg := oneTopic("open/x", 1)
		cfg.Username, cfg.Password, cfg.ProtocolVersion = "u", password, version5
		s, st := newTestSource(t, m.url(), cfg)
		stop := run(t, s, new(sink).emit)
		awaitState(t, st, state)
		stop()
	}
	// This broker grants what its list forbids and then stays silent.
	cfg := Config{Username: "u", Password: "secret", StaleAfterSeconds: 2,
		Topics: []TopicConfig{{Topic: "open/x", QoS: 1}, {Topic: "secret/x", QoS: 1}}}
	s, st := newTestSource(t, m.url(), cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	eventually(t, "degraded: secret/x is silent", func() bool {
		m.mustPublish("secret/x", 1, []string{"no"}, "-u", "pub", "-P", "secret")
		m.mustPublish("open/x", 1, []string{"yes"}, "-u", "pub", "-P", "secret")
		snap := st.Snapshot()
		return snap.State == sources.Degraded && strings.Contains(snap.Detail, "on secret/x although")
	})
	for _, text := range k.texts() {
		if text != "yes" {
			t.Errorf("%q arrived against the access control list", text)
		}
	}
}

// TestSmokeTakeOver: two hosts that use one client id throw each other out, and
// both say so.
func TestSmokeTakeOver(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true").start()
	a := startAedes(t, nil)
	for name, c := range map[string]struct{ endpoint, version string }{
		"mosquitto 3.1.1": {m.url(), version3},
		"mosquitto 5":     {m.url(), version5}, // 2.0.11 does not say why it closes
		"aedes 3.1.1":     {a.url(), version3},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := oneTopic("a", 1)
			cfg.ClientID, cfg.ProtocolVersion = "gateway", c.version
			var both [2]*sources.Status
			for i := range both {
				s, st := newTestSource(t, c.endpoint, cfg)
				run(t, s, new(sink).emit)
				both[i] = st
			}
			for i, st := range both {
				eventually(t, fmt.Sprintf("the words of host %d", i), func() bool {
					return strings.Contains(st.Snapshot().Detail, `another client probably uses client id "gateway"`)
				})
			}
		})
	}
}

// TestSmokeLowerQoSIsTold and the next: what a broker does not do for us although
// it was asked.
func TestSmokeLowerQoSIsTold(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_qos 0").start()
	for _, version := range protocolVersions {
		cfg := oneTopic("a", 1)
		cfg.ProtocolVersion = version
		s, st := newTestSource(t, m.url(), cfg)
		stop := run(t, s, new(sink).emit)
		awaitState(t, st, sources.Degraded, "grants only QoS 0 to a")
		stop()
	}
}

func TestSmokeLostSessionIsTold(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true").start()
	for _, version := range protocolVersions {
		cfg := oneTopic("a", 1)
		cfg.ProtocolVersion, cfg.ClientID = version, "gateway "+version
		s, st := newTestSource(t, m.url(), cfg)
		var k sink
		stop := run(t, s, k.emit)
		awaitState(t, st, sources.Connected)
		m.kill()
		awaitState(t, st, sources.Reconnecting)
		m.start()
		awaitState(t, st, sources.Connected)
		if n := st.Snapshot().Counters[metricSessionsLost]; n != 1 {
			t.Errorf("%s: %v sessions lost with a broker that keeps none on its disk, want 1", version, n)
		}
		m.mustPublish("a", 1, []string{"after"})
		eventually(t, "the message after that", func() bool { return slices.Contains(k.texts(), "after") })
		stop()
	}
}

func TestSmokeTLSMatrix(t *testing.T) {
	ca, other := sourcetest.NewCA(t), sourcetest.NewCA(t)
	nextDay := time.Now().Add(24 * time.Hour)
	cert, key := ca.Issue(t, "localhost", nextDay)
	client, clientKey := ca.Issue(t, "gateway-7", nextDay)
	stranger, strangerKey := other.Issue(t, "gateway-7", nextDay)
	tlsLines := []string{"certfile " + cert, "keyfile " + key, "cafile " + ca.CertFile}
	stale, staleKey := ca.Issue(t, "localhost", time.Now().Add(-time.Hour))
	brokers := map[string]*mosquitto{
		"expired": startMosquitto(t, "certfile "+stale, "keyfile "+staleKey, "allow_anonymous true").start(),
		"1.2":     startMosquitto(t, append(tlsLines, "allow_anonymous true")...),
		"1.3":     startMosquitto(t, append(tlsLines, "allow_anonymous true", "tls_version tlsv1.3")...).start(),
		"mtls":    startMosquitto(t, append(tlsLines, "require_certificate true", "use_identity_as_username true")...).start(),
	}
	// "tls_version tlsv1.2" is a minimum to this broker; its library is told the maximum.
	brokers["1.2"].write("openssl.cnf", "openssl_conf = c\n[c]\nssl_conf = s\n[s]\nsystem_default = d\n[d]\nMaxProtocol = TLSv1.2\n")
	brokers["1.2"].env = []string{"OPENSSL_CONF=" + filepath.Join(brokers["1.2"].dir, "openssl.cnf")}
	brokers["1.2"].start()
	plain := sources.TLSConfig{Enabled: true, CACertPath: ca.CertFile}
	with := func(change func(*sources.TLSConfig)) sources.TLSConfig { c := plain; change(&c); return c }
	cases := []struct {
		name, broker, host string
		tls                sources.TLSConfig
		state              sources.State
		words              string
	}{
		{"1.2 only, 1.2", "1.2", "localhost", plain, sources.Connected, ""},
		{"1.2 only, 1.3", "1.2", "localhost", with(func(c *sources.TLSConfig) { c.MinVersion = "1.3" }), sources.Failed, "min_version"},
		{"1.3 only, 1.2", "1.3", "localhost", plain, sources.Connected, ""},
		{"1.3 only, 1.3", "1.3", "localhost", with(func(c *sources.TLSConfig) { c.MinVersion = "1.3" }), sources.Connected, ""},
		{"wrong name", "1.3", "127.0.0.1", plain, sources.Failed, "server_name"},
		{"server_name", "1.3", "127.0.0.1", with(func(c *sources.TLSConfig) { c.ServerName = "localhost" }), sources.Connected, ""},
		{"wrong authority", "1.3", "localhost", with(func(c *sources.TLSConfig) { c.CACertPath = other.CertFile }), sources.Failed, "ca_cert_path"},
		{"expired", "expired", "localhost", plain, sources.Failed, "must be renewed"},
		{"encrypted key", "mtls", "localhost", with(func(c *sources.TLSConfig) { c.ClientCertPath, c.ClientKeyPath = client, encryptKey(t, clientKey) }),
			sources.Failed, "is encrypted"},
		{"client certificate", "mtls", "localhost", with(func(c *sources.TLSConfig) { c.ClientCertPath, c.ClientKeyPath = client, clientKey }), sources.Connected, ""},
		{"no client certificate", "mtls", "localhost", plain, sources.AuthFailed, "client certificate"},
		{"a stranger's certificate", "mtls", "localhost", with(func(c *sources.TLSConfig) { c.ClientCertPath, c.ClientKeyPath = stranger, strangerKey }), sources.AuthFailed, "client certificate"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg := oneTopic("a", 1)
			cfg.TLS = c.tls
			// The scheme says plaintext, as in the sample: tls.enabled wins.
			s, st := newTestSource(t, fmt.Sprintf("mqtt://%s:%d", c.host, brokers[c.broker].port), cfg)
			var k sink
			run(t, s, k.emit)
			snap := awaitState(t, st, c.state)
			if !strings.Contains(snap.Detail, c.words) {
				t.Errorf("%s does not say %q", snap.Detail, c.words)
			}
			if c.state != sources.Connected {
				return
			}
			extra := []string{"--cafile", ca.CertFile, "--insecure"}
			if c.broker == "mtls" {
				extra = append(extra, "--cert", client, "--key", clientKey)
			}
			brokers[c.broker].mustPublish("a", 1, []string{"hello"}, extra...)
			eventually(t, "a record over TLS", func() bool { return len(k.records()) >= 1 })
		})
	}
	// A TLS listener without tls.enabled, and a plaintext one with it.
	s, st := newTestSource(t, fmt.Sprintf("mqtt://localhost:%d", brokers["1.3"].port), oneTopic("a", 1))
	run(t, s, new(sink).emit)
	awaitState(t, st, sources.Reconnecting, "TLS")
	open := startMosquitto(t, "allow_anonymous true").start()
	cfg := oneTopic("a", 1)
	cfg.TLS = plain
	s, st = newTestSource(t, open.url(), cfg)
	var k sink
	run(t, s, k.emit)
	eventually(t, "a refusal to speak in the clear", func() bool {
		snap := st.Snapshot()
		return snap.State != sources.Connecting && snap.State != sources.Starting && snap.State != sources.Connected && strings.Contains(snap.Detail, "TLS")
	})
}

// encryptKey encrypts a key as an operator does and returns the new file.
func encryptKey(t *testing.T, key string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "encrypted.key")
	if said, err := runCommand("openssl", "pkcs8", "-topk8", "-in", key, "-out", out, "-passout", "pass:words"); err != nil {
		t.Fatalf("encrypt key: %v: %s", err, said)
	}
	return out
}

// TestSmokeFailOver kills the first of two brokers: the second is read, and
// after its death the first again.
func TestSmokeFailOver(t *testing.T) {
	first, second := startMosquitto(t, "allow_anonymous true").start(), startMosquitto(t, "allow_anonymous true").start()
	cfg := oneTopic("a", 1)
	cfg.Endpoints = []string{second.url()}
	s, st := newTestSource(t, first.url(), cfg)
	var k sink
	run(t, s, k.emit)
	for i, turn := range []struct{ alive, killed *mosquitto }{{first, nil}, {second, first}, {first, second}} {
		if turn.killed != nil {
			if !turn.alive.listens() {
				turn.alive.start()
			}
			turn.killed.kill()
		}
		text := fmt.Sprintf("m%d", i)
		turn.alive.mustPublish("a", 1, []string{text}, "-r")
		eventually(t, text+" of the broker that is alive", func() bool { return slices.Contains(k.texts(), text) })
		awaitState(t, st, sources.Connected)
	}
}

// TestSmokeRestartRedelivers stops a source before its pipeline has settled
// anything; the next one with the same client id gets all of it.
func TestSmokeRestartRedelivers(t *testing.T) {
	for i := range 4 {
		version, qos := protocolVersions[i%2], 1+i/2
		t.Run(fmt.Sprintf("%s qos %d", version, qos), func(t *testing.T) {
			m := startMosquitto(t, "allow_anonymous true", "max_inflight_messages 100", "max_queued_messages 0").start()
			restartRedelivers(t, &m.broker, version, qos)
		})
	}
}

func restartRedelivers(t *testing.T, m *broker, version string, qos int) {
	cfg := oneTopic("a", qos)
	cfg.ProtocolVersion = version
	cfg.ClientID = "gateway"
	s, st := newTestSource(t, m.url(), cfg)
	never := sink{hold: func(func(error)) {}}
	stop := run(t, s, never.emit)
	awaitState(t, st, sources.Connected)
	want := numbers("m", 1000)
	m.mustPublish("a", qos, want)
	eventually(t, "some records", func() bool { return len(never.records()) > 0 })
	stop()
	s, st = newTestSource(t, m.url(), cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	awaitAll(t, &k, want, 30*time.Second)
	checkArrived(t, k.texts(), want, true)
	t.Logf("%v redelivered", st.Snapshot().Counters[metricRedelivered])
}

func TestSmokeSharedGroup(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_queued_messages 0").start()
	cfg := Config{Topics: []TopicConfig{{Topic: "s/+", QoS: 1, SharedGroup: "g"}}}
	var sinks [2]sink
	for i := range sinks {
		cfg.ClientID, cfg.ProtocolVersion = fmt.Sprintf("host-%d", i), protocolVersions[i]
		s, st := newTestSource(t, m.url(), cfg)
		run(t, s, sinks[i].emit)
		awaitState(t, st, sources.Connected)
	}
	want := numbers("m", 1000)
	m.mustPublish("s/1", 1, want)
	eventually(t, "all records", func() bool { return len(sinks[0].records())+len(sinks[1].records()) >= len(want) })
	a, b := sinks[0].texts(), sinks[1].texts()
	if len(a) == 0 || len(b) == 0 {
		t.Errorf("%d and %d: the group does not share", len(a), len(b))
	}
	count := map[string]int{}
	for _, text := range append(a, b...) {
		count[text]++
	}
	if len(count) != len(want) || len(a)+len(b) != len(want) {
		t.Errorf("%d and %d records hold %d of %d messages", len(a), len(b), len(count), len(want))
	}
}

func runCommand(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}
