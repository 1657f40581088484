package sources

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// State is what a source says of itself in /health and in the log.
type State string

// The states of a source. Only Connected and Degraded mean that data can flow;
// a source that is connected but has delivered nothing within its watchdog is
// Stalled, never Connected.
const (
	Disabled     State = "disabled"
	Starting     State = "starting"
	Connecting   State = "connecting"
	Connected    State = "connected"
	Degraded     State = "degraded" // connected; some points are bad or silent
	Stalled      State = "stalled"  // connected, but nothing arrives
	Reconnecting State = "reconnecting"
	AuthFailed   State = "auth_failed" // the peer refuses our credentials or certificate
	Failed       State = "failed"      // the configuration cannot work as it is
	Paused       State = "paused"      // a person paused it
	Stopped      State = "stopped"
)

// Status is the place where one source reports: its state, in words that say
// what to do next, and its counters. Any goroutine may call any method. The
// source writes it; the host reads it for /health, /metrics and the status
// command.
type Status struct {
	name, protocol string

	mu       sync.Mutex
	state    State
	detail   string
	since    time.Time
	last     time.Time
	upSince  time.Time     // zero: not connected
	stable   time.Duration // longest connected period since takeStable
	logged   report
	records  uint64
	bytes    uint64
	failed   map[string]uint64
	counters map[string]float64
	silence  silence
	lag      *float64 // seconds
}

// silence is what a Watch knows of the points of a source.
type silence struct {
	silent, points int
	since          time.Time // when the first of them was heard last
	names          []string  // of some
	beyond         uint64    // records of points that are not watched
}

func (s silence) detail() string {
	text := fmt.Sprintf("%d of %d points silent since %s: %s", s.silent, s.points, s.since.UTC().Format(time.RFC3339), strings.Join(s.names, ", "))
	if s.silent > len(s.names) {
		text += ", …"
	}
	return text
}

// over is the state and detail of a source with its silent points.
func (s silence) over(state State, detail string) (State, string) {
	if s.silent == 0 {
		return state, detail
	}
	switch {
	case state == Connected && s.silent < s.points:
		state = Degraded
	case (state == Connected || state == Degraded) && s.silent == s.points:
		state = Stalled
	}
	if detail != "" {
		detail += "; "
	}
	return state, detail + s.detail()
}

func (s *Status) setSilence(v silence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silence = v
}

func (s *Status) setLag(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lag = new(d.Seconds())
}

// NewStatus makes the Status of the source called name in the configuration.
func NewStatus(name, protocol string) *Status {
	return &Status{name: name, protocol: protocol, state: Starting, since: time.Now(),
		failed: map[string]uint64{}, counters: map[string]float64{}}
}

// Set changes the state. detail is one line for a person: the reason and what
// to do; "" when there is nothing to say. It reports whether anything changed,
// so that the caller logs changes only.
func (s *Status) Set(state State, detail string) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == state && s.detail == detail {
		return false
	}
	if s.state != state {
		s.since = time.Now()
	}
	switch up := state == Connected || state == Degraded || state == Stalled; {
	case up && s.upSince.IsZero():
		s.upSince = time.Now()
	case !up && !s.upSince.IsZero():
		s.stable = max(s.stable, time.Since(s.upSince))
		s.upSince = time.Time{}
	}
	s.state, s.detail = state, detail
	return true
}

type report struct {
	state  State
	detail string
}

// Report is Set, and one line in the log for each change that a person wants
// to see: an outage with a thousand attempts is one line when it begins and one
// when it ends. Sources and the supervisor use it in place of Set.
func (s *Status) Report(log *slog.Logger, state State, detail string) {
	if !s.Set(state, detail) {
		return
	}
	if state == Starting || state == Connecting {
		log.Debug("source "+string(state), "detail", detail)
		return
	}
	s.mu.Lock()
	now := report{state, detail}
	known := s.logged == now
	s.logged = now
	s.mu.Unlock()
	switch {
	case known:
		log.Debug("source "+string(state), "detail", detail)
	case state == Connected || state == Paused || state == Stopped || state == Disabled:
		log.Info("source "+string(state), "detail", detail)
	default:
		log.Warn("source "+string(state), "detail", detail)
	}
}

// takeStable returns the longest time for which the source was connected since
// the last call.
func (s *Status) takeStable() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.stable
	s.stable = 0
	if !s.upSince.IsZero() {
		d = max(d, time.Since(s.upSince))
	}
	return d
}

// Read counts records that arrived, and the bytes that carried them.
func (s *Status) Read(records, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records += uint64(records)
	s.bytes += uint64(bytes)
	s.last = time.Now()
}

// Received counts bytes alone, where they are known apart from the records.
func (s *Status) Received(bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += uint64(bytes)
}

// Fail counts records that the source itself could not turn into records or
// had to drop, by a short reason (decode_error, buffer_full, …).
func (s *Status) Fail(reason string, records int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed[reason] += uint64(records)
}

// Declare shows counters and reasons of Fail as 0 from the start: a rate over a
// counter that begins to exist at its first increment misses that increment.
func (s *Status) Declare(metrics, reasons []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range metrics {
		s.counters[name] += 0
	}
	for _, reason := range reasons {
		s.failed[reason] += 0
	}
}

// Add adds n to a protocol's own metric, named as it appears on /metrics
// (mqtt_redelivered_total, modbus_polls_total, …). The names are constants of
// the protocol package, those of Labelled with a value of the configuration:
// bounded in number.
func (s *Status) Add(metric string, n float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counters[metric] += n
}

// Labelled is the name of a protocol's own metric that has one label more on
// /metrics: modbus_unit_up{unit="7"}. The value must be bounded in number, and
// without quotes and backslashes.
func Labelled(metric, label, value string) string {
	return metric + "{" + label + `="` + value + `"}`
}

// Gauge sets a protocol's own metric to v.
func (s *Status) Gauge(metric string, v float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counters[metric] = v
}

// Snapshot is a copy of a Status at one time.
type Snapshot struct {
	Name     string             `json:"name"`
	Protocol string             `json:"protocol"`
	State    State              `json:"state"`
	Detail   string             `json:"detail,omitempty"`
	Since    time.Time          `json:"since"`
	LastRead time.Time          `json:"last_read"` // zero: never
	Records  uint64             `json:"records"`   // since the process started
	Bytes    uint64             `json:"bytes"`
	Failed   map[string]uint64  `json:"failed,omitempty"`
	Counters map[string]float64 `json:"counters,omitempty"`
	// Points are those that a Watch knows, Stale those of them that are silent,
	// Unwatched the records of points for which it had no room.
	Points    int    `json:"points,omitempty"`
	Stale     int    `json:"stale,omitempty"`
	Unwatched uint64 `json:"unwatched,omitempty"`
	// Lag is by how many seconds the clock was ahead of the event time of the last
	// record when the pipeline took it; nil before the first.
	Lag *float64 `json:"lag,omitempty"`
}

// Snapshot returns a copy that the caller owns. Silent points make a source that
// reports itself connected degraded, and stalled when all of them are silent.
func (s *Status) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	state, detail := s.silence.over(s.state, s.detail)
	out := Snapshot{Name: s.name, Protocol: s.protocol, State: state, Detail: detail, Since: s.since,
		Points: s.silence.points, Stale: s.silence.silent, Unwatched: s.silence.beyond, Lag: s.lag,
		LastRead: s.last, Records: s.records, Bytes: s.bytes,
		Failed: make(map[string]uint64, len(s.failed)), Counters: make(map[string]float64, len(s.counters))}
	for k, v := range s.failed {
		out.Failed[k] = v
	}
	for k, v := range s.counters {
		out.Counters[k] = v
	}
	return out
}
