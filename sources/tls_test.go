package sources_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/sourcetest"
)

func nextDay() time.Time { return time.Now().Add(24 * time.Hour) }

// handshake connects client to a server of cert and returns what each side says.
func handshake(t *testing.T, client *tls.Config, cert tls.Certificate, clientCAs *x509.CertPool, maxVersion uint16) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	server := &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: maxVersion}
	if clientCAs != nil {
		server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, clientCAs
	}
	lis, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := lis.Accept()
		if err == nil {
			err = conn.(*tls.Conn).Handshake()
			state = conn.(*tls.Conn).ConnectionState()
			conn.Close()
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	clientErr = conn.Handshake()
	if clientErr != nil {
		raw.Close()
	}
	return state, <-done, clientErr
}

func loadPair(t *testing.T, certFile, keyFile string) tls.Certificate {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestTLSVerifies(t *testing.T) {
	ca, other := sourcetest.NewCA(t), sourcetest.NewCA(t)
	cert := issuePair(t, ca, "broker.plant")
	expiredCert, expiredKey := ca.Issue(t, "broker.plant", time.Now().Add(-time.Hour))
	cases := []struct {
		name    string
		cfg     sources.TLSConfig
		host    string
		cert    tls.Certificate
		max     uint16
		problem string
	}{
		{"right authority and name", sources.TLSConfig{CACertPath: ca.CertFile}, "broker.plant", cert, 0, ""},
		{"server_name overrules the host", sources.TLSConfig{CACertPath: ca.CertFile, ServerName: "broker.plant"}, "10.0.0.1", cert, 0, ""},
		{"wrong name", sources.TLSConfig{CACertPath: ca.CertFile}, "other.plant", cert, 0, "not other.plant"},
		{"wrong authority", sources.TLSConfig{CACertPath: other.CertFile}, "broker.plant", cert, 0, "unknown authority"},
		{"the system's roots", sources.TLSConfig{}, "broker.plant", cert, 0, "unknown authority"},
		{"expired", sources.TLSConfig{CACertPath: ca.CertFile}, "broker.plant", loadPair(t, expiredCert, expiredKey), 0, "expired"},
		{"insecure", sources.TLSConfig{InsecureSkipVerify: true}, "other.plant", cert, 0, ""},
		{"1.2 is enough", sources.TLSConfig{CACertPath: ca.CertFile}, "broker.plant", cert, tls.VersionTLS12, ""},
		{"1.1 is not", sources.TLSConfig{CACertPath: ca.CertFile}, "broker.plant", cert, tls.VersionTLS11, "protocol version"},
		{"1.3 only", sources.TLSConfig{CACertPath: ca.CertFile, MinVersion: "1.3"}, "broker.plant", cert, tls.VersionTLS12, "protocol version"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := c.cfg.Build(c.host)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = handshake(t, cfg, c.cert, nil, c.max)
			if c.problem == "" && err != nil || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
				t.Errorf("handshake: %v, want %q", err, c.problem)
			}
		})
	}
}

func issuePair(t *testing.T, ca *sourcetest.CA, name string) tls.Certificate {
	t.Helper()
	certFile, keyFile := ca.Issue(t, name, nextDay())
	return loadPair(t, certFile, keyFile)
}

func TestTLSPresentsClientCertificate(t *testing.T) {
	ca := sourcetest.NewCA(t)
	pool := x509.NewCertPool()
	data, err := os.ReadFile(ca.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(data)
	server := issuePair(t, ca, "broker.plant")
	certFile, keyFile := ca.Issue(t, "gateway-7", nextDay())
	with, err := sources.TLSConfig{CACertPath: ca.CertFile, ClientCertPath: certFile, ClientKeyPath: keyFile}.Build("broker.plant")
	if err != nil {
		t.Fatal(err)
	}
	state, err, _ := handshake(t, with, server, pool, 0)
	if err != nil || len(state.PeerCertificates) == 0 || state.PeerCertificates[0].Subject.CommonName != "gateway-7" {
		t.Errorf("the server sees %v, %v", state.PeerCertificates, err)
	}
	without, err := sources.TLSConfig{CACertPath: ca.CertFile}.Build("broker.plant")
	if err != nil {
		t.Fatal(err)
	}
	if _, err, _ := handshake(t, without, server, pool, 0); err == nil {
		t.Error("the server accepted a client without a certificate")
	}
}

func TestTLSReadsKeyFormats(t *testing.T) {
	dir := t.TempDir()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecDER, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	pkcs1 := x509.MarshalPKCS1PrivateKey(rsaKey)
	selfSigned := func(public, private any) []byte {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: nextDay()}
		der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ecCert, rsaCert := selfSigned(&ec.PublicKey, ec), selfSigned(&rsaKey.PublicKey, rsaKey)
	cases := map[string]struct{ cert, key []byte }{
		"pkcs1 pem":             {encode("CERTIFICATE", rsaCert), encode("RSA PRIVATE KEY", pkcs1)},
		"pkcs8 pem":             {encode("CERTIFICATE", rsaCert), encode("PRIVATE KEY", pkcs8)},
		"pkcs1 der":             {rsaCert, pkcs1},
		"pkcs8 der":             {rsaCert, pkcs8},
		"ec pem":                {encode("CERTIFICATE", ecCert), encode("EC PRIVATE KEY", ecDER)},
		"ec der":                {ecCert, ecDER},
		"ec pem and parameters": {encode("CERTIFICATE", ecCert), append(encode("EC PARAMETERS", []byte{6, 0}), encode("EC PRIVATE KEY", ecDER)...)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			certFile, keyFile := writeFile(t, dir, "c", c.cert), writeFile(t, dir, "k", c.key)
			cfg, err := sources.TLSConfig{CACertPath: certFile, ClientCertPath: certFile, ClientKeyPath: keyFile}.Build("x")
			if err != nil {
				t.Fatal(err)
			}
			if cert, err := cfg.GetClientCertificate(nil); err != nil || len(cert.Certificate) != 1 {
				t.Errorf("%v, %v", cert, err)
			}
		})
	}
}

func TestTLSRefuses(t *testing.T) {
	ca := sourcetest.NewCA(t)
	certFile, keyFile := ca.Issue(t, "a", nextDay())
	_, otherKey := ca.Issue(t, "b", nextDay())
	dir := t.TempDir()
	encrypted8 := writeFile(t, dir, "e8", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}}))
	encrypted1 := writeFile(t, dir, "e1", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte{1},
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}}))
	empty := writeFile(t, dir, "empty", nil)
	text := writeFile(t, dir, "text", []byte("hello"))
	for want, cfg := range map[string]sources.TLSConfig{
		"e8 is encrypted":              {ClientCertPath: certFile, ClientKeyPath: encrypted8},
		"e1 is encrypted":              {ClientCertPath: certFile, ClientKeyPath: encrypted1},
		"is not the key of":            {ClientCertPath: certFile, ClientKeyPath: otherKey},
		"tls.ca_cert_path: open":       {CACertPath: filepath.Join(dir, "absent")},
		"holds no certificate; a PEM":  {CACertPath: empty},
		"holds no certificate that":    {CACertPath: text},
		"not a PKCS#8, PKCS#1 or EC":   {ClientCertPath: certFile, ClientKeyPath: text},
		"holds no private key; a PEM":  {ClientCertPath: certFile, ClientKeyPath: certFile},
		"is not a TLS version":         {MinVersion: "1.1"},
		"tls.client_key_path: open":    {ClientCertPath: certFile},
		"tls.client_cert_path: open /": {ClientCertPath: filepath.Join(dir, "absent"), ClientKeyPath: keyFile},
	} {
		_, err := cfg.Build("x")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error that says %q", err, want)
		}
		if sources.ErrorState(err) != sources.Failed {
			t.Errorf("%v leaves the source %s, want failed", err, sources.ErrorState(err))
		}
	}
	if got := (sources.TLSConfig{MinVersion: "1.0", ClientKeyPath: "k"}).Validate(); len(got) != 2 || got[0].Path != "min_version" || got[1].Path != "client_key_path" {
		t.Errorf("Validate: %v", got)
	}
}

func writeFile(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
