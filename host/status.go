package host

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sources"
)

var _ control.Backend = (*Host)(nil)

// Status implements control.Backend. It reads memory only.
func (h *Host) Status(context.Context) (control.Status, error) {
	s := control.Status{Version: h.cfg.Version, StartedAt: h.start.UTC(), UptimeSeconds: time.Since(h.start).Seconds(),
		NotInForce: h.cfg.NotInForce, Spool: h.cfg.Spooled}
	h.readyMu.Lock()
	s.Ready = h.ready
	h.readyMu.Unlock()
	s.Ledger = h.ledger()
	for _, sc := range h.cfg.Sources {
		s.Sources = append(s.Sources, h.sourceStatus(sc))
	}
	for i, p := range h.pipelines {
		s.Pipelines = append(s.Pipelines, p.status(s.Ledger.Pipelines[i]))
	}
	for i, name := range h.order {
		ds := h.destinations[name].status(s.Ledger.Destinations[i])
		s.Spool.Bytes += ds.BytesOnDisk
		s.Destinations = append(s.Destinations, ds)
	}
	for _, p := range h.pipelines {
		s.Spool.Bytes += p.held.Stat().DiskBytes
	}
	s.Spool.SecondsToFull = h.filling.estimate(time.Now(), s.Spool.Bytes, s.Spool.Cap)
	s.DeadLetters = h.deadLetterStatus()
	s.ModuleCache = control.ModuleCacheStatus(h.cfg.Sandbox.CacheStat())
	h.judge(&s)
	return s, nil
}

// filling estimates from one status to a later one how fast the spool grows.
type filling struct {
	mu      sync.Mutex
	at      time.Time
	used    uint64
	seconds float64
}

// fillWindow is the least time over which growth is measured.
const fillWindow = 10 * time.Second

// estimate returns how many seconds the cap lasts at the present rate, 0 when
// the spool does not grow, has no cap, or was not watched long enough.
func (f *filling) estimate(now time.Time, used, limit uint64) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	span := now.Sub(f.at)
	if span < fillWindow {
		return f.seconds
	}
	f.seconds = 0
	if !f.at.IsZero() && used > f.used && limit > used {
		f.seconds = float64(limit-used) / (float64(used-f.used) / span.Seconds())
	}
	f.at, f.used = now, used
	return f.seconds
}

func (h *Host) sourceStatus(sc SourceConfig) control.SourceStatus {
	sn := sc.Status.Snapshot()
	out := control.SourceStatus{Name: sn.Name, Protocol: sn.Protocol, State: string(sn.State), Detail: sn.Detail, Since: sn.Since,
		LastRead: sn.LastRead, Records: sn.Records, Bytes: sn.Bytes, Failed: sn.Failed, Counters: sn.Counters,
		Points: sn.Points, PointsStale: sn.Stale, Unwatched: sn.Unwatched, LagSeconds: sn.Lag}
	if sc.Source == nil {
		out.State = string(sources.Disabled)
	}
	for _, p := range h.pipelines {
		if slices.Contains(p.cfg.Sources, sc.Name) {
			out.Pipeline = p.cfg.Name
		}
	}
	return out
}

func (p *pipeline) status(l control.PipelineLedger) control.PipelineStatus {
	s := control.PipelineStatus{Name: p.cfg.Name, Sources: p.cfg.Sources, Modules: p.chain.inUse(), Ledger: l,
		Queued: control.QueueDepth{Records: uint64(max(0, p.queued.Load()))}}
	s.State, s.Detail = p.getState()
	if problem := p.commit.getProblem(); problem != "" {
		s.Detail = "nothing can be committed: " + problem
	}
	targets := map[string]bool{p.cfg.Target: p.cfg.Target != ""}
	for _, t := range p.cfg.Targets {
		targets[t] = true
	}
	for _, t := range p.cfg.Outputs {
		targets[t] = true
	}
	for _, t := range sortedKeys(targets) {
		if targets[t] {
			s.Targets = append(s.Targets, t)
		}
	}
	return s
}

func (d *destination) status(l control.DestinationLedger) control.DestinationStatus {
	g, q := d.sink.State(), d.queue.Stat()
	d.mu.Lock()
	defer d.mu.Unlock()
	s := control.DestinationStatus{Name: d.cfg.Name, Sink: d.cfg.Kind, Ledger: l,
		Queue:         control.QueueDepth{Records: q.WaitingRecords, Bytes: q.WaitingBytes},
		Memory:        control.QueueDepth{Records: q.MemoryRecords, Bytes: q.MemoryBytes},
		BytesOnDisk:   q.DiskBytes,
		LastDelivered: d.lastAck,
		Latency: control.Histogram{Bounds: d.latency.Bounds, Counts: slices.Clone(d.latency.Counts),
			Count: d.latency.Count, Sum: d.latency.Sum},
		Breaker: control.BreakerStatus{State: control.BreakerClosed, Failures: uint64(g.Failures), LastError: g.LastError,
			OpenedAt: g.OpenedAt, NextProbe: g.NextProbe},
	}
	if q.OldestWaiting != 0 {
		s.Oldest = time.UnixMicro(q.OldestWaiting).UTC()
	}
	switch {
	case !d.cfg.Breaker.Enabled:
		s.Breaker.State = control.BreakerDisabled
	case g.State == sinks.StateHalfOpen:
		s.Breaker.State = control.BreakerHalfOpen
	case g.State == sinks.StateCircuitOpen:
		s.Breaker.State = control.BreakerOpen
	}
	s.State, s.Detail = destinationState(g)
	if d.problem != "" {
		s.State, s.Detail = control.DestinationHeld, d.problem
	}
	if q.Err != nil && s.Detail == "" {
		s.Detail = q.Err.Error()
	}
	return s
}

// destinationState translates the guard's state into the words of the wire.
func destinationState(g sinks.Status) (state, detail string) {
	switch g.State {
	case sinks.StateConnected:
		return control.DestinationConnected, ""
	case sinks.StateThrottled:
		return control.DestinationConnected, "the service asked to slow down: " + g.LastError
	case sinks.StateCircuitOpen, sinks.StateHalfOpen:
		return control.DestinationCircuitOpen, fmt.Sprintf("open since %s, next probe %s, last error: %s (edgehost breaker reset probes now)",
			g.OpenedAt.UTC().Format(time.RFC3339), g.NextProbe.UTC().Format(time.RFC3339), g.LastError)
	case sinks.StateAuthFailed:
		return control.DestinationAuthFailed, g.LastError
	case sinks.StateSchemaUnknown:
		return control.DestinationSchemaUnknown, g.LastError
	case sinks.StateHeld:
		return control.DestinationHeld, g.LastError
	default:
		return control.DestinationConnecting, g.LastError
	}
}

func (h *Host) deadLetterStatus() control.DeadLetterStatus {
	st := h.dlq.Stat()
	out := control.DeadLetterStatus{Entries: st.Letters, Bytes: st.Bytes, Cap: h.cfg.LetterCap, Total: map[string]uint64{}}
	h.books.Lock()
	defer h.books.Unlock()
	for _, p := range h.pipelines {
		for reason, n := range p.commit.book.Rejects {
			out.Total[reason] += n
		}
	}
	for _, d := range h.destinations {
		if n := d.queue.Stat().Settled.DeadLettered; n > 0 {
			out.Total["refused_by_destination"] += n
		}
	}
	return out
}

// judge decides between healthy, degraded and unhealthy and says why.
func (h *Host) judge(s *control.Status) {
	s.Status = control.Healthy
	worse := func(level, format string, args ...any) {
		s.Reasons = append(s.Reasons, fmt.Sprintf(format, args...))
		if s.Status == control.Healthy || level == control.Unhealthy {
			s.Status = level
		}
	}
	if !s.Ledger.Balanced {
		worse(control.Unhealthy, "the ledger does not balance: edgehost status --json shows where")
	}
	for i, p := range h.pipelines {
		if problem := p.commit.getProblem(); problem != "" {
			s.Spool.Error = problem
			worse(control.Unhealthy, "pipeline %s cannot commit: %s", p.cfg.Name, problem)
		}
		if ps := s.Pipelines[i]; ps.State != control.PipelineRunning {
			worse(control.Degraded, "pipeline %s is %s: %s", ps.Name, ps.State, ps.Detail)
		}
	}
	for _, src := range s.Sources {
		if src.State != string(sources.Disabled) && !src.Flows() {
			worse(control.Degraded, "source %s is %s: %s", src.Name, src.State, src.Detail)
		}
	}
	for _, d := range s.Destinations {
		switch {
		case d.State == control.DestinationConnected:
		case d.State == control.DestinationConnecting && d.Queue.Records == 0:
		case d.State == control.DestinationConnecting:
			worse(control.Degraded, "destination %s is connecting: %s", d.Name, d.Detail)
		case d.State == control.DestinationCircuitOpen:
			worse(control.Degraded, "destination %s: circuit breaker %s", d.Name, d.Detail)
		default:
			worse(control.Unhealthy, "destination %s is %s, its queue stays whole: %s", d.Name, d.State, d.Detail)
		}
	}
	for _, name := range h.strays {
		worse(control.Degraded, "queue %s holds records and nothing configured drains it: configure it again or empty it", name)
	}
}

// ResetBreaker implements control.Backend.
func (h *Host) ResetBreaker(_ context.Context, destination string) error {
	d := h.destinations[destination]
	if d == nil {
		return control.Errorf(control.NotFound, "no destination %s is configured; there are: %s", destination, strings.Join(h.order, ", "))
	}
	d.sink.Reset()
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
