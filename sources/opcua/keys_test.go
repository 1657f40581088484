package opcua

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopcua/opcua/ua"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/sourcetest"
)

var quiet = slog.New(slog.DiscardHandler)

func TestKeyForms(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p1 := x509.MarshalPKCS1PrivateKey(key)
	p8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"PKCS#1 DER": p1, "PKCS#8 DER": p8,
		"PKCS#1 PEM": pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: p1}),
		"PKCS#8 PEM": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8}),
	} {
		if got, err := parseKey(b); err != nil || !got.Equal(key) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "text": []byte("hello"),
		"encrypted": pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: p8})} {
		if _, err := parseKey(b); err == nil {
			t.Errorf("%s is accepted as a key", name)
		}
	}
}

func TestOwnCertificate(t *testing.T) {
	c := Config{ApplicationURI: "urn:test:app"}.withDefaults()
	paths := c.ownPaths(t.TempDir())
	first, err := ownIdentity(c, paths, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := c.OwnCertificate(filepath.Dir(filepath.Dir(paths.cert)), quiet); err != nil || info.Thumbprint != first.thumbprint() {
		t.Errorf("OwnCertificate %+v, %v", info, err)
	}
	if first.applicationURI() != "urn:test:app" || first.cert.KeyUsage&x509.KeyUsageDataEncipherment == 0 {
		t.Errorf("certificate %+v", first.cert)
	}
	if st, err := os.Stat(paths.key); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key file %v, %v; want mode 0600", st.Mode(), err)
	}
	again, err := ownIdentity(c, paths, quiet)
	if err != nil || again.thumbprint() != first.thumbprint() {
		t.Errorf("second start made another certificate (%v)", err)
	}
	// Renewal: fewer days left than asked for.
	c.CertificateRenewDays = ownYears*366 + 1
	renewed, err := ownIdentity(c, paths, quiet)
	if err != nil || renewed.thumbprint() == first.thumbprint() || !renewed.key.Equal(first.key) || renewed.applicationURI() != "urn:test:app" {
		t.Errorf("renewed %v: want a new certificate for the same key and URI", err)
	}
	if old := previousIdentity(paths, renewed); old == nil || old.thumbprint() != first.thumbprint() {
		t.Error("the certificate before the renewal is not kept")
	}
	// Somebody else's certificate is never renewed by us.
	foreign := sourcetest.NewCA(t)
	if _, err := loadIdentity(foreign.CertFile, paths.key, quiet); err == nil || !strings.Contains(err.Error(), "belong") {
		t.Errorf("a key of another certificate is accepted: %v", err)
	}
	if err := os.Remove(paths.key); err != nil {
		t.Fatal(err)
	}
	if _, err := ownIdentity(c, paths, quiet); err == nil {
		t.Error("a certificate without its key is replaced silently")
	}
}

func selfSigned(t *testing.T, notAfter time.Time) *x509.Certificate {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, DNSNames: []string{"plc"}}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTrust(t *testing.T) {
	a, b := selfSigned(t, time.Now().Add(time.Hour)), selfSigned(t, time.Now().Add(time.Hour))
	expired := selfSigned(t, time.Now().Add(-time.Minute))
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin.der")
	if err := os.WriteFile(pin, a.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	conf := func(mode string) Config {
		return Config{Trust: TrustConfig{Mode: mode, Dir: filepath.Join(dir, mode, "trusted"), ServerCertificatePath: pin}}
	}
	at := func(address string, c Config, cert *x509.Certificate) error {
		_, err := c.CertStore(dir).check(c, address, cert.Raw)
		return err
	}
	check := func(c Config, cert *x509.Certificate) error { return at("plc:4840", c, cert) }
	refused := func(err error, says string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want a refusal that says %q, got %v", says, err)
		}
	}
	list := conf("list")
	refused(check(list, a), "certs trust "+Thumbprint(a.Raw))
	store := list.CertStore(dir)
	if info, err := store.Trust(Thumbprint(a.Raw)[:8]); err != nil || !info.Trusted {
		t.Fatalf("trust: %+v, %v", info, err)
	}
	if err := check(list, a); err != nil {
		t.Errorf("trusted certificate refused: %v", err)
	}
	if info, err := store.Reject(Thumbprint(a.Raw)); err != nil || info.Trusted {
		t.Fatalf("reject: %+v, %v", info, err)
	}
	refused(check(list, a), "not trusted")
	if all, err := store.List(); err != nil || len(all) != 1 || all[0].Trusted {
		t.Errorf("list %+v, %v", all, err)
	}
	if _, err := store.Trust("FFFF"); err == nil {
		t.Error("an unknown thumbprint was trusted")
	}
	refused(check(conf("pin"), b), "pinned")
	if err := check(conf("pin"), a); err != nil {
		t.Error(err)
	}
	tofu := conf("tofu")
	if err := check(tofu, a); err != nil {
		t.Errorf("first use refused: %v", err)
	}
	if err := check(tofu, a); err != nil {
		t.Errorf("second use refused: %v", err)
	}
	refused(check(tofu, b), "changed from "+Thumbprint(a.Raw)+" to "+Thumbprint(b.Raw))
	// Another server of the same machine has its own first use, and its own change.
	if err := at("plc:4841", tofu, b); err != nil {
		t.Errorf("the server at the other port refused: %v", err)
	}
	refused(at("plc:4841", tofu, selfSigned(t, time.Now().Add(time.Hour))), "changed from "+Thumbprint(b.Raw))
	refused(check(conf("ca"), a), "not issued by a CA")
	refused(check(list, expired), "valid from")
	if err := check(conf("insecure"), expired); err != nil {
		t.Error(err)
	}
	host := conf("pin")
	host.Trust.CheckHostname = true
	if err := check(host, a); err != nil {
		t.Errorf("the host that the certificate names: %v", err)
	}
	refused(at("other:4840", host, a), "not for host other")
}

func TestTrustCA(t *testing.T) {
	ca := sourcetest.NewCA(t)
	file, _ := ca.Issue(t, "plc", time.Now().Add(time.Hour))
	dir := filepath.Join(t.TempDir(), "trusted")
	c := Config{Trust: TrustConfig{Mode: "ca", Dir: dir}}
	root, err := os.ReadFile(ca.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CertStore("").Import(root); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := parseCertificate(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CertStore("").check(c, "plc", cert.Raw); err != nil {
		t.Errorf("a certificate of the trusted CA is refused: %v", err)
	}
}

// plantCA is a root, an issuer below it, and what a server below that shows.
type plantCA struct {
	root, issuer, leaf      *x509.Certificate
	rootKey, issuerKey, key *rsa.PrivateKey // key is the leaf's
}

// plants are two of them, with the same names. They are made once, since that
// takes long.
var plants = sync.OnceValue(func() [2]plantCA { return [2]plantCA{makePlantCA(), makePlantCA()} })

func makePlantCA() (ca plantCA) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	issue := func(name string, parent *x509.Certificate, signer *rsa.PrivateKey, bits int) (*x509.Certificate, *rsa.PrivateKey) {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		must(err)
		tpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true}
		if name == "peer" {
			tpl.IsCA, tpl.KeyUsage = false, x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment|x509.KeyUsageKeyEncipherment|x509.KeyUsageDataEncipherment
			tpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
			tpl.URIs, tpl.DNSNames, tpl.IPAddresses = []*url.URL{{Scheme: "urn", Opaque: "edgehost:peer"}}, []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		}
		if parent == nil {
			parent, signer = tpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tpl, parent, key.Public(), signer)
		must(err)
		cert, err := x509.ParseCertificate(der)
		must(err)
		return cert, key
	}
	ca.root, ca.rootKey = issue("plant root", nil, nil, 2048)
	ca.issuer, ca.issuerKey = issue("plant issuer", ca.root, ca.rootKey, 2048)
	ca.leaf, ca.key = issue("peer", ca.issuer, ca.issuerKey, 3072)
	return ca
}

// TestTrustChain: a certificate is trusted by what is sent with it, up to a root
// that we know; each of the chain may be revoked by its issuer.
func TestTrustChain(t *testing.T) {
	ca := plants()[0]
	chain := slices.Concat(ca.leaf.Raw, ca.issuer.Raw)
	revoked := func(by *x509.Certificate, key *rsa.PrivateKey, which *x509.Certificate) []byte {
		list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: which.SerialNumber, RevocationTime: time.Now()}}}, by, key)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	for name, tc := range map[string]struct {
		shown, list []byte
		says        string
	}{
		"chain":             {chain, nil, ""},
		"leaf alone":        {ca.leaf.Raw, nil, "put the issuer (CN=plant issuer) there"},
		"revoked":           {chain, revoked(ca.issuer, ca.issuerKey, ca.leaf), "is revoked by CN=plant issuer"},
		"issuer revoked":    {chain, revoked(ca.root, ca.rootKey, ca.issuer), "the issuer of the server's certificate, CN=plant issuer, is revoked by CN=plant root"},
		"a stranger's list": {chain, revoked(ca.root, ca.rootKey, ca.leaf), ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "root.der"), ca.root.Raw, 0o600); err != nil {
				t.Fatal(err)
			}
			if tc.list != nil {
				if err := os.WriteFile(filepath.Join(dir, "plant.crl"), tc.list, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c := Config{Trust: TrustConfig{Mode: "ca", Dir: dir}}
			found, err := c.CertStore("").check(c, "plc", tc.shown)
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("want %q, got %v", tc.says, err)
				}
				return
			}
			if err != nil || len(found) != 3 || !found[1].Equal(ca.issuer) {
				t.Fatalf("%d certificates, %v", len(found), err)
			}
			status := sources.NewStatus("s", protocol)
			(&dialer{status: status, chain: found}).countDays(nil)
			if days := status.Snapshot().Counters[metricCACertDays]; days < 0.9 || days > 1 {
				t.Errorf("%v days until a CA expires, want 1", days)
			}
		})
	}
}

// writeIdentity writes a key, and certificates one after the other, into files of
// a folder of their own.
func writeIdentity(t *testing.T, key *rsa.PrivateKey, certs []byte) ownPaths {
	t.Helper()
	dir := t.TempDir()
	paths := ownPaths{cert: filepath.Join(dir, "own.crt"), key: filepath.Join(dir, "own.key")}
	for path, b := range map[string][]byte{paths.cert: certs, paths.key: x509.MarshalPKCS1PrivateKey(key)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

func pemOf(certs ...*x509.Certificate) (b []byte) {
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// TestOwnChain: the issuers in the file of our certificate are sent with it, in
// the order of the chain whatever that of the file; strangers are not.
func TestOwnChain(t *testing.T) {
	ca := plants()[0]
	stranger := selfSigned(t, time.Now().Add(time.Hour))
	for name, tc := range map[string]struct {
		file []byte
		sent []*x509.Certificate
		warn string
	}{
		"alone":              {ca.leaf.Raw, nil, ""},
		"PEM":                {pemOf(ca.leaf, ca.issuer), []*x509.Certificate{ca.issuer}, ""},
		"PEM to the root":    {pemOf(ca.leaf, ca.issuer, ca.root), []*x509.Certificate{ca.issuer, ca.root}, ""},
		"PEM, the other way": {pemOf(ca.root, ca.issuer, ca.leaf), []*x509.Certificate{ca.issuer, ca.root}, ""},
		"DER":                {slices.Concat(ca.leaf.Raw, ca.issuer.Raw), []*x509.Certificate{ca.issuer}, ""},
		"a hole":             {pemOf(ca.leaf, ca.root), nil, "plant root"},
		"a stranger":         {pemOf(ca.leaf, stranger, ca.issuer), []*x509.Certificate{ca.issuer}, Thumbprint(stranger.Raw)},
	} {
		t.Run(name, func(t *testing.T) {
			paths := writeIdentity(t, ca.key, tc.file)
			var said strings.Builder
			c := Config{CertificatePath: paths.cert, PrivateKeyPath: paths.key, CertificateRenewDays: 1}.withDefaults()
			own, err := ownIdentity(c, paths, slog.New(slog.NewTextHandler(&said, nil)))
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(ca.leaf.Raw)
			for _, issuer := range tc.sent {
				want = append(want, issuer.Raw...)
			}
			if !slices.Equal(own.chain(bufferSize), want) {
				t.Errorf("%d issuers are sent, want %d", len(own.issuers), len(tc.sent))
			}
			if own.thumbprint() != Thumbprint(ca.leaf.Raw) || own.applicationURI() != "urn:edgehost:peer" {
				t.Errorf("thumbprint %s and URI %s are not the leaf's", own.thumbprint(), own.applicationURI())
			}
			if tc.warn != "" && !strings.Contains(said.String(), tc.warn) || strings.Contains(said.String(), "not sent") != (tc.warn != "") {
				t.Errorf("want a warning of %q, got %q", tc.warn, said.String())
			}
			info, err := c.OwnCertificate("", quiet)
			if err != nil || len(info.Sent) != len(tc.sent) || info.Thumbprint != own.thumbprint() {
				t.Errorf("shown as %+v, %v", info, err)
			}
		})
	}
	whole := identity{cert: ca.leaf, issuers: []*x509.Certificate{ca.issuer, ca.root}}
	for limit, n := range map[int]int{0: 0, len(ca.leaf.Raw) + len(ca.issuer.Raw): 1, len(ca.leaf.Raw) + len(ca.issuer.Raw) + len(ca.root.Raw) - 1: 1, bufferSize: 2} {
		want := len(ca.leaf.Raw)
		for _, c := range whole.issuers[:n] {
			want += len(c.Raw)
		}
		if got := len(whole.chain(limit)); got != want {
			t.Errorf("of at most %d bytes %d are sent, want %d", limit, got, want)
		}
	}
}

// TestOwnCertificateRefused: each mistake in the files of our certificate has words
// that say what to do.
func TestOwnCertificateRefused(t *testing.T) {
	ca := plants()[0]
	for name, tc := range map[string]struct {
		cert, key []byte
		says      string
	}{
		"another's key":      {ca.leaf.Raw, x509.MarshalPKCS1PrivateKey(ca.rootKey), "made together"},
		"encrypted key":      {ca.leaf.Raw, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}}), "store it without one"},
		"old encryption":     {ca.leaf.Raw, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"DEK-Info": "AES-256-CBC,00"}, Bytes: []byte{1}}), "store it without one"},
		"no key":             {ca.leaf.Raw, []byte("hello"), "PKCS#8"},
		"torn chain":         {append(pemOf(ca.leaf), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{0x30}})...), x509.MarshalPKCS1PrivateKey(ca.key), "certificate 2 of the file"},
		"no certificate":     {[]byte("hello"), x509.MarshalPKCS1PrivateKey(ca.key), "neither a PEM nor a DER certificate"},
		"an empty file":      {nil, x509.MarshalPKCS1PrivateKey(ca.key), "no certificate in it"},
		"a key in its place": {pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(ca.key)}), x509.MarshalPKCS1PrivateKey(ca.key), "neither a PEM nor a DER certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			paths := writeIdentity(t, ca.key, tc.cert)
			if err := os.WriteFile(paths.key, tc.key, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ownIdentity(Config{}.withDefaults(), paths, quiet)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("want %q, got %v", tc.says, err)
			}
		})
	}
	// A folder cannot be read as a key by anybody, root included.
	paths := writeIdentity(t, ca.key, ca.leaf.Raw)
	if err := errors.Join(os.Remove(paths.key), os.Mkdir(paths.key, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := ownIdentity(Config{}.withDefaults(), paths, quiet); err == nil || !strings.Contains(err.Error(), paths.key) {
		t.Errorf("want the path of the key, got %v", err)
	}
}

// TestUntrustedChain: a server that refuses a certificate of a CA gets other words
// than one that refuses a self-signed one, and a chain with a hole others than a
// whole one.
func TestUntrustedChain(t *testing.T) {
	ca := plants()[0]
	const addIssuer, trustCA = "append the certificate of CN=plant issuer", "or the CA that issued it (CN=plant issuer)"
	for name, tc := range map[string]struct {
		own  *identity
		says []string
		not  []string
	}{
		"self-signed":    {identities()[0], nil, []string{"issued it"}},
		"leaf alone":     {&identity{cert: ca.leaf}, []string{trustCA, addIssuer}, nil},
		"to the root":    {&identity{cert: ca.leaf, issuers: []*x509.Certificate{ca.issuer, ca.root}}, []string{trustCA}, []string{"append"}},
		"below the root": {&identity{cert: ca.leaf, issuers: []*x509.Certificate{ca.issuer}}, []string{trustCA, "append the certificate of CN=plant root"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			err := explain(ua.StatusBadSecurityChecksFailed, "opc.tcp://plc:4840", tc.own)
			if sources.ErrorState(marked(err)) != sources.AuthFailed {
				t.Errorf("state %s", sources.ErrorState(marked(err)))
			}
			for _, s := range append(tc.says, "trust our certificate "+tc.own.thumbprint()) {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("want %q in %q", s, err)
				}
			}
			for _, s := range tc.not {
				if strings.Contains(err.Error(), s) {
					t.Errorf("%q in %q", s, err)
				}
			}
		})
	}
}

func FuzzKeysAndCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte{0x30, 0x82})
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := parseKey(b); err == nil && k == nil {
			t.Error("no key and no error")
		}
		if c, err := parseCertificate(b); err == nil && c == nil {
			t.Error("no certificate and no error")
		}
	})
}
