package opcua

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"reflect"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua"
	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uacp"
	"github.com/gopcua/opcua/uasc"
)

// maxMessage bounds what a server may send as one message, in bytes.
const maxMessage = 64 << 20

// dialer connects to one server and keeps the session between connections.
// One goroutine at a time uses it.
type dialer struct {
	name   string
	cfg    Config
	url    *url.URL
	dir    string
	log    *slog.Logger
	status *sources.Status
	meter  *meter

	session *opcua.Session
	// sessionOwn is the thumbprint of our certificate in session; a session
	// lives on only with the same one.
	sessionOwn string
	own        *identity
}

// connect opens channel and session, the session of the last connection when
// the server still has it. Errors say what to do.
func (d *dialer) connect(ctx context.Context) (*link, error) {
	offered, err := d.discover(ctx)
	if err != nil {
		return nil, err
	}
	ep, err := chooseEndpoint(d.cfg, offered)
	if err != nil {
		return nil, err
	}
	sc, userKey, err := d.sessionConfig(ep)
	if err != nil {
		return nil, err
	}
	secured := ep.SecurityMode != ua.MessageSecurityModeNone
	if secured || sc.AuthPolicyURI != ua.SecurityPolicyURINone && d.cfg.Username != "" {
		cert, err := d.cfg.CertStore(d.dir).check(d.cfg, d.url.Hostname(), ep.ServerCertificate)
		if err != nil {
			return nil, err
		}
		d.status.Gauge(metricServerCertDays, time.Until(cert.NotAfter).Hours()/24)
	}
	if !secured {
		d.own = nil
		return d.open(ctx, ep, sc, nil, userKey)
	}
	paths := d.cfg.ownPaths(d.dir)
	if d.own, err = ownIdentity(d.cfg, paths, d.log); err != nil {
		return nil, &refusal{kind: refusedConfig, msg: "our application certificate", err: err}
	}
	d.status.Gauge(metricOwnCertDays, time.Until(d.own.cert.NotAfter).Hours()/24)
	l, err := d.open(ctx, ep, sc, d.own, userKey)
	if r := new(refusal); errors.As(err, &r) && r.kind == refusedAuth {
		if old := previousIdentity(paths, d.own); old != nil {
			d.log.Warn("server does not trust our renewed certificate yet; using the one before",
				"thumbprint", d.own.thumbprint(), "old_expires", old.cert.NotAfter)
			if l, oldErr := d.open(ctx, ep, sc, old, userKey); oldErr == nil {
				return l, nil
			}
		}
	}
	return l, err
}

// Each step of connecting is bounded by the request time-out: the library's
// handshake has none of its own.

// discover asks the server for its endpoints. The answer is not authenticated:
// what is used of it is checked against our trust list before anything secret
// is sent.
func (d *dialer) discover(ctx context.Context) ([]*ua.EndpointDescription, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.requestTimeout())
	defer cancel()
	c, err := d.client(d.url.String(), opcua.SecurityMode(ua.MessageSecurityModeNone))
	if err != nil {
		return nil, err
	}
	if err := within(ctx, func() error { return c.Dial(ctx) }); err != nil {
		return nil, explain(err, d.url.String(), "")
	}
	defer hangUp(c, d.log)
	defer func() { d.status.Received(d.meter.take()) }()
	res, err := call[*ua.GetEndpointsResponse](ctx, clientTransport{c}, &ua.GetEndpointsRequest{EndpointURL: d.url.String()})
	if err != nil {
		return nil, explain(err, d.url.String(), "")
	}
	return res.Endpoints, nil
}

// client makes a gopcua client with our limits. The time-out of the library
// must outlast a publish request, which a server may hold for several
// keep-alives; shorter ones are contexts.
func (d *dialer) client(endpoint string, opts ...opcua.Option) (*opcua.Client, error) {
	hold := time.Duration(d.cfg.PublishRequests+2) * time.Duration(d.cfg.KeepaliveCount) * d.cfg.publishingInterval()
	opts = append(opts, opcua.AutoReconnect(false), opcua.RequestTimeout(max(hold, time.Minute)),
		// A dialer of our own: the option MaxMessageSize would write to a
		// variable that all clients of the process share.
		opcua.Dialer(&uacp.Dialer{Dialer: &net.Dialer{Timeout: d.cfg.requestTimeout(), ControlContext: d.meter.watch},
			ClientACK: &uacp.Acknowledge{ReceiveBufSize: uacp.DefaultReceiveBufSize, SendBufSize: uacp.DefaultSendBufSize, MaxMessageSize: maxMessage}}))
	c, err := opcua.NewClient(endpoint, opts...)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return c, nil
}

// open dials the chosen endpoint and activates a session there.
func (d *dialer) open(ctx context.Context, ep *ua.EndpointDescription, sc *uasc.SessionConfig, own *identity, userKey *rsa.PrivateKey) (*link, error) {
	target := *d.url
	if u, err := url.Parse(ep.EndpointURL); err == nil && target.Path == "" {
		// The configured host and port reach the server; the ones that it
		// announces may not resolve from here.
		target.Path = u.Path
	}
	opts := []opcua.Option{opcua.SecurityPolicy(ep.SecurityPolicyURI), opcua.SecurityMode(ep.SecurityMode)}
	if own != nil {
		// Only the leaf: the library cannot read a chain. SecurityFromEndpoint
		// sets the thumbprint, for which there is no other option.
		leaf, _ := splitChain(ep.ServerCertificate)
		opts = append(opts, opcua.Certificate(own.cert.Raw), opcua.PrivateKey(own.key),
			opcua.SecurityFromEndpoint(&ua.EndpointDescription{SecurityPolicyURI: ep.SecurityPolicyURI, SecurityMode: ep.SecurityMode,
				ServerCertificate: leaf}, ua.UserTokenTypeAnonymous))
		sc.ClientDescription.ApplicationURI = own.applicationURI()
	}
	if userKey != nil {
		opts = append(opts, opcua.AuthPrivateKey(userKey))
	}
	c, err := d.client(target.String(), opts...)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*link, error) {
		hangUp(c, d.log)
		return nil, explain(err, target.String(), own.thumbprint())
	}
	dialCtx, cancel := context.WithTimeout(ctx, d.cfg.requestTimeout())
	defer cancel()
	if err := within(dialCtx, func() error { return c.Dial(dialCtx) }); err != nil {
		return nil, explain(err, target.String(), own.thumbprint())
	}
	if err := checkChannel(c, ep); err != nil {
		return fail(err)
	}
	resumed, err := d.activate(ctx, c, ep, sc, own)
	if err != nil {
		return fail(err)
	}
	l := &link{transport: clientTransport{c}, security: policyName(ep.SecurityPolicyURI) + "/" + modeName(ep.SecurityMode), resumed: resumed}
	l.close = func(ctx context.Context, keep bool) { d.close(ctx, c, keep) }
	if own != nil && d.own == own {
		l.renewed = func() bool { return d.renewed(own) }
	}
	return l, nil
}

// activate takes the last session over to this channel, or makes a new one.
func (d *dialer) activate(ctx context.Context, c *opcua.Client, ep *ua.EndpointDescription, sc *uasc.SessionConfig, own *identity) (resumed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.requestTimeout())
	defer cancel()
	if s := d.session; s != nil && d.sessionOwn == own.thumbprint() {
		err := within(ctx, func() error { return c.ActivateSession(ctx, s) })
		if err == nil && c.Session() == s {
			return true, nil
		}
		d.log.Info("server no longer has our session; making a new one", "reason", statusText(orUnknown(err)))
	}
	d.session = nil
	var s *opcua.Session
	if err := within(ctx, func() (err error) { s, err = c.CreateSession(ctx, sc); return err }); err != nil {
		return false, err
	}
	if s == nil {
		return false, unproven(ep.ServerCertificate)
	}
	shown, _ := splitChain(sessionCertificate(s))
	leaf, _ := splitChain(ep.ServerCertificate)
	if (own != nil || sc.AuthPolicyURI != ua.SecurityPolicyURINone) && !bytes.Equal(shown, leaf) {
		return false, &refusal{kind: refusedTrust, msg: "server shows one certificate when asked and another in the session: another machine may be answering for it"}
	}
	if err := within(ctx, func() error { return c.ActivateSession(ctx, s) }); err != nil {
		return false, err
	}
	if c.Session() != s {
		return false, errors.New("session was not activated: our signature could not be made")
	}
	d.session, d.sessionOwn = s, own.thumbprint()
	return false, nil
}

// unproven says why the library made no session although the server answered:
// it could not check the server's signature. It cannot read a certificate that
// comes with its issuers, and most servers show the same in the endpoint, shown,
// as in the session.
func unproven(shown []byte) error {
	msg := "server could not prove that it holds the key of its certificate: another machine may be answering for it, " +
		"or the server sends its certificate together with those of its issuers, which cannot be read here: have it send its own certificate only"
	if _, issuers := splitChain(shown); len(issuers) > 0 {
		msg = "server sends its certificate together with those of its issuers, and such a session cannot be checked here: " +
			"have the server send its own certificate only"
	}
	return &refusal{kind: refusedTrust, msg: msg}
}

func orUnknown(err error) error {
	if err == nil {
		return errors.New("unknown")
	}
	return err
}

// renewed looks at our certificate again, and renews it when it is due.
func (d *dialer) renewed(used *identity) bool {
	now, err := ownIdentity(d.cfg, d.cfg.ownPaths(d.dir), d.log)
	if err != nil {
		d.log.Warn("our certificate cannot be read any more; the connection goes on with the old one", "err", err)
		return false
	}
	d.status.Gauge(metricOwnCertDays, time.Until(now.cert.NotAfter).Hours()/24)
	return now.thumbprint() != used.thumbprint()
}

// close ends the connection of c. With keep the session stays with the server,
// and with us for the next connect.
func (d *dialer) close(ctx context.Context, c *opcua.Client, keep bool) {
	if keep {
		// DetachSession never fails in this version of the library.
		_, _ = c.DetachSession(ctx)
	} else {
		d.session = nil
		ctx, cancel := context.WithTimeout(ctx, d.cfg.requestTimeout())
		defer cancel()
		if err := within(ctx, func() error { return c.CloseSession(ctx) }); err != nil {
			d.log.Debug("close session", "err", err)
			_, _ = c.DetachSession(ctx)
		}
	}
	hangUp(c, d.log)
}

// hangUp closes channel and connection. It is bounded, since the library writes
// a last message to a peer that may not read.
func hangUp(c *opcua.Client, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := within(ctx, func() error { return c.Close(ctx) }); err != nil {
		log.Debug("close connection", "err", err)
	}
}

// sessionConfig builds the session and its user token for ep.
func (d *dialer) sessionConfig(ep *ua.EndpointDescription) (*uasc.SessionConfig, *rsa.PrivateKey, error) {
	uri := d.cfg.ApplicationURI
	if uri == "" {
		uri = "urn:" + madeBy
	}
	sc := &uasc.SessionConfig{
		SessionTimeout: time.Duration(d.cfg.SessionTimeoutSeconds) * time.Second, SessionName: madeBy + "/" + d.name,
		ClientDescription: &ua.ApplicationDescription{ApplicationURI: uri, ProductURI: "urn:" + madeBy,
			ApplicationName: ua.NewLocalizedText(madeBy), ApplicationType: ua.ApplicationTypeClient},
		LocaleIDs: []string{"en"}, UserTokenSignature: &ua.SignatureData{},
	}
	kind := ua.UserTokenTypeAnonymous
	switch {
	case d.cfg.Username != "":
		kind = ua.UserTokenTypeUserName
	case d.cfg.UserCertificatePath != "":
		kind = ua.UserTokenTypeCertificate
	}
	policyID, policyURI, err := chooseToken(ep, kind, d.cfg.AllowDeprecatedPolicies)
	if err != nil {
		return nil, nil, err
	}
	sc.AuthPolicyURI = policyURI
	switch kind {
	case ua.UserTokenTypeUserName:
		if policyURI == ua.SecurityPolicyURINone && ep.SecurityMode != ua.MessageSecurityModeSignAndEncrypt && !d.cfg.AllowPlaintextPassword {
			return nil, nil, &refusal{kind: refusedConfig, msg: "the password would cross the network in clear: choose security_mode SignAndEncrypt, or set allow_plaintext_password: true"}
		}
		sc.UserIdentityToken = &ua.UserNameIdentityToken{PolicyID: policyID, UserName: d.cfg.Username}
		sc.AuthPassword = d.cfg.Password
	case ua.UserTokenTypeCertificate:
		id, err := loadIdentity(d.cfg.UserCertificatePath, d.cfg.UserPrivateKeyPath, d.log)
		if err != nil {
			return nil, nil, &refusal{kind: refusedConfig, msg: "user certificate", err: err}
		}
		sc.UserIdentityToken = &ua.X509IdentityToken{PolicyID: policyID, CertificateData: id.cert.Raw}
		return sc, id.key, nil
	default:
		sc.UserIdentityToken = &ua.AnonymousIdentityToken{PolicyID: policyID}
	}
	return sc, nil, nil
}

// checkChannel makes sure that the channel has the policy and the server
// certificate that we asked for: the library takes over whatever the first
// answer carries, so a man in the middle could answer with policy None. The
// library shows neither, hence reflection on its fields.
func checkChannel(c *opcua.Client, ep *ua.EndpointDescription) error {
	sechan := reflect.ValueOf(c).Elem().FieldByName("cfg").Elem().FieldByName("sechan").Elem()
	policy, cert := sechan.FieldByName("SecurityPolicyURI").String(), sechan.FieldByName("RemoteCertificate").Bytes()
	if policy != ep.SecurityPolicyURI {
		return &refusal{kind: refusedTrust, msg: fmt.Sprintf("channel was answered with policy %s instead of %s: another machine may be answering for the server",
			policyName(policy), policyName(ep.SecurityPolicyURI))}
	}
	shown, _ := splitChain(cert)
	leaf, _ := splitChain(ep.ServerCertificate)
	if ep.SecurityMode != ua.MessageSecurityModeNone && !bytes.Equal(shown, leaf) {
		return &refusal{kind: refusedTrust, msg: "channel was answered with another certificate than the trusted one: another machine may be answering for the server"}
	}
	return nil
}

// sessionCertificate is the certificate to which the library encrypts the
// password.
func sessionCertificate(s *opcua.Session) []byte {
	return reflect.ValueOf(s).Elem().FieldByName("serverCertificate").Bytes()
}
