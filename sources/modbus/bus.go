package modbus

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// member is one source on a bus, for one Run.
type member struct {
	source  string
	status  *sources.Status
	points  []Point
	limits  limits
	retries int
	breaker BreakerConfig
	groups  []*pollGroup
	box     *box       // at most waiting results of each group: the bus never waits for a source
	down    chan error // one slot: the connection cannot be opened
	bus     *bus
	left    atomic.Bool // it is off the bus

	// The bus's own.
	tally   tally
	units   []*unitTally
	unitsAt time.Time // when they were settled
}

// bus is one connection and the goroutine that owns it: run sleeps until the
// earliest group is due, polls it, and puts the result into its member's box.
type bus struct {
	buses *Buses
	rtu   bool // replies carry no transaction number
	log   *slog.Logger
	wake  chan struct{}

	// Under buses.mu.
	settings settings
	members  []*member
	changed  atomic.Bool // members has; set under buses.mu

	// run's own.
	conn       settings    // what link was opened with
	link       link        // nil: closed
	up         atomic.Bool // link is open; anybody may read it
	replies    int         // that link has carried
	brief      int         // connections in a row that the peer closed after one reply
	quietUntil time.Time
	lastEnd    time.Time // of the last request
	now        time.Time // what clock says; zero: it has to look
	units      map[uint8]*unit
	schedule   schedule
	unheard    []*member // whose boxes got something and who were not woken since
}

func (b *bus) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *bus) run() {
	for {
		t, ok := b.next()
		if !ok {
			if b.retire() {
				return
			}
			continue
		}
		now := b.clock()
		if wait := t.at.Sub(now); wait > 0 {
			b.knockAll(wait)
			b.sleep(wait)
			continue
		}
		if t.group.boxed.Load() {
			b.knockAll(0)
		}
		b.tick(t.member, t.group, now)
		b.schedule.settle()
	}
}

// knockAll wakes the members whose results wait in their boxes, and settles their
// tallies. The bus is idle for a while then, or not.
func (b *bus) knockAll(idle time.Duration) {
	for _, m := range b.unheard {
		m.settle()
		m.settleUnits(b.clock(), idle)
		m.box.knock()
	}
	b.unheard = b.unheard[:0]
}

// next returns the group with the earliest deadline; ok is false when there is
// none. A new member's groups are due at once.
func (b *bus) next() (t *due, ok bool) {
	if b.changed.Load() && b.changed.Swap(false) {
		for _, d := range b.schedule { // some may have left
			d.member.settle()
			d.member.settleUnits(b.clock(), unitTime)
		}
		b.buses.mu.Lock()
		b.schedule = newSchedule(b.members)
		b.buses.mu.Unlock()
	}
	if len(b.schedule) == 0 {
		return nil, false
	}
	return &b.schedule[0], true
}

// clock is the time. A bus that is never idle looks at it once for many polls:
// from one request to the next hardly any passes.
func (b *bus) clock() time.Time {
	if b.now.IsZero() {
		b.now = time.Now()
	}
	return b.now
}

// sleep waits for d, or until the members change.
func (b *bus) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	b.now = time.Time{}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.wake:
	}
}

// pause waits for d while the bus has members.
func (b *bus) pause(d time.Duration) {
	for end := time.Now().Add(d); time.Until(end) > 0 && b.inUse(); {
		b.sleep(time.Until(end))
	}
}

func (b *bus) inUse() bool {
	b.buses.mu.Lock()
	defer b.buses.mu.Unlock()
	return len(b.members) > 0
}

// retire closes the connection and takes the bus out of the registry, unless
// somebody joined meanwhile. The quiet time after a failure is kept first, so
// that the next bus on this line does not meet a late reply.
func (b *bus) retire() bool {
	b.hangUp()
	time.Sleep(time.Until(b.quietUntil))
	b.now = time.Time{}
	b.buses.mu.Lock()
	defer b.buses.mu.Unlock()
	if len(b.members) > 0 {
		return false
	}
	delete(b.buses.open, b.settings.key())
	return true
}

// tick polls g once. Deadlines are multiples of the interval from the start: a
// poll that is late by less than an interval is made, ticks that have passed
// altogether are counted and skipped, and nothing drifts.
func (b *bus) tick(m *member, g *pollGroup, now time.Time) {
	if g.next.IsZero() {
		g.next = now
	}
	missed := now.Sub(g.next) / g.interval
	g.next = g.next.Add((missed + 1) * g.interval)
	m.tally.overruns += int(missed)
	if g.queued.Load() >= waiting {
		m.tally.overruns++
		m.status.Add(MetricBackpressure, 1)
		m.settle()
		return
	}
	p := poller{bus: b, member: m, group: g, begin: now, budget: splitsPerPoll, out: g.slots[g.turn][:0]}
	err := b.guard(&p)
	if errors.Is(err, errLeft) {
		return
	}
	took := max(0, b.lastEnd.Sub(now)) // less than no time: nothing was sent
	if m.tally.polls == 0 {
		m.tally.since = now
	}
	m.tally.polls++
	m.tally.requests += p.requests
	m.tally.spent += took
	if err != nil || now.Add(took).Sub(m.tally.since) >= gatherTime {
		m.settle()
		b.now = time.Time{}
	}
	if len(p.out) > 0 {
		g.slots[g.turn], g.turn = p.out, (g.turn+1)%waiting
		g.queued.Add(1)
		m.box.put(result{g, p.out})
		if !slices.Contains(b.unheard, m) {
			b.unheard = append(b.unheard, m)
		}
	}
	if err != nil {
		b.fail(err)
	}
}

// guard makes an error of a panic: the bus's goroutine has no supervisor of its
// own, and one source's fault must not end the process.
func (b *bus) guard(poll *poller) (err error) {
	defer func() {
		if p := recover(); p != nil {
			b.log.Error("modbus poll panicked", "panic", p, "stack", string(debug.Stack()))
			b.hangUp()
			err = fmt.Errorf("poll panicked: %v", p)
		}
	}()
	return poll.poll()
}

// fail tells every member that the connection cannot be opened, and takes them
// off: each comes back after the back-off of its own supervisor.
func (b *bus) fail(err error) {
	b.buses.mu.Lock()
	defer b.buses.mu.Unlock()
	for _, m := range b.members {
		for _, u := range m.units {
			u.setUp(false)
		}
		m.settleUnits(b.clock(), unitTime)
		m.down <- err
	}
	b.members = nil
	b.changed.Store(true)
}

// connect opens the connection unless it is open.
func (b *bus) connect() error {
	if b.link != nil {
		return nil
	}
	b.pause(time.Until(b.quietUntil))
	if !b.inUse() {
		return errLeft
	}
	b.buses.mu.Lock()
	b.conn = b.settings
	b.buses.mu.Unlock()
	l, err := b.buses.dial(b.conn, b.log)
	b.now = time.Time{}
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "dial" {
		return sources.DialError(b.conn.key(), err)
	}
	if err != nil {
		return openError(b.conn, err)
	}
	b.link, b.replies = l, 0
	b.up.Store(true)
	b.log.Debug("modbus connection opened")
	b.pause(b.conn.pauseConnect)
	return nil
}

// drop closes the connection after a failure. Where a late reply could pass for
// the next one, the line is left alone for one time-out before it is opened
// again; opening discards what came in meanwhile. What comes later still, doubt
// finds out.
func (b *bus) drop(err error) {
	b.log.Debug("modbus connection closed", "err", err)
	b.hangUp()
	if b.rtu {
		b.quietUntil = time.Now().Add(b.conn.timeout)
	}
}

// briefly is how many connections in a row a peer must have closed after one
// reply before each request gets a connection of its own.
const briefly = 2

// replied notes a reply. Some gateways, and those whose patience is shorter than
// the poll interval, close after each: the next request would be lost, and on RTU
// framing leave the unit in doubt.
func (b *bus) replied() {
	if b.replies++; b.replies > 1 {
		b.brief = 0
	}
	if b.brief >= briefly {
		b.hangUp()
	}
}

// lost notes that the peer closed the connection.
func (b *bus) lost() {
	if b.replies == 1 && b.conn.stream() {
		b.brief++
	}
}

func (b *bus) hangUp() {
	if b.link != nil {
		b.link.close()
		b.link = nil
		b.up.Store(false)
	}
}
