package opcua

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
)

// errStalled ends a connection over which nothing comes although it looks
// alive.
var errStalled = errors.New("server is connected but delivers nothing")

// errReturned ends a connection because the pipeline gave a batch back.
var errReturned = errors.New("pipeline gave a batch back; it is emitted again")

// errRenewed ends a connection because our certificate changed; the next one
// uses the new certificate and takes the subscriptions over.
var errRenewed = errors.New("our certificate was renewed; connecting with the new one")

const (
	// tick is how often the engine looks at its clocks.
	tick = time.Second
	// holePatience is how long a missing notification may be overtaken by later
	// ones before it is asked for again.
	holePatience = 250 * time.Millisecond
	// retryItems is how long an item that the server refuses rests.
	retryItems = time.Minute
	// maxQueued is how many messages wait for the pipeline before we stop asking
	// the server for more.
	maxQueued = 16
)

// engine is one connection at work. One goroutine runs it; publish requests,
// polls and history reads run beside it and answer over channels.
type engine struct {
	src     *Source
	s       *session
	emitter *emitter

	arena     attrArena
	queue     []message // accepted, not yet taken by the emitter
	published chan published
	fetched   chan fetched
	wg        sync.WaitGroup

	inFlight, target int
	maxNotify        int // values in one notification
	faults           int // publish requests that failed in a row
	firstAt          time.Time
	lastAnswer       time.Time
	lastService      time.Time
	blockedAt        time.Time // when the pipeline was last too full for more
	nextRetry        time.Time
	renewed          func() bool   // link.renewed
	arrived          func() uint64 // link.arrived
	bytes            uint64        // of arrived, counted
	nextProbe        time.Time
	nextRebrowse     map[int]time.Time
	lastModelBrowse  time.Time // when a model change asked for a browse
	backfill         bool
	backfilling      bool
	forcedPoll       bool
	stopPolls        context.CancelFunc
	serverState      string
	stalledItems     int
}

// published is the answer to one publish request.
type published struct {
	res  *ua.PublishResponse
	err  error
	took time.Duration
	subs []uint32 // whose acknowledgements it carried
	size int      // the engine's maxNotify when it was asked for
}

// fetched is what a poll or a history read brought.
type fetched struct {
	items   []*item
	values  []*ua.DataValue
	history bool
	done    bool // the last of a history read
	err     error
}

func newEngine(src *Source, s *session, emit sources.Emit) *engine {
	return &engine{src: src, s: s, emitter: &emitter{src: src, emit: emit, in: make(chan message)}, published: make(chan published, 64),
		fetched: make(chan fetched, 4), target: src.cfg.PublishRequests, maxNotify: src.cfg.MaxNotificationsPerPublish, nextRebrowse: map[int]time.Time{}}
}

func one(r abi.Record) []abi.Record { return []abi.Record{r} }

// run reads until ctx ends or the connection is lost. All its goroutines have
// ended when it returns.
func (e *engine) run(parent context.Context, l *link) error {
	e.renewed, e.arrived = l.renewed, l.arrived
	ctx, cancel := context.WithCancelCause(parent)
	defer func() {
		cancel(context.Canceled)
		e.wg.Wait()
		e.keepQueue()
	}()
	e.wg.Go(func() {
		if err := e.emitter.run(ctx); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("emit: %w", err))
		}
	})
	if err := e.restore(ctx, l.resumed); err != nil {
		return cause(ctx, err)
	}
	return cause(ctx, e.loop(ctx))
}

// cause prefers the reason for which ctx was cancelled.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// keepQueue leaves what the emitter did not take to the next Run.
func (e *engine) keepQueue() {
	for _, m := range e.queue {
		e.emitter.add(m)
	}
	e.queue = nil
	e.emitter.keep()
}

func (e *engine) loop(ctx context.Context) error {
	now := time.Now()
	e.lastAnswer, e.lastService, e.firstAt = now, now, now
	e.nextRetry, e.nextProbe = now.Add(retryItems), now.Add(probeEvery)
	if err := e.startPolls(ctx); err != nil {
		return err
	}
	clock := time.NewTicker(tick)
	defer clock.Stop()
	hole := time.NewTicker(holePatience)
	defer hole.Stop()
	e.report()
	for {
		e.publish(ctx)
		var out chan<- message
		var head message
		if len(e.queue) > 0 {
			out, head = e.emitter.in, e.queue[0]
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case out <- head:
			e.queue[0] = message{}
			if e.queue = e.queue[1:]; len(e.queue) == 0 {
				e.queue = nil
			}
		case p := <-e.published:
			e.inFlight--
			err = e.answered(ctx, p)
		case f := <-e.fetched:
			err = e.take(f)
		case <-e.src.flights.news:
		case <-e.src.flights.broken:
			err = errReturned
		case <-hole.C:
			err = e.fillHoles(ctx)
		case <-clock.C:
			err = e.onTick(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// push queues a message for the pipeline.
func (e *engine) push(m message) { e.queue = append(e.queue, m) }

// announce sends the resume point of the subscriptions as they are now.
func (e *engine) announce() {
	src := e.src
	p := &resumePoint{Version: 1, Endpoint: src.endpoint, Config: src.cfgHash, Items: itemsHash(src.plan.items), Started: src.started.UnixNano()}
	for _, s := range src.subs {
		p.Subs = append(p.Subs, resumeSub{ID: s.id, Seq: s.next - 1})
	}
	for _, it := range src.plan.items {
		if it.failed {
			p.Failed = append(p.Failed, it.handle)
		}
	}
	slices.Sort(p.Failed)
	src.status.Gauge(metricItems, float64(src.plan.read()))
	e.push(message{head: p})
}

// publish keeps publish requests with the server, unless the pipeline is full:
// then the server keeps the values.
func (e *engine) publish(ctx context.Context) {
	if len(e.queue) > maxQueued {
		e.blockedAt = time.Now()
		return
	}
	if len(e.src.subs) == 0 {
		return
	}
	if e.inFlight == 0 {
		e.lastAnswer = time.Now()
	}
	for e.inFlight < min(e.target+len(e.src.subs)-1, cap(e.published)) {
		e.inFlight++
		req := &ua.PublishRequest{}
		var subs []uint32
		size := e.maxNotify
		for _, s := range e.src.subs {
			if acks := s.acks(); len(acks) > 0 {
				req.SubscriptionAcknowledgements = append(req.SubscriptionAcknowledgements, acks...)
				subs = append(subs, s.id)
			}
		}
		e.wg.Go(func() {
			start := time.Now()
			res, err := call[*ua.PublishResponse](ctx, e.s.t, req)
			select {
			case e.published <- published{res: res, err: err, took: time.Since(start), subs: subs, size: size}:
			case <-ctx.Done():
			}
		})
	}
}

// answered takes the answer to a publish request.
func (e *engine) answered(ctx context.Context, p published) error {
	now := time.Now()
	e.lastService = now
	if p.err != nil {
		return e.publishFault(ctx, p)
	}
	e.faults, e.lastAnswer = 0, now
	e.src.status.Gauge(metricPublishLatency, p.took.Seconds())
	sub := e.subscription(p.res.SubscriptionID)
	m := p.res.NotificationMessage
	if sub == nil || m == nil {
		return nil
	}
	sub.lastAt, sub.available = now, p.res.AvailableSequenceNumbers
	sub.level = sub.level || !p.res.MoreNotifications
	if len(m.NotificationData) == 0 {
		// A keep-alive carries the number that comes next (Part 4, 5.13.1.1).
		if after(m.SequenceNumber, sub.upTo) {
			sub.upTo = m.SequenceNumber
		}
	} else {
		if !slices.Contains(sub.available, m.SequenceNumber) {
			sub.available = append(sub.available, m.SequenceNumber)
		}
		if after(sub.next, m.SequenceNumber) {
			return nil // seen before
		}
		sub.stash[m.SequenceNumber] = m
		if next := nextSeq(m.SequenceNumber); after(next, sub.upTo) {
			sub.upTo = next
		}
	}
	e.drain(sub)
	return e.afterLoss(ctx)
}

// drain accepts what is in order, and notes a hole.
func (e *engine) drain(sub *subscription) {
	for !sub.gone {
		m := sub.stash[sub.next]
		if m == nil {
			break
		}
		delete(sub.stash, sub.next)
		e.accept(sub, m)
	}
	switch {
	case !after(sub.upTo, sub.next):
		sub.hole = time.Time{}
	case sub.hole.IsZero():
		sub.hole = time.Now()
	}
}

func (e *engine) subscription(id uint32) *subscription {
	for _, s := range e.src.subs {
		if s.id == id {
			return s
		}
	}
	return nil
}

// publishFault decides what a failed publish request means.
func (e *engine) publishFault(ctx context.Context, p published) error {
	for _, id := range p.subs {
		if s := e.subscription(id); s != nil {
			s.ackedTo = 0 // perhaps not taken by the server
		}
	}
	switch {
	case errors.Is(p.err, ua.StatusBadNoSubscription):
		for _, s := range slices.Clone(e.src.subs) {
			e.lose(s, statusText(p.err))
		}
		return e.afterLoss(ctx)
	case errors.Is(p.err, ua.StatusBadTooManyPublishRequests):
		e.target = max(1, e.target-1)
		return nil
	case errors.Is(p.err, ua.StatusBadTimeout):
		return nil
	case tooMuch(p.err) && p.size > e.maxNotify:
		return nil // asked for before they became smaller
	case tooMuch(p.err):
		return e.shrinkNotifications(ctx)
	case dead(p.err):
		return fmt.Errorf("connection lost: %w", p.err)
	}
	// Anything else is one answer that could not be read; its notification is
	// missed and asked for again.
	e.src.log.Warn("publish failed", "err", p.err)
	e.src.status.Fail(reasonDecode, 0)
	if e.faults++; e.faults > 10 {
		return fmt.Errorf("publish keeps failing: %w", p.err)
	}
	return nil
}

// shrinkNotifications halves the size of notifications after one was too large
// for the server to send or for us to read.
func (e *engine) shrinkNotifications(ctx context.Context) error {
	if e.faults++; e.faults > 10 || e.maxNotify <= 1 {
		return errors.New("a single notification is too large: remove the item with the largest array, or raise the server's message size")
	}
	e.maxNotify /= 2
	e.src.log.Warn("notification too large; asking for smaller ones", "max_notifications_per_publish", e.maxNotify)
	cfg := e.src.cfg
	for _, s := range e.src.subs {
		_, err := do[*ua.ModifySubscriptionResponse](ctx, e.s, &ua.ModifySubscriptionRequest{SubscriptionID: s.id,
			RequestedPublishingInterval: float64(s.interval.Milliseconds()), RequestedLifetimeCount: lifetimeCount(cfg),
			RequestedMaxKeepAliveCount: uint32(cfg.KeepaliveCount), MaxNotificationsPerPublish: uint32(e.maxNotify)})
		if err != nil && dead(err) {
			return fmt.Errorf("modify subscription: %w", err)
		}
	}
	return nil
}

// afterLoss makes new subscriptions for items that lost theirs.
func (e *engine) afterLoss(ctx context.Context) error {
	for _, it := range e.src.plan.items {
		if it.sub == nil && !it.failed && !e.polls(it) {
			return e.fill(ctx)
		}
	}
	return nil
}

func (e *engine) fillHoles(ctx context.Context) error {
	for _, s := range slices.Clone(e.src.subs) {
		if s.hole.IsZero() || time.Since(s.hole) < holePatience {
			continue
		}
		if err := e.fillHole(ctx, s); err != nil {
			return err
		}
	}
	return e.afterLoss(ctx)
}

// accept turns the next notification of sub into records.
func (e *engine) accept(sub *subscription, m *ua.NotificationMessage) {
	now := time.Now()
	sub.next = nextSeq(m.SequenceNumber)
	if after(sub.next, sub.upTo) {
		sub.upTo = sub.next
	}
	out := message{mark: &mark{sub: sub, seq: m.SequenceNumber}}
	for _, n := range m.NotificationData {
		if n == nil {
			continue
		}
		switch body := n.Value.(type) {
		case *ua.DataChangeNotification:
			out.records = slices.Grow(out.records, len(body.MonitoredItems))
			for _, v := range body.MonitoredItems {
				it := sub.items[v.ClientHandle]
				if it == nil || v.Value == nil {
					continue
				}
				if r, ok := e.value(it, v.Value, now); ok {
					out.records = append(out.records, r)
				}
			}
		case *ua.EventNotificationList:
			for _, ev := range body.Events {
				it := sub.items[ev.ClientHandle]
				switch {
				case it == nil || it.event == nil:
				case it.modelChange:
					e.src.plan.changed = e.src.plan.changed || tellsModelChange(ev.EventFields)
				default:
					it.delivered, it.lastAt = true, now
					out.records = append(out.records, it.eventRecord(e.src.name, &e.src.cfg, ev.EventFields, now))
				}
			}
		case *ua.StatusChangeNotification:
			if body.Status == ua.StatusGoodSubscriptionTransferred && sub.moved {
				sub.moved = false
				continue // to us
			}
			e.lose(sub, statusName(body.Status))
		}
	}
	if e.src.cfg.Ack == "received" {
		sub.durable.Store(m.SequenceNumber)
	}
	// Bytes are counted at the connection.
	e.src.status.Read(len(out.records), 0)
	e.push(out)
}

// value makes the record of one value that arrived for it; ok is false when the
// value is not to be delivered.
func (e *engine) value(it *item, v *ua.DataValue, now time.Time) (r abi.Record, ok bool) {
	r = it.record(e.src.name, &e.src.cfg, v, now, &e.arena)
	if v.Status&overflowBits == overflowBits {
		e.src.status.Add(metricOverflow, 1)
		e.overflowed(it, r.EventTime)
	}
	it.delivered, it.probed, it.lastAt = true, 0, now
	it.lastValue, it.lastCode, it.lastEvent = r.Value, r.Status, r.EventTime
	if *it.cfg.HeartbeatSeconds > 0 {
		it.heartbeat = r
	}
	if it.skipNext {
		it.skipNext = false
		return r, false
	}
	return r, true
}
