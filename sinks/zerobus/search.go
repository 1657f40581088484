package zerobus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/edgehost/edgehost/sinks"
)

// search delivers a window of which the service refused something without saying
// what. It sends the window, waits, and where the service refuses again it halves
// what is left, each half on a fresh wire, until single rows are refused. A row
// is a refusal only when a neighbour was accepted; when every row is refused, the
// table is at fault and the destination is held.
//
//	[............x...]  ->  [........] ok  [....x...]  ->  [....] ok  [x...]  ->  [x.]  ->  [x] refused
type search struct {
	stream    *stream
	upTo      uint64   // the window ends with this sequence
	hide      []string // what must not appear in a refusal
	neighbour bool     // rows were accepted on the stream that was refused

	mu       sync.Mutex // Send's goroutine against the timer
	unproven []sinks.Refusal
	run      int // refused rows since the last accepted one
	waiting  *time.Timer
}

// defaultNeighbourWait is Options.NeighbourWait when that is 0.
const defaultNeighbourWait = 5 * time.Second

// item is one record in the window: its row, or why it has none.
type item struct {
	seq     uint64
	row     []byte
	refusal *sinks.Refusal
}

// send delivers the records of recs that belong to the window, and returns those
// that do not. When the window is done it ends the search.
func (c *search) send(ctx context.Context, recs []sinks.Record) (rest []sinks.Record, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopWaiting()
	if err := c.stream.Err(); err != nil {
		return nil, err
	}
	n, last := 0, c.upTo
	for n < len(recs) && recs[n].Seq <= c.upTo {
		last = recs[n].Seq
		n++
	}
	rest = recs[n:]
	err = c.deliver(ctx, recs[:n])
	for err == nil && len(c.unproven) > 0 && len(rest) > 0 { // neighbours behind the window
		n = min(len(rest), c.stream.sink.o.BatchRecords)
		last = rest[n-1].Seq
		err = c.deliver(ctx, rest[:n])
		rest = rest[n:]
	}
	if err != nil {
		return nil, err
	}
	if len(c.unproven) > 0 && c.neighbour {
		if err := c.emit(last, nil); err != nil {
			return nil, err
		}
	}
	if len(c.unproven) > 0 {
		c.waiting = time.AfterFunc(c.stream.sink.o.NeighbourWait, c.noNeighbour)
		return nil, nil
	}
	if last < c.upTo && len(rest) == 0 {
		return nil, nil
	}
	return rest, c.finish(ctx)
}

// finish makes the stream an ordinary one.
func (c *search) finish(ctx context.Context) error {
	s := c.stream
	if err := c.ensureWire(ctx); err != nil {
		return err
	}
	s.sink.mu.Lock()
	s.sink.suspect, s.sink.neighbour = 0, false
	s.sink.mu.Unlock()
	s.search = nil
	go s.settle(s.wire, s.wire.next)
	return nil
}

// stop ends the waiting for a neighbour.
func (c *search) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopWaiting()
}

func (c *search) stopWaiting() {
	if c.waiting != nil {
		c.waiting.Stop()
		c.waiting = nil
	}
}

// noNeighbour ends a stream on which nothing but refused rows was there to send.
func (c *search) noNeighbour() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil || len(c.unproven) == 0 {
		return
	}
	c.stream.end(c.hold(fmt.Errorf("the only rows to send are refused, so that it is not clear whether they or the table are at fault: %w", c.unproven[0].Err)))
}

// hold holds the destination: whatever was accepted before proves nothing now.
func (c *search) hold(err error) error {
	s := c.stream.sink
	s.mu.Lock()
	s.neighbour = false
	s.mu.Unlock()
	return sinks.Hold(err)
}

// deliver encodes recs and sends them until each is accepted or refused.
func (c *search) deliver(ctx context.Context, recs []sinks.Record) error {
	s := c.stream
	items := make([]item, len(recs))
	for i := range recs {
		row, refusal := s.encode(&recs[i])
		items[i] = item{seq: recs[i].Seq, row: append([]byte{}, row...), refusal: refusal}
	}
	return c.halve(ctx, items)
}

// halve delivers items, and the halves of what is left where they are refused.
func (c *search) halve(ctx context.Context, items []item) error {
	n, err := c.try(ctx, items)
	if acceptErr := c.accepted(items[:n]); acceptErr != nil {
		return acceptErr
	}
	items = items[n:]
	if err == nil {
		return nil
	}
	if status.Code(err) != codes.InvalidArgument {
		return err
	}
	s := c.stream.sink
	s.mu.Lock()
	left := s.refusalsLeft()
	s.mu.Unlock()
	if left == 0 {
		return c.tooMany(err)
	}
	if len(items) == 1 {
		return c.refuse(items[0], err)
	}
	half := len(items) / 2
	if err := c.halve(ctx, items[:half]); err != nil {
		return err
	}
	return c.halve(ctx, items[half:])
}

// sent is a request of try.
type sent struct {
	request
	offset int64 // of the request, -1 when it has no rows
	end    int   // items up to here are settled with it
}

// try sends items in requests and waits for their acks. n items are settled, all
// of them when err is nil.
func (c *search) try(ctx context.Context, items []item) (n int, err error) {
	if err := c.ensureWire(ctx); err != nil {
		return 0, err
	}
	s, w := c.stream, c.stream.wire
	requests, sendErr := c.sendAll(ctx, items)
	for _, r := range requests {
		if r.offset >= 0 && err == nil {
			err = w.wait(ctx, r.offset)
		}
		switch {
		case err != nil:
			s.sink.count.window.Add(-int64(r.bytes))
		case r.rows > 0:
			s.accepted(r.request)
			fallthrough
		default:
			n = r.end
		}
	}
	if err == nil && sendErr != nil {
		w.close()
		err = w.wait(ctx, w.next) // why, where the sender only heard "closed"
	}
	if err == nil {
		return n, nil
	}
	w.close()
	s.wire = nil
	if ctx.Err() != nil {
		return n, fmt.Errorf("send to %s: %w", s.sink.table, ctx.Err())
	}
	if status.Code(err) == codes.InvalidArgument {
		return n, err
	}
	return n, w.classify(err)
}

// sendAll hands items to the SDK in requests, as far as it takes them.
func (c *search) sendAll(ctx context.Context, items []item) (requests []sent, err error) {
	s := c.stream
	for i := 0; i < len(items); {
		rows, end, size := s.rows[:0], i, 0
		for end < len(items) && len(rows) < s.sink.o.BatchRecords && (size == 0 || size+rowSize(items[end].row) <= maxRequest-requestOverhead) {
			if items[end].refusal == nil {
				rows = append(rows, items[end].row)
				size += rowSize(items[end].row)
			}
			end++
		}
		r := sent{request: request{last: items[end-1].seq, rows: len(rows), bytes: size, at: time.Now()}, offset: -1, end: end}
		if len(rows) > 0 {
			if r.offset, err = s.wire.send(ctx, rows); err != nil {
				return requests, err
			}
			s.handed(r.request)
		}
		requests = append(requests, r)
		i = end
	}
	return requests, nil
}

// ensureWire opens a wire when the last one has ended.
func (c *search) ensureWire(ctx context.Context) (err error) {
	if c.stream.wire == nil {
		c.stream.wire, err = c.stream.sink.dial(ctx, c.stream.schema)
	}
	if err == nil {
		c.hide = c.stream.wire.hide
	}
	return err
}

// accepted settles items that the service took. Rows among them prove that the
// rows refused before them were at fault themselves.
func (c *search) accepted(items []item) error {
	if len(items) == 0 {
		return nil
	}
	var refused []sinks.Refusal
	proof := false
	for _, it := range items {
		if it.refusal != nil {
			refused = append(refused, *it.refusal)
		} else {
			proof = true
		}
	}
	if !proof && len(c.unproven) > 0 { // their turn comes after those before them
		c.unproven = append(c.unproven, refused...)
		return nil
	}
	if proof {
		c.run, c.neighbour = 0, true
	}
	return c.emit(items[len(items)-1].seq, refused)
}

// emit acknowledges up to seq with everything that was refused until then.
func (c *search) emit(seq uint64, more []sinks.Refusal) error {
	s := c.stream.sink
	for _, r := range c.unproven {
		if r.Reason == sinks.ReasonRejectedPermanent && !s.admitRefusal() {
			return c.tooMany(r.Err)
		}
	}
	refused := append(c.unproven, more...)
	c.unproven = nil
	s.count.refused.Add(uint64(len(refused)))
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	if !c.stream.ended {
		c.stream.acks.Put(sinks.Ack{Seq: seq, Refused: refused})
	}
	return nil
}

// refuse notes that the service refused one row alone.
func (c *search) refuse(it item, err error) error {
	words := c.words(err)
	c.run++
	if c.run > maxRefusedAnHour {
		return c.hold(fmt.Errorf("%d rows in a row were refused by %s, which looks like the table rather than the rows (compare its columns with the schema in use): %s", c.run, c.stream.sink.table, words))
	}
	refusal := sinks.Refusal{Seq: it.seq, Reason: sinks.ReasonRejectedPermanent, Err: sinks.Permanent(fmt.Errorf("row refused by %s: %s", c.stream.sink.table, words))}
	c.unproven = append(c.unproven, refusal)
	return nil
}

// tooMany holds a destination that refuses row after row.
func (c *search) tooMany(err error) error {
	return c.hold(fmt.Errorf("more than %d rows were refused by %s within an hour, which looks like the table rather than the rows (compare its columns with the schema in use): %s", maxRefusedAnHour, c.stream.sink.table, c.words(err)))
}

// words is what the service said about a row.
func (c *search) words(err error) string {
	text := err.Error()
	if st := answer(err); st != nil {
		text = st.Message()
	}
	return redact(text, c.hide)
}
