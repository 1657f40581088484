package opcua

import (
	"context"
	"fmt"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/gopcua/opcua/ua"
)

// polls reports whether it is read instead of subscribed.
func (e *engine) polls(it *item) bool {
	return it.event == nil && (e.forcedPoll || *it.cfg.Mode == "poll")
}

// pollInstead polls everything, on a server without subscriptions.
func (e *engine) pollInstead(ctx context.Context, items []*item) error {
	e.forcedPoll = true
	for _, it := range items {
		if it.event != nil {
			it.status, it.failed = ua.StatusBadServiceUnsupported, true
		}
	}
	if e.stopPolls == nil {
		return nil // loop starts them
	}
	return e.startPolls(ctx)
}

// startPolls runs one poller for each interval, in place of those that run.
// They read; the engine's goroutine decides and delivers.
func (e *engine) startPolls(ctx context.Context) error {
	if err := e.findRanges(ctx); err != nil {
		if dead(err) {
			return err
		}
		e.src.log.Warn("percent dead-bands are not applied to polled items", "err", err)
	}
	if e.stopPolls != nil {
		e.stopPolls()
	}
	ctx, e.stopPolls = context.WithCancel(ctx)
	groups := map[time.Duration][]*item{}
	for _, it := range e.src.plan.items {
		if e.polls(it) {
			every := time.Duration(max(*it.cfg.SamplingIntervalMS, 10)) * time.Millisecond
			groups[every] = append(groups[every], it)
		}
	}
	for every, items := range groups {
		s := *e.s // a copy: the limits shrink in each goroutine for itself
		e.wg.Go(func() { e.poll(ctx, &s, every, items) })
	}
	return nil
}

func (e *engine) poll(ctx context.Context, s *session, every time.Duration, items []*item) {
	ask := make([]*ua.ReadValueID, len(items))
	for i, it := range items {
		ask[i] = valueOf(it.node)
	}
	clock := time.NewTicker(every)
	defer clock.Stop()
	for {
		got, err := s.read(ctx, ask)
		select {
		case e.fetched <- fetched{items: items, values: got, err: err}:
		case <-ctx.Done():
			return
		}
		if err != nil && dead(err) {
			return
		}
		select {
		case <-clock.C:
		case <-ctx.Done():
			return
		}
	}
}

// take delivers what a poll or a history read brought.
func (e *engine) take(f fetched) error {
	now := time.Now()
	if f.err != nil {
		if dead(f.err) {
			return fmt.Errorf("connection lost: %w", f.err)
		}
		e.src.log.Warn("read values", "err", f.err)
		e.src.status.Fail(reasonRead, len(f.items))
		for _, it := range f.items {
			if !f.history {
				it.lastCode = uint32(ua.StatusBad)
			}
		}
		if f.done {
			e.endBackfill()
		}
		return nil
	}
	e.lastService = now
	var out []abi.Record
	for i, it := range f.items {
		v := f.values[i]
		if f.history {
			r := it.record(e.src.name, &e.src.cfg, v, now, &e.arena)
			r.Attrs = append(r.Attrs[:len(r.Attrs):len(r.Attrs)], abi.Attr{Key: abi.AttrBackfilled, Value: abi.Bool(true)})
			out = append(out, r)
			continue
		}
		if r, ok := e.polled(it, v, now); ok {
			out = append(out, r)
		}
	}
	if f.history {
		e.src.status.Add(metricBackfilled, float64(len(out)))
		if f.done {
			e.endBackfill()
		}
	}
	if len(out) > 0 {
		e.src.status.Read(len(out), 0)
		e.push(message{records: out})
	}
	return nil
}

// polled decides on a polled value as a server decides on a sampled one: by
// trigger and dead-band.
func (e *engine) polled(it *item, v *ua.DataValue, now time.Time) (abi.Record, bool) {
	r := it.record(e.src.name, &e.src.cfg, v, now, &e.arena)
	first := !it.delivered
	changed := first || r.Status != it.lastCode
	switch *it.cfg.Trigger {
	case "status":
	case "status_value_timestamp":
		changed = changed || eventTime(v, now, e.s.skew) != it.lastEvent || it.outsideDeadband(r.Value)
	default:
		changed = changed || it.outsideDeadband(r.Value)
	}
	it.failed, it.status = v.Status == ua.StatusBadNodeIDUnknown || v.Status == ua.StatusBadNodeIDInvalid, v.Status
	it.lastAt = now
	if !changed {
		return r, false
	}
	if _, ok := e.value(it, v, now); !ok || first && *it.cfg.SkipFirst {
		return r, false
	}
	return r, true
}
