//go:build conformance

package opcua

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/edgehost/edgehost/sources"
)

// userCertificate makes a user's certificate and key, PEM and PKCS#1.
func userCertificate(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "operator"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "user.pem"), filepath.Join(dir, "user_key.pem")
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// readOnce opens a connection of its own and reads one counter.
func readOnce(t *testing.T, url string, cfg Config, dir string) error {
	t.Helper()
	status := sources.NewStatus("plant", protocol)
	src, err := New("plant", url, nil, cfg, Deps{Logger: testLog(t), Status: status, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := src.ReadOnce(ctx)
	if want := cfg.SecurityPolicy + "/" + cfg.SecurityMode; err == nil && !strings.Contains(want, "auto") && got.Security != want {
		t.Errorf("security in force is %s, want %s", got.Security, want)
	}
	if err == nil && (len(got.Records) != 1 || got.Records[0].Status != 0) {
		t.Errorf("read %+v", got)
	}
	return err
}

func secured(policy, mode string) Config {
	return Config{SecurityPolicy: policy, SecurityMode: mode, Trust: TrustConfig{Mode: "tofu"}, Nodes: []NodeConfig{{NodeID: "nsu=urn:edgehost:test;s=Counter0"}}}
}

// TestSecurityMatrix is every policy, mode and kind of user, and None.
func TestSecurityMatrix(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1, "secure": true})
	dir := t.TempDir()
	cert, key := userCertificate(t)
	users := map[string]func(*Config){
		"anonymous": func(*Config) {},
		"user":      func(c *Config) { c.Username, c.Password = "operator", "correct horse" },
		"x509":      func(c *Config) { c.UserCertificatePath, c.UserPrivateKeyPath = cert, key },
	}
	for _, policy := range []string{"None", "Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss", "auto"} {
		for _, mode := range []string{"None", "Sign", "SignAndEncrypt"} {
			if (policy == "None") != (mode == "None") {
				continue
			}
			for user, set := range users {
				t.Run(fmt.Sprintf("%s/%s/%s", policy, mode, user), func(t *testing.T) {
					cfg := secured(policy, mode)
					set(&cfg)
					if err := readOnce(t, p.url, cfg, dir); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

func TestSmokeSecured(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1, "secure": true})
	leaks := goleak.IgnoreCurrent()
	cfg := secured("Basic256Sha256", "SignAndEncrypt")
	cfg.Username, cfg.Password = "operator", "correct horse"
	if err := readOnce(t, p.url, cfg, t.TempDir()); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, leaks)
}

// TestRefusals: each refusal has words of its own that say what to do, and none
// of them connects.
func TestRefusals(t *testing.T) {
	open := startPeer(t, map[string]any{"counters": 1, "secure": true})
	strict := startPeer(t, map[string]any{"counters": 1, "secure": true, "autoAccept": false, "dir": t.TempDir()})
	closed := startPeer(t, map[string]any{"counters": 1, "secure": true, "anonymous": false, "autoAcceptUsers": false, "dir": t.TempDir()})
	userCert, userKey := userCertificate(t)
	plain := startPeer(t, map[string]any{"counters": 1})
	for name, tc := range map[string]struct {
		url    string
		change func(*Config)
		says   []string
		state  sources.State
	}{
		"wrong password":        {open.url, func(c *Config) { c.Username, c.Password = "operator", "wrong" }, []string{"opcua.username", "BadUserAccessDenied"}, sources.AuthFailed},
		"anonymous not allowed": {closed.url, func(*Config) {}, []string{"does not accept anonymous"}, sources.AuthFailed},
		"user certificate":      {closed.url, func(c *Config) { c.UserCertificatePath, c.UserPrivateKeyPath = userCert, userKey }, []string{"trust our user certificate on the server"}, sources.AuthFailed},
		"missing user key":      {open.url, func(c *Config) { c.UserCertificatePath, c.UserPrivateKeyPath = userCert, userKey+"x" }, []string{"user certificate", "no such file"}, sources.Failed},
		"our certificate":       {strict.url, func(*Config) {}, []string{"trust our certificate ", "on the server"}, sources.AuthFailed},
		"their certificate":     {open.url, func(c *Config) { c.Trust.Mode = "list" }, []string{"not trusted", "certs trust"}, sources.AuthFailed},
		"only None offered":     {plain.url, func(*Config) {}, []string{"None/None"}, sources.Failed},
		"auto on None":          {plain.url, func(c *Config) { c.SecurityPolicy, c.SecurityMode = "auto", "auto" }, []string{"security_policy: None"}, sources.Failed},
		"nobody there":          {"opc.tcp://127.0.0.1:1", func(*Config) {}, []string{"nothing listens"}, sources.Reconnecting},
		"unknown host":          {"opc.tcp://no-such-host.invalid:4840", func(*Config) {}, []string{"does not resolve"}, sources.Reconnecting},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := secured("Basic256Sha256", "SignAndEncrypt")
			tc.change(&cfg)
			err := readOnce(t, tc.url, cfg, t.TempDir())
			if err == nil {
				t.Fatal("connected")
			}
			for _, says := range tc.says {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("want %q in: %v", says, err)
				}
			}
			if got := sources.ErrorState(marked(err)); got != tc.state {
				t.Errorf("state %s, want %s: %v", got, tc.state, err)
			}
		})
	}
}
