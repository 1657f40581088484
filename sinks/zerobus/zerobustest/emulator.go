// Package zerobustest is an emulator of the Zerobus service: its gRPC endpoint
// and its token endpoint, over TLS, with a certificate authority that it makes at
// start. It is as strict as the service is known to be and acknowledges rows only
// when they are fsynced to DIR/<catalog.schema.table>.ndjson.
//
//	SDK ──token──> POST /oidc/v1/token        HTTPS, also /_emulator/…
//	SDK ──gRPC───> Zerobus/EphemeralStream ──rows──> NDJSON ──fsync──> ack
//
// It decodes the frames by hand and registers no messages, so that it lives in
// one process with the vendor's SDK.
package zerobustest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Config says how to start an emulator. Only Dir is required.
type Config struct {
	Listen      string // of the gRPC endpoint; "" is 127.0.0.1:0
	TokenListen string // of the token and admin endpoint; "" is 127.0.0.1:0
	Dir         string // where the tables are written; made when missing
	// ClientID and ClientSecret are the only credentials that get a token; both
	// empty accept any.
	ClientID, ClientSecret string
	// Hosts are further names in the server certificate (127.0.0.1, ::1 and
	// localhost always are), for clients that come through a proxy.
	Hosts []string
	// TokenLifetime of an issued token; 0 is one hour.
	TokenLifetime time.Duration
	// KeyColumn is the column by which duplicates are counted; "" is record_id.
	KeyColumn string
	Log       *slog.Logger // nil logs nothing
}

// Emulator is a running emulator. All methods may be called from any goroutine.
type Emulator struct {
	cfg    Config
	ca     authority
	log    *slog.Logger
	ingest *listener
	token  *listener
	grpc   *grpc.Server
	http   *http.Server
	store  *store
	issued tokens
	knobs  knobs
	count  counters

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// maxMessage is the largest request that is read: more than the 10 MiB that
// clients may send.
const maxMessage = 11 << 20

// Start starts an emulator. Close stops it.
func Start(cfg Config) (*Emulator, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.TokenListen == "" {
		cfg.TokenListen = "127.0.0.1:0"
	}
	if cfg.TokenLifetime <= 0 {
		cfg.TokenLifetime = time.Hour
	}
	if cfg.KeyColumn == "" {
		cfg.KeyColumn = "record_id"
	}
	e := &Emulator{cfg: cfg, log: cfg.Log}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if e.store, err = openStore(cfg.Dir, cfg.KeyColumn); err != nil {
		return nil, err
	}
	if e.ca, err = newAuthority(cfg.Hosts); err != nil {
		return nil, err
	}
	if e.ingest, err = listen(cfg.Listen); err != nil {
		return nil, err
	}
	if e.token, err = listen(cfg.TokenListen); err != nil {
		_ = e.ingest.Close()
		return nil, err
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.serve()
	return e, nil
}

// serve starts both servers.
func (e *Emulator) serve() {
	e.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(e.ca.server())), grpc.ForceServerCodecV2(rawCodec{}),
		grpc.MaxRecvMsgSize(maxMessage), grpc.InitialWindowSize(4<<20), grpc.InitialConnWindowSize(8<<20))
	e.grpc.RegisterService(&grpc.ServiceDesc{
		ServiceName: "databricks.zerobus.Zerobus", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "EphemeralStream", Handler: e.ephemeralStream, ServerStreams: true, ClientStreams: true}},
	}, e)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /oidc/v1/token", e.serveToken)
	e.admin(mux)
	e.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug)}
	e.wg.Go(func() {
		if err := e.grpc.Serve(e.ingest); err != nil {
			e.log.Error("serve zerobus", "error", err)
		}
	})
	e.wg.Go(func() {
		if err := e.http.Serve(tls.NewListener(e.token, e.ca.server("http/1.1"))); !errors.Is(err, http.ErrServerClosed) {
			e.log.Error("serve tokens", "error", err)
		}
	})
}

// Close stops the emulator: connections are cut, rows that were not acknowledged
// may be lost.
func (e *Emulator) Close() error {
	e.cancel()
	e.grpc.Stop()
	err := e.http.Close()
	e.wg.Wait()
	return errors.Join(err, e.store.close())
}

// Addr is host:port of the gRPC endpoint.
func (e *Emulator) Addr() string { return e.ingest.Addr().String() }

// TokenAddr is host:port of the token and admin endpoint.
func (e *Emulator) TokenAddr() string { return e.token.Addr().String() }

// Endpoint and Workspace are the same addresses as https URLs.
func (e *Emulator) Endpoint() string { return "https://" + e.Addr() }

// Workspace is the URL of the token endpoint, without its path.
func (e *Emulator) Workspace() string { return "https://" + e.TokenAddr() }

// CAPEM is the certificate authority of both endpoints.
func (e *Emulator) CAPEM() []byte { return e.ca.pem }

// workspaceIDs are the ids that a client may derive from the names by which it
// reaches us: the first label of each.
func (e *Emulator) workspaceID(id string) bool {
	for _, h := range append([]string{"127.0.0.1", "localhost"}, e.cfg.Hosts...) {
		if first, _, _ := strings.Cut(h, "."); first == id {
			return true
		}
	}
	return false
}

// listener keeps the connections that it accepted, so that they can be killed.
type listener struct {
	net.Listener
	mu    sync.Mutex
	conns map[*conn]struct{}
	dead  bool
}

// conn is one accepted connection.
type conn struct {
	net.Conn
	owner *listener
}

func listen(addr string) (*listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return &listener{Listener: l, conns: map[*conn]struct{}{}}, nil
}

// Accept accepts a connection; a dead listener resets every one.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		kept := &conn{c, l}
		l.mu.Lock()
		dead := l.dead
		if !dead {
			l.conns[kept] = struct{}{}
		}
		l.mu.Unlock()
		if !dead {
			return kept, nil
		}
		kept.reset()
	}
}

// Close closes the connection.
func (c *conn) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.conns, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}

// reset ends the connection with a TCP reset.
func (c *conn) reset() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // a reset is best effort; Close follows anyway
	}
	_ = c.Conn.Close()
}

// kill resets every connection, and with dead all that follow.
func (l *listener) kill(dead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = dead
	for c := range l.conns {
		c.reset()
	}
	clear(l.conns)
}
