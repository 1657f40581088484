//go:build conformance

package opcua

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// files writes the server's key, and what it shows: certs, in this order.
func (ca plantCA) files(t *testing.T, certs ...*x509.Certificate) map[string]any {
	t.Helper()
	dir := t.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")
	for path, b := range map[string][]byte{cert: pemOf(certs...), key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
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
	ca := plants()[0]
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
	ca, other := plants()[0], plants()[1]
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
	ca := plants()[0]
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
	eventually(t, "the session to be resumed", func() bool { return r.status.Snapshot().Counters[metricResumes] > 0 })
	r.awaitState(t, sources.Connected)
	wait(5 * time.Second)
	last := uint64(p.tell(t, "freeze"))
	eventually(t, "the last value", func() bool { return r.col.numbers()["nsu=urn:edgehost:test;s=Counter0"][last] > 0 })
	r.stop()
	wantNothingLost(t, checkCounters(t, r.col, 10), r)
}

// TestOwnChainTrusted reads a server that trusts the root of a plant only. Our
// certificate is of an issuer below: it is let in with that issuer's certificate
// in our file, as PEM or DER, and without is refused with words that name it.
func TestOwnChainTrusted(t *testing.T) {
	ca, other := plants()[0], plants()[1]
	root := filepath.Join(t.TempDir(), "root.der")
	if err := os.WriteFile(root, ca.root.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	p := startMilo(t, "counters=10", "trust="+root)
	with := func(policy, mode string, ca plantCA, certs []byte) Config {
		cfg := secured(policy, mode)
		own := writeIdentity(t, ca.key, certs)
		cfg.CertificatePath, cfg.PrivateKeyPath = own.cert, own.key
		return cfg
	}
	for _, policy := range []string{"Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"} {
		for _, mode := range []string{"Sign", "SignAndEncrypt"} {
			for name, file := range map[string][]byte{"PEM": pemOf(ca.leaf, ca.issuer), "DER": slices.Concat(ca.leaf.Raw, ca.issuer.Raw), "to the root": pemOf(ca.leaf, ca.issuer, ca.root)} {
				t.Run(policy+"/"+mode+"/"+name, func(t *testing.T) {
					if err := readOnce(t, p.url, with(policy, mode, ca, file), t.TempDir()); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
	for name, tc := range map[string]struct {
		cfg  Config
		says string
	}{
		"without the issuer": {with("Basic256Sha256", "SignAndEncrypt", ca, pemOf(ca.leaf)), "append the certificate of CN=plant issuer to the file at certificate_path"},
		"another root":       {with("Basic256Sha256", "SignAndEncrypt", other, pemOf(other.leaf, other.issuer, other.root)), "or the CA that issued it (CN=plant issuer)"},
	} {
		t.Run(name, func(t *testing.T) {
			err := readOnce(t, p.url, tc.cfg, t.TempDir())
			if err == nil || !strings.Contains(err.Error(), tc.says) || sources.ErrorState(marked(err)) != sources.AuthFailed {
				t.Errorf("want %q, got %v", tc.says, err)
			}
		})
	}
	t.Run("outage", func(t *testing.T) {
		proxy, url := behindProxy(t, p)
		cfg := counterConfig(10)
		chain := with("Basic256Sha256", "SignAndEncrypt", ca, pemOf(ca.leaf, ca.issuer))
		cfg.SecurityPolicy, cfg.SecurityMode, cfg.Trust = chain.SecurityPolicy, chain.SecurityMode, TrustConfig{Mode: "tofu"}
		cfg.CertificatePath, cfg.PrivateKeyPath = chain.CertificatePath, chain.PrivateKeyPath
		r := run(t, url, cfg, &collector{})
		r.awaitState(t, sources.Connected)
		wait(3 * time.Second)
		proxy.cut(true)
		eventually(t, "the session to be resumed", func() bool { return r.status.Snapshot().Counters[metricResumes] > 0 })
		last := uint64(p.tell(t, "freeze"))
		eventually(t, "the last value", func() bool { return r.col.numbers()["nsu=urn:edgehost:test;s=Counter0"][last] > 0 })
		r.stop()
		wantNothingLost(t, checkCounters(t, r.col, 10), r)
	})
}

// trustingPeer makes the folder of a node-opcua server that trusts ca's two
// authorities, knows their revocation lists and no certificate below them.
func (ca plantCA) trustingPeer(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(folder, name string, b []byte) {
		path := filepath.Join(dir, "pki", folder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, by := range map[string]struct {
		cert *x509.Certificate
		key  *rsa.PrivateKey
	}{"root": {ca.root, ca.rootKey}, "issuer": {ca.issuer, ca.issuerKey}} {
		list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}, by.cert, by.key)
		if err != nil {
			t.Fatal(err)
		}
		write("trusted/certs", name+".pem", pemOf(by.cert))
		write("issuers/crl", name+".crl", list)
	}
	write("issuers/certs", "root.pem", pemOf(ca.root))
	return dir
}

// TestOwnChainShown: a server of another author, which trusts the issuer itself,
// takes our certificate with its issuers, with every policy.
func TestOwnChainShown(t *testing.T) {
	ca := plants()[0]
	p := startPeer(t, map[string]any{"counters": 1, "secure": true, "autoAccept": false, "dir": ca.trustingPeer(t)})
	own := writeIdentity(t, ca.key, pemOf(ca.leaf, ca.issuer, ca.root))
	for _, policy := range []string{"Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"} {
		for _, mode := range []string{"Sign", "SignAndEncrypt"} {
			cfg := secured(policy, mode)
			cfg.CertificatePath, cfg.PrivateKeyPath = own.cert, own.key
			if err := readOnce(t, p.url, cfg, t.TempDir()); err != nil {
				t.Errorf("%s, %s: %v", policy, mode, err)
			}
		}
	}
}
