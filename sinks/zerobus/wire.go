package zerobus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	vendor "github.com/databricks/zerobus-sdk/purego/zerobus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/edgehost/edgehost/sinks"
)

// wire is one stream of the SDK on a connection of its own: streams that share a
// connection share its throughput, and a fresh connection dials at once, where
// an old one would wait out its own back-off after an outage. The SDK's recovery
// is off, so that every end is seen, classified and counted here.
//
// The SDK checks the acks: one that exceeds what was sent ends the stream as a
// protocol error, one that goes back changes nothing, since acks are cumulative.
type wire struct {
	sdk    *vendor.SDK
	stream *vendor.Stream
	next   int64 // offset of the next request
	sink   *Sink
	hide   []string // what must not appear in an error
}

// forEver is more than any stream lives; the SDK wants a bound for every wait.
const forEver = 10 * 365 * 24 * time.Hour

// dial opens a wire. When the service or the token endpoint refuses us, it tries
// once more with a fresh token and credentials read again, since either may have
// been replaced meanwhile; then the destination is held.
func (s *Sink) dial(ctx context.Context, schema Schema) (*wire, error) {
	descriptor, err := schema.Descriptor()
	if err != nil {
		return nil, sinks.HoldAs(sinks.StateSchemaUnknown, fmt.Errorf("describe %s: %w", s.table, err))
	}
	w, err := s.dialOnce(ctx, descriptor)
	if refused(err) && ctx.Err() == nil {
		s.tokens.forget()
		w, err = s.dialOnce(ctx, descriptor)
	}
	if err != nil {
		return nil, err
	}
	s.count.streams.Add(1)
	return w, nil
}

// refused reports whether err says that the token or the grant was refused.
func refused(err error) bool { return errors.Is(err, errRefused) }

// errRefused marks the refusal of a token or of a grant.
var errRefused = errors.New("refused by the workspace")

func (s *Sink) dialOnce(ctx context.Context, descriptor []byte) (*wire, error) {
	id, secret, err := s.o.Credentials()
	if err != nil {
		return nil, sinks.HoldAs(sinks.StateAuthFailed, fmt.Errorf("read credentials: %w", err))
	}
	tlsConfig, err := s.tlsConfig()
	if err != nil {
		return nil, sinks.Hold(err)
	}
	// Both addresses honour HTTPS_PROXY and NO_PROXY: the SDK's gRPC by itself.
	client := &http.Client{Timeout: s.o.OpenTimeout, Transport: tokenTransport{&s.tokens, &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig.Clone(), DisableKeepAlives: true, ForceAttemptHTTP2: false,
	}}}
	sdk, err := vendor.New(withScheme(s.o.Config.ZerobusEndpoint), withScheme(s.o.Config.WorkspaceHost),
		vendor.WithApplicationName("edgehost"), vendor.WithTLSConfig(tlsConfig), vendor.WithHTTPClient(client))
	if err != nil {
		return nil, sinks.Hold(explain("connect to zerobus", err, secrets(id, secret)))
	}
	s.tokens.takeFailure()
	open, cancel := context.WithTimeout(ctx, s.o.OpenTimeout)
	defer cancel()
	hide := secrets(id, secret)
	stream, err := sdk.CreateStream(open, s.table, id, secret,
		vendor.WithProto(descriptor), vendor.WithWaitForReady(), vendor.WithRecovery(vendor.RecoveryDisabled),
		vendor.WithMaxBufferedPayloadBytes(s.o.WindowBytes), vendor.WithMaxPayloadBytes(maxRequest),
		vendor.WithLackOfAckTimeout(s.o.AckTimeout), vendor.WithRecoveryTimeout(s.o.OpenTimeout), vendor.WithFlushTimeout(forEver))
	if err != nil {
		_ = sdk.Close() // nothing was sent
		return nil, s.openError(ctx, err, append(hide, s.tokens.all()...))
	}
	return &wire{sdk: sdk, stream: stream, sink: s, hide: append(hide, s.tokens.all()...)}, nil
}

// tlsConfig trusts the configured authorities, the system's when there are none.
func (s *Sink) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if path := s.o.Config.CACertPath; path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read zerobus.ca_cert_path: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read zerobus.ca_cert_path: %s holds no PEM certificate", path)
		}
	}
	return c, nil
}

// openError classifies why a stream did not open.
func (s *Sink) openError(ctx context.Context, err error, hide []string) error {
	f := s.tokens.takeFailure()
	if words := s.unreachable(err.Error(), f != nil); words != "" {
		err = explainedError{"open stream to " + s.table + ": " + redact(words, hide), err}
	} else {
		err = explain("open stream to "+s.table, err, hide)
	}
	if ctx.Err() != nil {
		return err
	}
	if f != nil {
		switch {
		case f.throttled():
			s.count.throttled.Add(1)
			return sinks.Throttled(err, f.after)
		case f.refused():
			return sinks.HoldAs(sinks.StateAuthFailed, fmt.Errorf("token %w (check client_id, client_secret and that the service principal may use the table): %w", errRefused, err))
		default:
			return err
		}
	}
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return sinks.HoldAs(sinks.StateAuthFailed, fmt.Errorf("stream %w (grant USE CATALOG, USE SCHEMA, SELECT and MODIFY to the service principal): %w", errRefused, err))
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented:
		return sinks.Hold(fmt.Errorf("stream refused (compare the table's columns with the schema in use): %w", err))
	case codes.ResourceExhausted:
		s.count.throttled.Add(1)
		return sinks.Throttled(err, 0)
	default:
		return err
	}
}

// unreachable says in plain words why nobody was reached, what to do, and which
// address was tried: that of the workspace when a token was asked for, else the
// endpoint's. It returns "" when somebody answered. The SDK and gRPC wrap what the
// network said in text only.
func (s *Sink) unreachable(text string, token bool) string {
	key, addr := "zerobus.zerobus_endpoint", s.o.Config.ZerobusEndpoint
	if token {
		key, addr = "zerobus.workspace_host", s.o.Config.WorkspaceHost
	}
	for _, known := range []struct{ mark, words string }{
		{"no such host", "the name does not resolve: check %s and the name server of this machine"},
		{"connection refused", "nothing listens there: check %s, and HTTPS_PROXY where there is a proxy"},
		{"i/o timeout", "nothing answers: check %s, that a firewall lets this machine out to it, and HTTPS_PROXY where there is a proxy"},
		{"no route to host", "the network does not lead there: check %s and the routes of this machine"},
		{"network is unreachable", "the network does not lead there: check %s and the routes of this machine"},
		{"unknown authority", "its certificate is of an authority that is not trusted: name that authority in zerobus.ca_cert_path (a proxy that looks into TLS has one of its own)"},
		{"has expired or is not yet valid", "its certificate is not valid at this time: check the clock of this machine, then the certificate"},
		{"certificate is valid for", "its certificate is of another name: check %s"},
		{"does not look like a TLS handshake", "it does not speak TLS: check %s"},
		{"gave HTTP response to HTTPS client", "it does not speak TLS: check %s"},
	} {
		at := strings.Index(text, known.mark)
		if at < 0 {
			continue
		}
		words := strings.Replace(known.words, "%s", key, 1)
		for _, cause := range []string{"proxyconnect ", "dial tcp ", "x509: ", "tls: "} { // what the network said, without its wrapping
			if i := strings.LastIndex(text[:at+len(known.mark)], cause); i >= 0 {
				return fmt.Sprintf("%s: %s (%s)", addr, words, text[i:at+len(known.mark)])
			}
		}
		return addr + ": " + words
	}
	return ""
}

// send hands one request to the SDK and returns its offset. It blocks while the
// window is full. The SDK copies the rows.
func (w *wire) send(ctx context.Context, rows [][]byte) (offset int64, err error) {
	if len(rows) == 1 {
		offset, err = w.stream.IngestRecordOffsetContext(ctx, rows[0])
	} else {
		offset, err = w.stream.IngestRecordsOffsetContext(ctx, rows)
	}
	if err == nil && offset != w.next {
		err = fmt.Errorf("the SDK numbered a request %d instead of %d", offset, w.next)
	}
	if err != nil {
		return 0, err
	}
	w.next++
	return offset, nil
}

// wait returns nil when the request at offset is durable, the reason when the
// stream ended without. offset may be one that was not sent yet.
func (w *wire) wait(ctx context.Context, offset int64) error {
	return w.stream.WaitForOffsetContext(ctx, offset)
}

// close half-closes the stream, lets the server end it for half a second, and
// closes the connection. Acks that arrive meanwhile count. Every wait returns.
func (w *wire) close() { _ = w.sdk.Close() } // why the stream ended is what wait returns

// classify says how a stream that was open ended.
func (w *wire) classify(err error) error {
	err = explain("deliver to "+w.sink.table, err, w.hide)
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		w.sink.tokens.forget() // the next open shows whether a fresh token helps
		return err
	case codes.NotFound, codes.FailedPrecondition, codes.Unimplemented:
		return sinks.Hold(err)
	case codes.ResourceExhausted:
		w.sink.count.throttled.Add(1)
		return sinks.Throttled(err, 0)
	}
	if planned(err) {
		w.sink.count.rotations.Add(1)
		return fmt.Errorf("%w: %w", sinks.ErrRotated, err)
	}
	return err
}

// planned reports whether the service ended the stream on schedule. It announces
// that (the SDK then says "server requested pause", in an error without a type),
// or ends the RPC as UNAVAILABLE with error code 6002.
func planned(err error) bool {
	text := err.Error()
	return strings.Contains(text, "server requested pause") ||
		status.Code(err) == codes.Unavailable && strings.Contains(text, "Error Code: 6002")
}

// explainedError is an error of the SDK in few words and without secrets.
type explainedError struct {
	text string
	err  error
}

func (e explainedError) Error() string { return e.text }
func (e explainedError) Unwrap() error { return e.err }

// sdkNoise is what the SDK puts around every cause.
var sdkNoise = strings.NewReplacer("zerobus: WaitForOffset: ", "", "zerobus: CreateStream: ", "", "stream: recovery exhausted after 1 attempt(s): ", "")

// explain says what went wrong during what: the code and the words of the
// service when it is its answer, else the SDK's error without its layers. Secrets
// that a peer echoes are taken out.
func explain(what string, err error, hide []string) error {
	text := sdkNoise.Replace(err.Error())
	if st := answer(err); st != nil {
		text = st.Code().String() + ": " + st.Message()
	}
	return explainedError{what + ": " + redact(text, hide), err}
}

// redact takes secrets out of text.
func redact(text string, hide []string) string {
	for _, secret := range hide {
		text = strings.ReplaceAll(text, secret, "[redacted]")
	}
	return text
}

// secrets are the forms in which a peer gets to see the secret.
func secrets(id, secret string) []string {
	if secret == "" {
		return nil
	}
	return []string{base64.StdEncoding.EncodeToString([]byte(id + ":" + secret)), url.QueryEscape(secret), secret}
}

// answer is the service's status in err, without what was wrapped around it; nil
// when there is none.
func answer(err error) *status.Status {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus()
	}
	return nil
}
