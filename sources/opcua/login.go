package opcua

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// user is whom a session acts for.
type user struct {
	kind     ua.UserTokenType
	policyID string // of the token, as the endpoint names it
	policy   string // URI of what protects it
	name     string
	password string
	id       *identity // of a user with a certificate
}

// user chooses the token for ep.
func (d *dialer) user(ep *ua.EndpointDescription) (u user, err error) {
	u.kind = ua.UserTokenTypeAnonymous
	switch {
	case d.cfg.Username != "":
		u.kind = ua.UserTokenTypeUserName
	case d.cfg.UserCertificatePath != "":
		u.kind = ua.UserTokenTypeCertificate
	}
	if u.policyID, u.policy, err = chooseToken(ep, u.kind, d.cfg.AllowDeprecatedPolicies); err != nil {
		return u, err
	}
	switch u.kind {
	case ua.UserTokenTypeUserName:
		u.name, u.password = d.cfg.Username, d.cfg.Password
		if u.policy == ua.SecurityPolicyURINone && ep.SecurityMode != ua.MessageSecurityModeSignAndEncrypt && !d.cfg.AllowPlaintextPassword {
			return u, &refusal{kind: refusedConfig, msg: "the password would cross the network in clear: choose security_mode SignAndEncrypt, or set allow_plaintext_password: true"}
		}
	case ua.UserTokenTypeCertificate:
		if u.id, err = loadIdentity(d.cfg.UserCertificatePath, d.cfg.UserPrivateKeyPath, d.log); err != nil {
			return u, &refusal{kind: refusedConfig, msg: "user certificate", err: err}
		}
	}
	return u, nil
}

// serverSession is a session as the server knows it. It outlives a channel.
type serverSession struct {
	token *ua.NodeID
	// cert is the server's certificate without its issuers, nil when it showed
	// none and none is needed.
	cert  []byte
	nonce []byte // that the next signature must hold
	// idle is how long the server keeps the session without a request, as it revised
	// what we asked for.
	idle time.Duration
}

// createSession makes a session over c, and has the server prove that it holds
// the key of its certificate.
func (d *dialer) createSession(ctx context.Context, c *channel, endpoint string, u user) (*serverSession, error) {
	nonce := make([]byte, 32) // Part 4, 5.6.2.2
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("create session: %w", err)
	}
	req := &ua.CreateSessionRequest{EndpointURL: endpoint, SessionName: madeBy + "/" + d.name, ClientNonce: nonce, MaxResponseMessageSize: maxMessage,
		RequestedSessionTimeout: float64((time.Duration(d.cfg.SessionTimeoutSeconds) * time.Second).Milliseconds()),
		ClientDescription: &ua.ApplicationDescription{ApplicationURI: d.cfg.ApplicationURI, ProductURI: "urn:" + madeBy,
			ApplicationName: ua.NewLocalizedText(madeBy), ApplicationType: ua.ApplicationTypeClient}}
	if req.ClientDescription.ApplicationURI == "" {
		req.ClientDescription.ApplicationURI = "urn:" + madeBy
	}
	if own := c.guard.own; own != nil {
		req.ClientCertificate, req.ClientDescription.ApplicationURI = c.certs, own.applicationURI()
	}
	res, err := call[*ua.CreateSessionResponse](ctx, sessionTransport{c: c}, req)
	if err != nil {
		return nil, err
	}
	shown, _ := splitChain(res.ServerCertificate)
	if (c.guard.signs() || u.policy != ua.SecurityPolicyURINone) && !slices.Equal(shown, c.guard.remote) {
		return nil, &refusal{kind: refusedTrust, msg: "server shows one certificate when asked and another in the session: another machine may be answering for it"}
	}
	if c.guard.signs() {
		algo, err := c.guard.asymmetric()
		if err != nil {
			return nil, fmt.Errorf("create session: %w", err)
		}
		// Of a chain the first certificate is signed; older servers sign all of it
		// (Part 4, 5.6.2.2).
		proves := func(cert []byte) bool {
			return res.ServerSignature != nil && algo.VerifySignature(slices.Concat(cert, nonce), res.ServerSignature.Signature) == nil
		}
		if !proves(c.guard.own.cert.Raw) && !proves(req.ClientCertificate) {
			return nil, &refusal{kind: refusedTrust, msg: "server could not prove that it holds the key of its certificate: another machine may be answering for it"}
		}
	}
	if res.AuthenticationToken == nil {
		return nil, errors.New("create session: server gives no token for it")
	}
	return &serverSession{token: res.AuthenticationToken, cert: shown, nonce: res.ServerNonce,
		idle: time.Duration(res.RevisedSessionTimeout * float64(time.Millisecond))}, nil
}

// activate makes s the session of c, for u. The server proves nothing more: it
// has the keys of the channel.
func (s *serverSession) activate(ctx context.Context, c *channel, u user) error {
	token, proof, err := s.identity(c, u)
	if err != nil {
		return fmt.Errorf("activate session: %w", err)
	}
	req := &ua.ActivateSessionRequest{ClientSignature: &ua.SignatureData{}, LocaleIDs: []string{"en"},
		UserIdentityToken: ua.NewExtensionObject(token), UserTokenSignature: proof}
	if c.guard.signs() {
		algo, err := c.guard.asymmetric()
		if err == nil {
			req.ClientSignature, err = sign(algo, s.cert, s.nonce)
		}
		if err != nil {
			return fmt.Errorf("activate session: %w", err)
		}
	}
	res, err := call[*ua.ActivateSessionResponse](ctx, sessionTransport{c, s.token}, req)
	if err != nil {
		return err
	}
	s.nonce = res.ServerNonce
	return nil
}

// sign proves to the server, whose certificate and nonce these are, that we hold
// a key (Part 4, 5.6.3.2).
func sign(algo *uapolicy.EncryptionAlgorithm, cert, nonce []byte) (*ua.SignatureData, error) {
	signature, err := algo.Signature(slices.Concat(cert, nonce))
	if err != nil {
		return nil, fmt.Errorf("sign the server's nonce: %w", err)
	}
	return &ua.SignatureData{Algorithm: algo.SignatureURI(), Signature: signature}, nil
}

// identity makes the token of u, and its proof.
func (s *serverSession) identity(c *channel, u user) (token any, proof *ua.SignatureData, err error) {
	proof = &ua.SignatureData{}
	if u.kind == ua.UserTokenTypeAnonymous {
		return &ua.AnonymousIdentityToken{PolicyID: u.policyID}, proof, nil
	}
	plain := u.policy == ua.SecurityPolicyURINone
	var own *rsa.PrivateKey
	if u.id != nil {
		own = u.id.key
	}
	var algo *uapolicy.EncryptionAlgorithm
	if !plain {
		remote, err := publicKey(s.cert)
		if err == nil {
			algo, err = uapolicy.Asymmetric(u.policy, own, remote)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if u.kind == ua.UserTokenTypeCertificate {
		if !plain {
			proof, err = sign(algo, s.cert, s.nonce)
		}
		return &ua.X509IdentityToken{PolicyID: u.policyID, CertificateData: u.id.cert.Raw}, proof, err
	}
	t := &ua.UserNameIdentityToken{PolicyID: u.policyID, UserName: u.name, Password: []byte(u.password)}
	if !plain {
		// Length, password and nonce (Part 4, 7.41.2.2).
		secret := binary.LittleEndian.AppendUint32(nil, uint32(len(u.password)+len(s.nonce)))
		if t.Password, err = algo.Encrypt(slices.Concat(secret, []byte(u.password), s.nonce)); err != nil {
			return nil, nil, fmt.Errorf("encrypt the password: %w", err)
		}
		t.EncryptionAlgorithm = algo.EncryptionURI()
	}
	return t, proof, nil
}
