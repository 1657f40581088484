package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.TempDir()) > 30 { // the path of a socket must not be long
		if err := os.Setenv("TMPDIR", "/tmp"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// recorder is a Backend that keeps what it was asked and answers what it was told.
type recorder struct {
	asked  []any
	err    error
	status Status
	module Module
	letter DeadLetter
	block  chan struct{} // Replay signals here that it runs, then waits for its context
}

func (r *recorder) note(v ...any) error { r.asked = append(r.asked, v...); return r.err }

func (r *recorder) Status(context.Context) (Status, error) { return r.status, r.note("status") }
func (r *recorder) PushModule(_ context.Context, p PushRequest) (Module, error) {
	return r.module, r.note(p)
}
func (r *recorder) Modules(context.Context) ([]Module, error) {
	return []Module{r.module}, r.note("modules")
}
func (r *recorder) RollbackModule(_ context.Context, name string) (Module, error) {
	return r.module, r.note("rollback", name)
}
func (r *recorder) Replay(ctx context.Context, q ReplayRequest) (ReplayResult, error) {
	if r.block != nil {
		r.block <- struct{}{}
		<-ctx.Done()
		close(r.block)
		return ReplayResult{}, ctx.Err()
	}
	return ReplayResult{Records: 7}, r.note(q)
}
func (r *recorder) DeadLetters(_ context.Context, f DeadLetterFilter) ([]DeadLetter, error) {
	return []DeadLetter{r.letter}, r.note(f)
}
func (r *recorder) DeadLetter(_ context.Context, id string) (DeadLetter, error) {
	return r.letter, r.note("letter", id)
}
func (r *recorder) ReplayDeadLetters(_ context.Context, f DeadLetterFilter) (int, error) {
	return 3, r.note("replay", f)
}
func (r *recorder) PurgeDeadLetters(_ context.Context, f DeadLetterFilter) (int, error) {
	return 4, r.note("purge", f)
}
func (r *recorder) PauseSource(_ context.Context, name string) error  { return r.note("pause", name) }
func (r *recorder) ResumeSource(_ context.Context, name string) error { return r.note("resume", name) }
func (r *recorder) ResetBreaker(_ context.Context, d string) error    { return r.note("reset", d) }

var quiet = slog.New(slog.DiscardHandler)

// serve runs a Server on a real socket until the test ends.
func serve(t *testing.T, b Backend) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, b, quiet) }()
	client := NewClient(path)
	t.Cleanup(func() {
		client.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return client
}

func TestEveryRequest(t *testing.T) {
	noon := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	b := &recorder{
		status: Status{Version: "v1", Status: Degraded, Reasons: []string{"x"}, StartedAt: noon,
			Sources: []SourceStatus{{Name: "s", State: "connected", Failed: map[string]uint64{"decode": 1}}},
			Destinations: []DestinationStatus{{Name: "c.s.t", Latency: Histogram{Bounds: []float64{1}, Counts: []uint64{2}, Count: 3, Sum: 4},
				Breaker: BreakerStatus{State: BreakerOpen, OpenedAt: noon}}},
			Ledger: Ledger{Read: 1, Balanced: true, Pipelines: []PipelineLedger{{Name: "p", Read: 1}}}},
		module: Module{Name: "m", Active: "ff", Revisions: []Revision{{Digest: "ff", Size: 3, At: noon}}},
		letter: DeadLetter{ID: "7", Time: noon, Reason: "schema", Record: json.RawMessage(`{"value":1}`)},
	}
	c := serve(t, b)
	ctx := t.Context()
	push := PushRequest{Name: "m", Wasm: []byte("\x00asm\x01"), Activate: true, By: "somebody else"}
	replay := ReplayRequest{Destination: "c.s.t", Since: noon, FromSeq: 9, Rate: 10, DryRun: true}
	filter := DeadLetterFilter{IDs: []string{"1", "2"}, Reason: "schema", Limit: 5}

	same := func(name string, got any, err error, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	status, err := c.Status(ctx)
	same("Status", status, err, b.status)
	m, err := c.PushModule(ctx, push)
	same("PushModule", m, err, b.module)
	list, err := c.Modules(ctx)
	same("Modules", list, err, []Module{b.module})
	m, err = c.RollbackModule(ctx, "m")
	same("RollbackModule", m, err, b.module)
	result, err := c.Replay(ctx, replay)
	same("Replay", result, err, ReplayResult{Records: 7})
	letters, err := c.DeadLetters(ctx, filter)
	same("DeadLetters", letters, err, []DeadLetter{b.letter})
	letter, err := c.DeadLetter(ctx, "a/b 7")
	same("DeadLetter", letter, err, b.letter)
	n, err := c.ReplayDeadLetters(ctx, filter)
	same("ReplayDeadLetters", n, err, 3)
	n, err = c.PurgeDeadLetters(ctx, filter)
	same("PurgeDeadLetters", n, err, 4)
	same("PauseSource", nil, c.PauseSource(ctx, "s 1/a"), nil)
	same("ResumeSource", nil, c.ResumeSource(ctx, "s 1/a"), nil)
	same("ResetBreaker", nil, c.ResetBreaker(ctx, "c.s.t"), nil)

	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	pushed := push
	pushed.By = me.Username // and not what the client says of itself
	asked := []any{"status", pushed, "modules", "rollback", "m", replay, filter, "letter", "a/b 7",
		"replay", filter, "purge", filter, "pause", "s 1/a", "resume", "s 1/a", "reset", "c.s.t"}
	if diff := cmp.Diff(asked, b.asked); diff != "" {
		t.Errorf("what the host was asked (-want +got):\n%s", diff)
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	b := &recorder{}
	c := serve(t, b)
	for _, code := range []Code{Invalid, NotFound, Refused, Busy, Stopping, Internal} {
		b.err = Errorf(code, "no: %w", fs.ErrExist)
		if _, err := c.Status(t.Context()); CodeOf(err) != code || err.Error() != "no: file already exists" {
			t.Errorf("%s arrived as %s: %v", code, CodeOf(err), err)
		}
	}
	for _, err := range []error{errors.New("plain"), Errorf("made_up", "plain")} {
		b.err = err
		if err := c.ResetBreaker(t.Context(), "d"); CodeOf(err) != Internal || err.Error() != "plain" {
			t.Errorf("arrived as %s: %v", CodeOf(err), err)
		}
	}
}

func TestPushTooLarge(t *testing.T) {
	b := &recorder{}
	c := serve(t, b)
	big := make([]byte, MaxModule+1)
	if _, err := c.PushModule(t.Context(), PushRequest{Name: "m", Wasm: big}); CodeOf(err) != Refused {
		t.Errorf("client: %v, want Refused", err)
	}
	w := httptest.NewRecorder()
	Handler(b, quiet).ServeHTTP(w, httptest.NewRequest("POST", "/v1/modules/m?activate=false", bytes.NewReader(big)))
	if w.Code != http.StatusUnprocessableEntity {
		t.Errorf("server: HTTP %d", w.Code)
	}
	if len(b.asked) != 0 {
		t.Error("the backend was given a module over the limit")
	}
	if _, err := c.PushModule(t.Context(), PushRequest{Name: "m", Wasm: big[:MaxModule]}); err != nil {
		t.Errorf("a module at the limit: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	h := Handler(&recorder{}, quiet)
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v2/status", "", 404},
		{"POST", "/v1/status", "", 404},
		{"POST", "/v1/modules/m?activate=maybe", "x", 400},
		{"POST", "/v1/modules/m", "x", 400},
		{"POST", "/v1/replay", "{", 400},
		{"POST", "/v1/replay", `{"destinaton":"typo"}`, 400},
		{"POST", "/v1/dead-letters/purge", `[]`, 400},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(test.method, test.path, strings.NewReader(test.body)))
		var e Error
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != test.status || e.Message == "" {
			t.Errorf("%s %s: HTTP %d %s", test.method, test.path, w.Code, w.Body)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	c := NewClient(path)
	if _, err := c.Status(t.Context()); CodeOf(err) != NotRunning || !strings.Contains(err.Error(), path) {
		t.Errorf("no socket: %v, want NotRunning that names it", err)
	}
	stale(t, path)
	if _, err := c.Status(t.Context()); CodeOf(err) != NotRunning {
		t.Errorf("stale socket: %v, want NotRunning", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestNotAllowed: who may not ask is not told that nothing runs. (Root may, always.)
func TestNotAllowed(t *testing.T) {
	c := NewClient("/run/c.sock")
	c.http.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.EACCES)}
	}
	if _, err := c.Status(t.Context()); CodeOf(err) != NotAllowed || !strings.Contains(err.Error(), "run this as the user that runs edgehost") {
		t.Errorf("Status: %v", err)
	}
}

func TestForeignListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler()}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	c := NewClient(path)
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "no edgehost") {
		t.Errorf("Status: %v", err)
	}
	c.Close()
	s.Close()
	<-ended
}

// stale leaves a socket file that nobody listens on, as a crash does.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "c.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".c-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := Listen(path); CodeOf(err) != Busy {
		t.Errorf("a second Listen: %v, want Busy", err)
	}
	l.Close()

	stale(t, path)
	l, err = Listen(path)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	l.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); CodeOf(err) != Invalid {
		t.Errorf("over a file: %v, want Invalid", err)
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if _, err := Listen(long); err == nil || !strings.Contains(err.Error(), "control.socket") {
		t.Errorf("a path that is too long: %v", err)
	}
}

// TestCallerGoesAway proves that a replay ends with the command that asked for it.
func TestCallerGoesAway(t *testing.T) {
	b := &recorder{block: make(chan struct{})}
	c := serve(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-b.block
		cancel()
	}()
	if _, err := c.Replay(ctx, ReplayRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Replay: %v", err)
	}
	select {
	case <-b.block:
	case <-time.After(30 * time.Second):
		t.Fatal("the backend's context did not end")
	}
}

// TestOrdersAreLogged: who asked for what changes something, when, and how it went;
// a look is not logged.
func TestOrdersAreLogged(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	b := &recorder{}
	ask := func(h http.Handler, ctx context.Context, method, path, body string) map[string]any {
		t.Helper()
		out.Reset()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, method, path, strings.NewReader(body)))
		if out.Len() == 0 {
			return nil
		}
		line := map[string]any{}
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatalf("%s %s: %v: %s", method, path, err, out.Bytes())
		}
		begun, err := time.Parse(time.RFC3339, line["begun"].(string))
		if age := time.Since(begun); err != nil || age < 0 || age > time.Minute {
			t.Errorf("%s %s: begun at %v", method, path, line["begun"])
		}
		for _, key := range []string{"begun", "time", "level"} {
			delete(line, key)
		}
		return line
	}
	h := Handler(b, log)
	alice := context.WithValue(t.Context(), callerKey{}, "alice")
	long := strings.Repeat("x", 2*maxAsked)
	for _, c := range []struct {
		method, path, body string
		want               map[string]any
	}{
		{"POST", "/v1/modules/m?activate=true", "wasm", map[string]any{"order": "push module", "name": "m"}},
		{"POST", "/v1/modules/m/rollback", "", map[string]any{"order": "roll back module", "name": "m"}},
		{"POST", "/v1/replay", `{"destination":"c.s.t"}`, map[string]any{"order": "replay delivered records", "asked": `{"destination":"c.s.t"}`}},
		{"POST", "/v1/dead-letters/replay", `{"ids":["1"]}`, map[string]any{"order": "replay dead letters", "asked": `{"ids":["1"]}`}},
		{"POST", "/v1/dead-letters/purge", `{"reason":"` + long + `"}`, map[string]any{"order": "purge dead letters", "asked": (`{"reason":"` + long)[:maxAsked]}},
		{"POST", "/v1/sources/s%201/pause", "", map[string]any{"order": "pause source", "name": "s 1"}},
		{"POST", "/v1/sources/s%201/resume", "", map[string]any{"order": "resume source", "name": "s 1"}},
		{"POST", "/v1/destinations/c.s.t/reset", "", map[string]any{"order": "reset breaker", "name": "c.s.t"}},
		{"GET", "/v1/status", "", nil},
		{"GET", "/v1/modules", "", nil},
		{"POST", "/v1/dead-letters/list", "{}", nil},
		{"GET", "/v1/dead-letters/7", "", nil},
	} {
		if c.want != nil {
			c.want["msg"], c.want["by"] = "order carried out", "alice"
		}
		if diff := cmp.Diff(c.want, ask(h, alice, c.method, c.path, c.body)); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", c.method, c.path, diff)
		}
	}
	b.err = Errorf(NotFound, "no source s")
	want := map[string]any{"msg": "order failed", "by": "192.0.2.1:1234", "order": "pause source", "name": "s", "error": "no source s"}
	if diff := cmp.Diff(want, ask(h, t.Context(), "POST", "/v1/sources/s/pause", "")); diff != "" {
		t.Errorf("refused, and from an address (-want +got):\n%s", diff)
	}
	if line := ask(h, alice, "POST", "/v1/replay", `{} {}`); line["msg"] != "order failed" {
		t.Errorf("a request with two bodies: %v", line)
	}
}
