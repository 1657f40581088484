package opcua

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
)

const (
	// probeEvery is how often silent items are compared with the server.
	probeEvery = 30 * time.Second
	// probeNodes is how many are compared at once.
	probeNodes = 100
)

// onTick looks at every clock.
func (e *engine) onTick(ctx context.Context) error {
	now := time.Now()
	e.countBytes()
	if err := e.watchSilence(now); err != nil {
		return err
	}
	if err := e.watchSubscriptions(ctx, now); err != nil {
		return err
	}
	if err := e.keepAlive(ctx, now); err != nil {
		return err
	}
	e.heartbeats(now)
	if now.After(e.nextRetry) {
		e.nextRetry = now.Add(retryItems)
		if e.renewed != nil && e.renewed() {
			return errRenewed
		}
		if err := e.retry(ctx); err != nil {
			return err
		}
	}
	if now.After(e.nextProbe) {
		e.nextProbe = now.Add(probeEvery)
		if err := e.probe(ctx, now); err != nil {
			return err
		}
	}
	if err := e.rebrowse(ctx, now); err != nil {
		return err
	}
	if err := e.refreshConditions(ctx); err != nil {
		return err
	}
	e.startBackfill(ctx)
	e.report()
	return nil
}

// countBytes counts what came over the connection since the last call.
func (e *engine) countBytes() {
	if e.arrived != nil {
		n := e.arrived()
		e.src.status.Received(int(n - e.bytes))
		e.bytes = n
	}
}

// watchSilence ends a connection over which no publish request is answered,
// although the server must answer each within its keep-alive time.
func (e *engine) watchSilence(now time.Time) error {
	var limit time.Duration
	for _, s := range e.src.subs {
		limit = max(limit, s.watchdog())
	}
	if limit == 0 || e.inFlight == 0 {
		return nil
	}
	if silent := now.Sub(e.lastAnswer); silent > limit {
		return fmt.Errorf("%w: no answer for %s, while keep-alives are due every %s", errStalled, silent.Round(time.Second), (limit-2*time.Second)*2/3)
	}
	return nil
}

// watchSubscriptions replaces a subscription that is silent while others on the
// same connection are not.
func (e *engine) watchSubscriptions(ctx context.Context, now time.Time) error {
	if len(e.src.subs) < 2 || e.inFlight == 0 {
		return nil
	}
	for _, s := range slices.Clone(e.src.subs) {
		if now.Sub(s.lastAt) > s.watchdog()*time.Duration(1+len(e.src.subs)/10) && len(e.queue) == 0 {
			if err := e.deleteSubscriptions(ctx, []uint32{s.id}); err != nil {
				return err
			}
			e.lose(s, "silent for "+now.Sub(s.lastAt).Round(time.Second).String())
		}
	}
	return e.afterLoss(ctx)
}

// keepAlive keeps session and subscriptions alive while nothing is asked of the
// server: when we poll slowly or publishing is slow, since a request that waits
// there does not count (Part 4, 5.6.2), and while the pipeline is full.
func (e *engine) keepAlive(ctx context.Context, now time.Time) error {
	if now.Sub(e.lastService) < e.idle/3 {
		return nil
	}
	e.lastService = now
	if e.inFlight > 0 || len(e.src.subs) == 0 {
		if _, err := e.s.read(ctx, []*ua.ReadValueID{valueOf(ns0(idServerState))}); err != nil {
			return fmt.Errorf("keep the session alive: %w", err)
		}
		return nil
	}
	req := &ua.SetPublishingModeRequest{PublishingEnabled: true}
	for _, s := range e.src.subs {
		req.SubscriptionIDs = append(req.SubscriptionIDs, s.id)
		s.lastAt = now
	}
	// It resets the lifetime counter of each (Part 4, 5.13.1.2).
	if _, err := do[*ua.SetPublishingModeResponse](ctx, e.s, req); err != nil && dead(err) {
		return fmt.Errorf("keep subscriptions alive: %w", err)
	}
	return nil
}

// heartbeats repeats the last value of items that asked for it. The value of one
// that the server refuses now is not repeated: it is known to be bad. Nor is any
// value while newer ones may wait on the server since an outage.
func (e *engine) heartbeats(now time.Time) {
	var out []abi.Record
	for _, it := range e.src.plan.items {
		every := time.Duration(*it.cfg.HeartbeatSeconds) * time.Second
		if it.failed || it.sub != nil && it.sub.behind(now) {
			continue
		}
		if every == 0 || it.heartbeat.Source == "" || now.Sub(time.UnixMicro(it.heartbeat.IngestTime)) < every {
			continue
		}
		it.heartbeat.IngestTime, it.heartbeat.EventTime = now.UnixMicro(), now.UnixMicro()
		r := it.heartbeat
		r.Attrs = append(slices.Clone(r.Attrs), abi.Attr{Key: attrHeartbeat, Value: abi.Bool(true)})
		out = append(out, r)
	}
	if len(out) > 0 {
		e.src.status.Read(len(out), 0)
		e.push(message{records: out})
	}
}

// retry tries refused items and missing nodes again; the others flow on.
func (e *engine) retry(ctx context.Context) error {
	p := e.src.plan
	var failed []*item
	for _, it := range p.items {
		if it.failed && !e.polls(it) && !(it.modelChange && e.forcedPoll) {
			it.failed = false
			failed = append(failed, it)
		}
	}
	if len(failed) > 0 {
		if err := e.createItems(ctx, failed); err != nil {
			return err
		}
	}
	if len(p.lost) > 0 {
		var at []int
		for _, l := range p.lost {
			at = append(at, l.at)
		}
		if err := e.replan(ctx, at, false); err != nil {
			return err
		}
	}
	if len(e.s.types.missing) > 0 {
		if err := e.findTypes(ctx); err != nil {
			return err
		}
	}
	if len(failed) > 0 || len(p.lost) > 0 {
		return e.fill(ctx)
	}
	return nil
}

// findTypes looks for the definitions of structures that came without one.
func (e *engine) findTypes(ctx context.Context) error {
	var encodings []*ua.NodeID
	for _, id := range e.s.types.missing {
		if id != nil {
			encodings = append(encodings, id)
		}
	}
	refs, _, err := e.s.browse(ctx, encodings, ua.BrowseDirectionInverse, idHasEncoding, 0)
	if err != nil {
		return fmt.Errorf("find type definitions: %w", err)
	}
	var types []*ua.NodeID
	for i, list := range refs {
		e.s.types.missing[nodeText(encodings[i])] = nil // asked
		for _, r := range list {
			if id, ok := expanded(r.NodeID, e.s.ns); ok {
				types = append(types, id)
			}
		}
	}
	if err := e.s.types.learn(ctx, e.s, types); err != nil {
		return err
	}
	e.s.types.settle()
	return nil
}

// rebrowse looks for new and removed variables below nodes with
// rebrowse_seconds when their time has come, and below every recursive node
// when the server said that its address space changed.
func (e *engine) rebrowse(ctx context.Context, now time.Time) error {
	var due []int
	changed := e.modelChanged(now)
	for i, n := range e.src.cfg.Nodes {
		if changed && n.Recursive {
			e.nextRebrowse[i] = now.Add(time.Duration(n.RebrowseSeconds) * time.Second)
			due = append(due, i)
			continue
		}
		if n.RebrowseSeconds == 0 {
			continue
		}
		every := time.Duration(n.RebrowseSeconds) * time.Second
		if at, ok := e.nextRebrowse[i]; !ok {
			e.nextRebrowse[i] = now.Add(every)
		} else if now.After(at) {
			e.nextRebrowse[i] = now.Add(every)
			due = append(due, i)
		}
	}
	if len(due) == 0 {
		return nil
	}
	if err := e.replan(ctx, due, true); err != nil {
		return err
	}
	if changed {
		e.src.plan.changed = false
	}
	return e.fill(ctx)
}

// replan resolves and browses some nodes of the configuration again: new
// variables are added, and with drop those that are gone are removed.
func (e *engine) replan(ctx context.Context, at []int, drop bool) error {
	p := e.src.plan
	found, err := e.s.makePlan(ctx, e.src, at)
	if err != nil {
		return err
	}
	known := map[string]*item{}
	for _, it := range p.items {
		known[it.key()] = it
	}
	now := map[string]bool{}
	added := 0
	for _, it := range found.items {
		now[it.key()] = true
		if known[it.key()] == nil {
			it.handle = 0
			p.items = append(p.items, it)
			added++
		}
	}
	p.lost = slices.DeleteFunc(p.lost, func(l lostNode) bool { return slices.Contains(at, l.at) })
	p.lost = append(p.lost, found.lost...)
	removed := 0
	if drop && len(found.lost) == 0 {
		if removed, err = e.dropItems(ctx, at, now); err != nil {
			return err
		}
	}
	if added+removed > 0 {
		giveHandles(p.items)
		if err := e.startPolls(ctx); err != nil {
			return err
		}
		e.src.log.Info("address space changed", "added", added, "removed", removed)
	}
	return nil
}

// dropItems deletes the items below the nodes at, save those in still.
func (e *engine) dropItems(ctx context.Context, at []int, still map[string]bool) (int, error) {
	gone, dropped := map[*subscription][]uint32{}, map[*item]bool{}
	for _, it := range e.src.plan.items {
		if it.event != nil || still[it.key()] || !slices.Contains(at, it.origin) {
			continue
		}
		dropped[it] = true
		if it.sub != nil {
			gone[it.sub] = append(gone[it.sub], it.serverID)
			delete(it.sub.items, it.handle)
		}
	}
	for sub, ids := range gone {
		if err := e.deleteItems(ctx, sub, ids); err != nil {
			return 0, err
		}
	}
	e.src.plan.items = slices.DeleteFunc(e.src.plan.items, func(it *item) bool { return dropped[it] })
	return len(dropped), nil
}

// probe compares silent items with the server: an item for which the server has
// another value twice in a row, while we got none, does not deliver. It is
// created again.
func (e *engine) probe(ctx context.Context, now time.Time) error {
	var silent []*item
	for _, it := range e.src.plan.items {
		// While the pipeline is full the values wait on the server.
		if now.Sub(e.blockedAt) < 2*probeEvery {
			it.probed = 0
			continue
		}
		quiet := probeEvery + 3*time.Duration(*it.cfg.SamplingIntervalMS)*time.Millisecond + 3*e.src.cfg.publishingInterval()
		if it.sub == nil || it.event != nil || now.Sub(it.lastAt) < quiet || it.cfg.Deadband.Type != "none" || *it.cfg.Trigger == "status" {
			continue
		}
		silent = append(silent, it)
	}
	slices.SortStableFunc(silent, func(a, b *item) int { return a.checkedAt.Compare(b.checkedAt) })
	silent = silent[:min(len(silent), probeNodes)]
	ask := []*ua.ReadValueID{valueOf(ns0(idServerState))}
	for _, it := range silent {
		it.checkedAt = now
		ask = append(ask, valueOf(it.node))
	}
	got, err := e.s.read(ctx, ask)
	if err != nil {
		if dead(err) {
			return fmt.Errorf("probe the server: %w", err)
		}
		e.src.log.Warn("probe the server", "err", err)
		return nil
	}
	e.setServerState(got[0])
	var stalled []*item
	for i, it := range silent {
		r := it.record(e.src.name, &e.src.cfg, got[i+1], now, &e.arena)
		differs := r.Status>>30 == 0 && (!it.delivered || it.lastValue != (abi.Value{}) && (r.Value != it.lastValue || r.Status>>30 != it.lastCode>>30))
		if !differs {
			it.probed = 0
		} else if it.probed++; it.probed >= 2 {
			stalled = append(stalled, it)
		}
	}
	e.stalledItems = len(stalled)
	if len(stalled) == 0 {
		return nil
	}
	return e.recreate(ctx, stalled)
}

func (e *engine) setServerState(v *ua.DataValue) {
	e.serverState = ""
	n, ok := v.Value.Value().(int32)
	if ok && n > 0 && int(n) < len(serverStates) {
		e.serverState = serverStates[n]
	}
}

// serverStates are the values of ServerState (Part 5, 12.6).
var serverStates = []string{"Running", "Failed", "NoConfiguration", "Suspended", "Shutdown", "Test", "CommunicationFault", "Unknown"}

// recreate deletes and creates items that do not deliver. When that is all of a
// subscription, the subscription is replaced.
func (e *engine) recreate(ctx context.Context, stalled []*item) error {
	e.src.log.Warn("items do not deliver although the server has new values; creating them again", "items", len(stalled), "first", stalled[0].address)
	bySub := map[*subscription][]*item{}
	for _, it := range stalled {
		bySub[it.sub] = append(bySub[it.sub], it)
	}
	for sub, items := range bySub {
		if len(items) == len(sub.items) || items[0].serverID == 0 {
			if err := e.deleteSubscriptions(ctx, []uint32{sub.id}); err != nil {
				return err
			}
			e.lose(sub, "none of its items delivers")
			continue
		}
		var ids []uint32
		for _, it := range items {
			ids = append(ids, it.serverID)
			delete(sub.items, it.handle)
			it.sub = nil
		}
		if err := e.deleteItems(ctx, sub, ids); err != nil {
			return err
		}
	}
	return e.fill(ctx)
}

// report says how the source is. Connected means that data flows, or that the
// server proves by keep-alives that it would.
func (e *engine) report() {
	state, detail := e.health(time.Now())
	e.src.status.Report(e.src.log, state, detail)
}

func (e *engine) health(now time.Time) (sources.State, string) {
	p := e.src.plan
	var bad []string
	working, values, waiting := 0, 0, 0
	for _, it := range p.items {
		if it.modelChange {
			continue
		}
		if it.failed {
			bad = append(bad, it.address+" ("+statusName(it.status)+")")
			continue
		}
		working++
		if it.event == nil {
			values++
			if !it.delivered {
				waiting++
			}
		}
	}
	for _, l := range p.lost {
		bad = append(bad, l.text+" ("+l.why+")")
	}
	e.src.status.Gauge(metricItemsBad, float64(len(bad)))
	total := p.read() + len(p.lost)
	switch {
	case working == 0 && total == 0:
		return sources.Stalled, "the configuration matches no variable on the server: check browse_path, include and exclude"
	case working == 0:
		return sources.Stalled, fmt.Sprintf("none of %d items can be read: %s; tried again every minute", total, summary(bad))
	case values > 0 && waiting == values && now.Sub(e.firstAt) < 15*time.Second:
		return sources.Connecting, "waiting for the first values"
	case values > 0 && waiting == values:
		return sources.Stalled, fmt.Sprintf("subscribed to %d items, but not one value has come", values)
	case now.Sub(e.blockedAt) < 2*tick:
		return sources.Degraded, "the pipeline is full: values wait on the server, which keeps queue_size of each item"
	case len(bad) > 0:
		return sources.Degraded, fmt.Sprintf("%d of %d items cannot be read: %s; tried again every minute", len(bad), total, summary(bad))
	case waiting > 0 && now.Sub(e.firstAt) > time.Minute:
		return sources.Degraded, fmt.Sprintf("%d of %d items have sent no value yet", waiting, total)
	case e.stalledItems > 0 && e.stalledItems >= min(values, probeNodes):
		return sources.Stalled, fmt.Sprintf("none of %d items delivered, although the server has new values; they were created again", values)
	case e.stalledItems > 0:
		return sources.Degraded, fmt.Sprintf("%d items did not deliver and were created again", e.stalledItems)
	case e.serverState != "":
		return sources.Degraded, "server says that it is in state " + e.serverState
	}
	var notes []string
	if e.forcedPoll {
		notes = append(notes, fmt.Sprintf("the server has no subscriptions: %d items are polled at their sampling_interval_ms instead", values))
	}
	if list := p.undamped(); len(list) > 0 {
		notes = append(notes, fmt.Sprintf("%d of %d items come at every change, their dead-band cannot be applied: %s", len(list), total, summary(list)))
	}
	return sources.Connected, strings.Join(notes, "; ")
}
