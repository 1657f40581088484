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
	"log/slog"
	"time"
)

// Options is what a Sink is made of.
type Options struct {
	Config Config
	// Schema returns the columns of the target table. It is called at every Open;
	// its error holds the destination as schema_unknown. Fixed returns one that
	// never changes.
	Schema func(ctx context.Context) (Schema, error)
	// Credentials returns the service principal's id and secret. It is called for
	// every token, so that a rotated secret is used without a restart. Its error
	// holds the destination as auth_failed.
	Credentials func() (id, secret string, err error)
	// BatchRecords is the most rows in one request, processing.batch.max_size;
	// 0 is 100.
	BatchRecords int
	// WindowBytes bounds the encoded rows that wait for their acks; 0 is 32 MiB.
	WindowBytes int64
	// AckTimeout ends a stream when something is unacknowledged and no ack has
	// arrived for so long; 0 is 60 s, as in the vendor's clients.
	AckTimeout time.Duration
	// OpenTimeout bounds one attempt to open a stream, token included; 0 is 15 s.
	OpenTimeout time.Duration
	Log         *slog.Logger
}

// Fixed is an Options.Schema that always returns s.
func Fixed(s Schema) func(context.Context) (Schema, error) {
	return func(context.Context) (Schema, error) { return s, nil }
}

// Stats counts what a Sink did since it was made.
type Stats struct {
	Streams         uint64 `json:"streams"`         // SDK streams opened
	Rotations       uint64 `json:"rotations"`       // of them ended as planned by the service
	Requests        uint64 `json:"requests"`        // handed to the SDK
	Sent            uint64 `json:"sent"`            // records in them, repeats included
	SentBytes       uint64 `json:"sent_bytes"`      // encoded rows in them
	Resent          uint64 `json:"resent"`          // records that an earlier stream had been given already
	Acked           uint64 `json:"acked"`           // records acknowledged by the service
	Refused         uint64 `json:"refused"`         // records refused, by the service or by conversion
	Bisections      uint64 `json:"bisections"`      // windows searched for refused rows
	Throttled       uint64 `json:"throttled"`       // requests of the service to slow down
	TokenMints      uint64 `json:"token_mints"`     // tokens issued to us
	TokenFailures   uint64 `json:"token_failures"`  // token requests that failed
	ScaledClamped   uint64 `json:"scaled_clamped"`  // scaled_value beyond int32, written as its bound
	WindowBytes     int64  `json:"window_bytes"`    // encoded rows that wait for their acks now
	LastDurabilityS int64  `json:"last_durability"` // microseconds from hand-over to ack of the newest request
}
