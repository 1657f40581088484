package opcua

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
)

// dialer connects to one server and keeps the session between connections.
// One goroutine at a time uses it.
type dialer struct {
	name   string
	cfg    Config
	url    *url.URL
	dir    string
	log    *slog.Logger
	status *sources.Status

	session *serverSession
	// sessionOwn is the thumbprint of our certificate in session; a session
	// lives on only with the same one.
	sessionOwn string
	own        *identity
	// chain is the server's certificate and, in trust mode ca, its issuers.
	chain []*x509.Certificate
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
	u, err := d.user(ep)
	if err != nil {
		return nil, err
	}
	secured := ep.SecurityMode != ua.MessageSecurityModeNone
	if secured || u.policy != ua.SecurityPolicyURINone && d.cfg.Username != "" {
		if d.chain, err = d.cfg.CertStore(d.dir).check(d.cfg, d.url.Host, ep.ServerCertificate); err != nil {
			return nil, err
		}
		d.countDays(nil)
	}
	if !secured {
		d.own = nil
		return d.open(ctx, ep, u, nil)
	}
	paths := d.cfg.ownPaths(d.dir)
	if d.own, err = ownIdentity(d.cfg, paths, d.log); err != nil {
		return nil, &refusal{kind: refusedConfig, msg: "our application certificate", err: err}
	}
	d.countDays(d.own)
	l, err := d.open(ctx, ep, u, d.own)
	if r := new(refusal); errors.As(err, &r) && r.kind == refusedAuth {
		if old := previousIdentity(paths, d.own); old != nil {
			d.log.Warn("server does not trust our renewed certificate yet; using the one before",
				"thumbprint", d.own.thumbprint(), "old_expires", old.cert.NotAfter)
			if l, oldErr := d.open(ctx, ep, u, old); oldErr == nil {
				return l, nil
			}
		}
	}
	return l, err
}

// discover asks the server for its endpoints. The answer is not authenticated:
// what is used of it is checked against our trust list before anything secret
// is sent.
func (d *dialer) discover(ctx context.Context) ([]*ua.EndpointDescription, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.requestTimeout())
	defer cancel()
	endpoint := d.url.String()
	c, err := d.dial(ctx, endpoint, protection{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone})
	if err != nil {
		return nil, explain(err, endpoint, nil)
	}
	defer c.close()
	defer func() { d.status.Received(int(c.arrived.Load())) }()
	res, err := call[*ua.GetEndpointsResponse](ctx, sessionTransport{c: c}, &ua.GetEndpointsRequest{EndpointURL: endpoint})
	if err != nil {
		return nil, explain(err, endpoint, nil)
	}
	return res.Endpoints, nil
}

func (d *dialer) dial(ctx context.Context, endpoint string, guard protection) (*channel, error) {
	return dialChannel(ctx, d.url.Host, endpoint, guard, d.cfg.requestTimeout())
}

// open dials the chosen endpoint and activates a session there.
func (d *dialer) open(ctx context.Context, ep *ua.EndpointDescription, u user, own *identity) (*link, error) {
	target := *d.url
	if u, err := url.Parse(ep.EndpointURL); err == nil && target.Path == "" {
		// The configured host and port reach the server; the ones that it
		// announces may not resolve from here.
		target.Path = u.Path
	}
	leaf, _ := splitChain(ep.ServerCertificate)
	ctx, cancel := context.WithTimeout(ctx, 3*d.cfg.requestTimeout())
	defer cancel()
	dialCtx, cancel := context.WithTimeout(ctx, d.cfg.requestTimeout())
	defer cancel()
	c, err := d.dial(dialCtx, target.String(), protection{policy: ep.SecurityPolicyURI, mode: ep.SecurityMode, own: own, remote: leaf})
	if err != nil {
		return nil, explain(err, target.String(), own)
	}
	if own != nil && len(c.certs) < len(own.chain(math.MaxInt)) {
		d.log.Warn("server takes small messages only: not all issuers of our certificate were sent", "sent_bytes", len(c.certs))
	}
	resumed, err := d.activate(ctx, c, target.String(), u, own)
	if err != nil {
		c.close()
		return nil, explain(err, target.String(), own)
	}
	l := &link{transport: sessionTransport{c, d.session.token}, security: policyName(ep.SecurityPolicyURI) + "/" + modeName(ep.SecurityMode), resumed: resumed, idle: d.session.idle, arrived: c.arrived.Load}
	l.close = func(ctx context.Context, keep bool) { d.close(ctx, c, keep) }
	if own != nil && d.own == own {
		l.renewed = func() bool { return d.renewed(own) }
	}
	return l, nil
}

// activate takes the last session over to this channel, or makes a new one.
func (d *dialer) activate(ctx context.Context, c *channel, endpoint string, u user, own *identity) (resumed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.requestTimeout())
	defer cancel()
	if s := d.session; s != nil && d.sessionOwn == own.thumbprint() {
		err := s.activate(ctx, c, u)
		if err == nil {
			return true, nil
		}
		d.log.Info("server no longer has our session; making a new one", "reason", statusText(err))
	}
	d.session = nil
	s, err := d.createSession(ctx, c, endpoint, u)
	if err != nil {
		return false, err
	}
	if err := s.activate(ctx, c, u); err != nil {
		return false, err
	}
	d.session, d.sessionOwn = s, own.thumbprint()
	return false, nil
}

// countDays tells how long the certificates are valid: ours, unless own is nil,
// the server's, and the one of its issuers that expires first.
func (d *dialer) countDays(own *identity) {
	days := func(metric string, c *x509.Certificate) { d.status.Gauge(metric, time.Until(c.NotAfter).Hours()/24) }
	if own != nil {
		days(metricOwnCertDays, own.cert)
	}
	if len(d.chain) > 0 {
		days(metricServerCertDays, d.chain[0])
	}
	if len(d.chain) > 1 {
		days(metricCACertDays, slices.MinFunc(d.chain[1:], func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }))
	}
}

// renewed looks at our certificate again, and renews it when it is due.
func (d *dialer) renewed(used *identity) bool {
	// Every minute: what was said of the file when it was read is not said again.
	if b, err := os.ReadFile(d.cfg.ownPaths(d.dir).cert); err == nil && bytes.Equal(b, used.file) && !d.cfg.renewalDue(used) {
		d.countDays(used)
		return false
	}
	now, err := ownIdentity(d.cfg, d.cfg.ownPaths(d.dir), d.log)
	if err != nil {
		d.log.Warn("our certificate cannot be read any more; the connection goes on with the old one", "err", err)
		return false
	}
	d.countDays(now)
	return !bytes.Equal(now.chain(math.MaxInt), used.chain(math.MaxInt))
}

// close ends the connection c. With keep the session stays with the server, and
// with us for the next connect.
func (d *dialer) close(ctx context.Context, c *channel, keep bool) {
	if !keep && d.session != nil {
		ctx, cancel := context.WithTimeout(ctx, d.cfg.requestTimeout())
		defer cancel()
		_, err := c.roundTrip(ctx, &ua.CloseSessionRequest{DeleteSubscriptions: true}, d.session.token)
		if err != nil {
			d.log.Debug("close session", "err", err)
		}
		d.session = nil
	}
	c.close()
}
