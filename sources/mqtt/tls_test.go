package mqtt

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/sourcetest"
)

// tlsPeer is a peer behind TLS that wants a client certificate of ca when mutual
// is set.
func tlsPeer(t *testing.T, ca *sourcetest.CA, mutual bool) *peer {
	t.Helper()
	p := newPeer(t)
	p.lis = tls.NewListener(p.lis, serverTLS(t, ca, mutual))
	return p.start()
}

func serverTLS(t *testing.T, ca *sourcetest.CA, mutual bool) *tls.Config {
	t.Helper()
	certFile, keyFile := ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour))
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}}
	if mutual {
		data, err := os.ReadFile(ca.CertFile)
		if err != nil {
			t.Fatal(err)
		}
		cfg.ClientCAs = x509.NewCertPool()
		cfg.ClientCAs.AppendCertsFromPEM(data)
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return cfg
}

func TestTLS(t *testing.T) {
	ca, other := sourcetest.NewCA(t), sourcetest.NewCA(t)
	client, clientKey := ca.Issue(t, "gateway-7", time.Now().Add(time.Hour))
	stranger, strangerKey := other.Issue(t, "gateway-7", time.Now().Add(time.Hour))
	open, mutual := tlsPeer(t, ca, false), tlsPeer(t, ca, true)
	plaintext := newPeer(t).start()
	trusted := sources.TLSConfig{Enabled: true, CACertPath: ca.CertFile}
	withCert := func(cert, key string) sources.TLSConfig {
		c := trusted
		c.ClientCertPath, c.ClientKeyPath = cert, key
		return c
	}
	cases := []struct {
		name  string
		peer  *peer
		tls   sources.TLSConfig
		state sources.State
		words string
	}{
		{"trusted", open, trusted, sources.Connected, ""},
		{"unknown authority", open, sources.TLSConfig{Enabled: true, CACertPath: other.CertFile}, sources.Failed, "mqtt.tls.ca_cert_path"},
		{"wrong name", open, sources.TLSConfig{Enabled: true, CACertPath: ca.CertFile, ServerName: "other"}, sources.Failed, "mqtt.tls.server_name"},
		{"missing file", open, sources.TLSConfig{Enabled: true, CACertPath: "/nonexistent/ca.crt"}, sources.Failed, "tls.ca_cert_path"},
		{"client certificate", mutual, withCert(client, clientKey), sources.Connected, ""},
		{"no client certificate", mutual, trusted, sources.AuthFailed, "requires a client certificate"},
		{"stranger's certificate", mutual, withCert(stranger, strangerKey), sources.AuthFailed, "refuses the client certificate"},
		{"peer without TLS", plaintext, trusted, sources.Reconnecting, "does not speak TLS"},
		{"TLS peer without TLS here", open, sources.TLSConfig{}, sources.Reconnecting, "mqtts://"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg := oneTopic("a", 1)
			cfg.TLS = c.tls
			cfg.ConnectTimeoutSeconds = 2
			s, st := newTestSource(t, "mqtt://"+c.peer.lis.Addr().String(), cfg)
			var k sink
			run(t, s, k.emit)
			snap := awaitState(t, st, c.state)
			if !strings.Contains(snap.Detail, c.words) {
				t.Errorf("%q does not say %q", snap.Detail, c.words)
			}
			if c.state == sources.Connected {
				before := len(c.peer.ackedPayloads())
				c.peer.publish("a", "1", 1)
				eventually(t, "an acknowledgement", func() bool { return len(c.peer.ackedPayloads()) == before+1 })
			}
		})
	}
	if len(plaintext.connects) > 0 {
		t.Error("tls.enabled fell back to plaintext")
	}
}

// TestManyRecordsOfTLS: a broker makes a TLS record of each message. A pause for
// each of them would take 40 s.
func TestManyRecordsOfTLS(t *testing.T) {
	ca := sourcetest.NewCA(t)
	p := tlsPeer(t, ca, false)
	cfg := oneTopic("a", 0)
	cfg.TLS = sources.TLSConfig{Enabled: true, CACertPath: ca.CertFile}
	s, st := newTestSource(t, "mqtt://"+p.lis.Addr().String(), cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	const n = 40_000
	for range n {
		p.publish("a", "1", 0)
	}
	eventually(t, "all records", func() bool { return st.Snapshot().Records == n })
}

// TestEmbeddedBroker reads from a broker of MQTT 3.1.1 and 5 in this process,
// over TCP, ws:// and wss://.
func TestEmbeddedBroker(t *testing.T) {
	ca := sourcetest.NewCA(t)
	server := mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := server.AddHook(new(auth.AllowHook), nil); err != nil {
		t.Fatal(err)
	}
	endpoints := map[string]string{}
	for scheme, cfg := range map[string]*tls.Config{"mqtt": nil, "ws": nil, "wss": serverTLS(t, ca, false)} {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := lis.Addr().String()
		lis.Close()
		endpoints[scheme] = scheme + "://" + addr
		config := listeners.Config{ID: scheme, Address: addr, TLSConfig: cfg}
		listener := listeners.Listener(listeners.NewWebsocket(config))
		if scheme == "mqtt" {
			listener = listeners.NewTCP(config)
		}
		if err := server.AddListener(listener); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	for scheme, endpoint := range endpoints {
		for i := range 6 {
			version, qos := protocolVersions[i%2], i/2
			t.Run(fmt.Sprintf("%s %s qos %d", scheme, version, qos), func(t *testing.T) {
				cfg := oneTopic(t.Name(), qos)
				cfg.TLS.CACertPath, cfg.ProtocolVersion, cfg.ClientID = ca.CertFile, version, t.Name()
				s, st := newTestSource(t, endpoint, cfg)
				var k sink
				run(t, s, k.emit)
				awaitState(t, st, sources.Connected)
				for n := range 100 {
					if err := server.Publish(t.Name(), fmt.Append(nil, n), false, byte(qos)); err != nil {
						t.Fatal(err)
					}
				}
				eventually(t, "100 records", func() bool { return len(k.records()) == 100 })
				for n, r := range k.records() {
					if r.Value.AsInt() != int64(n) {
						t.Fatalf("record %d holds %d", n, r.Value.AsInt())
					}
				}
				eventually(t, "all acknowledgements", func() bool { _, unacked := s.buf.counts(); return unacked == 0 })
			})
		}
	}
}
