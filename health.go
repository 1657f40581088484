package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edgehost/edgehost/host/control"
)

// statusTimeout bounds how long a check waits for the host to describe itself.
const statusTimeout = 5 * time.Second

// web is where health and metrics are asked for; a listener is nil where it is off.
type web struct{ health, metrics net.Listener }

// listenHTTP opens health.listen and metrics.listen, or neither.
func listenHTTP(cfg *config) (l web, err error) {
	if l.health, err = listen(cfg.Health.Listen, "health.listen"); err != nil {
		return l, err
	}
	if l.metrics, err = listen(cfg.Metrics.Listen, "metrics.listen"); err != nil {
		return l, errors.Join(err, closeListener(l.health))
	}
	return l, nil
}

// serve answers /health, /livez and /readyz, and /metrics, until ctx ends.
func (l web) serve(ctx context.Context, backend control.Backend, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveOne(ctx, l.health, healthHandler(backend), log) })
	g.Go(func() error { return serveOne(ctx, l.metrics, metricsHandler(backend, log), log) })
	return g.Wait()
}

// listen opens addr; nil when it is off.
func listen(addr, key string) (net.Listener, error) {
	if addr == off {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w; set %s to a free address, or to off", addr, err, key)
	}
	return l, nil
}

func closeListener(l net.Listener) error {
	if l == nil {
		return nil
	}
	return l.Close()
}

func address(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

func serveOne(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	if l == nil {
		return nil
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := s.Shutdown(grace); err != nil {
			log.Warn("a client kept its connection open", "error", errors.Join(err, s.Close()))
		}
	})
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// healthBody is what /health answers. The first five keys are the document's.
type healthBody struct {
	Status        string            `json:"status"`  // healthy, degraded or unhealthy
	Sources       map[string]string `json:"sources"` // name to state
	Zerobus       string            `json:"zerobus"` // the state of the destination that is worst off
	QueueDepth    uint64            `json:"queue_depth"`
	UptimeSeconds int64             `json:"uptime_seconds"`

	Version      string            `json:"version"`
	Ready        bool              `json:"ready"`
	Reasons      []string          `json:"reasons"`
	Pipelines    map[string]string `json:"pipelines"`
	Destinations map[string]string `json:"destinations"`
	DeadLetters  uint64            `json:"dead_letters"`
	Balanced     bool              `json:"ledger_balanced"`
}

func healthOf(s control.Status) healthBody {
	b := healthBody{Status: s.Status, Sources: map[string]string{}, Zerobus: worst(s.Destinations), QueueDepth: depth(s),
		UptimeSeconds: int64(s.UptimeSeconds), Version: s.Version, Ready: s.Ready, Reasons: append([]string{}, s.Reasons...),
		Pipelines: map[string]string{}, Destinations: map[string]string{}, DeadLetters: s.DeadLetters.Entries, Balanced: s.Ledger.Balanced}
	for _, x := range s.Sources {
		b.Sources[x.Name] = x.State
	}
	for _, x := range s.Pipelines {
		b.Pipelines[x.Name] = x.State
	}
	for _, x := range s.Destinations {
		b.Destinations[x.Name] = x.State
	}
	return b
}

// depth is every record that was read and is not delivered yet.
func depth(s control.Status) uint64 {
	var n uint64
	for _, p := range s.Pipelines {
		n += p.Queued.Records + p.Ledger.Held
	}
	for _, d := range s.Destinations {
		n += d.Queue.Records
	}
	return n
}

// notConfigured is the state of the service when rows go to files.
const notConfigured = "not_configured"

// byBadness orders the states of destinations; an unknown one is worst.
var byBadness = []string{control.DestinationConnected, "throttled", control.DestinationConnecting, "half_open", control.DestinationCircuitOpen,
	control.DestinationSchemaUnknown, control.DestinationHeld, control.DestinationAuthFailed, control.DestinationStopped}

func worst(destinations []control.DestinationStatus) string {
	state, rank := notConfigured, -1
	for _, d := range destinations {
		r := slices.Index(byBadness, d.State)
		if r < 0 {
			r = len(byBadness)
		}
		if d.Sink == "zerobus" && r > rank {
			state, rank = d.State, r
		}
	}
	return state
}

// healthHandler answers three questions: /health how things are (503 when
// unhealthy), /readyz whether to send traffic, /livez whether to restart.
func healthHandler(backend control.Backend) http.Handler {
	mux := http.NewServeMux()
	answer := func(ok func(control.Status) bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
			defer cancel()
			s, err := backend.Status(ctx)
			if err != nil {
				s = control.Status{Status: control.Unhealthy, Version: version, Reasons: []string{"the host does not answer: " + err.Error()}}
			}
			code := http.StatusOK
			if err != nil || !ok(s) {
				code = http.StatusServiceUnavailable
			}
			body, err := json.MarshalIndent(healthOf(s), "", "  ")
			if err != nil {
				code, body = http.StatusInternalServerError, nil
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			w.WriteHeader(code)
			// A client that went away has no use for an error.
			_, _ = w.Write(append(body, '\n'))
		}
	}
	mux.HandleFunc("GET /health", answer(func(s control.Status) bool { return s.Status != control.Unhealthy }))
	mux.HandleFunc("GET /readyz", answer(func(s control.Status) bool { return s.Ready && s.Status != control.Unhealthy }))
	mux.HandleFunc("GET /livez", answer(func(control.Status) bool { return true }))
	return mux
}
