// Package sources says what a source is, runs sources under one supervisor
// each, and holds what all protocols share: states, back-off, batching, static
// tags. The protocols are the packages below it; package sourcetest is the
// contract that each of them must pass.
//
//	device ──> Source.Run ──emit──> pipeline ──> spool
//	   ^                                           │
//	   └──────────── ack <────── done(nil) <───────┘ durable
package sources

import (
	"context"
	"errors"

	"github.com/edgehost/edgehost/abi"
)

// ErrDropped is what done receives when a batch was lost to a configured drop
// policy. It is counted there; the source acknowledges it to the device like a
// batch that was stored, since the device is not to send it again.
var ErrDropped = errors.New("batch dropped by policy")

// Batch is what a source emits: records that the device has handed over and
// that are the source's responsibility until done says otherwise.
type Batch struct {
	// Time is the clock that modules see, in microseconds since the Unix epoch.
	Time    int64
	Records []abi.Record
	// Resume, when not nil, replaces the source's resume point in the same
	// commit that makes the records durable. At most 64 KiB.
	Resume []byte
	// Points are notes of the source's Watch, stored in that commit too. Sources
	// leave them nil.
	Points []PointNote
}

// Emit hands a batch to the pipeline of the source.
//
// It is called by one goroutine of a source, in order. It returns nil when the
// batch is queued, and blocks for back-pressure; after an error (the context
// ended, the pipeline stopped) the batch is still the source's and done is not
// called. done runs once for each batch for which Emit returned nil, in order,
// on a goroutine of the pipeline, and must not block: nil means durable, so
// acknowledge to the device; ErrDropped means lost to the configured policy,
// counted; any other error means that the batch is still the source's, and so is
// every batch after it that was emitted before the source heard of the error.
type Emit func(ctx context.Context, b Batch, done func(error)) error

// Source reads one configured endpoint.
//
// Run connects, reads and emits until ctx ends (then it returns nil or
// ctx.Err()) or until it cannot go on (then it returns the reason, and the
// supervisor calls Run again after a back-off). Run is called from one
// goroutine at a time, repeatedly over the life of a Source; it reports its
// state to the Status that it was made with. When Run returns, no goroutine of
// the source calls Emit any more; done may still be called afterwards.
type Source interface {
	Run(ctx context.Context, emit Emit) error
}
