package opcua

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gopcua/opcua/ua"
)

// idGetMonitoredItems is the method of the Server object that lists the items
// of a subscription (Part 5, 9.1).
const idGetMonitoredItems = 11492

// restore brings plan and subscriptions to this connection:
//
//	same session            -> republish what was missed
//	new session, we lived   -> transfer the subscriptions, republish
//	new process             -> transfer those of the resume point, republish
//	server restarted        -> everything anew
//
// and creates whatever has no subscription then.
func (e *engine) restore(ctx context.Context, resumed bool) error {
	src := e.src
	same := src.plan != nil && slices.Equal(src.ns, e.s.ns) && (src.started.Equal(e.s.started))
	if same {
		e.s.types = src.types
	} else {
		if src.plan != nil {
			src.log.Info("server was restarted or changed; reading its address space anew")
		}
		for _, sub := range slices.Clone(src.subs) {
			e.lose(sub, "server was restarted")
		}
		old := src.plan
		p, err := e.s.makePlan(ctx, src, nil)
		if err != nil {
			return err
		}
		keepClock(old, p)
		src.plan, src.types, src.ns, src.started = p, e.s.types, e.s.ns, e.s.started
		for _, t := range p.truncated {
			src.log.Warn("more variables than max_nodes; the rest is not read", "node", t)
		}
	}
	switch {
	case same && resumed && len(src.subs) > 0:
		src.status.Add(metricResumes, 1)
		if err := e.reattach(ctx); err != nil {
			return err
		}
	case same && len(src.subs) > 0:
		if err := e.transfer(ctx); err != nil {
			return err
		}
	case !src.asked && src.deps.Resume != nil:
		p, ok := decodeResume(src.deps.Resume(), src.endpoint, e.s.started, src.log)
		e.rememberClock(p)
		if !ok && p.Version == 1 && p.Endpoint == src.endpoint {
			e.gap(1)
		}
		if ok {
			if err := e.takeOver(ctx, p); err != nil {
				// The next connection takes over from the same point.
				src.subs = nil
				for _, it := range src.plan.items {
					it.sub = nil
				}
				return err
			}
		}
	}
	src.asked = true
	// Holes whose history the last connection did not finish reading.
	e.backfill = e.backfill || slices.ContainsFunc(src.plan.items, func(it *item) bool { return it.gapFrom > 0 })
	return e.fill(ctx)
}

// keepClock hands the last event times over to a new plan, so that history can
// fill the hole between.
func keepClock(old, now *plan) {
	if old == nil {
		return
	}
	last := map[string]int64{}
	for _, it := range old.items {
		last[it.address] = it.lastEvent
	}
	for _, it := range now.items {
		it.lastEvent, it.gapFrom = last[it.address], last[it.address]
	}
}

// rememberClock takes the time of the last run's last batch as that of the last
// value of every item, by the server's clock. Values can have waited on the server before it, so it is
// put back a little: history may repeat a value, but skips none.
func (e *engine) rememberClock(p resumePoint) {
	if p.At == 0 {
		return
	}
	back := 2*e.src.cfg.publishingInterval() + time.Second
	for _, it := range e.src.plan.items {
		it.lastEvent = p.At + (e.s.skew - back).Microseconds()
	}
}

// fill creates every subscribed item that has no subscription.
func (e *engine) fill(ctx context.Context) error {
	var missing []*item
	for _, it := range e.src.plan.items {
		if it.sub == nil && !it.failed && !e.polls(it) {
			missing = append(missing, it)
		}
	}
	if len(missing) == 0 {
		e.announce()
		return nil
	}
	if err := e.createItems(ctx, missing); err != nil {
		return err
	}
	e.announce()
	return nil
}

// reattach goes on with the subscriptions of a session that lives on.
func (e *engine) reattach(ctx context.Context) error {
	for _, sub := range slices.Clone(e.src.subs) {
		sub.reattached(time.Now())
		if err := e.catchUp(ctx, sub, nil); err != nil {
			return err
		}
		if err := e.sweep(ctx, sub); err != nil {
			return err
		}
	}
	return nil
}

// sweep deletes the items of a doubtful subscription that we do not know of. They
// are made again with those that have none, and would come twice.
func (e *engine) sweep(ctx context.Context, sub *subscription) error {
	if !sub.doubtful || sub.gone {
		return nil
	}
	list, err := e.listItems(ctx, sub.id)
	if err != nil && dead(err) {
		return err
	}
	if err != nil {
		if err := e.deleteSubscriptions(ctx, []uint32{sub.id}); err != nil {
			return err
		}
		e.lose(sub, "it may hold items twice")
		return nil
	}
	var unknown []uint32
	for _, m := range list {
		if it := sub.items[m.client]; it == nil || it.serverID != m.server {
			unknown = append(unknown, m.server)
		}
	}
	sub.doubtful = false
	return e.deleteItems(ctx, sub, unknown)
}

// transfer moves our subscriptions to this session. One that the server does
// not have any more is lost.
func (e *engine) transfer(ctx context.Context) error {
	subs := slices.Clone(e.src.subs)
	ids := make([]uint32, len(subs))
	for i, s := range subs {
		ids[i] = s.id
	}
	results, err := e.transferIDs(ctx, ids, false)
	if err != nil {
		return err
	}
	for i, sub := range subs {
		if r := results[i]; r.StatusCode>>30 == 2 {
			e.lose(sub, statusName(r.StatusCode))
			continue
		}
		e.src.status.Add(metricResumes, 1)
		sub.moved = true
		sub.reattached(time.Now())
		if err := e.catchUp(ctx, sub, results[i].AvailableSequenceNumbers); err != nil {
			return err
		}
		if err := e.sweep(ctx, sub); err != nil {
			return err
		}
	}
	return nil
}

// transferIDs asks for the transfer of ids, and with initial for the value that
// each item has now. A server without the service has refused each of them.
func (e *engine) transferIDs(ctx context.Context, ids []uint32, initial bool) ([]*ua.TransferResult, error) {
	res, err := do[*ua.TransferSubscriptionsResponse](ctx, e.s, &ua.TransferSubscriptionsRequest{SubscriptionIDs: ids, SendInitialValues: initial})
	if err != nil && dead(err) {
		return nil, fmt.Errorf("transfer subscriptions: %w", err)
	}
	if err != nil || len(res.Results) != len(ids) {
		status := ua.StatusBadServiceUnsupported
		errors.As(err, &status)
		out := make([]*ua.TransferResult, len(ids))
		for i := range out {
			out[i] = &ua.TransferResult{StatusCode: status}
		}
		return out, nil
	}
	return res.Results, nil
}

// takeOver transfers the subscriptions of the process before us.
func (e *engine) takeOver(ctx context.Context, p resumePoint) error {
	ids := make([]uint32, len(p.Subs))
	for i, s := range p.Subs {
		ids[i] = s.ID
	}
	// A heartbeat needs a value to repeat, and this process has none yet.
	beats := slices.ContainsFunc(e.src.plan.items, func(it *item) bool { return it.event == nil && *it.cfg.HeartbeatSeconds > 0 })
	results, err := e.transferIDs(ctx, ids, beats)
	if err != nil {
		return err
	}
	byHandle := map[uint32]*item{}
	for _, it := range e.src.plan.items {
		byHandle[it.handle] = it
	}
	// What was published for items that we no longer read is dropped later, so
	// every transferred subscription gets all of them for the catch-up.
	var stale []uint32
	for i, r := range results {
		sub := &subscription{id: ids[i], interval: e.src.cfg.publishingInterval(), items: byHandle, next: nextSeq(p.Subs[i].Seq),
			stash: map[uint32]*ua.NotificationMessage{}}
		sub.keepalive = sub.interval * time.Duration(e.src.cfg.KeepaliveCount)
		sub.durable.Store(p.Subs[i].Seq)
		if r.StatusCode>>30 == 2 {
			e.lose(&subscription{id: sub.id, next: sub.next}, statusName(r.StatusCode))
			continue
		}
		sub.moved = true
		sub.reattached(time.Now())
		e.src.subs = append(e.src.subs, sub)
		if err := e.catchUp(ctx, sub, r.AvailableSequenceNumbers); err != nil {
			return err
		}
		if sub.gone {
			continue
		}
		known, err := e.adopt(ctx, sub, p, byHandle, len(p.Subs) == 1)
		if err != nil {
			return err
		}
		if !known {
			stale = append(stale, sub.id)
			e.src.subs = slices.DeleteFunc(e.src.subs, func(s *subscription) bool { return s == sub })
			continue
		}
		e.src.status.Add(metricResumes, 1)
		e.src.log.Info("took over the subscription of the last run", "subscription", sub.id, "items", len(sub.items), "from_sequence", sub.next)
	}
	return e.deleteSubscriptions(ctx, stale)
}

// adopt finds out which items a transferred subscription has. known is false
// when that cannot be told, or when the configuration changed: the subscription
// is then replaced.
func (e *engine) adopt(ctx context.Context, sub *subscription, p resumePoint, byHandle map[uint32]*item, only bool) (known bool, err error) {
	sub.items = map[uint32]*item{}
	if p.Config != e.src.cfgHash {
		e.src.log.Info("configuration changed since the last run; making a new subscription", "subscription", sub.id)
		return false, nil
	}
	own := func(handle, serverID uint32) bool {
		it := byHandle[handle]
		if it == nil || it.sub != nil || e.polls(it) {
			return false
		}
		it.sub, it.serverID, it.delivered, it.lastAt = sub, serverID, true, time.Now()
		sub.items[handle] = it
		return true
	}
	list, err := e.listItems(ctx, sub.id)
	switch {
	case err != nil && dead(err):
		return false, err
	case err == nil:
		var orphans []uint32
		for _, m := range list {
			if !own(m.client, m.server) {
				orphans = append(orphans, m.server)
			}
		}
		return true, e.deleteItems(ctx, sub, orphans)
	case !only || p.Items != itemsHash(e.src.plan.items):
		return false, nil
	}
	for handle := range byHandle {
		if !slices.Contains(p.Failed, handle) {
			own(handle, 0)
		}
	}
	return true, nil
}

// monitored is an item as the server knows it: our handle and its own.
type monitored struct{ client, server uint32 }

// listItems asks the server for the items of a subscription.
func (e *engine) listItems(ctx context.Context, id uint32) ([]monitored, error) {
	res, err := do[*ua.CallResponse](ctx, e.s, &ua.CallRequest{MethodsToCall: []*ua.CallMethodRequest{{
		ObjectID: ns0(idServer), MethodID: ns0(idGetMonitoredItems), InputArguments: []*ua.Variant{ua.MustVariant(id)}}}})
	if err != nil {
		return nil, fmt.Errorf("list monitored items: %w", err)
	}
	if len(res.Results) != 1 || res.Results[0].StatusCode != ua.StatusOK || len(res.Results[0].OutputArguments) != 2 {
		return nil, errors.New("list monitored items: not supported by the server")
	}
	server, ok1 := res.Results[0].OutputArguments[0].Value().([]uint32)
	client, ok2 := res.Results[0].OutputArguments[1].Value().([]uint32)
	if !ok1 || !ok2 || len(server) != len(client) {
		return nil, errors.New("list monitored items: unexpected answer")
	}
	out := make([]monitored, len(client))
	for i, h := range client {
		out[i] = monitored{client: h, server: server[i]}
	}
	return out, nil
}

// deleteItems removes monitored items by their ids on the server.
func (e *engine) deleteItems(ctx context.Context, sub *subscription, ids []uint32) error {
	return inChunks(ids, &e.s.lim.items, func(part []uint32) error {
		_, err := do[*ua.DeleteMonitoredItemsResponse](ctx, e.s, &ua.DeleteMonitoredItemsRequest{SubscriptionID: sub.id, MonitoredItemIDs: part})
		if err != nil && !dead(err) && !tooMuch(err) {
			e.src.log.Warn("delete monitored items", "err", err)
			return nil
		}
		return err
	})
}

// catchUp asks for everything from sub.next on that the server still holds.
// available is what a transfer listed; nil after a re-activated session, where
// the server tells only when a number is not there.
func (e *engine) catchUp(ctx context.Context, sub *subscription, available []uint32) error {
	if available != nil {
		sub.available = available
		for _, n := range available {
			if !after(sub.upTo, n) {
				sub.upTo = nextSeq(n)
			}
		}
		return e.fillHole(ctx, sub)
	}
	for !sub.gone {
		ok, err := e.republish(ctx, sub, sub.next)
		if err != nil || !ok {
			return err
		}
	}
	return nil
}

// maxHole is the most notifications that are asked for again; no server holds
// more.
const maxHole = 5000

// fillHole republishes what is missing between sub.next and sub.upTo. What the
// server does not hold any more is lost and counted.
func (e *engine) fillHole(ctx context.Context, sub *subscription) error {
	lost := 0
	for !sub.gone && after(sub.upTo, sub.next) {
		if m := sub.stash[sub.next]; m != nil {
			delete(sub.stash, sub.next)
			e.accept(sub, m)
			continue
		}
		if missing := sub.upTo - sub.next; missing > maxHole {
			e.gap(int(missing - maxHole))
			lost += int(missing - maxHole)
			sub.next = sub.upTo - maxHole
		}
		ok, err := e.republish(ctx, sub, sub.next)
		if err != nil {
			return err
		}
		if !ok && !sub.gone {
			// At once, so that history is read from the last value before.
			e.gap(1)
			lost++
			sub.next = nextSeq(sub.next)
		}
	}
	sub.hole = time.Time{}
	if lost > 0 {
		e.src.log.Warn("notifications lost: the server no longer holds them", "subscription", sub.id, "messages", lost)
	}
	return nil
}

// republish asks for one notification and accepts it. ok is false when the
// server does not hold it.
func (e *engine) republish(ctx context.Context, sub *subscription, seq uint32) (ok bool, err error) {
	res, err := do[*ua.RepublishResponse](ctx, e.s, &ua.RepublishRequest{SubscriptionID: sub.id, RetransmitSequenceNumber: seq})
	switch {
	case errors.Is(err, ua.StatusBadSubscriptionIDInvalid), errors.Is(err, ua.StatusBadNoSubscription):
		e.lose(sub, statusText(err))
		return false, nil
	case err != nil && dead(err):
		return false, fmt.Errorf("republish: %w", err)
	case err != nil:
		if !errors.Is(err, ua.StatusBadMessageNotAvailable) {
			e.src.log.Warn("a notification cannot be read again", "subscription", sub.id, "sequence", seq, "err", err)
		}
		return false, nil
	case res.NotificationMessage == nil || res.NotificationMessage.SequenceNumber != seq:
		return false, nil
	}
	e.src.status.Add(metricRepublished, 1)
	e.accept(sub, res.NotificationMessage)
	return true, nil
}
