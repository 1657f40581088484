package opcua

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// maxRejected bounds the folder of refused certificates, which anyone who can
// answer on the server's port can fill.
const maxRejected = 50

// CertStore is the folder of server certificates that we trust, and beside it
// the folder `rejected` of those that we refused. The zero CertStore is not
// usable; take it from Config.CertStore.
type CertStore struct {
	trusted, rejected string
}

// ownPaths is where our own certificate and key are.
type ownPaths struct{ cert, key string }

// CertStore returns the trust store that a source with this configuration
// uses. dir is where certificates live that the configuration does not name.
func (c Config) CertStore(dir string) *CertStore {
	trusted := c.Trust.Dir
	if trusted == "" {
		trusted = filepath.Join(dir, "trusted")
	}
	return &CertStore{trusted: trusted, rejected: filepath.Join(filepath.Dir(trusted), "rejected")}
}

func (c Config) ownPaths(dir string) ownPaths {
	if c.CertificatePath != "" {
		return ownPaths{cert: c.CertificatePath, key: c.PrivateKeyPath}
	}
	return ownPaths{cert: filepath.Join(dir, "own", "client_cert.der"), key: filepath.Join(dir, "own", "client_key.pem")}
}

// CertInfo describes one certificate of a store.
type CertInfo struct {
	Thumbprint     string    `json:"thumbprint"` // SHA-1, upper-case hexadecimal
	Subject        string    `json:"subject"`
	Issuer         string    `json:"issuer"`
	ApplicationURI string    `json:"application_uri"`
	DNSNames       []string  `json:"dns_names"`
	NotBefore      time.Time `json:"not_before"`
	NotAfter       time.Time `json:"not_after"`
	Trusted        bool      `json:"trusted"`
	// Sent are the subjects of the issuers that a server is shown with our own
	// certificate, nearest first.
	Sent []string `json:"sent,omitempty"`
	Path string   `json:"path"`
}

func certInfo(c *x509.Certificate, path string, trusted bool) CertInfo {
	info := CertInfo{Thumbprint: Thumbprint(c.Raw), Subject: c.Subject.String(), Issuer: c.Issuer.String(), DNSNames: c.DNSNames,
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, Trusted: trusted, Path: path}
	if len(c.URIs) > 0 {
		info.ApplicationURI = c.URIs[0].String()
	}
	return info
}

// OwnCertificate returns our application certificate; it is made when it does
// not exist yet, as at the first start.
func (c Config) OwnCertificate(dir string, log *slog.Logger) (CertInfo, error) {
	paths := c.ownPaths(dir)
	id, err := ownIdentity(c.withDefaults(), paths, log)
	if err != nil {
		return CertInfo{}, err
	}
	info := certInfo(id.cert, paths.cert, true)
	for _, c := range id.issuers {
		info.Sent = append(info.Sent, c.Subject.String())
	}
	return info, nil
}

// List returns the trusted and the rejected server certificates, by thumbprint.
// Files that hold no certificate are left out.
func (s *CertStore) List() ([]CertInfo, error) {
	var out []CertInfo
	for _, d := range []struct {
		dir     string
		trusted bool
	}{{s.trusted, true}, {s.rejected, false}} {
		certs, err := readCerts(d.dir)
		if err != nil {
			return nil, err
		}
		for path, c := range certs {
			out = append(out, certInfo(c, path, d.trusted))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Thumbprint < out[j].Thumbprint })
	return out, nil
}

// Show returns the certificate whose thumbprint starts with prefix, and its
// PEM text.
func (s *CertStore) Show(prefix string) (CertInfo, string, error) {
	all, err := s.List()
	if err != nil {
		return CertInfo{}, "", err
	}
	prefix = strings.ToUpper(strings.ReplaceAll(prefix, ":", ""))
	var hit []CertInfo
	for _, c := range all {
		if prefix != "" && strings.HasPrefix(c.Thumbprint, prefix) {
			hit = append(hit, c)
		}
	}
	switch len(hit) {
	case 1:
	case 0:
		return CertInfo{}, "", fmt.Errorf("no certificate with thumbprint %s; list them first", prefix)
	default:
		return CertInfo{}, "", fmt.Errorf("%d certificates start with %s; give more of the thumbprint", len(hit), prefix)
	}
	b, err := os.ReadFile(hit[0].Path)
	if err != nil {
		return CertInfo{}, "", fmt.Errorf("read certificate: %w", err)
	}
	cert, err := parseCertificate(b)
	if err != nil {
		return CertInfo{}, "", fmt.Errorf("read certificate %s: %w", hit[0].Path, err)
	}
	return hit[0], string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})), nil
}

// Trust moves a rejected certificate to the trusted ones.
func (s *CertStore) Trust(prefix string) (CertInfo, error) { return s.move(prefix, s.trusted, true) }

// Reject moves a trusted certificate to the rejected ones; the next connect
// refuses it.
func (s *CertStore) Reject(prefix string) (CertInfo, error) { return s.move(prefix, s.rejected, false) }

func (s *CertStore) move(prefix, dir string, trusted bool) (CertInfo, error) {
	info, text, err := s.Show(prefix)
	if err != nil || info.Trusted == trusted {
		return info, err
	}
	to, err := s.add(dir, []byte(text))
	if err != nil {
		return CertInfo{}, err
	}
	if err := os.Remove(info.Path); err != nil {
		return CertInfo{}, fmt.Errorf("remove certificate: %w", err)
	}
	info.Trusted, info.Path = trusted, to
	return info, nil
}

// Import adds a certificate in PEM or DER to the trusted ones.
func (s *CertStore) Import(b []byte) (CertInfo, error) {
	cert, err := parseCertificate(b)
	if err != nil {
		return CertInfo{}, err
	}
	path, err := s.add(s.trusted, cert.Raw)
	return certInfo(cert, path, true), err
}

func (s *CertStore) add(dir string, b []byte) (path string, err error) {
	cert, err := parseCertificate(b)
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, Thumbprint(cert.Raw)+".der")
	return path, writeFile(path, cert.Raw, 0o644)
}

// refuse keeps a refused certificate, so that it can be trusted by thumbprint.
func (s *CertStore) refuse(cert *x509.Certificate) error {
	certs, err := readCerts(s.rejected)
	if err != nil {
		return err
	}
	if len(certs) >= maxRejected {
		return nil
	}
	_, err = s.add(s.rejected, cert.Raw)
	return err
}

func readCerts(dir string) (map[string]*x509.Certificate, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate folder: %w", err)
	}
	out := map[string]*x509.Certificate{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		if c, err := parseCertificate(b); err == nil {
			out[path] = c
		}
	}
	return out, nil
}

// check decides whether the server at address (host:port) that showed der may be
// talked to, and returns its certificate and, in mode ca, those of its issuers up
// to a trusted one. The error is a refusal that names the thumbprint and the way
// out.
func (s *CertStore) check(c Config, address string, der []byte) ([]*x509.Certificate, error) {
	leaf, issuers := splitChain(der)
	cert, err := parseCertificate(leaf)
	if err != nil {
		return nil, &refusal{kind: refusedTrust, msg: "server shows no usable certificate: install one on the server", err: err}
	}
	print := Thumbprint(cert.Raw)
	no := func(format string, args ...any) error {
		return &refusal{kind: refusedTrust, msg: fmt.Sprintf(format, args...), err: s.refuse(cert)}
	}
	alone := []*x509.Certificate{cert}
	if c.Trust.Mode == "insecure" {
		return alone, nil
	}
	if now := time.Now(); now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
		return nil, no("server certificate %s is valid from %s to %s only: renew it on the server, or check the clocks",
			print, cert.NotBefore.Format(time.DateOnly), cert.NotAfter.Format(time.DateOnly))
	}
	if c.Trust.CheckHostname {
		host := address
		if h, _, err := net.SplitHostPort(address); err == nil {
			host = h
		}
		if err := cert.VerifyHostname(host); err != nil {
			return nil, no("server certificate %s is not for host %s (it names %s): correct the endpoint, or set trust.check_hostname: false",
				print, host, strings.Join(cert.DNSNames, ", "))
		}
	}
	switch c.Trust.Mode {
	case "pin":
		b, err := os.ReadFile(c.Trust.ServerCertificatePath)
		if err != nil {
			return nil, &refusal{kind: refusedConfig, msg: "read trust.server_certificate_path", err: err}
		}
		if pin, err := parseCertificate(b); err != nil || !bytes.Equal(pin.Raw, cert.Raw) {
			return nil, no("server shows certificate %s, which is not the pinned one: if the server was renewed, replace %s", print, c.Trust.ServerCertificatePath)
		}
		return alone, nil
	case "ca":
		return s.checkCA(cert, issuers, no)
	default:
		return alone, s.checkList(c, address, cert, no)
	}
}

func (s *CertStore) checkList(c Config, address string, cert *x509.Certificate, no func(string, ...any) error) error {
	trusted, err := readCerts(s.trusted)
	if err != nil {
		return err
	}
	for _, t := range trusted {
		if bytes.Equal(t.Raw, cert.Raw) {
			return nil
		}
	}
	print := Thumbprint(cert.Raw)
	if c.Trust.Mode != "tofu" {
		return no("server certificate %s is not trusted: compare it with the server, then run `edgehost opcua certs trust %s`", print, print)
	}
	// Trust on first use is per host and port: the file that remembers which certificate
	// it showed lies beside the trusted ones.
	memo := filepath.Join(s.trusted, "."+strings.NewReplacer("/", "_", ":", "_").Replace(address)+".first")
	first, err := os.ReadFile(memo)
	if err == nil && strings.TrimSpace(string(first)) != print {
		return no("server certificate changed from %s to %s: if the server was renewed, run `edgehost opcua certs trust %s`",
			strings.TrimSpace(string(first)), print, print)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s: %w", memo, err)
	}
	if err == nil {
		return no("server certificate %s was rejected: run `edgehost opcua certs trust %s` to accept it again", print, print)
	}
	if _, err := s.add(s.trusted, cert.Raw); err != nil {
		return err
	}
	return writeFile(memo, []byte(print+"\n"), 0o644)
}

// checkCA returns the chain from cert to a trusted CA.
func (s *CertStore) checkCA(cert *x509.Certificate, issuers []*x509.Certificate, no func(string, ...any) error) ([]*x509.Certificate, error) {
	trusted, err := readCerts(s.trusted)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, t := range trusted {
		roots.AddCert(t)
	}
	between := x509.NewCertPool()
	for _, c := range issuers {
		between.AddCert(c)
	}
	chains, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, no("server certificate %s is not issued by a CA in %s: put the issuer (%s) there", Thumbprint(cert.Raw), s.trusted, cert.Issuer)
	}
	lists, err := s.revocationLists()
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		if err = checkRevoked(chain, lists, no); err == nil {
			return chain, nil
		}
	}
	return nil, err
}

// revocationLists reads the *.crl files beside the CA certificates.
func (s *CertStore) revocationLists() (lists []*x509.RevocationList, err error) {
	paths, err := filepath.Glob(filepath.Join(s.trusted, "*.crl"))
	if err != nil {
		return nil, fmt.Errorf("find revocation lists: %w", err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read revocation list: %w", err)
		}
		if block, _ := pem.Decode(b); block != nil {
			b = block.Bytes
		}
		list, err := x509.ParseRevocationList(b)
		if err != nil {
			return nil, fmt.Errorf("read revocation list %s: %w", path, err)
		}
		lists = append(lists, list)
	}
	return lists, nil
}

// checkRevoked looks for each certificate of chain, save the last, in the lists
// of its issuer. A list that the issuer did not sign is not believed.
func checkRevoked(chain []*x509.Certificate, lists []*x509.RevocationList, no func(string, ...any) error) error {
	for i, cert := range chain[:len(chain)-1] {
		issuer := chain[i+1]
		for _, list := range lists {
			if !bytes.Equal(list.RawIssuer, issuer.RawSubject) || list.CheckSignatureFrom(issuer) != nil {
				continue
			}
			for _, r := range list.RevokedCertificateEntries {
				if r.SerialNumber.Cmp(cert.SerialNumber) != 0 {
					continue
				}
				if i == 0 {
					return no("server certificate %s is revoked by %s", Thumbprint(cert.Raw), issuer.Subject)
				}
				return no("the issuer of the server's certificate, %s, is revoked by %s", cert.Subject, issuer.Subject)
			}
		}
	}
	return nil
}
