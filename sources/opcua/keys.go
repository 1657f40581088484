package opcua

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ownYears is how long a certificate that we make is valid.
const ownYears = 3

// madeBy marks certificates that we made and may therefore renew.
const madeBy = "edgehost"

// identity is a certificate and its key: our application's or a user's.
type identity struct {
	cert *x509.Certificate
	// issuers are those of cert that lie in the same file, nearest first: servers
	// that trust a CA far above need those between.
	issuers []*x509.Certificate
	key     *rsa.PrivateKey
	file    []byte // that the certificates are from
}

// chain is what a server is shown: the certificate and as many of its issuers as
// fit into limit bytes, whole ones only (Part 6, 6.7.2.3).
func (i *identity) chain(limit int) []byte {
	out := slices.Clone(i.cert.Raw)
	for _, c := range i.issuers {
		if len(out)+len(c.Raw) > limit {
			break
		}
		out = append(out, c.Raw...)
	}
	return out
}

// top is the certificate at the end of the chain. Its issuer is one that we do
// not have, unless it issued itself.
func (i *identity) top() *x509.Certificate {
	if n := len(i.issuers); n > 0 {
		return i.issuers[n-1]
	}
	return i.cert
}

// selfIssued reports whether c names itself as its issuer.
func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

func (i *identity) thumbprint() string {
	if i == nil {
		return ""
	}
	return Thumbprint(i.cert.Raw)
}

// applicationURI is the URI in the certificate; the server compares it with the
// one that we announce.
func (i *identity) applicationURI() string {
	if len(i.cert.URIs) == 0 {
		return ""
	}
	return i.cert.URIs[0].String()
}

// Thumbprint is the SHA-1 of a DER certificate in upper-case hexadecimal, by
// which OPC UA servers name certificates (Part 6, 6.2.3).
func Thumbprint(der []byte) string {
	sum := sha1.Sum(der)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// parseCertificate reads the first certificate of PEM or DER bytes.
func parseCertificate(b []byte) (*x509.Certificate, error) {
	certs, err := parseCertificates(b)
	if err != nil {
		return nil, err
	}
	return certs[0], nil
}

// parseCertificates reads the certificates, at least one, of PEM or DER bytes: PEM
// blocks among others, or DER one after the other.
func parseCertificates(b []byte) (certs []*x509.Certificate, err error) {
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the file: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) > 0 {
		return certs, nil
	}
	if certs, err = x509.ParseCertificates(b); err != nil {
		return nil, fmt.Errorf("neither a PEM nor a DER certificate: %w", err)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return certs, nil
}

// identityOf finds the certificate of key among certs, and puts its issuers in
// order. rest are certificates that are neither.
func identityOf(key *rsa.PrivateKey, certs []*x509.Certificate) (id *identity, rest []*x509.Certificate) {
	at := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return key.PublicKey.Equal(c.PublicKey) })
	if at < 0 {
		return nil, certs
	}
	id = &identity{cert: certs[at], key: key}
	rest = slices.Delete(slices.Clone(certs), at, at+1)
	for last := id.cert; !selfIssued(last); last = id.top() {
		at := slices.IndexFunc(rest, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, last.RawIssuer) && last.CheckSignatureFrom(c) == nil
		})
		if at < 0 {
			break
		}
		id.issuers = append(id.issuers, rest[at])
		rest = slices.Delete(rest, at, at+1)
	}
	return id, rest
}

// splitChain cuts what a server shows into its own certificate and those of its
// issuers, which some servers append.
func splitChain(der []byte) (leaf []byte, issuers []*x509.Certificate) {
	var raw asn1.RawValue
	rest, err := asn1.Unmarshal(der, &raw)
	if err != nil {
		return der, nil
	}
	leaf = raw.FullBytes
	for len(rest) > 0 && len(issuers) < 10 {
		if rest, err = asn1.Unmarshal(rest, &raw); err != nil {
			break
		}
		if c, err := x509.ParseCertificate(raw.FullBytes); err == nil {
			issuers = append(issuers, c)
		}
	}
	return leaf, issuers
}

// parseKey reads an RSA key from PKCS#1 or PKCS#8, PEM or DER.
func parseKey(b []byte) (*rsa.PrivateKey, error) {
	der := b
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, errors.New("the key is encrypted with a passphrase; store it without one (openssl rsa -in key.pem -out plain.pem) with mode 0600")
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			der = block.Bytes
			break
		}
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	any, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("not a private key in PKCS#1 or PKCS#8, PEM or DER")
	}
	key, ok := any.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a %T; OPC UA needs an RSA key", any)
	}
	return key, nil
}

// loadIdentity reads a certificate and its key, and checks that they belong
// together.
func loadIdentity(certPath, keyPath string, log *slog.Logger) (*identity, error) {
	cb, err := os.ReadFile(certPath)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	certs, err := parseCertificates(cb)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", certPath, err)
	}
	kb, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w; edgehost's user must be able to read it", err)
	}
	key, err := parseKey(kb)
	if err != nil {
		return nil, fmt.Errorf("read private key %s: %w", keyPath, err)
	}
	id, rest := identityOf(key, certs)
	if id == nil {
		return nil, fmt.Errorf("private key %s does not belong to certificate %s: name the pair that was made together", keyPath, certPath)
	}
	for _, c := range rest {
		log.Warn("a certificate is not sent: it is no issuer of ours", "path", certPath, "subject", c.Subject.String(), "thumbprint", Thumbprint(c.Raw))
	}
	if st, err := os.Stat(keyPath); err == nil && st.Mode().Perm()&0o077 != 0 {
		log.Warn("private key is readable by others; chmod 600 it", "path", keyPath, "mode", st.Mode().Perm().String())
	}
	id.file = cb
	return id, nil
}

// renewalDue reports whether a certificate that we made is to be replaced.
func (c Config) renewalDue(id *identity) bool {
	return selfMade(id.cert) && time.Until(id.cert.NotAfter) <= time.Duration(c.CertificateRenewDays)*24*time.Hour
}

// ownIdentity returns our application identity. It is made when neither file
// exists, and renewed with the same key when we made it and fewer than
// renewDays are left; the one before is kept beside it with the suffix .old,
// so that a server which does not trust the new one yet is still served.
func ownIdentity(c Config, paths ownPaths, log *slog.Logger) (*identity, error) {
	_, certErr := os.Stat(paths.cert)
	_, keyErr := os.Stat(paths.key)
	if errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, fmt.Errorf("make private key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("make private key: %w", err)
		}
		if err := writeFile(paths.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			return nil, err
		}
		id, err := makeCertificate(key, c.ApplicationURI, paths.cert)
		if err == nil {
			log.Info("made our OPC UA certificate; the server must trust it", "path", paths.cert, "thumbprint", id.thumbprint(), "application_uri", id.applicationURI())
		}
		return id, err
	}
	id, err := loadIdentity(paths.cert, paths.key, log)
	if err != nil {
		return nil, err
	}
	uri := id.applicationURI()
	if c.ApplicationURI != "" && uri != c.ApplicationURI {
		log.Warn("application_uri differs from the certificate's; the certificate's is announced, since servers compare them",
			"configured", c.ApplicationURI, "certificate", uri)
	}
	if !c.renewalDue(id) {
		if left := time.Until(id.cert.NotAfter); left <= time.Duration(c.CertificateRenewDays)*24*time.Hour {
			log.Warn("our OPC UA certificate expires soon; replace the file, it is picked up without a restart", "path", paths.cert, "expires", id.cert.NotAfter)
		}
		return id, nil
	}
	if err := writeFile(paths.cert+".old", id.cert.Raw, 0o644); err != nil {
		return nil, err
	}
	next, err := makeCertificate(id.key, uri, paths.cert)
	if err == nil {
		log.Warn("renewed our OPC UA certificate; trust it on the server before the old one expires",
			"thumbprint", next.thumbprint(), "old_thumbprint", id.thumbprint(), "old_expires", id.cert.NotAfter)
	}
	return next, err
}

// previousIdentity returns the certificate before the last renewal while it is
// still valid, else nil.
func previousIdentity(paths ownPaths, now *identity) *identity {
	b, err := os.ReadFile(paths.cert + ".old")
	if err != nil {
		return nil
	}
	cert, err := parseCertificate(b)
	if err != nil || time.Now().After(cert.NotAfter) || !now.key.PublicKey.Equal(cert.PublicKey) {
		return nil
	}
	return &identity{cert: cert, key: now.key}
}

func selfMade(c *x509.Certificate) bool {
	return len(c.Subject.Organization) == 1 && c.Subject.Organization[0] == madeBy && c.Subject.String() == c.Issuer.String()
}

// makeCertificate makes and stores a self-signed application certificate with
// the fields that Part 6, 6.2.2 demands.
func makeCertificate(key *rsa.PrivateKey, uri, path string) (*identity, error) {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	if uri == "" {
		uri = "urn:" + host + ":" + madeBy
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("application_uri %q: %w", uri, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: madeBy + "@" + host, Organization: []string{madeBy}},
		// An hour back, since plant clocks are seldom exact.
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(ownYears, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment | x509.KeyUsageKeyEncipherment |
			x509.KeyUsageDataEncipherment | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, DNSNames: []string{host}, URIs: []*url.URL{u},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), crypto.Signer(key))
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	body := der
	if strings.HasSuffix(path, ".pem") {
		body = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	if err := writeFile(path, body, 0o644); err != nil {
		return nil, err
	}
	return &identity{cert: cert, key: key, file: body}, nil
}

// writeFile writes a file whole or not at all.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make folder for %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
