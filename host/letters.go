package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/spool"
)

// listLimit bounds a list of dead letters when the caller names no limit.
const listLimit = 1000

// DeadLetters implements control.Backend.
func (h *Host) DeadLetters(_ context.Context, f control.DeadLetterFilter) ([]control.DeadLetter, error) {
	if f.Limit == 0 {
		f.Limit = listLimit
	}
	letters, err := h.letters(f)
	if err != nil {
		return nil, err
	}
	out := make([]control.DeadLetter, 0, len(letters))
	for i := range letters {
		out = append(out, describeLetter(&letters[i]))
	}
	return out, nil
}

// DeadLetter implements control.Backend.
func (h *Host) DeadLetter(_ context.Context, id string) (control.DeadLetter, error) {
	letters, err := h.letters(control.DeadLetterFilter{IDs: []string{id}})
	if err != nil {
		return control.DeadLetter{}, err
	}
	l := &letters[0]
	out := describeLetter(l)
	if recs, err := decodeFrame(l.Payload, 0, l.Count); err == nil {
		for i := range recs {
			out.Record = abi.AppendJSON(json.RawMessage(nil), &recs[i].Record)
		}
	}
	return out, nil
}

// letters returns what the filter selects, oldest first. Ids that do not exist
// are an error.
func (h *Host) letters(f control.DeadLetterFilter) ([]spool.Letter, error) {
	var out []spool.Letter
	if len(f.IDs) > 0 {
		for _, id := range f.IDs {
			n, err := strconv.ParseUint(id, 10, 64)
			if err != nil {
				return nil, control.Errorf(control.Invalid, "%q is no id of a dead letter: edgehost dlq list shows them", id)
			}
			l, err := h.dlq.Get(n)
			if err != nil {
				return nil, control.Errorf(control.NotFound, "%w; edgehost dlq list shows those that are there", err)
			}
			if selects(f, &l) {
				out = append(out, l)
			}
		}
		return out, nil
	}
	sf := spool.Filter{Reason: f.Reason, Destination: f.Destination, Limit: listLimit}
	if f.After != "" {
		n, err := strconv.ParseUint(f.After, 10, 64)
		if err != nil {
			return nil, control.Errorf(control.Invalid, "%q is no id of a dead letter", f.After)
		}
		sf.After = n
	}
	for {
		page, err := h.dlq.List(sf)
		if err != nil {
			return nil, fmt.Errorf("list dead letters: %w", err)
		}
		for i := range page {
			if selects(f, &page[i]) {
				out = append(out, page[i])
			}
			if f.Limit > 0 && len(out) == f.Limit {
				return out, nil
			}
		}
		if len(page) < listLimit {
			return out, nil
		}
		sf.After = page[len(page)-1].ID
	}
}

func selects(f control.DeadLetterFilter, l *spool.Letter) bool {
	return (f.Reason == "" || f.Reason == l.Reason) && (f.Destination == "" || f.Destination == l.Destination) &&
		(f.Pipeline == "" || f.Pipeline == l.Pipeline) && (f.Source == "" || f.Source == l.Source)
}

func describeLetter(l *spool.Letter) control.DeadLetter {
	out := control.DeadLetter{ID: strconv.FormatUint(l.ID, 10), Time: time.UnixMicro(l.Time).UTC(), Reason: l.Reason, Error: l.Error,
		Pipeline: l.Pipeline, Module: l.Module, Revision: l.Revision, Destination: l.Destination, Source: l.Source, Bytes: uint64(len(l.Payload))}
	if recs, err := decodeFrame(l.Payload, 0, l.Count); err == nil && len(recs) > 0 {
		out.Address = recs[0].Address
		out.EventTime = time.UnixMicro(recs[0].EventTime).UTC()
	}
	return out
}

// ReplayDeadLetters implements control.Backend. A letter leaves the queue after
// its record is durable where it goes: a crash between the two repeats it.
func (h *Host) ReplayDeadLetters(ctx context.Context, f control.DeadLetterFilter) (int, error) {
	letters, err := h.letters(f)
	if err != nil {
		return 0, err
	}
	n := 0
	for i := range letters {
		l := &letters[i]
		recs, err := decodeFrame(l.Payload, 0, l.Count)
		if err != nil {
			return n, control.Errorf(control.Invalid, "dead letter %d holds no record that could be replayed: %w", l.ID, err)
		}
		if l.Pipeline != "" {
			err = h.backToPipeline(ctx, l, recs)
		} else {
			err = h.backToQueue(ctx, l, recs)
		}
		if err != nil {
			return n, fmt.Errorf("replay dead letter %d: %w", l.ID, err)
		}
		if err := h.dlq.Delete(l.ID); err != nil {
			return n, fmt.Errorf("remove dead letter %d, which was replayed: %w", l.ID, err)
		}
		n++
	}
	return n, nil
}

// PurgeDeadLetters implements control.Backend.
func (h *Host) PurgeDeadLetters(ctx context.Context, f control.DeadLetterFilter) (int, error) {
	letters, err := h.letters(f)
	if err != nil {
		return 0, err
	}
	ids := make([]uint64, len(letters))
	for i := range letters {
		ids[i] = letters[i].ID
	}
	if err := h.dlq.Delete(ids...); err != nil {
		return 0, fmt.Errorf("purge dead letters: %w", err)
	}
	h.log.Warn("dead letters purged", "letters", len(ids), "by", control.Caller(ctx))
	return len(ids), nil
}

// backToPipeline sends records through the modules once more, as new input.
func (h *Host) backToPipeline(ctx context.Context, l *spool.Letter, recs []sinks.Record) error {
	i := slices.IndexFunc(h.pipelines, func(p *pipeline) bool { return p.cfg.Name == l.Pipeline })
	if i < 0 {
		return control.Errorf(control.NotFound, "pipeline %s is no longer configured", l.Pipeline)
	}
	b := sources.Batch{Time: time.Now().UnixMicro()}
	for i := range recs {
		b.Records = append(b.Records, recs[i].Record)
	}
	done := make(chan error, 1)
	if err := h.pipelines[i].emit(l.Source)(ctx, b, func(err error) { done <- err }); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err() // the letter stays, so its record may come twice
	}
}

// backToQueue appends records to their destination again, under their old ids.
func (h *Host) backToQueue(ctx context.Context, l *spool.Letter, recs []sinks.Record) error {
	if h.destinations[l.Destination] == nil {
		return control.Errorf(control.NotFound, "destination %s is no longer configured", l.Destination)
	}
	h.requeueMu.Lock()
	defer h.requeueMu.Unlock()
	e := &effect{seq: h.requeue.book.Seq + 1, counts: counts{Emitted: uint64(len(recs))}}
	for i := range recs {
		e.outputs = append(e.outputs, output{destination: l.Destination, id: recs[i].ID, record: recs[i].Record})
	}
	return h.requeue.commit(ctx, []*effect{e})
}
