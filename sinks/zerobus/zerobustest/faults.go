package zerobustest

import (
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
)

// Faults is everything that can be made to go wrong. The zero value is a healthy
// service. Counts are how often; -1 is until further notice.
type Faults struct {
	// Create refuses streams with a gRPC code.
	Create CodeFault `json:"create"`
	// Stream ends streams with a gRPC code when After messages were taken.
	Stream CodeFault `json:"stream"`
	// Token refuses tokens.
	Token TokenFault `json:"token"`
	// Reject refuses messages that hold such a row, with INVALID_ARGUMENT. It
	// concerns streams that are created afterwards.
	Reject []Match `json:"reject"`
	// WithholdAcks sends no acks, though the rows are durable.
	WithholdAcks bool `json:"withhold_acks"`
	// OverAck is added to every acknowledged offset: a lie, or with -1 late.
	OverAck int64 `json:"over_ack"`
	// AckDelayMS is waited before each ack.
	AckDelayMS int `json:"ack_delay_ms"`
	// RotateAfterMS announces the end of each stream so long after its creation;
	// RotateNoticeMS later the stream ends with UNAVAILABLE.
	RotateAfterMS  int `json:"rotate_after_ms"`
	RotateNoticeMS int `json:"rotate_notice_ms"`
	// Dead resets every connection of the gRPC endpoint.
	Dead bool `json:"dead"`
}

// CodeFault is a gRPC code by number, how often, and after how many messages.
type CodeFault struct {
	Code  codes.Code `json:"code"`
	Count int        `json:"count"`
	After int64      `json:"after"`
}

// TokenFault is an HTTP status of the token endpoint.
type TokenFault struct {
	Status      int  `json:"status"`
	Count       int  `json:"count"`
	RetryAfterS int  `json:"retry_after_s"`
	Echo        bool `json:"echo"` // put the credentials into the error, as a bad server might
}

// Match is a row by the text of one of its columns. Table "" is every table.
type Match struct {
	Table  string `json:"table"`
	Column string `json:"column"`
	Value  string `json:"value"`
}

// Stats counts what happened since Start.
type Stats struct {
	Streams        uint64 `json:"streams"`         // created
	StreamsRefused uint64 `json:"streams_refused"` //
	OpenStreams    int    `json:"open_streams"`
	Messages       uint64 `json:"messages"`
	Records        uint64 `json:"records"`
	Rejected       uint64 `json:"rejected"` // messages refused for one of their rows
	Acks           uint64 `json:"acks"`
	TokensIssued   uint64 `json:"tokens_issued"`
	TokensRefused  uint64 `json:"tokens_refused"`
	// Violations are the rules of the protocol that clients broke, newest last, at
	// most 100.
	Violations []string              `json:"violations"`
	Tables     map[string]TableStats `json:"tables"`
}

// TableStats counts the rows of a table, and those whose key was there before.
type TableStats struct {
	Rows       int64 `json:"rows"`
	Duplicates int64 `json:"duplicates"`
}

// counters is Stats while it is counted.
type counters struct {
	streams, streamsRefused, messages, records, rejected, acks, tokensIssued, tokensRefused atomic.Uint64

	mu         sync.Mutex
	violations []string
}

func (c *counters) violation(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.violations) < 100 {
		c.violations = append(c.violations, why)
	}
}

// Stats returns a snapshot.
func (e *Emulator) Stats() Stats {
	c := &e.count
	s := Stats{
		Streams: c.streams.Load(), StreamsRefused: c.streamsRefused.Load(), OpenStreams: e.knobs.open(),
		Messages: c.messages.Load(), Records: c.records.Load(), Rejected: c.rejected.Load(), Acks: c.acks.Load(),
		TokensIssued: c.tokensIssued.Load(), TokensRefused: c.tokensRefused.Load(), Tables: e.store.stats(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Violations = append(s.Violations, c.violations...)
	return s
}

// SetFaults replaces the faults.
func (e *Emulator) SetFaults(f Faults) {
	e.knobs.set(f)
	e.ingest.kill(f.Dead)
}

// Faults returns the faults, with what is left of their counts.
func (e *Emulator) Faults() Faults {
	e.knobs.mu.Lock()
	defer e.knobs.mu.Unlock()
	return e.knobs.faults
}

// SignalClose sends every open stream a CloseStreamSignal.
func (e *Emulator) SignalClose(d time.Duration) {
	e.knobs.mu.Lock()
	defer e.knobs.mu.Unlock()
	for s := range e.knobs.sessions {
		select {
		case s.signal <- d:
		default:
		}
	}
}

// KillConnections resets every connection of the gRPC endpoint once.
func (e *Emulator) KillConnections() { e.ingest.kill(e.Faults().Dead) }

// RevokeTokens makes every issued token invalid for new streams.
func (e *Emulator) RevokeTokens() { e.issued.revoke() }

// knobs is Faults while they are in force.
type knobs struct {
	mu       sync.Mutex
	faults   Faults
	changed  chan struct{} // closed and replaced by set
	sessions map[*session]struct{}
}

func (k *knobs) set(f Faults) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults = f
	if k.changed != nil {
		close(k.changed)
	}
	k.changed = make(chan struct{})
}

// take uses up one of count.
func take(count *int) bool {
	if *count > 0 {
		*count--
		return true
	}
	return *count < 0
}

func (k *knobs) takeCreate() (codes.Code, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := &k.faults.Create
	return f.Code, f.Code != codes.OK && take(&f.Count)
}

// streamFault is how a stream will end.
type streamFault struct {
	code  codes.Code
	after int64
}

func (k *knobs) takeStream() streamFault {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := &k.faults.Stream
	if f.Code == codes.OK || !take(&f.Count) {
		return streamFault{}
	}
	return streamFault{f.Code, f.After}
}

func (k *knobs) takeToken() (TokenFault, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := &k.faults.Token
	return *f, f.Status != 0 && take(&f.Count)
}

func (k *knobs) rejects(table string) []Match {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Match
	for _, m := range k.faults.Reject {
		if m.Table == "" || m.Table == table {
			out = append(out, m)
		}
	}
	return out
}

// ackFault is how acks are sent.
type ackFault struct {
	withhold bool
	over     int64
	delay    time.Duration
	changed  <-chan struct{}
}

func (k *knobs) acks() ackFault {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.changed == nil {
		k.changed = make(chan struct{})
	}
	return ackFault{k.faults.WithholdAcks, k.faults.OverAck, time.Duration(k.faults.AckDelayMS) * time.Millisecond, k.changed}
}

// rotation is the end of one stream that was planned at its creation.
type rotation struct {
	due, over <-chan time.Time
	notice    time.Duration
	timers    []*time.Timer
}

func (k *knobs) rotation() *rotation {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := &rotation{notice: time.Duration(k.faults.RotateNoticeMS) * time.Millisecond}
	if k.faults.RotateAfterMS > 0 {
		t := time.NewTimer(time.Duration(k.faults.RotateAfterMS) * time.Millisecond)
		r.due, r.timers = t.C, append(r.timers, t)
	}
	return r
}

// announced starts the notice.
func (r *rotation) announced() {
	t := time.NewTimer(r.notice)
	r.due, r.over, r.timers = nil, t.C, append(r.timers, t)
}

func (r *rotation) stop() {
	for _, t := range r.timers {
		t.Stop()
	}
}

func (k *knobs) add(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sessions == nil {
		k.sessions = map[*session]struct{}{}
	}
	k.sessions[s] = struct{}{}
}

func (k *knobs) remove(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.sessions, s)
}

func (k *knobs) open() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.sessions)
}

// admin serves the knobs over HTTP, for tests in other processes:
//
//	GET  /_emulator/stats
//	GET  /_emulator/faults      PUT /_emulator/faults  (a Faults object)
//	POST /_emulator/close-signal?duration=2s           POST /_emulator/kill
//	POST /_emulator/revoke-tokens
func (e *Emulator) admin(mux *http.ServeMux) {
	mux.HandleFunc("GET /_emulator/stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, e.Stats()) })
	mux.HandleFunc("GET /_emulator/faults", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, e.Faults()) })
	mux.HandleFunc("PUT /_emulator/faults", func(w http.ResponseWriter, r *http.Request) {
		var f Faults
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxForm))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&f); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		e.SetFaults(f)
		writeJSON(w, http.StatusOK, e.Faults())
	})
	mux.HandleFunc("POST /_emulator/close-signal", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("duration"))
		if err != nil {
			http.Error(w, "duration: "+err.Error(), http.StatusBadRequest)
			return
		}
		e.SignalClose(d)
	})
	mux.HandleFunc("POST /_emulator/kill", func(http.ResponseWriter, *http.Request) { e.KillConnections() })
	mux.HandleFunc("POST /_emulator/revoke-tokens", func(http.ResponseWriter, *http.Request) { e.RevokeTokens() })
}
