// Package zerobus is the sink around the vendor's Go SDK: it encodes records to
// rows by the schema of the table when they are sent, and turns what the service
// answers into acks, refusals and holds.
//
//	Send ──encode──> requests (100 rows, 10 MB) ──> SDK stream ──> table
//	                     │ unacked, in order            │
//	Acks <──────────── settle <───── watermark ─────────┘
//
// An SDK stream is never recovered by the SDK: when it ends, the Stream ends with
// the class of the error, sinks.Guard waits as long as that class wants, and the
// drain sends again from its cursor. When the service refused something in the
// window, the next Stream first delivers that window with care, in halves on
// fresh SDK streams, until the refused rows are found.
package zerobus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edgehost/edgehost/sinks"
)

// Options is what a Sink is made of.
type Options struct {
	Config Config
	// Schema returns the columns of the target table. It is called at every Open;
	// its error holds the destination as schema_unknown. Fixed returns one that
	// never changes.
	Schema func(ctx context.Context) (Schema, error)
	// Credentials returns the service principal's id and secret. It is called at
	// every attempt to open a stream, so that a rotated secret is used without a
	// restart. Its error holds the destination as auth_failed.
	Credentials func() (id, secret string, err error)
	// BatchRecords is the most rows in one request, processing.batch.max_size;
	// 0 is 100. Send never waits for a request to fill up: max_wait_seconds is the
	// business of whoever gathers the records.
	BatchRecords int
	// WindowBytes bounds the encoded rows that wait for their acks; 0 is 32 MiB.
	WindowBytes int64
	// AckTimeout ends a stream when something is unacknowledged and no ack has
	// arrived for so long; 0 is 60 s, as in the vendor's clients.
	AckTimeout time.Duration
	// OpenTimeout bounds one attempt to open a stream, token included; 0 is 15 s.
	OpenTimeout time.Duration
	// NeighbourWait is how long a refused row waits for another row when there is
	// nothing else to send, before the destination is held: only a row that is
	// accepted shows that the refused one is at fault. 0 is 5 s.
	NeighbourWait time.Duration
	Log           *slog.Logger // never nil
}

// Fixed is an Options.Schema that always returns s.
func Fixed(s Schema) func(context.Context) (Schema, error) {
	return func(context.Context) (Schema, error) { return s, nil }
}

// Stats counts what a Sink did since it was made.
type Stats struct {
	Streams       uint64 `json:"streams"`        // SDK streams opened
	Rotations     uint64 `json:"rotations"`      // of them ended as planned by the service
	Requests      uint64 `json:"requests"`       // handed to the SDK
	Sent          uint64 `json:"sent"`           // records in them, repeats included
	SentBytes     uint64 `json:"sent_bytes"`     // encoded rows in them
	Resent        uint64 `json:"resent"`         // records that an earlier stream had been given already
	Acked         uint64 `json:"acked"`          // records acknowledged by the service
	Refused       uint64 `json:"refused"`        // records refused, by the service or by conversion
	Bisections    uint64 `json:"bisections"`     // windows searched for refused rows
	Throttled     uint64 `json:"throttled"`      // requests of the service to slow down
	TokenMints    uint64 `json:"token_mints"`    // tokens issued to us
	TokenFailures uint64 `json:"token_failures"` // token requests that failed
	ScaledClamped uint64 `json:"scaled_clamped"` // scaled_value beyond int32, written as its bound
	WindowBytes   int64  `json:"window_bytes"`   // encoded rows that wait for their acks now
	AckLatencyUS  int64  `json:"ack_latency_us"` // microseconds from hand-over to ack of the newest request
}

// The limits of a request and of the window, and the times, when Options leaves
// them 0.
const (
	defaultBatch       = 100
	maxBatch           = 100_000 // of the service and its clients
	defaultWindow      = 32 << 20
	defaultAckTimeout  = 60 * time.Second
	defaultOpenTimeout = 15 * time.Second
	// maxRequest is the largest encoded request: 10 MiB less 64 KiB, as in the
	// vendor's clients.
	maxRequest = 10_420_224
	// requestOverhead is more than what a request has besides its rows.
	requestOverhead = 64
)

// Sink delivers to one table of Unity Catalog. Open is called by one goroutine,
// Stats by any.
type Sink struct {
	o      Options
	table  string
	tokens tokenCache
	count  counters

	// What one stream leaves for the next. Streams live one after the other.
	mu        sync.Mutex
	highest   uint64      // sequence after the greatest that a stream was given
	suspect   uint64      // records below may hold one that is refused; 0 is none
	neighbour bool        // the stream that was refused had rows accepted before
	refused   []time.Time // rows refused by the service within the last hour
}

// counters is Stats while it is counted.
type counters struct {
	streams, rotations, requests, sent, sentBytes, resent, acked, refused, bisections, throttled, clamped atomic.Uint64
	window, latency                                                                                       atomic.Int64
}

// New makes a sink. The error lists everything that is wrong with o.Config; the
// credentials in it are not looked at.
func New(o Options) (*Sink, error) {
	checked := o.Config
	checked.Auth = Auth{ClientID: "-", ClientSecret: "-"}
	var errs []error
	for _, e := range checked.Validate() {
		errs = append(errs, e)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("configure zerobus: %w", err)
	}
	if o.BatchRecords <= 0 {
		o.BatchRecords = defaultBatch
	}
	o.BatchRecords = min(o.BatchRecords, maxBatch)
	if o.WindowBytes <= 0 {
		o.WindowBytes = defaultWindow
	}
	o.WindowBytes = max(o.WindowBytes, 2*maxRequest) // room for a request of the largest size
	if o.AckTimeout <= 0 {
		o.AckTimeout = defaultAckTimeout
	}
	if o.NeighbourWait <= 0 {
		o.NeighbourWait = defaultNeighbourWait
	}
	if o.OpenTimeout <= 0 {
		o.OpenTimeout = defaultOpenTimeout
	}
	return &Sink{o: o, table: o.Config.Target.String()}, nil
}

// Open opens a stream. See sinks.Sink.
func (s *Sink) Open(ctx context.Context) (sinks.Stream, error) {
	schema, err := s.o.Schema(ctx)
	if err == nil {
		err = schema.Validate()
	}
	if err != nil {
		return nil, sinks.HoldAs(sinks.StateSchemaUnknown, fmt.Errorf("read schema of %s: %w", s.table, err))
	}
	schema.Table = s.table
	w, err := s.dial(ctx, schema)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	suspect, neighbour := s.suspect, s.neighbour
	s.mu.Unlock()
	st := &stream{
		sink: s, schema: schema, enc: newEncoder(schema), wire: w,
		acks: sinks.NewAckQueue(), done: make(chan struct{}),
	}
	if suspect > 0 {
		st.search = &search{stream: st, upTo: suspect - 1, neighbour: neighbour}
		s.count.bisections.Add(1)
		s.o.Log.Info("something in the window was refused: delivering it with care to find the rows", "table", s.table, "up_to", suspect-1)
	} else {
		go st.settle(w, 0)
	}
	return st, nil
}

// Stats returns what was counted so far.
func (s *Sink) Stats() Stats {
	c := &s.count
	mints, fails := s.tokens.counts()
	return Stats{
		Streams: c.streams.Load(), Rotations: c.rotations.Load(), Requests: c.requests.Load(),
		Sent: c.sent.Load(), SentBytes: c.sentBytes.Load(), Resent: c.resent.Load(),
		Acked: c.acked.Load(), Refused: c.refused.Load(), Bisections: c.bisections.Load(),
		Throttled: c.throttled.Load(), TokenMints: mints, TokenFailures: fails,
		ScaledClamped: c.clamped.Load(), WindowBytes: c.window.Load(), AckLatencyUS: c.latency.Load(),
	}
}

// maxRefusedAnHour is how many rows the service may refuse before they are taken
// for a fault of the table.
const maxRefusedAnHour = 100

// admitRefusal notes one more refused row; false when there were too many.
func (s *Sink) admitRefusal() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusalsLeft() == 0 {
		return false
	}
	s.refused = append(s.refused, time.Now())
	return true
}

// refusalsLeft is how many rows may still be refused in this hour. s.mu is held.
func (s *Sink) refusalsLeft() int {
	old := 0
	for old < len(s.refused) && time.Since(s.refused[old]) > time.Hour {
		old++
	}
	s.refused = s.refused[old:]
	return maxRefusedAnHour - len(s.refused)
}
