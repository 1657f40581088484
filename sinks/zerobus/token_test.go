package zerobus

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// endpoint is a token endpoint that a test scripts.
type endpoint struct {
	status int
	body   string
	err    error
	calls  int
}

func (e *endpoint) RoundTrip(req *http.Request) (*http.Response, error) {
	e.calls++
	_ = req.Body.Close()
	if e.err != nil {
		return nil, e.err
	}
	return &http.Response{StatusCode: e.status, Header: http.Header{"Retry-After": {"9"}}, Body: io.NopCloser(strings.NewReader(e.body)), Request: req}, nil
}

// ask posts a token request and returns the token, "" without one.
func ask(t *testing.T, tr tokenTransport, secret string) (string, int64) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://workspace.example/oidc/v1/token", strings.NewReader("grant_type=client_credentials"))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("id", secret)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", 0
	}
	defer resp.Body.Close()
	var answer struct {
		Token     string `json:"access_token"`
		ExpiresIn any    `json:"expires_in"`
	}
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&answer) != nil {
		return "", 0
	}
	left, _ := answer.ExpiresIn.(float64)
	return answer.Token, int64(left)
}

// A25: cached, renewed five minutes early, the old one used while the endpoint is
// ill, a new secret asks again.
func TestTokenCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{status: 200, body: `{"access_token":"one","expires_in":3600}`}
		tr := tokenTransport{&tokenCache{}, e}
		if got, _ := ask(t, tr, "s"); got != "one" {
			t.Fatalf("token %q", got)
		}
		time.Sleep(54 * time.Minute)
		if got, left := ask(t, tr, "s"); got != "one" || left != 360 || e.calls != 1 {
			t.Errorf("after 54 minutes: %q for %d s, %d calls", got, left, e.calls)
		}
		time.Sleep(2 * time.Minute) // renewal is due
		for _, ill := range []endpoint{{err: errors.New("refused")}, {status: 503}, {status: 429}} {
			e.status, e.err = ill.status, ill.err
			if got, _ := ask(t, tr, "s"); got != "one" || tr.cache.takeFailure() != nil {
				t.Errorf("with %+v: %q", ill, got)
			}
		}
		e.status, e.err = 401, nil
		if got, _ := ask(t, tr, "s"); got != "" {
			t.Errorf("a refused principal got %q", got)
		}
		if f := tr.cache.takeFailure(); f == nil || !f.refused() {
			t.Errorf("failure %+v", f)
		}
		e.status, e.body = 200, `{"access_token":"two","expires_in":"3600"}`
		if got, _ := ask(t, tr, "s"); got != "two" {
			t.Errorf("renewed to %q", got)
		}
		calls := e.calls
		e.body = `{"access_token":"three","expires_in":3600}`
		if got, _ := ask(t, tr, "rotated"); got != "three" || e.calls != calls+1 {
			t.Errorf("with another secret: %q", got)
		}
		tr.cache.forget()
		e.body = `{"access_token":"four"}` // without a life: not kept
		for range 2 {
			if got, _ := ask(t, tr, "rotated"); got != "four" {
				t.Errorf("token %q", got)
			}
		}
		if mints, fails := tr.cache.counts(); mints != 5 || fails != 4 {
			t.Errorf("%d mints, %d failures", mints, fails)
		}
	})
}

func TestTokenFailures(t *testing.T) {
	for _, tt := range []struct {
		e                  endpoint
		refused, throttled bool
		after              time.Duration
	}{
		{endpoint{status: 400}, true, false, 9 * time.Second}, {endpoint{status: 403}, true, false, 9 * time.Second}, {endpoint{status: 408}, false, true, 9 * time.Second},
		{endpoint{status: 429}, false, true, 9 * time.Second}, {endpoint{status: 500}, false, false, 9 * time.Second}, {endpoint{err: errors.New("refused")}, false, false, 0},
		{endpoint{status: 200, body: "<html>"}, false, false, 0}, {endpoint{status: 302}, false, false, 9 * time.Second},
	} {
		tr := tokenTransport{&tokenCache{}, &tt.e}
		if got, _ := ask(t, tr, "s"); got != "" {
			t.Errorf("%+v: token %q", tt.e, got)
		}
		f := tr.cache.takeFailure()
		if f == nil || f.refused() != tt.refused || f.throttled() != tt.throttled || f.after != tt.after {
			t.Errorf("%+v: %+v", tt.e, f)
		}
	}
}
