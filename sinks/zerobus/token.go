package zerobus

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// tokenCache keeps the answer of the token endpoint across SDK values, of which
// every stream has one of its own. It works on HTTP requests, below the SDK's
// OAuth code, so that tokens are counted, a status is seen as a number and
// Retry-After is known. Tokens are kept in memory only.
type tokenCache struct {
	mu      sync.Mutex
	entries map[[sha256.Size]byte]tokenEntry
	failure *tokenFailure // of the newest request; nil when it succeeded
	mints   uint64
	fails   uint64
}

type tokenEntry struct {
	token            string
	refresh, expires time.Time
}

// tokenFailure is a token request that got no token.
type tokenFailure struct {
	status int // 0 when there was no answer
	after  time.Duration
}

// refreshBefore is how long before its end a token is renewed, as in the
// vendor's clients; at most half of its life.
const refreshBefore = 5 * time.Minute

// maxTokenBody bounds the answer that is read. Tokens have some 1,000 bytes.
const maxTokenBody = 64 << 10

// forget drops every token, after the service refused one.
func (c *tokenCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
}

// takeFailure returns what went wrong at the token endpoint since the last call.
func (c *tokenCache) takeFailure() *tokenFailure {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.failure
	c.failure = nil
	return f
}

// all are the tokens in the cache.
func (c *tokenCache) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, e := range c.entries {
		out = append(out, e.token)
	}
	return out
}

func (c *tokenCache) counts() (mints, fails uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mints, c.fails
}

// tokenTransport is an http.RoundTripper that answers from the cache.
type tokenTransport struct {
	cache *tokenCache
	base  http.RoundTripper
}

// RoundTrip answers a token request from the cache or sends it.
func (t tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	key, err := requestKey(req)
	if err != nil {
		return nil, err
	}
	t.cache.mu.Lock()
	old, known := t.cache.entries[key]
	t.cache.mu.Unlock()
	if known && time.Now().Before(old.refresh) {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return tokenAnswer(req, old)
	}
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		return t.failed(req, nil, err, old)
	}
	if resp.StatusCode != http.StatusOK {
		return t.failed(req, resp, nil, old)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody))
	_ = resp.Body.Close()
	if err != nil {
		return t.failed(req, nil, fmt.Errorf("read token: %w", err), old)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	t.cache.store(key, body)
	return resp, nil
}

// failed notes a failure. A token that is due for renewal but still valid is
// used when the endpoint is merely ill.
func (t tokenTransport) failed(req *http.Request, resp *http.Response, err error, old tokenEntry) (*http.Response, error) {
	f := &tokenFailure{}
	if resp != nil {
		f.status = resp.StatusCode
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
			f.after = time.Duration(min(s, 3600)) * time.Second
		}
	}
	c := t.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fails++
	if !f.refused() && time.Now().Before(old.expires) {
		if resp != nil {
			_ = resp.Body.Close()
		}
		return tokenAnswer(req, old)
	}
	c.failure = f
	return resp, err
}

// refused reports whether the endpoint refuses the credentials or the grant, so
// that asking again does not help.
func (f *tokenFailure) refused() bool {
	return f.status >= 400 && f.status < 500 && !f.throttled()
}

// throttled reports whether the endpoint asks to slow down. The vendor's clients
// give up on these two.
func (f *tokenFailure) throttled() bool {
	return f.status == http.StatusTooManyRequests || f.status == http.StatusRequestTimeout
}

// store keeps the token in body when it says how long it lives.
func (c *tokenCache) store(key [sha256.Size]byte, body []byte) {
	var answer struct {
		Token     string          `json:"access_token"`
		ExpiresIn json.RawMessage `json:"expires_in"`
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure = nil
	if json.Unmarshal(body, &answer) != nil || answer.Token == "" {
		c.failure = &tokenFailure{status: http.StatusOK}
		c.fails++
		return
	}
	c.mints++
	clear(c.entries) // one principal and one table: an older secret is of no use
	n, err := strconv.ParseFloat(strings.Trim(string(answer.ExpiresIn), `"`), 64)
	if err != nil || n <= 0 {
		return
	}
	life := seconds(min(n, 30*24*3600))
	now := time.Now()
	if c.entries == nil {
		c.entries = map[[sha256.Size]byte]tokenEntry{}
	}
	c.entries[key] = tokenEntry{answer.Token, now.Add(life - min(refreshBefore, life/2)), now.Add(life)}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// requestKey tells token requests apart: address, principal, secret and what is
// asked for.
func requestKey(req *http.Request) ([sha256.Size]byte, error) {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s\n%s\n", req.URL, req.Header.Get("Authorization"))
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return [sha256.Size]byte{}, fmt.Errorf("read token request: %w", err)
		}
		if _, err := io.Copy(h, body); err != nil {
			return [sha256.Size]byte{}, fmt.Errorf("read token request: %w", err)
		}
		if err := body.Close(); err != nil {
			return [sha256.Size]byte{}, fmt.Errorf("read token request: %w", err)
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// tokenAnswer is the endpoint's answer for a token from the cache.
func tokenAnswer(req *http.Request, e tokenEntry) (*http.Response, error) {
	body, err := json.Marshal(map[string]any{"access_token": e.token, "expires_in": int64(time.Until(e.expires).Seconds())})
	if err != nil {
		return nil, fmt.Errorf("write token answer: %w", err)
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)), Request: req,
	}, nil
}
