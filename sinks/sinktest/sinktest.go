// Package sinktest is the contract of package sinks as a test suite: every sink
// passes Run. Drain is the smallest user of a sink that loses nothing.
package sinktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
)

// Destination is a sink under test and what the test can see and do behind it.
type Destination struct {
	Sink sinks.Sink
	// Rows lists the record ids that are durable now, in the order in which they
	// became so.
	Rows func() []string
	// Fail breaks the open stream from the other side. nil: cannot happen.
	Fail func()
	// Poison makes r a record that is refused while its neighbours are accepted.
	// nil: there is none.
	Poison func(r *sinks.Record)
	// Stall stops and starts the acknowledging. nil: cannot happen.
	Stall func(stop bool)
	// Window is how many bytes of values may wait for acks; used with Stall.
	Window int
}

// patience bounds every wait.
const patience = 30 * time.Second

// Run runs the suite. open makes a fresh destination for each test.
func Run(t *testing.T, open func(t *testing.T) Destination) {
	for name, test := range map[string]func(*testing.T, Destination){
		"acks are cumulative and durable":   acksAreDurable,
		"a queue begins with number 0":      zeroIsANumber,
		"close flushes":                     closeFlushes,
		"close after the end":               closeTwice,
		"open obeys its context":            openObeysContext,
		"a failed stream is sent again":     failedIsSentAgain,
		"a refused record stops nobody":     refusedStopsNobody,
		"the window is bounded":             windowIsBounded,
		"acks need no reader while sending": acksNeedNoReader,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// Record is the record that the suite sends as number seq.
func Record(seq uint64) sinks.Record {
	return sinks.Record{Seq: seq, ID: sinks.ID{Pipeline: [16]byte{1}, Batch: seq / 16, Index: uint32(seq)}, Record: abi.Record{
		EventTime: int64(seq), IngestTime: int64(seq) + 1, Source: "sinktest", Address: fmt.Sprint("a/", seq),
		Protocol: abi.ProtocolMQTT, Value: abi.Float(float64(seq)),
	}}
}

// Records are the records from to to, with a gap of one in the sequence after
// every tenth: sequences are not always dense.
func Records(from, to uint64) []sinks.Record {
	var recs []sinks.Record
	for seq := from; seq <= to; seq++ {
		if seq%10 != 0 || seq == to {
			recs = append(recs, Record(seq))
		}
	}
	return recs
}

func ids(recs []sinks.Record) []string {
	var out []string
	for i := range recs {
		out = append(out, recs[i].ID.String())
	}
	return out
}

func mustOpen(t *testing.T, s sinks.Sink) sinks.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	st, err := s.Open(ctx)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return st
}

func mustClose(t *testing.T, st sinks.Stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	if err := st.Close(ctx); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// next reads one ack; ok is false when the stream has ended.
func next(t *testing.T, st sinks.Stream) (a sinks.Ack, ok bool) {
	t.Helper()
	select {
	case a, ok = <-st.Acks():
		return a, ok
	case <-time.After(patience):
		t.Fatal("no ack")
		return a, false
	}
}

func acksAreDurable(t *testing.T, d Destination) {
	st := mustOpen(t, d.Sink)
	defer mustClose(t, st)
	recs := Records(1, 400)
	go func() {
		for chunk := range slices.Chunk(recs, 37) {
			if st.Send(t.Context(), chunk) != nil {
				return // the missing ack fails the test
			}
		}
	}()
	for last := uint64(0); last < recs[len(recs)-1].Seq; {
		a, ok := next(t, st)
		if !ok {
			t.Fatalf("the stream ended: %v", st.Err())
		}
		if a.Seq <= last {
			t.Fatalf("ack %d after ack %d", a.Seq, last)
		}
		if len(a.Refused) > 0 {
			t.Fatalf("refused: %v", a.Refused)
		}
		last = a.Seq
		n, _ := slices.BinarySearchFunc(recs, last+1, func(r sinks.Record, seq uint64) int { return int(r.Seq) - int(seq) })
		if rows := d.Rows(); len(rows) < n || !slices.Equal(rows[:n], ids(recs[:n])) {
			t.Fatalf("ack %d, but the destination holds %d of %d rows or in another order", last, len(rows), n)
		}
	}
}

// zeroIsANumber: the first record of a queue is acknowledged, or refused, though
// nothing follows it.
func zeroIsANumber(t *testing.T, d Destination) {
	st := mustOpen(t, d.Sink)
	if err := st.Send(t.Context(), []sinks.Record{Record(0)}); err != nil {
		t.Fatal(err)
	}
	if a, ok := next(t, st); !ok || a.Seq != 0 || len(a.Refused) > 0 {
		t.Errorf("ack %+v, %v", a, ok)
	}
	mustClose(t, st)
	if d.Poison == nil {
		return
	}
	recs := []sinks.Record{Record(0), Record(1)}
	d.Poison(&recs[0])
	if refused := Drain(t, d.Sink, recs); len(refused) != 1 || refused[0].Seq != 0 {
		t.Errorf("refused %+v", refused)
	}
}

func closeFlushes(t *testing.T, d Destination) {
	st := mustOpen(t, d.Sink)
	recs := Records(1, 250)
	if err := st.Send(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	mustClose(t, st)
	var last uint64
	for a := range st.Acks() {
		last = a.Seq
	}
	if last != 250 {
		t.Errorf("the last ack is %d", last)
	}
	if err := st.Err(); err != nil {
		t.Errorf("Err after Close: %v", err)
	}
	if rows := d.Rows(); !slices.Equal(rows, ids(recs)) {
		t.Errorf("%d rows of %d", len(rows), len(recs))
	}
}

func closeTwice(t *testing.T, d Destination) {
	st := mustOpen(t, d.Sink)
	mustClose(t, st)
	mustClose(t, st)
	if err := st.Send(t.Context(), Records(1, 1)); err == nil {
		t.Error("Send on a closed stream succeeded")
	}
	st = mustOpen(t, d.Sink) // Open may be called again
	mustClose(t, st)
}

func openObeysContext(t *testing.T, d Destination) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if st, err := d.Sink.Open(ctx); err == nil {
		mustClose(t, st)
		t.Error("Open succeeded with an ended context")
	}
}

func failedIsSentAgain(t *testing.T, d Destination) {
	if d.Fail == nil {
		return
	}
	recs := Records(1, 600)
	st := mustOpen(t, d.Sink)
	if err := st.Send(t.Context(), recs[:100]); err != nil {
		t.Fatal(err)
	}
	for seq := uint64(0); seq < recs[99].Seq; {
		a, ok := next(t, st)
		if !ok {
			t.Fatalf("the stream ended: %v", st.Err())
		}
		seq = a.Seq
	}
	d.Fail()
	for a := range st.Acks() {
		t.Errorf("ack %v of nothing", a)
	}
	if st.Err() == nil {
		t.Error("Err is nil after a failure")
	}
	if st.Send(t.Context(), recs[100:101]) == nil {
		t.Error("Send on a failed stream succeeded")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := st.Close(ctx); ctx.Err() != nil {
		t.Errorf("Close of a failed stream hangs: %v", err)
	}
	if refused := Drain(t, d.Sink, recs[100:]); len(refused) > 0 {
		t.Errorf("refused: %v", refused)
	}
	if rows := distinct(d.Rows()); !slices.Equal(rows, ids(recs)) {
		t.Errorf("%d rows of %d, or in another order", len(rows), len(recs))
	}
}

func refusedStopsNobody(t *testing.T, d Destination) {
	if d.Poison == nil {
		return
	}
	recs := Records(1, 300)
	bad := []int{7, 8, 150, len(recs) - 1}
	var want []uint64
	var good []string
	for i := range recs {
		if slices.Contains(bad, i) {
			d.Poison(&recs[i])
			want = append(want, recs[i].Seq)
		} else {
			good = append(good, recs[i].ID.String())
		}
	}
	var got []uint64
	for _, r := range Drain(t, d.Sink, recs) {
		got = append(got, r.Seq)
		if r.Reason == "" || !sinks.IsPermanent(r.Err) {
			t.Errorf("refusal without a reason or not permanent: %+v", r)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("refused %v, want %v", got, want)
	}
	if rows := distinct(d.Rows()); !slices.Equal(rows, good) {
		t.Errorf("%d rows of %d, or in another order", len(rows), len(good))
	}
}

// distinct keeps the first of equal ids.
func distinct(ids []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		again := seen[id]
		seen[id] = true
		return again
	})
}

func windowIsBounded(t *testing.T, d Destination) {
	if d.Stall == nil {
		return
	}
	d.Stall(true)
	st := mustOpen(t, d.Sink)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const size = 100_000
	sent := make(chan uint64, 4096)
	ended := make(chan error, 1)
	go func() {
		for seq := uint64(1); ; seq++ {
			r := Record(seq)
			r.Value = abi.Bytes(make([]byte, size))
			if err := st.Send(ctx, []sinks.Record{r}); err != nil {
				ended <- err
				return
			}
			sent <- seq
		}
	}()
	count := 0
	for idle := false; !idle; {
		select {
		case <-sent:
			if count++; count*size > d.Window+size {
				t.Fatalf("%d bytes were taken into a window of %d", count*size, d.Window)
			}
		case <-time.After(500 * time.Millisecond):
			idle = count > 0
		}
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Send: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Send does not obey its context")
	}
	for range st.Acks() { // closed, since the stream is dead
	}
	d.Stall(false)
}

func acksNeedNoReader(t *testing.T, d Destination) {
	st := mustOpen(t, d.Sink)
	recs := Records(1, 2000)
	for chunk := range slices.Chunk(recs, 10) {
		if err := st.Send(t.Context(), chunk); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, st)
	if n := len(d.Rows()); n != len(recs) {
		t.Errorf("%d rows of %d", n, len(recs))
	}
}

// Drain delivers recs as the host does: it opens a stream, sends from the cursor,
// and begins again when the stream ends, until everything is acknowledged. It
// returns the refusals in order and fails the test when that takes too long.
func Drain(t testing.TB, s sinks.Sink, recs []sinks.Record) []sinks.Refusal {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var refused []sinks.Refusal
	for len(recs) > 0 {
		st, err := s.Open(ctx)
		if err != nil {
			if ctx.Err() != nil || sinks.Held(err) {
				t.Fatalf("Open: %v", err)
			}
			continue
		}
		more, end := drainOne(ctx, st, recs)
		refused = append(refused, more...)
		n := 0
		for n < len(recs) && recs[n].Seq < end {
			n++
		}
		recs = recs[n:]
		if err := st.Err(); len(recs) > 0 && (ctx.Err() != nil || sinks.Held(err)) {
			t.Fatalf("%d records are not delivered: %v", len(recs), err)
		}
	}
	return refused
}

// drainOne sends recs on one stream and returns where it stood when it ended: what
// is below end is settled.
func drainOne(ctx context.Context, st sinks.Stream, recs []sinks.Record) (refused []sinks.Refusal, end uint64) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for chunk := range slices.Chunk(recs, 128) {
			if st.Send(ctx, chunk) != nil {
				return // Acks is closed
			}
		}
	}()
	for end <= recs[len(recs)-1].Seq {
		a, ok := <-st.Acks()
		if !ok {
			break
		}
		refused = append(refused, a.Refused...)
		end = a.Seq + 1
	}
	<-done
	_ = st.Close(ctx) // Err says why it ended
	return refused, end
}
