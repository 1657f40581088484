package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"syscall"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/edgehost/edgehost/sources"
)

// connection is one MQTT connection. The library's client is made anew for
// each: it drops acknowledgements of earlier connections anyhow, and the
// broker, not the library's store, sends again what was not acknowledged.
type connection struct {
	client  paho.Client
	guard   *guard
	lost    chan error
	resumed bool // the broker kept our session
	since   time.Time
	to      endpoint
}

// connect tries the endpoints in order and returns the first connection.
func (s *Source) connect(ctx context.Context) (*connection, error) {
	var failed error
	for _, to := range s.endpoints {
		c, err := s.dial(ctx, to)
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
	return nil, failed
}

// dial opens a connection to one endpoint and begins a session on it.
func (s *Source) dial(ctx context.Context, to endpoint) (*connection, error) {
	var tlsConfig *tls.Config
	if to.tls {
		var err error
		if tlsConfig, err = s.cfg.TLS.Build(to.name); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.connectTimeout())
	defer cancel()
	c := &connection{lost: make(chan error, 1), to: to}
	number := s.buf.connect(s.cfg.persistent())

	var dialErr error
	unwatch := func() bool { return true }
	opts := s.options(c, number)
	opts.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		conn, err := openConn(ctx, to, tlsConfig, s.cfg.connectTimeout())
		if err != nil {
			dialErr = err
			return nil, err
		}
		unwatch = context.AfterFunc(ctx, func() { _ = conn.Close() })
		c.guard = newGuard(conn, s.cfg.MaxPayloadBytes)
		return c.guard, nil
	})
	c.client = paho.NewClient(opts)
	token := c.client.Connect().(*paho.ConnectToken)
	// The connection dies with ctx, and with it the token completes.
	<-token.Done()
	unwatch()
	if err := token.Error(); err != nil {
		if c.guard != nil {
			_ = c.guard.Close()
			dialErr = c.guard.readErr()
		}
		return nil, s.connectError(to, token.ReturnCode(), c.guard != nil, dialErr, err)
	}
	c.resumed = token.SessionPresent()
	c.since = time.Now()
	return c, nil
}

func (s *Source) options(c *connection, number uint64) *paho.ClientOptions {
	opts := paho.NewClientOptions()
	opts.AddBroker("tcp://" + c.to.host)
	opts.SetClientID(s.clientID)
	// Pinned, or the library tries a wrong password a second time with MQTT 3.1.
	opts.SetProtocolVersion(4)
	opts.SetUsername(s.cfg.Username)
	opts.SetPassword(s.cfg.Password)
	opts.SetCleanSession(!s.cfg.persistent())
	opts.SetKeepAlive(time.Duration(s.cfg.KeepAliveSeconds) * time.Second)
	opts.SetPingTimeout(10 * time.Second)
	opts.SetConnectTimeout(s.cfg.connectTimeout())
	opts.SetWriteTimeout(s.cfg.connectTimeout())
	opts.SetAutoReconnect(false)
	opts.SetConnectRetry(false)
	opts.SetOrderMatters(true)
	opts.SetAutoAckDisabled(true)
	opts.SetStore(noStore{})
	opts.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { s.receive(c, number, m) })
	opts.SetConnectionLostHandler(func(_ paho.Client, err error) {
		select {
		case c.lost <- err:
		default:
		}
	})
	return opts
}

// close says goodbye to the broker, which keeps the session, and closes.
func (c *connection) close() {
	if c.client.IsConnectionOpen() {
		c.client.Disconnect(250)
	}
	_ = c.guard.Close()
}

// openConn opens the network connection, with TLS when tlsConfig is set.
func openConn(ctx context.Context, to endpoint, tlsConfig *tls.Config, timeout time.Duration) (net.Conn, error) {
	if to.websocket {
		return openWebsocket(ctx, to, tlsConfig, timeout)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.host)
	if err != nil || tlsConfig == nil {
		return conn, err
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
// connection, TLS included, stood; dialErr is the network's error, when there
// was one; err is the library's.
func (s *Source) connectError(to endpoint, code byte, established bool, dialErr, err error) error {
	switch code {
	case packets.ErrRefusedBadUsernameOrPassword:
		return sources.AuthError(fmt.Errorf("broker %s refuses the user name or password (CONNACK 4): check mqtt.username and mqtt.password", to.url))
	case packets.ErrRefusedNotAuthorised:
		return sources.AuthError(fmt.Errorf("broker %s does not authorise us (CONNACK 5): check mqtt.username and mqtt.password, "+
			"the client certificate, and what the broker allows client id %q", to.url, s.clientID))
	case packets.ErrRefusedIDRejected:
		return sources.ConfigError(fmt.Errorf("broker %s rejects client id %q (CONNACK 2): set mqtt.client_id to one that it allows", to.url, s.clientID))
	case packets.ErrRefusedServerUnavailable:
		return fmt.Errorf("broker %s says that it is unavailable (CONNACK 3): look at its log", to.url)
	case packets.ErrRefusedBadProtocolVersion:
		return sources.ConfigError(fmt.Errorf("broker %s does not speak MQTT 3.1.1 (CONNACK 1)", to.url))
	}
	if dialErr == nil {
		dialErr = err
	}
	if to.tls {
		if worded := s.tlsError(to, established, dialErr); worded != nil {
			return worded
		}
	}
	if !to.tls && closedByPeer(dialErr) {
		return fmt.Errorf("connect to %s: %w: the broker closed the connection before it answered; if this port speaks TLS, use mqtts:// or mqtt.tls.enabled: true", to.url, dialErr)
	}
	return sources.DialError(to.url, dialErr)
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

// noStore is the library's message store: nothing is published, and the broker
// keeps what was not acknowledged.
type noStore struct{}

func (noStore) Open()                             {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Close()                            {}
func (noStore) Reset()                            {}
