package opcua

import (
	"context"
	"fmt"
	"time"

	"github.com/gopcua/opcua/ua"
)

// historyPage is how many values of one node are read at once.
const historyPage = 1000

// hole is the time for which one item's history is read.
type hole struct {
	it       *item
	from, to time.Time
}

// startBackfill reads the history of a hole, once at a time, beside the live
// values.
func (e *engine) startBackfill(ctx context.Context) {
	if !e.backfill || e.backfilling || !e.src.cfg.HistoryBackfill {
		e.backfill = e.backfill && e.backfilling
		return
	}
	e.backfill = false
	var holes []hole
	now := e.s.now()
	for _, it := range e.src.plan.items {
		if !it.history || it.event != nil || it.gapFrom == 0 {
			continue
		}
		h := hole{it: it, from: time.UnixMicro(it.gapFrom + 1), to: now}
		if it.gapTo != 0 {
			h.to = time.UnixMicro(it.gapTo)
		}
		holes = append(holes, h)
	}
	if len(holes) == 0 {
		e.endBackfill()
		return
	}
	e.backfilling = true
	s := *e.s
	e.wg.Go(func() {
		err := e.readHoles(ctx, &s, holes)
		select {
		case e.fetched <- fetched{history: true, done: true, err: err}:
		case <-ctx.Done():
		}
	})
}

// endBackfill closes the holes, unless another opened meanwhile. When the
// connection is lost before that, the next one reads them again.
func (e *engine) endBackfill() {
	e.backfilling = false
	if e.backfill {
		return
	}
	for _, it := range e.src.plan.items {
		it.gapFrom, it.gapTo = 0, 0
	}
}

func (e *engine) readHoles(ctx context.Context, s *session, holes []hole) error {
	return inChunks(holes, &s.lim.history, func(part []hole) error {
		ids := make([]*ua.HistoryReadValueID, len(part))
		from, to := part[0].from, part[0].to
		for i, h := range part {
			ids[i] = &ua.HistoryReadValueID{NodeID: h.it.node, DataEncoding: &ua.QualifiedName{}}
			if h.from.Before(from) {
				from = h.from
			}
			if h.to.After(to) {
				to = h.to
			}
		}
		for len(ids) > 0 {
			res, err := do[*ua.HistoryReadResponse](ctx, s, &ua.HistoryReadRequest{TimestampsToReturn: ua.TimestampsToReturnBoth, NodesToRead: ids,
				HistoryReadDetails: filterOperand(idReadRawDetails, &ua.ReadRawModifiedDetails{StartTime: from, EndTime: to, NumValuesPerNode: historyPage})})
			if err != nil {
				return fmt.Errorf("read history: %w", err)
			}
			if len(res.Results) != len(ids) {
				return errShortAnswer
			}
			var nextIDs []*ua.HistoryReadValueID
			var nextPart []hole
			for i, r := range res.Results {
				if err := e.sendHistory(ctx, part[i], r); err != nil {
					return err
				}
				if len(r.ContinuationPoint) > 0 {
					ids[i].ContinuationPoint = r.ContinuationPoint
					nextIDs, nextPart = append(nextIDs, ids[i]), append(nextPart, part[i])
				}
			}
			ids, part = nextIDs, nextPart
		}
		return nil
	})
}

// sendHistory hands the values of one hole to the engine, no faster than
// configured.
func (e *engine) sendHistory(ctx context.Context, h hole, r *ua.HistoryReadResult) error {
	if r.HistoryData == nil {
		return nil
	}
	data, ok := r.HistoryData.Value.(*ua.HistoryData)
	if !ok {
		return nil
	}
	f := fetched{history: true}
	for _, v := range data.DataValues {
		if t := exactTime(v.SourceTimestamp); t.Before(h.from) || !t.Before(h.to) {
			continue // other nodes of the same request reach further back
		}
		f.items, f.values = append(f.items, h.it), append(f.values, v)
	}
	if len(f.values) == 0 {
		return nil
	}
	select {
	case e.fetched <- f:
	case <-ctx.Done():
		return ctx.Err()
	}
	pause := time.NewTimer(time.Duration(len(f.values)) * time.Second / time.Duration(e.src.cfg.HistoryValuesPerSecond))
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
