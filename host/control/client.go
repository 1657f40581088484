package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// Client asks a running host. It is a Backend itself: every method does over the
// socket what the host does. Any number of goroutines may use it.
type Client struct {
	socket string
	http   *http.Client
}

var _ Backend = (*Client)(nil)

// NewClient makes a Client of the host that listens on the socket. It does not
// connect yet: when nothing listens, each method returns an error with the code
// NotRunning.
func NewClient(socket string) *Client {
	var d net.Dialer
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) }
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close gives idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for Backend.Status.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// PushModule asks for Backend.PushModule.
func (c *Client) PushModule(ctx context.Context, r PushRequest) (m Module, err error) {
	if len(r.Wasm) > MaxModule {
		return m, errTooLarge()
	}
	path := "/v1/modules/" + url.PathEscape(r.Name) + "?activate=" + strconv.FormatBool(r.Activate)
	return m, c.do(ctx, http.MethodPost, path, r.Wasm, &m)
}

// Modules asks for Backend.Modules.
func (c *Client) Modules(ctx context.Context) (m []Module, err error) {
	return m, c.do(ctx, http.MethodGet, "/v1/modules", nil, &m)
}

// RollbackModule asks for Backend.RollbackModule.
func (c *Client) RollbackModule(ctx context.Context, name string) (m Module, err error) {
	return m, c.do(ctx, http.MethodPost, "/v1/modules/"+url.PathEscape(name)+"/rollback", nil, &m)
}

// Replay asks for Backend.Replay. When ctx ends the host stops replaying.
func (c *Client) Replay(ctx context.Context, r ReplayRequest) (out ReplayResult, err error) {
	return out, c.post(ctx, "/v1/replay", r, &out)
}

// DeadLetters asks for Backend.DeadLetters.
func (c *Client) DeadLetters(ctx context.Context, f DeadLetterFilter) (out []DeadLetter, err error) {
	return out, c.post(ctx, "/v1/dead-letters/list", f, &out)
}

// DeadLetter asks for Backend.DeadLetter.
func (c *Client) DeadLetter(ctx context.Context, id string) (out DeadLetter, err error) {
	return out, c.do(ctx, http.MethodGet, "/v1/dead-letters/"+url.PathEscape(id), nil, &out)
}

// ReplayDeadLetters asks for Backend.ReplayDeadLetters.
func (c *Client) ReplayDeadLetters(ctx context.Context, f DeadLetterFilter) (n int, err error) {
	var out count
	err = c.post(ctx, "/v1/dead-letters/replay", f, &out)
	return out.Count, err
}

// PurgeDeadLetters asks for Backend.PurgeDeadLetters.
func (c *Client) PurgeDeadLetters(ctx context.Context, f DeadLetterFilter) (n int, err error) {
	var out count
	err = c.post(ctx, "/v1/dead-letters/purge", f, &out)
	return out.Count, err
}

// PauseSource asks for Backend.PauseSource.
func (c *Client) PauseSource(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, "/v1/sources/"+url.PathEscape(name)+"/pause", nil, &struct{}{})
}

// ResumeSource asks for Backend.ResumeSource.
func (c *Client) ResumeSource(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, "/v1/sources/"+url.PathEscape(name)+"/resume", nil, &struct{}{})
}

// ResetBreaker asks for Backend.ResetBreaker.
func (c *Client) ResetBreaker(ctx context.Context, destination string) error {
	return c.do(ctx, http.MethodPost, "/v1/destinations/"+url.PathEscape(destination)+"/reset", nil, &struct{}{})
}

func (c *Client) post(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return c.do(ctx, http.MethodPost, path, body, out)
}

// maxAnswer bounds what a host may answer, in bytes.
const maxAnswer = 256 << 20

func (c *Client) do(ctx context.Context, method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://edgehost"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.transportError(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }() // read to the end, or given up
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return c.transportError(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(answer, out); err != nil {
			return fmt.Errorf("decode the host's answer: %w", err)
		}
		return nil
	}
	var e Error
	if err := json.Unmarshal(answer, &e); err != nil || e.Code == "" {
		return fmt.Errorf("whatever listens on %s is no edgehost: it answered HTTP %s", c.socket, resp.Status)
	}
	return &e
}

// transportError says in words what a failed connection means.
func (c *Client) transportError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		if errors.Is(dial.Err, fs.ErrPermission) {
			return Errorf(NotAllowed, "ask the host on %s: %w; run this as the user that runs edgehost, or as root", c.socket, dial.Err)
		}
		return Errorf(NotRunning, "no host answers on %s: %w", c.socket, dial.Err)
	}
	return fmt.Errorf("the host broke off on %s (it may be stopping; see its log): %w", c.socket, err)
}
