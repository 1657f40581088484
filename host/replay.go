package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/spool"
)

// replayRate is how many records a second a replay sends when the caller names
// no rate.
const replayRate = 5000

// Replay implements control.Backend: it reads acknowledged records that are
// still kept with a cursor of its own and sends them over a stream of its own,
// beside the live drain, with the ids that they had.
func (h *Host) Replay(ctx context.Context, r control.ReplayRequest) (control.ReplayResult, error) {
	names := h.order
	if r.Destination != "" {
		if h.destinations[r.Destination] == nil {
			return control.ReplayResult{}, control.Errorf(control.NotFound, "no destination %s is configured", r.Destination)
		}
		names = []string{r.Destination}
	}
	if r.Rate == 0 {
		r.Rate = replayRate
	}
	out := control.ReplayResult{DryRun: r.DryRun, Destinations: []control.ReplayDestination{}}
	for _, name := range names {
		d, err := h.destinations[name].replay(ctx, r)
		out.Records += d.Records
		out.Bytes += d.Bytes
		out.Destinations = append(out.Destinations, d)
		if err != nil {
			return out, fmt.Errorf("replay %s: %w", name, err)
		}
	}
	return out, nil
}

// replay selects and sends the records of one destination.
func (d *destination) replay(ctx context.Context, r control.ReplayRequest) (control.ReplayDestination, error) {
	out := control.ReplayDestination{Name: d.cfg.Name}
	var st sinks.Stream
	acked := make(chan error, 1)
	pace := newPace(r.Rate)
	err := d.kept(ctx, r, func(recs []sinks.Record, bytes int) error {
		note(&out, recs, bytes)
		if r.DryRun {
			return nil
		}
		if st == nil {
			var err error
			if st, err = d.cfg.NewSink().Open(ctx); err != nil {
				return fmt.Errorf("open stream: %w", err)
			}
			go func() { acked <- drainAcks(st) }()
		}
		for len(recs) > 0 {
			n := min(len(recs), d.cfg.MaxBatch)
			if err := pace.wait(ctx, n); err != nil {
				return err
			}
			if err := st.Send(ctx, recs[:n]); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			recs = recs[n:]
		}
		return nil
	})
	if st != nil {
		err = errors.Join(err, st.Close(ctx), <-acked)
	}
	if err == nil && !r.DryRun && out.Records > 0 {
		err = d.h.countReplayed(d.cfg.Name, out.Records)
	}
	return out, err
}

// kept calls send with the acknowledged records that the request selects.
func (d *destination) kept(ctx context.Context, r control.ReplayRequest, send func([]sinks.Record, int) error) error {
	end, damaged := d.queue.Head(), uint64(0)
	rd := d.queue.Reader(max(d.queue.Oldest(), r.FromSeq))
	defer rd.Close()
	for at := max(d.queue.Oldest(), r.FromSeq); at < end; {
		f, err := rd.Next(ctx)
		var bad *spool.DamagedFrame
		if errors.As(err, &bad) {
			at = bad.Base + bad.Count
			damaged += bad.Count
			continue
		}
		if err != nil {
			return err
		}
		at = f.Base + uint64(f.Count)
		recs, err := decodeFrame(f.Payload, f.Base, f.Count)
		if err != nil {
			damaged += uint64(f.Count)
			continue
		}
		selected := recs[:0]
		for _, rec := range recs {
			t := time.UnixMicro(rec.IngestTime)
			if rec.Seq < end && rec.Seq >= r.FromSeq && !t.Before(r.Since) && (r.Until.IsZero() || t.Before(r.Until)) {
				selected = append(selected, rec)
			}
		}
		if len(selected) == 0 {
			continue
		}
		if err := send(selected, len(f.Payload)*len(selected)/len(recs)); err != nil {
			return err
		}
	}
	if damaged > 0 {
		return fmt.Errorf("%d kept records are damaged and were not sent again; they had been delivered before", damaged)
	}
	return nil
}

// note adds records to what a replay reports.
func note(out *control.ReplayDestination, recs []sinks.Record, bytes int) {
	first, last := &recs[0], &recs[len(recs)-1]
	if out.Records == 0 {
		out.FirstSeq, out.First = first.Seq, time.UnixMicro(first.IngestTime).UTC()
	}
	out.LastSeq, out.Last = last.Seq, time.UnixMicro(last.IngestTime).UTC()
	out.Records += uint64(len(recs))
	out.Bytes += uint64(bytes)
}

// drainAcks reads acknowledgements to the end of the stream. A record that was
// delivered once and is refused now is an error.
func drainAcks(st sinks.Stream) error {
	var refused error
	for a := range st.Acks() {
		for _, r := range a.Refused {
			refused = fmt.Errorf("record %d was refused: %w", r.Seq, r.Err)
		}
	}
	return errors.Join(refused, st.Err())
}

// countReplayed adds to the ledger's term of its own, durably.
func (h *Host) countReplayed(destination string, n uint64) error {
	h.requeueMu.Lock()
	defer h.requeueMu.Unlock()
	return h.requeue.commit(context.Background(), []*effect{{seq: h.requeue.book.Seq + 1, replayed: map[string]uint64{destination: n}}})
}

// pace spreads records evenly over time.
type pace struct {
	perRecord time.Duration
	next      time.Time
}

func newPace(rate int) *pace { return &pace{perRecord: time.Second / time.Duration(max(rate, 1))} }

func (p *pace) wait(ctx context.Context, n int) error {
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	t := time.NewTimer(p.next.Sub(now))
	defer t.Stop()
	p.next = p.next.Add(time.Duration(n) * p.perRecord)
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
