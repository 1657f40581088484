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
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// Record is one record on its way to a destination.
type Record struct {
	// Seq is the record's sequence number in the queue of the destination, from 0:
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

// The classes of Refusal.Reason.
const (
	ReasonSchema            = "schema"             // cannot be converted into the row that the table wants
	ReasonTooLarge          = "too_large"          // the row alone exceeds the largest request
	ReasonRejectedPermanent = "rejected_permanent" // the service refused the row and accepted its neighbours
)

// Refusal is one record that can never be delivered as it is.
type Refusal struct {
	Seq    uint64
	Reason string // a short class for metrics and the dead-letter queue: one of the Reason constants
	Err    error  // the destination's words; Permanent
}

// String is the text in the record_id column: 32 hex digits of the pipeline, 16
// of the batch, 8 of the index, with dashes between. It sorts like the IDs.
func (id ID) String() string { return string(id.AppendText(make([]byte, 0, IDLen))) }

// IDLen is the length of ID.String.
const IDLen = 32 + 1 + 16 + 1 + 8

// AppendText appends the text of String to b.
func (id ID) AppendText(b []byte) []byte {
	b = hex.AppendEncode(b, id.Pipeline[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, binary.BigEndian.AppendUint64(nil, id.Batch))
	b = append(b, '-')
	return hex.AppendEncode(b, binary.BigEndian.AppendUint32(nil, id.Index))
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
	// ends, and ends the stream. Acks is closed when Close returns. A stream that
	// has failed may be closed too; Close then returns nil or the failure.
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
type heldError struct {
	err   error
	state State
}

func (e heldError) Error() string { return e.err.Error() }
func (e heldError) Unwrap() error { return e.err }

// Hold marks err as a refusal of the destination as a whole (token, grant,
// stream, schema): nothing is dead-lettered, the queue stays whole, the
// destination is probed with back-off until a person has mended it.
func Hold(err error) error { return HoldAs(StateHeld, err) }

// HoldAs is Hold with the state that the destination shows meanwhile:
// StateHeld, StateAuthFailed or StateSchemaUnknown.
func HoldAs(state State, err error) error {
	if err == nil {
		return nil
	}
	return heldError{err, state}
}

// Held reports whether err was marked by Hold.
func Held(err error) bool {
	var h heldError
	return errors.As(err, &h)
}

// ErrRotated is wrapped by Stream.Err when the destination ended the stream as
// planned (the service closes every stream after some minutes). It is no
// failure: Guard opens the next stream at once.
var ErrRotated = errors.New("stream ended as planned by the destination")

// ErrSuspect is wrapped by Stream.Err when the destination refused something in
// the window and the next stream will look for the record. It is no failure of
// the connection: Guard opens the next stream at once.
var ErrSuspect = errors.New("a record in the window was refused")

// throttledError marks an error by which the destination asks us to slow down.
type throttledError struct {
	err   error
	after time.Duration
}

func (e throttledError) Error() string { return e.err.Error() }
func (e throttledError) Unwrap() error { return e.err }

// Throttled marks err as a request to slow down: Guard waits for its back-off,
// and at least for after, and does not count a failure against the breaker.
func Throttled(err error, after time.Duration) error {
	if err == nil {
		return nil
	}
	return throttledError{err, after}
}

// IsThrottled reports whether err was marked by Throttled and how long the
// destination asked us to wait; 0 when it did not say.
func IsThrottled(err error) (after time.Duration, ok bool) {
	var t throttledError
	ok = errors.As(err, &t)
	return t.after, ok
}
