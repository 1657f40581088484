package mqtt

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/edgehost/edgehost/sources"
)

// connection is one MQTT connection.
type connection struct {
	client  client
	guard   *guard
	lost    chan error
	resumed bool // the broker kept our session
	since   time.Time
	to      endpoint
}

// client is the session on a connection: one of the libraries.
type client interface {
	// subscribe asks for subs and returns the broker's answer to each of them.
	subscribe(ctx context.Context, subs []subscription) ([]grant, error)
	unsubscribe(ctx context.Context, filters []string) error
	open() bool
	// disconnect says goodbye to the broker, which keeps the session.
	disconnect()
}

// lose tells of the end of the connection; the first reason counts.
func (c *connection) lose(err error) {
	select {
	case c.lost <- err:
	default:
	}
}

// firstError returns the first of errs that is one.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// connect tries the endpoints in order, those that did not answer last time
// after the others, and returns the first connection.
func (s *Source) connect(ctx context.Context) (*connection, error) {
	var failed error
	order := slices.Clone(s.endpoints)
	slices.SortStableFunc(order, func(a, b endpoint) int { return cmp.Compare(s.silent[a.url], s.silent[b.url]) })
	for _, to := range order {
		c, err := s.dial(ctx, to)
		s.silent[to.url] = 0
		if err != nil && sources.IsTimeout(err) {
			s.silent[to.url] = 1
		}
		switch {
		case err == nil:
			return c, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case failed == nil:
			failed = err
		default:
			failed = fmt.Errorf("%w; %w", failed, err)
		}
	}
	s.flaps = 0 // a broker that is away is no sign of another client
	return nil, failed
}

// dial opens a connection to one endpoint and begins a session on it.
func (s *Source) dial(ctx context.Context, to endpoint) (*connection, error) {
	var (
		tlsConfig *tls.Config
		err       error
	)
	if to.tls {
		if tlsConfig, err = s.cfg.TLS.Build(to.name); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.connectTimeout())
	defer cancel()
	number := s.buf.connect(s.cfg.persistent())
	conn, err := openConn(ctx, to, tlsConfig, s.cfg.connectTimeout())
	if err != nil {
		return nil, s.connectError(to, false, err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	v5 := s.cfg.ProtocolVersion == version5
	c := &connection{lost: make(chan error, 1), to: to,
		guard: newGuard(conn, v5, s.cfg.MaxPayloadBytes, func(m *message) { s.receive(number, m) })}
	if v5 {
		err = s.begin5(ctx, c)
	} else {
		err = s.begin3(c)
	}
	if err != nil {
		_ = c.guard.Close()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, sources.DialError(to.url, ctx.Err()) // and that closed the connection
		}
		return nil, err
	}
	c.since = time.Now()
	return c, nil
}

// close says goodbye to the broker and closes.
func (c *connection) close() {
	if c.client.open() {
		_ = c.guard.SetWriteDeadline(time.Now().Add(goodbyeTime)) // or the goodbye may wait for ever
		c.client.disconnect()
	}
	_ = c.guard.Close()
}

// openConn opens the network connection, with TLS when tlsConfig is set.
func openConn(ctx context.Context, to endpoint, tlsConfig *tls.Config, timeout time.Duration) (net.Conn, error) {
	if to.websocket {
		return openWebsocket(ctx, to, tlsConfig, timeout)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.host)
	if err != nil {
		return nil, err
	}
	conn = newGatherer(conn)
	if tlsConfig == nil {
		return conn, nil
	}
	secure := tls.Client(conn, tlsConfig)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// openWebsocket returns when ctx ends, although the library's dial goes on
// until its time-out.
func openWebsocket(ctx context.Context, to endpoint, tlsConfig *tls.Config, timeout time.Duration) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	dialled := make(chan result, 1)
	go func() {
		conn, err := paho.NewWebsocket(to.String(), tlsConfig, timeout, nil, nil)
		dialled <- result{conn, err}
	}()
	select {
	case r := <-dialled:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-dialled; r.err == nil {
				_ = r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// connectError words a failure to connect. established says that the network
// connection, TLS included, stood.
func (s *Source) connectError(to endpoint, established bool, err error) error {
	if to.tls {
		if worded := s.tlsError(to, established, err); worded != nil {
			return worded
		}
	}
	var network *net.OpError
	if to.websocket && !established && !sources.IsTimeout(err) && (!errors.As(err, &network) || network.Op != "dial") {
		return fmt.Errorf("connect to %s: %w: no WebSocket there: check the port and the path (often /mqtt); of a port that speaks MQTT without it the scheme is mqtt:// or mqtts://", to.url, err)
	}
	if !to.tls && closedByPeer(err) {
		return fmt.Errorf("connect to %s: %w: the broker closed the connection before it answered; if this port speaks TLS, use mqtts:// or mqtt.tls.enabled: true", to.url, err)
	}
	return sources.DialError(to.url, err)
}

// tlsError words what goes wrong in TLS, and is nil for everything else.
// established says that the handshake had succeeded: TLS 1.3 refuses a client
// certificate only then.
func (s *Source) tlsError(to endpoint, established bool, err error) error {
	var (
		unknown  x509.UnknownAuthorityError
		name     x509.HostnameError
		invalid  x509.CertificateInvalidError
		notTLS   tls.RecordHeaderError
		alert    tls.AlertError
		remote   *net.OpError
		wrapping = "connect to %s: %w: %s"
	)
	switch {
	case errors.As(err, &unknown):
		return sources.ConfigError(fmt.Errorf(wrapping, to.url, err, "set mqtt.tls.ca_cert_path to the authority that signed the broker's certificate"))
	case errors.As(err, &name):
		return sources.ConfigError(fmt.Errorf(wrapping, to.url, err, "use the name in the certificate as endpoint, or set mqtt.tls.server_name to it"))
	case errors.As(err, &invalid):
		return sources.ConfigError(fmt.Errorf(wrapping, to.url, err, "the broker's certificate must be renewed, or this machine's clock is wrong"))
	case errors.As(err, &notTLS):
		return sources.ConfigError(fmt.Errorf(wrapping, to.url, err, "this port does not speak TLS: use the broker's TLS port (often 8883)"))
	case errors.As(err, &remote) && remote.Op == "remote error", errors.As(err, &alert):
		return s.alertError(to, err)
	case !established && closedByPeer(err):
		return fmt.Errorf(wrapping, to.url, err, "the broker ended the connection during the TLS handshake: this port does not speak TLS (the TLS port is often 8883), "+
			"or the broker requires a client certificate (mqtt.tls.client_cert_path); its log says which")
	case closedByPeer(err):
		if s.cfg.TLS.ClientCertPath == "" {
			return sources.AuthError(fmt.Errorf(wrapping, to.url, err, "the broker ended the TLS connection; it probably requires a client certificate: set mqtt.tls.client_cert_path and client_key_path"))
		}
		return sources.AuthError(fmt.Errorf(wrapping, to.url, err, "the broker ended the TLS connection; it probably does not trust the client certificate: look at its log"))
	}
	return nil
}

func closedByPeer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// alertError words a TLS alert of the broker.
func (s *Source) alertError(to endpoint, err error) error {
	const versionAlert = "protocol version not supported"
	if text := err.Error(); len(text) >= len(versionAlert) && text[len(text)-len(versionAlert):] == versionAlert {
		return sources.ConfigError(fmt.Errorf("connect to %s: %w: the broker does not offer the TLS version that mqtt.tls.min_version asks for", to.url, err))
	}
	hint := "the broker refuses the client certificate: check that it trusts the authority of mqtt.tls.client_cert_path and that the certificate is not expired"
	if s.cfg.TLS.ClientCertPath == "" {
		hint = "the broker requires a client certificate: set mqtt.tls.client_cert_path and client_key_path"
	}
	return sources.AuthError(fmt.Errorf("connect to %s: %w: %s", to.url, err, hint))
}
