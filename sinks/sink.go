// Package sinks says what a sink is and guards sinks: Guard reopens a failed
// stream for ever, with back-off and jitter, and opens a circuit breaker in
// front of a service that keeps failing. The sinks are the packages below it;
// package sinktest is the contract that each of them must pass.
//
//	queue of a destination ──> drain ──Send──> Stream ──> table
//	        cursor <────────── drain <──Acks── Stream <── durable
package sinks

import (
	"context"
	"errors"

	"github.com/edgehost/edgehost/abi"
)

// Record is one record on its way to a destination.
type Record struct {
	// Seq is the record's sequence number in the queue of the destination:
	// strictly increasing, not always dense.
	Seq uint64
	// ID is the same on every attempt to deliver the record, also after a crash
	// or by replay: pipeline UUID | batch sequence | output index.
	ID ID
	abi.Record
}

// ID identifies one output record of one pipeline for ever.
type ID struct {
	Pipeline [16]byte
	Batch    uint64
	Index    uint32
}

// Ack says that all records up to and including Seq are settled: durable at
// the destination, except those listed in Refused.
type Ack struct {
	Seq uint64
	// Refused lists the records in (previous Ack's Seq, Seq] that the
	// destination, or the conversion to its row, refused while their neighbours
	// were accepted; the drain dead-letters them before it moves its cursor.
	Refused []Refusal
}

// Refusal is one record that can never be delivered as it is.
type Refusal struct {
	Seq    uint64
	Reason string // a short class for metrics and the dead-letter queue: schema, too_large, rejected_permanent
	Err    error  // the destination's words; Permanent
}

// Sink delivers to one destination (a table). Open may be called again after a
// stream ended, by one goroutine.
type Sink interface {
	// Open starts a stream. It blocks until the destination accepts records or
	// ctx ends. An error that Held reports true for means that the destination
	// refuses us (token, grant, stream, unknown schema) and a person must act;
	// every other error is worth another try.
	Open(ctx context.Context) (Stream, error)
}

// Stream is one open delivery. Send and Close are called by one goroutine;
// Acks is read by another.
type Stream interface {
	// Send takes records in order into a window bounded in bytes and returns; it
	// blocks while the window is full. The records must not be changed afterwards.
	// After an error the stream is dead: the drain opens another and sends again
	// from its cursor.
	Send(ctx context.Context, recs []Record) error
	// Acks delivers cumulative acknowledgements in order and is closed when the
	// stream has ended, by Close or by failure; Err then says why.
	Acks() <-chan Ack
	// Err is nil before Acks is closed and after a clean Close.
	Err() error
	// Close sends what was accepted, waits for its acknowledgements until ctx
	// ends, and ends the stream. Acks is closed when Close returns.
	Close(ctx context.Context) error
}

// permanentError marks an error that another attempt cannot mend.
type permanentError struct{ err error }

func (e permanentError) Error() string { return e.err.Error() }
func (e permanentError) Unwrap() error { return e.err }

// Permanent marks err as final for the one record that it is about: never send
// it again, dead-letter it.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanentError{err}
}

// IsPermanent reports whether err was marked by Permanent.
func IsPermanent(err error) bool {
	var p permanentError
	return errors.As(err, &p)
}

// heldError marks an error that holds the whole destination.
type heldError struct{ err error }

func (e heldError) Error() string { return e.err.Error() }
func (e heldError) Unwrap() error { return e.err }

// Hold marks err as a refusal of the destination as a whole (token, grant,
// stream, schema): nothing is dead-lettered, the queue stays whole, the
// destination is probed with back-off until a person has mended it.
func Hold(err error) error {
	if err == nil {
		return nil
	}
	return heldError{err}
}

// Held reports whether err was marked by Hold.
func Held(err error) bool {
	var h heldError
	return errors.As(err, &h)
}
