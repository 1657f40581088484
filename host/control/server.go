package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Listen opens the socket at path, for its owner only. A socket that a crash
// left behind is replaced; one that somebody answers on is an error with code
// Busy, and a file that is no socket is left alone.
func Listen(path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("look for control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, Errorf(Invalid, "open control socket: %s exists and is not a socket; set control.socket to another path", path)
	default:
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = conn.Close() // it was only to see whether somebody answers
			return nil, Errorf(Busy, "open control socket: another edgehost listens on %s; stop it, or give this one its own state_dir", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale control socket: %w", err)
		}
	}
	return listenPrivate(path)
}

// maxSocketPath is what sun_path holds on the narrowest system (104 bytes with
// its NUL) less the name of the private directory.
const maxSocketPath = 103 - len("/.c-0123456789/s")

// listenPrivate makes the socket in a directory that nobody else can enter and
// then moves it, so that it is never open to others, not even for a moment.
func listenPrivate(path string) (l net.Listener, err error) {
	if len(path) > maxSocketPath {
		return nil, Errorf(Invalid, "open control socket: %s has %d bytes, a socket's path at most %d; set control.socket to a shorter one",
			path, len(path), maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of control socket: %w", err)
	}
	private, err := os.MkdirTemp(filepath.Dir(path), ".c-") // 0700
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(private)) }()
	tmp := filepath.Join(private, "s")
	l, err = net.Listen("unix", tmp)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return nil, fmt.Errorf("open control socket: %w", errors.Join(err, l.Close()))
	}
	return listener{l, path}, nil
}

// listener removes its socket when it is closed.
type listener struct {
	net.Listener
	path string
}

func (l listener) Close() error {
	return errors.Join(os.Remove(l.path), l.Listener.Close())
}

// Serve answers on l until ctx ends, then lets requests under way finish for up
// to five seconds. It closes l.
func Serve(ctx context.Context, l net.Listener, backend Backend, log *slog.Logger) error {
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	server := &http.Server{
		Handler:           Handler(backend, log),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, peerOf(c))
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve control socket: %w", err)
	case <-ctx.Done():
	}
	grace, stop := context.WithTimeout(requests, 5*time.Second)
	defer stop()
	err := server.Shutdown(grace)
	if err != nil {
		cancel()
		err = server.Close()
	}
	if serveErr := <-ended; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}

// Handler is the API without its socket. What changes something is in the log, with
// who asked for it.
func Handler(backend Backend, log *slog.Logger) http.Handler {
	mux, change := http.NewServeMux(), orders(log)
	mux.HandleFunc("GET /v1/status", answer(func(r *http.Request) (any, error) {
		return backend.Status(r.Context())
	}))
	mux.HandleFunc("GET /v1/modules", answer(func(r *http.Request) (any, error) {
		return backend.Modules(r.Context())
	}))
	mux.HandleFunc("POST /v1/modules/{name}", change("push module", func(r *http.Request, _ *order) (any, error) {
		return push(r, backend)
	}))
	mux.HandleFunc("POST /v1/modules/{name}/rollback", change("roll back module", func(r *http.Request, _ *order) (any, error) {
		return backend.RollbackModule(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("POST /v1/replay", change("replay delivered records", func(r *http.Request, o *order) (any, error) {
		return call(r, o, backend.Replay)
	}))
	mux.HandleFunc("POST /v1/dead-letters/list", answer(func(r *http.Request) (any, error) {
		return call(r, nil, backend.DeadLetters)
	}))
	mux.HandleFunc("GET /v1/dead-letters/{id}", answer(func(r *http.Request) (any, error) {
		return backend.DeadLetter(r.Context(), r.PathValue("id"))
	}))
	mux.HandleFunc("POST /v1/dead-letters/replay", change("replay dead letters", func(r *http.Request, o *order) (any, error) {
		n, err := call(r, o, backend.ReplayDeadLetters)
		return count{n}, err
	}))
	mux.HandleFunc("POST /v1/dead-letters/purge", change("purge dead letters", func(r *http.Request, o *order) (any, error) {
		n, err := call(r, o, backend.PurgeDeadLetters)
		return count{n}, err
	}))
	mux.HandleFunc("POST /v1/sources/{name}/pause", change("pause source", func(r *http.Request, _ *order) (any, error) {
		return struct{}{}, backend.PauseSource(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("POST /v1/sources/{name}/resume", change("resume source", func(r *http.Request, _ *order) (any, error) {
		return struct{}{}, backend.ResumeSource(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("POST /v1/destinations/{name}/reset", change("reset breaker", func(r *http.Request, _ *order) (any, error) {
		return struct{}{}, backend.ResetBreaker(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("/", answer(func(r *http.Request) (any, error) {
		return nil, Errorf(NotFound, "no such request: %s %s; client and host are of different versions", r.Method, r.URL.Path)
	}))
	return identify(mux)
}

// count is the answer to requests that change a number of things.
type count struct {
	Count int `json:"count"`
}

func push(r *http.Request, backend Backend) (Module, error) {
	activate, err := strconv.ParseBool(r.URL.Query().Get("activate"))
	if err != nil {
		return Module{}, Errorf(Invalid, "push module: activate: %w", err)
	}
	wasm, err := io.ReadAll(io.LimitReader(r.Body, MaxModule+1))
	if err != nil {
		return Module{}, Errorf(Invalid, "receive module: %w", err)
	}
	if len(wasm) > MaxModule {
		return Module{}, errTooLarge()
	}
	return backend.PushModule(r.Context(), PushRequest{Name: r.PathValue("name"), Wasm: wasm, Activate: activate, By: Caller(r.Context())})
}

func errTooLarge() error {
	return Errorf(Refused, "the module is larger than %d MiB; build it without debug information", MaxModule>>20)
}

// statusOf is the HTTP status of a code, for those who use curl.
var statusOf = map[Code]int{
	Invalid:  http.StatusBadRequest,
	NotFound: http.StatusNotFound,
	Refused:  http.StatusUnprocessableEntity,
	Busy:     http.StatusConflict,
	Stopping: http.StatusServiceUnavailable,
	Internal: http.StatusInternalServerError,
}

// answer makes a handler of f: its result as JSON, or its error as an Error.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		result, err := f(r)
		status := http.StatusOK
		if err != nil {
			code := CodeOf(err)
			if status = statusOf[code]; status == 0 {
				code, status = Internal, http.StatusInternalServerError
			}
			result = Error{Code: code, Message: err.Error()}
		}
		body, err := json.Marshal(result)
		if err != nil {
			status = http.StatusInternalServerError
			body = fmt.Appendf(nil, `{"code":%q,"message":"encode answer: %T"}`, Internal, err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		// A client that went away has no use for an error.
		_, _ = w.Write(append(body, '\n'))
	}
}
