package zerobus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/edgehost/edgehost/sinks"
)

// stream is one delivery: see sinks.Stream. Send and Close run on the drain's
// goroutine, settle on one of its own; mu guards what they share.
type stream struct {
	sink   *Sink
	schema Schema
	enc    *encoder
	wire   *wire
	search *search // not nil while a window that was refused is delivered with care
	acks   *sinks.AckQueue
	done   chan struct{} // closed after acks

	arena []byte   // the rows of the request that is being filled
	rows  [][]byte // in arena
	size  int      // of rows in a request

	mu      sync.Mutex
	pending []request // handed to the SDK, not yet durable, in order
	acked   bool      // a row was accepted
	closing bool
	ended   bool
	err     error
}

// request is one message of rows on its way.
type request struct {
	last    uint64 // sequence of the last record that it settles
	rows    int
	bytes   int
	refused []sinks.Refusal // records that could not be converted, up to last
	at      time.Time
}

// Acks returns the acks.
func (s *stream) Acks() <-chan sinks.Ack { return s.acks.C() }

// Err says why the stream ended.
func (s *stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Send encodes recs and hands them to the SDK in requests.
func (s *stream) Send(ctx context.Context, recs []sinks.Record) error {
	if s.search != nil {
		rest, err := s.search.send(ctx, recs)
		if err != nil {
			s.end(err)
			return err
		}
		recs = rest
		if s.search != nil || len(recs) == 0 {
			return nil
		}
	}
	var req request
	for i := range recs {
		r := &recs[i]
		if len(s.rows) == s.sink.o.BatchRecords {
			if err := s.flush(ctx, &req); err != nil {
				return err
			}
		}
		row, refusal := s.encode(r)
		if refusal != nil {
			req.refused = append(req.refused, *refusal)
		} else {
			if len(s.rows) > 0 && s.size+rowSize(row) > maxRequest-requestOverhead {
				if err := s.flush(ctx, &req); err != nil {
					return err
				}
			}
			s.keep(row)
		}
		req.last = r.Seq
	}
	return s.flush(ctx, &req)
}

// encode returns the row of r, behind the end of the arena, or its refusal.
func (s *stream) encode(r *sinks.Record) ([]byte, *sinks.Refusal) {
	start := len(s.arena)
	before := s.enc.clamped
	out, err := s.enc.append(s.arena, r)
	s.sink.count.clamped.Add(s.enc.clamped - before)
	if err != nil {
		return nil, &sinks.Refusal{Seq: r.Seq, Reason: sinks.ReasonSchema, Err: err}
	}
	s.arena = out[:start] // it may have grown
	row := out[start:]
	if rowSize(row) > maxRequest-requestOverhead {
		err := sinks.Permanent(fmt.Errorf("row of %d bytes exceeds the largest request of the service, %d bytes", len(row), maxRequest))
		return nil, &sinks.Refusal{Seq: r.Seq, Reason: sinks.ReasonTooLarge, Err: err}
	}
	return row, nil
}

// keep makes row, which encode returned, part of the request.
func (s *stream) keep(row []byte) {
	n := len(s.arena)
	s.arena = append(s.arena, row...)
	s.rows = append(s.rows, s.arena[n:])
	s.size += rowSize(row)
}

// rowSize is the room that a row takes in a request.
func rowSize(row []byte) int { return 1 + protowire.SizeBytes(len(row)) }

// flush hands over the request that was filled and begins another.
func (s *stream) flush(ctx context.Context, req *request) error {
	if len(s.rows) == 0 && len(req.refused) == 0 {
		return nil
	}
	r := *req
	r.rows, r.bytes, r.at = len(s.rows), s.size, time.Now()
	rows := s.rows
	*req, s.arena, s.rows, s.size = request{}, s.arena[:0], s.rows[:0], 0
	if !s.push(r) {
		<-s.done
		return s.ending(errClosed)
	}
	if r.rows == 0 {
		return nil
	}
	_, err := s.wire.send(ctx, rows)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		s.mu.Lock()
		s.ended, s.err = true, fmt.Errorf("send to %s: %w", s.sink.table, ctx.Err())
		s.mu.Unlock()
	}
	s.wire.close() // settle sees the true reason, which Send only hears as "closed"
	<-s.done
	return s.ending(err)
}

// errClosed is what Send returns after Close.
var errClosed = errors.New("the stream is closed")

// ending is why a stream has ended, and err when it ended well.
func (s *stream) ending(err error) error {
	if end := s.Err(); end != nil {
		return end
	}
	return explain("send to "+s.sink.table, err, s.hide())
}

// hide is what must not appear in an error.
func (s *stream) hide() []string {
	if s.wire == nil {
		return nil
	}
	return s.wire.hide
}

// push notes a request before it is sent, so that its ack finds it. A request
// without rows is settled with the one before it. False: the stream has ended.
func (s *stream) push(r request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	switch n := len(s.pending); {
	case r.rows > 0:
		s.pending = append(s.pending, r)
		s.handed(r)
	case n > 0:
		s.pending[n-1].last = r.last
		s.pending[n-1].refused = append(s.pending[n-1].refused, r.refused...)
	default:
		s.acks.Put(sinks.Ack{Seq: r.last, Refused: r.refused})
	}
	s.sink.count.refused.Add(uint64(len(r.refused)))
	return true
}

// handed counts a request that the SDK is about to get.
func (s *stream) handed(r request) {
	c := &s.sink.count
	c.requests.Add(1)
	c.sent.Add(uint64(r.rows))
	c.sentBytes.Add(uint64(r.bytes))
	c.window.Add(int64(r.bytes))
	s.sink.noteSent(r)
}

// noteSent counts what is sent again. Sequences are not always dense, so a
// request that straddles the highest one counts as a whole.
func (s *Sink) noteSent(r request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.last < s.highest {
		s.count.resent.Add(uint64(r.rows))
	}
	s.highest = max(s.highest, r.last+1)
}

// settle turns the SDK's watermark into acks, beginning with the request at
// offset from, until the stream ends. Waiting for the next offset is also how the end of an idle stream is noticed.
func (s *stream) settle(w *wire, from int64) {
	for offset := from; ; offset++ {
		if err := w.wait(context.Background(), offset); err != nil {
			s.finish(w, err)
			return
		}
		s.mu.Lock()
		if len(s.pending) == 0 { // the SDK acknowledged what was never sent
			s.mu.Unlock()
			s.finish(w, errors.New("an ack exceeds what was sent"))
			return
		}
		r := s.pending[0]
		s.pending = s.pending[1:]
		s.acked = true
		s.accepted(r)
		s.acks.Put(sinks.Ack{Seq: r.last, Refused: r.refused})
		s.mu.Unlock()
	}
}

// accepted counts a request that is durable.
func (s *stream) accepted(r request) {
	c := &s.sink.count
	c.acked.Add(uint64(r.rows))
	c.window.Add(-int64(r.bytes))
	c.latency.Store(time.Since(r.at).Microseconds())
}

// finish ends the stream after its wire has ended with err.
func (s *stream) finish(w *wire, err error) {
	s.mu.Lock()
	for _, r := range s.pending {
		s.sink.count.window.Add(-int64(r.bytes))
	}
	switch {
	case s.err != nil: // Send's context has ended
	case s.closing && len(s.pending) == 0:
	case status.Code(err) == codes.InvalidArgument && len(s.pending) > 0:
		s.sink.suspectWindow(s.pending[len(s.pending)-1].last, s.acked)
		s.err = fmt.Errorf("%w: %w", sinks.ErrSuspect, explain("deliver to "+s.sink.table, err, w.hide))
	case status.Code(err) == codes.InvalidArgument:
		s.err = sinks.Hold(explain("keep stream to "+s.sink.table, err, w.hide))
	default:
		s.err = w.classify(err)
	}
	s.ended = true
	s.pending = nil
	s.acks.Close()
	s.mu.Unlock()
	w.close()
	close(s.done)
}

// end ends a stream that is searching, which has no settle goroutine.
func (s *stream) end(err error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended, s.err = true, err
	s.acks.Close()
	s.mu.Unlock()
	if s.wire != nil {
		s.wire.close()
	}
	close(s.done)
}

// Close sends what was accepted, waits for its acks, and ends the stream.
func (s *stream) Close(ctx context.Context) error {
	if s.search != nil {
		s.search.stop()
		s.end(nil)
		return s.Err()
	}
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		<-s.done
		return s.Err()
	}
	s.closing = true
	s.mu.Unlock()
	flushErr := s.wire.stream.FlushContext(ctx)
	s.wire.close()
	<-s.done
	if err := s.Err(); err != nil {
		return err
	}
	if flushErr != nil && ctx.Err() != nil {
		return fmt.Errorf("close stream to %s: %w", s.sink.table, ctx.Err())
	}
	return nil
}

// suspectWindow makes the next stream search the records up to last.
func (s *Sink) suspectWindow(last uint64, neighbour bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspect, s.neighbour = max(s.suspect, last+1), neighbour
}
