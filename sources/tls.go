package sources

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// TLSConfig is how a source secures its connection and proves who it is. The
// peer's certificate and name are verified unless InsecureSkipVerify says
// otherwise; there is no way back to plaintext once Enabled is true.
type TLSConfig struct {
	Enabled            bool   `yaml:"enabled"`
	CACertPath         string `yaml:"ca_cert_path"`         // PEM bundle or DER; "": the system's roots
	ClientCertPath     string `yaml:"client_cert_path"`     // PEM chain or DER; with client_key_path
	ClientKeyPath      string `yaml:"client_key_path"`      // PKCS#8, PKCS#1 or SEC 1 (EC), PEM or DER, not encrypted
	ServerName         string `yaml:"server_name"`          // name to verify instead of the endpoint's host
	MinVersion         string `yaml:"min_version"`          // "1.2" (default) or "1.3"
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"` // accept any certificate: for tests only
}

// Validate returns what is wrong without reading a file, with paths relative
// to the tls block.
func (c TLSConfig) Validate() []FieldError {
	var errs []FieldError
	if _, err := c.minVersion(); err != nil {
		errs = append(errs, FieldError{"min_version", err.Error()})
	}
	if (c.ClientCertPath == "") != (c.ClientKeyPath == "") {
		path, other := "client_cert_path", "client_key_path"
		if c.ClientCertPath == "" {
			path, other = other, path
		}
		errs = append(errs, FieldError{path, "needs " + other + " beside it: a certificate and its key go together"})
	}
	return errs
}

func (c TLSConfig) minVersion() (uint16, error) {
	switch c.MinVersion {
	case "", "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("%q is not a TLS version that edgehost speaks; use \"1.2\" or \"1.3\"", c.MinVersion)
}

// Build reads the files and returns the client side's configuration. The name
// to verify is c.ServerName, else serverName (the endpoint's host). Call it for
// each connection, so that renewed certificates are picked up. Its errors are
// marked by ConfigError.
func (c TLSConfig) Build(serverName string) (*tls.Config, error) {
	out, err := c.build(serverName)
	return out, ConfigError(err)
}

func (c TLSConfig) build(serverName string) (*tls.Config, error) {
	version, err := c.minVersion()
	if err != nil {
		return nil, fmt.Errorf("read tls.min_version: %w", err)
	}
	if c.ServerName != "" {
		serverName = c.ServerName
	}
	out := &tls.Config{MinVersion: version, ServerName: serverName, InsecureSkipVerify: c.InsecureSkipVerify}
	if c.CACertPath != "" {
		cas, err := readCertificates(c.CACertPath)
		if err != nil {
			return nil, fmt.Errorf("read tls.ca_cert_path: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		for _, ca := range cas {
			out.RootCAs.AddCert(ca)
		}
	}
	if c.ClientCertPath == "" && c.ClientKeyPath == "" {
		return out, nil
	}
	cert, err := readKeyPair(c.ClientCertPath, c.ClientKeyPath)
	if err != nil {
		return nil, err
	}
	// The client presents the certificate whatever list of authorities the
	// server sends: choosing among one can only end in sending none, which
	// servers answer with a bare reset.
	out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return out, nil
}

func readKeyPair(certPath, keyPath string) (tls.Certificate, error) {
	chain, err := readCertificates(certPath)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read tls.client_cert_path: %w", err)
	}
	key, err := readPrivateKey(keyPath)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read tls.client_key_path: %w", err)
	}
	public, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return tls.Certificate{}, fmt.Errorf("tls.client_key_path %s is not the key of the first certificate in tls.client_cert_path %s (%s)",
			keyPath, certPath, chain[0].Subject)
	}
	out := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		out.Certificate = append(out.Certificate, cert.Raw)
	}
	return out, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	der := data
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		der = nil
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" {
				der = append(der, block.Bytes...)
			}
		}
	}
	certs, err := x509.ParseCertificates(der)
	if err != nil {
		return nil, fmt.Errorf("%s holds no certificate that can be read: %w", path, err)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no certificate; a PEM file with BEGIN CERTIFICATE or a DER file is needed", path)
	}
	return certs, nil
}

func readPrivateKey(path string) (crypto.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		return parsePrivateKey(path, data)
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "ENCRYPTED PRIVATE KEY":
			return nil, encryptedKeyError(path)
		case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, encryptedKeyError(path)
			}
			return parsePrivateKey(path, block.Bytes)
		}
	}
	return nil, fmt.Errorf("%s holds no private key; a PEM file with BEGIN PRIVATE KEY or a DER file is needed", path)
}

func encryptedKeyError(path string) error {
	return fmt.Errorf("private key %s is encrypted, and nobody is there to type its passphrase when edgehost starts: "+
		"write it without one (openssl pkey -in %s -out plain.key; chmod 600 plain.key) and configure that file", path, path)
}

func parsePrivateKey(path string, der []byte) (crypto.Signer, error) {
	var parsed any
	pkcs8, err := x509.ParsePKCS8PrivateKey(der)
	parsed = pkcs8
	if err != nil {
		if rsa, err1 := x509.ParsePKCS1PrivateKey(der); err1 == nil {
			parsed = rsa
		} else if ec, err2 := x509.ParseECPrivateKey(der); err2 == nil {
			parsed = ec
		} else {
			return nil, fmt.Errorf("%s is not a PKCS#8, PKCS#1 or EC private key: %w", path, errors.Join(err, err1, err2))
		}
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds a key of type %T, which cannot sign", path, parsed)
	}
	return signer, nil
}
