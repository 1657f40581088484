package opcua

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gopcua/opcua/ua"
)

// subscription is one subscription on the server. The engine's goroutine owns
// it, but for durable.
type subscription struct {
	id        uint32
	interval  time.Duration // as the server revised it
	keepalive time.Duration // how long the server may be silent
	items     map[uint32]*item
	full      bool // the server takes no more items here

	// next is the sequence number that is expected; what came early waits in
	// stash. upTo is one after the last number that the server is known to have
	// used, and hole is when it was noticed that some are missing.
	next  uint32
	stash map[uint32]*ua.NotificationMessage
	upTo  uint32
	hole  time.Time

	// available are the numbers that the server still holds, ackedTo the last
	// that was acknowledged on this connection, durable the last that may be.
	available []uint32
	ackedTo   uint32
	durable   atomic.Uint32

	refresh bool // the server is to repeat its conditions
	// doubtful says that the server may have made items that we do not know of: the
	// answer was lost with the connection.
	doubtful bool

	lastAt time.Time // when the last response came
	gone   bool      // the server no longer has it
	since  time.Time // when it was taken up again on this connection; zero: made on it
	level  bool      // since then the server has said that nothing waits
	// moved says that we transferred it from another session. The server tells
	// that session of it with a notification of the subscription (Part 4, 5.13.7);
	// when nobody is there to read it, we are the ones who get it.
	moved bool
}

// after reports whether sequence number a comes after b; they wrap.
func after(a, b uint32) bool { return int32(a-b) > 0 }

// nextSeq is the number after n: 0 is not used (Part 4, 7.26).
func nextSeq(n uint32) uint32 {
	if n++; n == 0 {
		return 1
	}
	return n
}

// acks returns the numbers to acknowledge now: those that the server still
// holds and that are durable. One that the server does not hold must not be
// acknowledged: some servers close the connection on it.
func (s *subscription) acks() []*ua.SubscriptionAcknowledgement {
	durable := s.durable.Load()
	if durable == 0 {
		return nil
	}
	var out []*ua.SubscriptionAcknowledgement
	for _, n := range s.available {
		if after(n, durable) || s.ackedTo != 0 && !after(n, s.ackedTo) {
			continue
		}
		out = append(out, &ua.SubscriptionAcknowledgement{SubscriptionID: s.id, SequenceNumber: n})
	}
	slices.SortFunc(out, func(a, b *ua.SubscriptionAcknowledgement) int { return int(int32(a.SequenceNumber - b.SequenceNumber)) })
	if len(out) > 0 {
		s.ackedTo = out[len(out)-1].SequenceNumber
	}
	return out
}

// reattached forgets what belonged to the last connection.
func (s *subscription) reattached(now time.Time) {
	s.ackedTo, s.available, s.lastAt, s.level = 0, nil, now, false
	s.since = now
	clear(s.stash)
	s.upTo, s.hole = s.next, time.Time{}
}

// behind reports whether values from before this connection may still wait on the
// server. One that has some sends them with its next publishing intervals.
func (s *subscription) behind(now time.Time) bool {
	return !s.level && now.Sub(s.since) < 3*s.interval
}

// watchdog is how long the subscription may be silent before it counts as dead.
func (s *subscription) watchdog() time.Duration { return s.keepalive*3/2 + 2*time.Second }

// createSubscription makes an empty subscription.
func (e *engine) createSubscription(ctx context.Context) (*subscription, error) {
	cfg := e.src.cfg
	res, err := do[*ua.CreateSubscriptionResponse](ctx, e.s, &ua.CreateSubscriptionRequest{
		RequestedPublishingInterval: float64(cfg.PublishingIntervalMS), RequestedLifetimeCount: lifetimeCount(cfg),
		RequestedMaxKeepAliveCount: uint32(cfg.KeepaliveCount), MaxNotificationsPerPublish: uint32(e.maxNotify), PublishingEnabled: true})
	if err != nil {
		return nil, fmt.Errorf("create subscription: %w", err)
	}
	interval := time.Duration(res.RevisedPublishingInterval * float64(time.Millisecond))
	if interval != cfg.publishingInterval() {
		e.src.log.Info("server revised the publishing interval", "asked_ms", cfg.PublishingIntervalMS, "revised_ms", res.RevisedPublishingInterval)
	}
	if life := interval * time.Duration(res.RevisedLifetimeCount); life < time.Duration(cfg.LifetimeSeconds)*time.Second {
		e.src.log.Warn("server keeps a subscription for less than lifetime_seconds: a longer outage loses values", "asked_seconds", cfg.LifetimeSeconds, "revised_seconds", life.Seconds())
	}
	sub := &subscription{id: res.SubscriptionID, interval: interval, keepalive: interval * time.Duration(res.RevisedMaxKeepAliveCount),
		items: map[uint32]*item{}, next: 1, upTo: 1, stash: map[uint32]*ua.NotificationMessage{}, lastAt: time.Now()}
	e.src.subs = append(e.src.subs, sub)
	return sub, nil
}

// lifetimeCount is lifetime_seconds in publishing intervals; at least three
// keep-alives (Part 4, 5.13.2.2).
func lifetimeCount(cfg Config) uint32 {
	return uint32(max(cfg.LifetimeSeconds*1000/cfg.PublishingIntervalMS, 3*cfg.KeepaliveCount))
}

// noSubscriptions reports whether a server has no subscriptions at all.
func noSubscriptions(err error) bool {
	return errors.Is(err, ua.StatusBadServiceUnsupported) || errors.Is(err, ua.StatusBadNotImplemented) || errors.Is(err, ua.StatusBadNotSupported)
}

// createItems creates monitored items, in as many calls and subscriptions as
// the server's limits ask for. An item that the server refuses fails alone.
func (e *engine) createItems(ctx context.Context, items []*item) error {
	for len(items) > 0 {
		sub, room := e.roomySubscription()
		if sub == nil {
			if _, err := e.createSubscription(ctx); err != nil {
				if noSubscriptions(err) {
					e.src.log.Warn("server has no subscriptions; polling instead", "reason", statusText(err))
					return e.pollInstead(ctx, items)
				}
				if errors.Is(err, ua.StatusBadTooManySubscriptions) {
					return fmt.Errorf("server has no free subscription: raise its limit, close other clients, or set mode: poll: %w", err)
				}
				return err
			}
			continue
		}
		n := min(room, len(items))
		again, err := e.createIn(ctx, sub, items[:n])
		if err != nil {
			return err
		}
		items = append(again, items[n:]...)
	}
	return nil
}

// roomySubscription returns a subscription that takes more items, and how many.
func (e *engine) roomySubscription() (*subscription, int) {
	for _, s := range e.src.subs {
		if s.gone || s.full {
			continue
		}
		if e.s.lim.perSubscription == 0 {
			return s, maxItems
		}
		if room := e.s.lim.perSubscription - len(s.items); room > 0 {
			return s, room
		}
	}
	return nil, 0
}

// maxItems is more than one source can have.
const maxItems = 1 << 30

// createIn creates items in sub; again are those that did not fit there, or that
// the server wants without their dead-band.
func (e *engine) createIn(ctx context.Context, sub *subscription, items []*item) (again []*item, err error) {
	now := time.Now()
	var undamped []*item
	var revised revision
	why := ""
	err = inChunks(items, &e.s.lim.items, func(part []*item) error {
		if sub.full {
			again = append(again, part...)
			return nil
		}
		req := &ua.CreateMonitoredItemsRequest{SubscriptionID: sub.id, TimestampsToReturn: ua.TimestampsToReturnBoth}
		for _, it := range part {
			req.ItemsToCreate = append(req.ItemsToCreate, it.createRequest())
		}
		res, err := do[*ua.CreateMonitoredItemsResponse](ctx, e.s, req)
		if err != nil {
			sub.doubtful = sub.doubtful || dead(err)
			return fmt.Errorf("create monitored items: %w", err)
		}
		if len(res.Results) != len(part) {
			return errShortAnswer
		}
		for i, r := range res.Results {
			it := part[i]
			if r.StatusCode == ua.StatusBadTooManyMonitoredItems && len(sub.items) > 0 {
				sub.full = true
				again = append(again, it)
				continue
			}
			if it.refusesDeadband(r.StatusCode) {
				undamped, again, why = append(undamped, it), append(again, it), statusName(r.StatusCode)
				continue
			}
			e.created(sub, it, r, now)
			revised.note(it, r)
		}
		return nil
	})
	revised.tell(e.src.log)
	e.withoutDeadband(undamped, why)
	if errors.Is(err, ua.StatusBadTooManyMonitoredItems) && len(sub.items) > 0 {
		sub.full, again = true, nil
		for _, it := range items {
			if it.sub != sub && !it.failed {
				again = append(again, it)
			}
		}
		return again, nil
	}
	return again, err
}

// created takes the server's answer for one item.
func (e *engine) created(sub *subscription, it *item, r *ua.MonitoredItemCreateResult, now time.Time) {
	it.status, it.failed = r.StatusCode, r.StatusCode>>30 == 2
	if it.failed && it.modelChange {
		e.src.log.Debug("server does not tell of changes of its address space", "status", statusName(r.StatusCode))
		return
	}
	if it.failed {
		if !it.told {
			it.told = true
			e.src.log.Warn("server refuses an item; it is tried again every minute", "address", it.address, "status", statusName(r.StatusCode))
			e.push(message{records: one(it.failure(e.src.name, now))})
		}
		return
	}
	it.told, it.sub, it.serverID = false, sub, r.MonitoredItemID
	it.delivered, it.probed, it.lastAt = false, 0, now
	it.skipNext = *it.cfg.SkipFirst && it.event == nil
	sub.items[it.handle] = it
	sub.refresh = sub.refresh || it.event != nil && !it.modelChange
}

// revision is what a server made of the sampling intervals and queue sizes that
// were asked for. It is told once for all items.
type revision struct {
	slower, shorter     int // items
	slowest, shortest   float64
	slowItem, shortItem string
}

func (v *revision) note(it *item, r *ua.MonitoredItemCreateResult) {
	if it.event != nil || it.failed {
		return
	}
	if r.RevisedSamplingInterval > float64(max(*it.cfg.SamplingIntervalMS, 0)) && *it.cfg.SamplingIntervalMS >= 0 {
		if v.slower++; r.RevisedSamplingInterval > v.slowest {
			v.slowest, v.slowItem = r.RevisedSamplingInterval, it.address
		}
	}
	if r.RevisedQueueSize < uint32(*it.cfg.QueueSize) {
		if v.shorter++; v.shortItem == "" || float64(r.RevisedQueueSize) < v.shortest {
			v.shortest, v.shortItem = float64(r.RevisedQueueSize), it.address
		}
	}
}

func (v *revision) tell(log *slog.Logger) {
	if v.slower > 0 {
		log.Info("server samples slower than asked", "items", v.slower, "slowest_ms", v.slowest, "slowest", v.slowItem)
	}
	if v.shorter > 0 {
		log.Warn("server grants smaller queues than queue_size: an outage that fills them loses the oldest values", "items", v.shorter, "smallest", v.shortest, "item", v.shortItem)
	}
}

func (it *item) createRequest() *ua.MonitoredItemCreateRequest {
	req := &ua.MonitoredItemCreateRequest{MonitoringMode: ua.MonitoringModeReporting, ItemToMonitor: valueOf(it.node),
		RequestedParameters: &ua.MonitoringParameters{ClientHandle: it.handle, SamplingInterval: float64(*it.cfg.SamplingIntervalMS),
			QueueSize: uint32(*it.cfg.QueueSize), DiscardOldest: *it.cfg.DiscardOldest}}
	if it.event != nil {
		req.ItemToMonitor.AttributeID = ua.AttributeIDEventNotifier
		req.RequestedParameters.SamplingInterval, req.RequestedParameters.QueueSize = 0, it.event.queue
		req.RequestedParameters.Filter = filterOperand(idEventFilter, it.event.filter)
		return req
	}
	f := &ua.DataChangeFilter{Trigger: triggers[*it.cfg.Trigger], DeadbandType: deadbands[it.cfg.Deadband.Type], DeadbandValue: it.cfg.Deadband.Value}
	if f.DeadbandType != 0 || f.Trigger != ua.DataChangeTriggerStatusValue {
		req.RequestedParameters.Filter = filterOperand(idDataChangeFilter, f)
	}
	return req
}

var triggers = map[string]ua.DataChangeTrigger{"status": ua.DataChangeTriggerStatus, "status_value": ua.DataChangeTriggerStatusValue,
	"status_value_timestamp": ua.DataChangeTriggerStatusValueTimestamp}

// deleteSubscriptions removes subscriptions that nobody reads. What the server
// says to it does not matter.
func (e *engine) deleteSubscriptions(ctx context.Context, ids []uint32) error {
	if len(ids) == 0 {
		return nil
	}
	_, err := do[*ua.DeleteSubscriptionsResponse](ctx, e.s, &ua.DeleteSubscriptionsRequest{SubscriptionIDs: ids})
	if err != nil && dead(err) {
		return fmt.Errorf("delete subscriptions: %w", err)
	}
	return nil
}

// lose forgets a subscription that the server no longer has: its items have
// none until they are created again.
func (e *engine) lose(sub *subscription, why string) {
	if sub.gone {
		return
	}
	sub.gone = true
	for _, it := range sub.items {
		if it.sub == sub {
			it.sub = nil
		}
	}
	e.src.subs = slices.DeleteFunc(e.src.subs, func(s *subscription) bool { return s == sub })
	e.src.log.Warn("subscription lost on the server; making a new one", "subscription", sub.id, "why", why, "last_sequence", sub.next-1)
	e.gap(1)
}

// gap counts notifications that are lost for good, and asks for history.
func (e *engine) gap(messages int) {
	e.src.status.Add(metricGaps, float64(messages))
	e.backfill = true
	e.src.plan.changed = e.src.plan.changed || e.src.plan.watchesModel()
	for _, it := range e.src.plan.items {
		if it.gapFrom == 0 {
			it.gapFrom = it.lastEvent
		}
		it.gapTo = 0
	}
	e.wantRefresh()
}

// overflowed asks for the history of what the server's queue of it did not hold
// in front of a value at the event time at.
func (e *engine) overflowed(it *item, at int64) {
	if !it.history || it.lastEvent == 0 {
		return
	}
	e.backfill = true
	if it.gapFrom == 0 {
		it.gapFrom, it.gapTo = it.lastEvent, at
	} else if it.gapTo != 0 {
		it.gapTo = at
	}
}
