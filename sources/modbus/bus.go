package modbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// Buses is the connections of a process. Sources on the same host and port, or
// on the same serial device, share one: a serial line has one master, and many
// gateways take one connection. Make one Buses and give it to every Source. Any
// goroutine may use it.
type Buses struct {
	log   *slog.Logger
	dial  func(settings, *slog.Logger) (link, error)
	knock func(ctx context.Context, peer string) error // nil: it accepts connections

	mu    sync.Mutex
	open  map[string]*bus
	looks map[string]*look // by peer
	wg    sync.WaitGroup
}

// look is what was seen of a peer that no connection is open to. Whoever holds
// turn may use the rest.
type look struct {
	turn chan struct{}
	at   time.Time
	err  error
}

// lookFresh is how long a look counts for all sources of a peer.
const lookFresh = 500 * time.Millisecond

// NewBuses makes an empty set of connections.
func NewBuses(log *slog.Logger) *Buses {
	return &Buses{log: log, dial: dial, knock: sources.ReachTCP, open: map[string]*bus{}, looks: map[string]*look{}}
}

// reach returns nil when the connection key is open or peer accepts one. Many
// gateways have one connection to give: their sources look together, and not at
// all while one of them is connected.
func (bs *Buses) reach(ctx context.Context, key, peer string) error {
	bs.mu.Lock()
	b, l := bs.open[key], bs.looks[peer]
	if l == nil {
		l = &look{turn: make(chan struct{}, 1)}
		bs.looks[peer] = l
	}
	bs.mu.Unlock()
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.turn }()
	if b != nil && b.up.Load() {
		return nil
	}
	if l.at.IsZero() || time.Since(l.at) >= lookFresh {
		l.err = bs.knock(ctx, peer)
		l.at = time.Now()
	}
	return l.err
}

// Wait returns when every connection is closed. Call it after the sources have
// stopped; a read or a dial that is under way ends first.
func (bs *Buses) Wait() { bs.wg.Wait() }

// join puts m on the connection that s describes, which is opened when the
// first group is due.
func (bs *Buses) join(s settings, m *member) error {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.open[s.key()]
	if b == nil {
		b = &bus{rtu: s.rtu(), settings: s, buses: bs, log: bs.log.With("endpoint", s.key()), wake: make(chan struct{}, 1), units: map[uint8]*unit{}}
		bs.open[s.key()] = b
		bs.wg.Go(b.run)
	}
	if len(b.members) == 0 {
		b.settings = s
	} else if err := conflict(b.settings, s, b.members[0].source); err != nil {
		return err
	}
	m.bus = b
	b.members = append(b.members, m)
	b.changed.Store(true)
	b.poke()
	return nil
}

// conflict says in what s differs from what holds for the connection since the
// source holder joined it.
func conflict(holds, s settings, holder string) error {
	if key := holds.difference(s); key != "" {
		return fmt.Errorf("%s is shared with source %s, which has another modbus.%s: make them equal", s.key(), holder, key)
	}
	return nil
}

// leave takes m off its connection, which closes with its last member. A read
// for m that is under way ends without m.
func (bs *Buses) leave(m *member) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	m.left.Store(true)
	m.bus.members = slices.DeleteFunc(m.bus.members, func(o *member) bool { return o == m })
	m.bus.changed.Store(true)
	m.bus.poke()
}

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

// waiting is how many results of a group may wait to be emitted: one that the
// source works on, and the next.
const waiting = 2

// pollGroup is a group of points on its schedule.
type pollGroup struct {
	group
	next   time.Time    // bus only
	queued atomic.Int32 // results that are not emitted yet, at most waiting
	boxed  atomic.Bool  // one of them lies in the box
	memory *memory
	tally  *unitTally       // of its unit; bus only
	slots  [waiting][]block // of the results, in turn; a slot is free when its result is emitted; bus only
	turn   int

	// The plan, made anew when memory has changed; bus only.
	plan    []run
	planned int64 // version of memory that plan is made of, -1: none
	holed   bool  // points are refused
	unit    *unit // nil: not asked yet
}

// run is one request: the points that it reads, and where they lie.
type run struct {
	points []int
	start  uint16
	count  int
	quiet  *quiet // nil: every reply is looked at
	rooms  *rooms // nil: every reply gets a new one
}

// rooms is where the replies to one request of a plan lie: those that wait, and
// the one before them that quiet remembers. A source works on them in order, so
// that they are free in turn.
type rooms struct {
	room [waiting + 1]data
	turn int
}

// next is the room for the next reply.
func (r *rooms) next() data {
	if r == nil {
		return nil
	}
	return r.room[r.turn]
}

// keep says that d holds a reply, so that its room is not the next one.
func (r *rooms) keep(d data) {
	if r != nil {
		r.room[r.turn] = d
		r.turn = (r.turn + 1) % len(r.room)
	}
}

func newRun(points []Point, list []int) *run {
	start, count := span(points, list)
	return &run{points: list, start: start, count: count}
}

// runs returns the requests of the group's next poll.
func (g *pollGroup) runs(l limits, points []Point) []run {
	if v := g.memory.version.Load(); v != g.planned {
		g.plan, g.planned, g.holed = nil, v, g.memory.holed()
		for _, list := range l.runs(points, g.points, g.memory) {
			r := newRun(points, list)
			r.quiet, r.rooms = newQuiet(points, list), new(rooms)
			g.plan = append(g.plan, *r)
		}
	}
	return g.plan
}

// result is one poll of a group.
type result struct {
	group  *pollGroup
	blocks []block
}

// block is the answer to one request: data, or err, for its points.
type block struct {
	points []int
	start  uint16
	data   data
	at     time.Time // midpoint of request and reply; of an error: when it was known
	err    error
	quiet  *quiet // of the request; nil: it is not of the plan, or must be looked at
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
	if b.changed.Swap(false) {
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
