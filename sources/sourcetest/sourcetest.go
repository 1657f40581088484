// Package sourcetest is the contract that every source must pass. A protocol's
// test makes a Rig (a peer, and a source that reads it) and calls Run, which
// puts consumers behind the source that accept, fail once, fail for a while,
// are slow, or drop, and checks what came through:
//
//	Rig.Publish(1..n) ──> peer ──> source ──emit──> consumer
//	                       ▲                            │ done(nil | err | ErrDropped)
//	        Rig.Acked ─────┴──────────── ack <──────────┘
//
// Every record keeps the rules of CheckRecord. Nothing is lost, nothing is acknowledged to the peer before done(nil) or
// done(ErrDropped), order holds per address, Run returns when its context ends,
// and no goroutine stays behind.
package sourcetest

import (
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// Harness makes what the suite runs against.
type Harness struct {
	// New starts a peer and makes a source of it. It is called once per case; it
	// registers what must be stopped with t.Cleanup.
	New func(t *testing.T) Rig
	// Polled says that the source samples what the peer holds (Modbus): a number
	// may be skipped when the next one replaces it, or be read twice. Then
	// "nothing lost" means that the last number arrives, and that no number
	// arrives after a higher one.
	Polled bool
	// Spoils says that Rig.Spoil is there.
	Spoils bool
	// Patience is how long the suite waits for anything; 0: 30 seconds.
	Patience time.Duration
}

func (h Harness) patience() time.Duration {
	if h.Patience > 0 {
		return h.Patience
	}
	return 30 * time.Second
}

// Rig is one peer and one source under test.
type Rig struct {
	Source sources.Source
	Status *sources.Status
	// Publish makes the peer offer the numbers first to last, in this order. It is
	// called while the source is Connected or Degraded, from the test's goroutine.
	Publish func(first, last int)
	// Number returns the number that a record holds, and false for records that
	// hold none (states, events).
	Number func(r abi.Record) (n int, ok bool)
	// Spoil makes the peer offer, at every address of Publish, something that
	// cannot be read as a number.
	Spoil func()
	// Tags are the static tags of the source: every record carries them.
	Tags map[string]string
	// Acked returns the numbers whose acknowledgement the peer has received; nil
	// when the protocol has no acknowledgements. Any goroutine may call it.
	Acked func() []int
}
