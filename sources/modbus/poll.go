package modbus

import (
	"errors"
	"fmt"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// The metrics of the modbus source, per source.
const (
	MetricPolls        = "modbus_polls_total"                 // polls of a group
	MetricRequests     = "modbus_requests_total"              // reads sent
	MetricPollErrors   = "modbus_poll_errors_total"           // reads that failed for good, or were not sent to a unit that is down
	MetricExceptions   = "modbus_exceptions_total"            // replies that were exceptions
	MetricTimeouts     = "modbus_timeouts_total"              // reads without a reply
	MetricReopens      = "modbus_reopens_total"               // connections closed after a failed read
	MetricOverruns     = "modbus_poll_overruns_total"         // ticks skipped: the bus or the pipeline was busy
	MetricBackpressure = "modbus_backpressure_skips_total"    // of these: the pipeline
	MetricPollSeconds  = "modbus_poll_duration_seconds_total" // time spent in polls
	MetricSplits       = "modbus_splits_total"                // requests cut in two after a refusal
	MetricUnitsDown    = "modbus_units_down"                  // gauge: units left alone by their breaker
	MetricClamped      = "scaled_value_clamped_total"         // scaled_value beyond 32 bits
)

// Metrics is all of them.
var Metrics = []string{MetricPolls, MetricRequests, MetricPollErrors, MetricExceptions, MetricTimeouts, MetricReopens, MetricOverruns,
	MetricBackpressure, MetricPollSeconds, MetricSplits, MetricUnitsDown, MetricClamped}

// splitsPerPoll bounds how long a poll can be held up by the search for a
// refused address; the next poll goes on from where this one stopped.
const splitsPerPoll = 32

// poller makes one poll of a group.
type poller struct {
	bus    *bus
	member *member
	group  *pollGroup
	begin  time.Time
	budget int // splits left

	out      []block
	requests int
	failed   bool  // a read failed otherwise than by a refusal
	down     error // the connection cannot be opened
}

// errLeft says that the source that asked is gone.
var errLeft = errors.New("source left the connection")

// poll reads every point of the group into p.out. Its error means that the
// connection cannot be opened, or is errLeft.
func (p *poller) poll() error {
	runs := p.group.runs(p.member.limits, p.member.points)
	retry := -1
	if p.group.holed {
		retry = p.refused()
	}
	for i := range runs {
		p.fetch(&runs[i])
	}
	if retry >= 0 {
		p.fetch(newRun(p.member.points, []int{retry}))
	}
	return p.down
}

// refused gives the points that the device refuses, and returns the one that is
// to be tried again, or -1.
func (p *poller) refused() (retry int) {
	refused, reasons, retry := p.group.memory.holesOf(p.group.points, p.begin)
	for i := range refused {
		p.out = append(p.out, block{points: refused[i : i+1], at: p.begin, err: reasons[i]})
	}
	return retry
}

// fetch makes one request. When the device refuses it, its points are cut in
// two, until the refused points are found (then hole is true, and later polls go
// around them) or both halves are accepted (then the hole, or a limit of the
// device, lies between them, and later polls cut there).
func (p *poller) fetch(r *run) (hole bool) {
	if p.down == nil && p.member.left.Load() {
		p.down = errLeft
	}
	if p.down != nil {
		return false
	}
	list := r.points
	d, at, err := p.read(r)
	memory := p.group.memory
	switch {
	case err == nil:
		if len(list) == 1 && memory.refused(list[0]) {
			memory.acceptAll(p.group.points)
		}
		r.rooms.keep(d)
		p.out = append(p.out, block{points: list, start: r.start, data: d, at: at, quiet: r.quiet})
	case p.down != nil:
	case !p.refusal(err):
		p.failed = true
		p.give(list, err)
	case len(list) == 1:
		memory.refuse(list[0], err, time.Now())
		p.give(list, err)
		return true
	default:
		return p.split(list, err)
	}
	return false
}

func (p *poller) split(list []int, err error) (hole bool) {
	mid := len(list) / 2
	if p.budget == 0 {
		p.group.memory.setCut(list[mid])
		p.give(list, err)
		return false
	}
	p.budget--
	p.member.status.Add(MetricSplits, 1)
	left := p.fetch(newRun(p.member.points, list[:mid]))
	right := p.fetch(newRun(p.member.points, list[mid:]))
	if !left && !right && !p.failed && p.down == nil {
		p.group.memory.setCut(list[mid])
	}
	return left || right
}

func (p *poller) give(list []int, err error) {
	p.member.status.Add(MetricPollErrors, 1)
	p.out = append(p.out, block{points: list, at: time.Now(), err: err})
}

// refusal reports whether err means that the device does not have an address,
// or not so many in one request. Some devices say it with a malformed exception.
func (p *poller) refusal(err error) bool {
	return errors.Is(err, illegalAddress) || errors.Is(err, illegalValue) || (errors.Is(err, errOdd) && !p.bus.rtu)
}

// read makes one request, with the configured retries.
func (p *poller) read(r *run) (data, time.Time, error) {
	b, u := p.bus, p.unit()
	t := tries{left: 1 + p.member.retries, free: briefly}
	switch u.state() {
	case unitDown:
		return nil, time.Time{}, fmt.Errorf("unit %d is left alone for a while: %w", p.group.slave, u.err)
	case unitProbe:
		t.left = 1
	}
	for {
		if err := b.connect(); err != nil {
			p.down = err
			return nil, time.Time{}, err
		}
		d, at, err := p.exchange(u, r)
		if err == nil {
			p.unitAnswered(u)
			return d, at, nil
		}
		if p.down != nil || !p.again(&t, u, err) {
			return nil, at, err
		}
	}
}

// tries is what is left of the tries of one read.
type tries struct {
	left int
	free int // for connections that were found closed
	odd  int // replies that did not fit
}

// again judges a failed try and reports whether there is another.
func (p *poller) again(t *tries, u *unit, err error) bool {
	var ex exception
	var lost lostError
	switch {
	case sources.ErrorState(err) == sources.AuthFailed:
		p.down = err
		return false
	case errors.As(err, &ex):
		if ex == gatewayPath || ex == gatewaySilent {
			p.unitFailed(u, err)
		} else {
			p.unitAnswered(u)
		}
		if ex != busy && ex != acknowledge && ex != gatewaySilent {
			return false
		}
	case errors.As(err, &lost) && p.bus.replies > 0 && t.free > 0:
		// The peer may close what was idle, or have restarted: no fault of the unit.
		t.free--
		return true
	case errors.Is(err, errOdd) && !p.bus.rtu:
		t.odd++
		return t.odd < 2
	default:
		p.unitFailed(u, err)
	}
	t.left--
	return t.left > 0 && u.state() != unitDown
}

// exchange makes sure that the unit is in step, and sends one read.
func (p *poller) exchange(u *unit, r *run) (data, time.Time, error) {
	if len(u.doubt) > 0 {
		u.doubt.expire(time.Now())
	}
	if len(u.doubt) > 0 {
		if err := p.resync(u, r.start, r.count); err != nil {
			return nil, time.Now(), err
		}
		if err := p.bus.connect(); err != nil { // open, unless the peer takes one request a connection
			p.down = err
			return nil, time.Now(), err
		}
	}
	return p.request(u, r.start, r.count, r.rooms.next())
}

// request sends one read on the open connection and closes it when it failed.
func (p *poller) request(u *unit, start uint16, count int, room data) (data, time.Time, error) {
	b := p.bus
	if b.conn.pauseBetween > 0 {
		b.pause(b.conn.pauseBetween - time.Since(b.lastEnd))
	}
	begin := b.clock()
	d, err := b.link.read(p.group.slave, p.group.table, start, count, room)
	took := time.Since(begin)
	b.now = begin.Add(took)
	b.lastEnd = b.now
	p.requests++
	p.group.tally.request(took, err)
	if err != nil {
		err = p.requestFailed(u, start, count, err)
	} else {
		b.replied()
	}
	return d, begin.Add(took / 2), err
}

// requestFailed closes the connection unless err is an exception, and returns
// err, or what says more.
func (p *poller) requestFailed(u *unit, start uint16, count int, err error) error {
	status := p.member.status
	var ex exception
	if errors.As(err, &ex) {
		status.Add(MetricExceptions, 1)
		p.bus.replied()
		return err
	}
	var lost lostError
	if errors.As(err, &lost) {
		p.bus.lost()
		if p.bus.replies == 0 && p.bus.conn.stream() {
			err = fmt.Errorf("%w: %w", errTaken, err)
		}
	}
	if errors.Is(err, errSilent) {
		status.Add(MetricTimeouts, 1)
	}
	status.Add(MetricReopens, 1)
	if p.bus.rtu {
		u.doubt.add(p.group.table, start, count)
	}
	p.bus.drop(err)
	return err
}
