//go:build conformance

package opcua

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// files writes the server's key, and what it shows: certs, in this order.
func (ca plantCA) files(t *testing.T, certs ...*x509.Certificate) map[string]any {
	t.Helper()
	dir := t.TempDir()
	var chain []byte
	for _, c := range certs {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")
	for path, b := range map[string][]byte{cert: chain, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return map[string]any{"counters": 1, "everyMs": 100, "secure": true, "cert": cert, "key": key}
}

// trusting returns the settings that trust what root issued.
func trusting(t *testing.T, root *x509.Certificate) TrustConfig {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "root.der"), root.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return TrustConfig{Mode: "ca", Dir: dir}
}

// TestSmokeCertificateChain reads a server that sends its certificate together
// with that of its issuer, with every policy: we know the root only, so the
// issuer must come from the server.
func TestSmokeCertificateChain(t *testing.T) {
	ca := newPlantCA(t)
	p := startPeer(t, ca.files(t, ca.leaf, ca.issuer))
	dir := t.TempDir()
	for _, policy := range []string{"Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"} {
		for _, mode := range []string{"Sign", "SignAndEncrypt"} {
			for _, user := range []string{"", "operator"} {
				t.Run(fmt.Sprintf("%s/%s/%s", policy, mode, user), func(t *testing.T) {
					cfg := secured(policy, mode)
					cfg.Trust = trusting(t, ca.root)
					if cfg.Username = user; user != "" {
						cfg.Password = "correct horse"
					}
					if err := readOnce(t, p.url, cfg, dir); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
	// On an open channel the password alone is encrypted, with the same certificate.
	t.Run("None/None/operator", func(t *testing.T) {
		cfg := secured("None", "None")
		cfg.Trust, cfg.Username, cfg.Password = trusting(t, ca.root), "operator", "correct horse"
		if err := readOnce(t, p.url, cfg, dir); err != nil {
			t.Error(err)
		}
	})
	t.Run("first use", func(t *testing.T) {
		if err := readOnce(t, p.url, secured("Basic256Sha256", "SignAndEncrypt"), t.TempDir()); err != nil {
			t.Error(err)
		}
	})
}

// TestCertificateChainRefused: a chain to another root, and one with a hole, are
// refused with words that say what is missing.
func TestCertificateChainRefused(t *testing.T) {
	ca, other := newPlantCA(t), newPlantCA(t)
	for name, c := range map[string]struct {
		shown []*x509.Certificate
		root  *x509.Certificate
	}{
		"another root":     {[]*x509.Certificate{ca.leaf, ca.issuer}, other.root},
		"without issuer":   {[]*x509.Certificate{ca.leaf}, ca.root},
		"another's issuer": {[]*x509.Certificate{ca.leaf, other.issuer}, ca.root},
	} {
		t.Run(name, func(t *testing.T) {
			p := startPeer(t, ca.files(t, c.shown...))
			cfg := secured("Basic256Sha256", "SignAndEncrypt")
			cfg.Trust = trusting(t, c.root)
			err := readOnce(t, p.url, cfg, t.TempDir())
			if err == nil || !strings.Contains(err.Error(), "is not issued by a CA in "+cfg.Trust.Dir) || !strings.Contains(err.Error(), "plant issuer") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestCertificateChainOutage: resuming, and a key of the channel that is renewed
// every few seconds, work with a chain as without; nothing is lost.
func TestCertificateChainOutage(t *testing.T) {
	ca := newPlantCA(t)
	opts := ca.files(t, ca.leaf, ca.issuer)
	opts["counters"], opts["tokenLifetime"] = 10, 3000
	p := startPeer(t, opts)
	proxy, url := behindProxy(t, p)
	cfg := counterConfig(10)
	cfg.SecurityPolicy, cfg.SecurityMode, cfg.Trust = "Basic256Sha256", "SignAndEncrypt", trusting(t, ca.root)
	dir := t.TempDir()
	cfg.CertificatePath, cfg.PrivateKeyPath = filepath.Join(dir, "own.der"), filepath.Join(dir, "own.pem")
	r := run(t, url, cfg, &collector{})
	r.awaitState(t, sources.Connected)
	wait(10 * time.Second)
	if n := r.status.Snapshot().Counters[sources.MetricReconnects]; n != 0 {
		t.Errorf("%v reconnects while keys were renewed", n)
	}
	proxy.cut(true)
	eventually(t, "the session to be resumed", 30*time.Second, func() bool { return r.status.Snapshot().Counters[metricResumes] > 0 })
	r.awaitState(t, sources.Connected)
	wait(5 * time.Second)
	last := uint64(p.tell(t, "freeze"))
	eventually(t, "the last value", 30*time.Second, func() bool { return r.col.numbers()["nsu=urn:edgehost:test;s=Counter0"][last] > 0 })
	r.stop()
	wantNothingLost(t, checkCounters(t, r.col, 10), r)
}
