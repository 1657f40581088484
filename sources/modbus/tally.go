package modbus

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// The metrics of one unit of a source, with the label unit: those that are
// configured, 256 at most.
const (
	MetricUnitRequests   = "modbus_unit_requests_total"         // reads sent
	MetricUnitReplies    = "modbus_unit_replies_total"          // replies, exceptions among them
	MetricUnitSeconds    = "modbus_unit_response_seconds_total" // time from request to reply, of these
	MetricUnitExceptions = "modbus_unit_exceptions_total"       // replies that were exceptions
	MetricUnitTimeouts   = "modbus_unit_timeouts_total"         // reads without a reply
	MetricUnitUp         = "modbus_unit_up"                     // gauge: 1 while it answers; 0 before, and while it is left alone or cannot be reached
)

// UnitMetrics is all of them.
var UnitMetrics = []string{MetricUnitRequests, MetricUnitReplies, MetricUnitSeconds, MetricUnitExceptions, MetricUnitTimeouts, MetricUnitUp}

// ofUnit is the metric of one unit, as it stands in a Status.
func ofUnit(metric string, slave uint8) string {
	return sources.Labelled(metric, "unit", strconv.Itoa(int(slave)))
}

// tally is what was counted since it was settled: counting in the status costs
// too much for every poll of a bus that is never idle. It is at most gatherTime
// and one poll behind.
type tally struct {
	since           time.Time // begin of the first poll of it
	polls, requests int
	overruns        int
	spent           time.Duration
}

func (m *member) settle() {
	m.status.Add(MetricPolls, float64(m.tally.polls))
	m.status.Add(MetricRequests, float64(m.tally.requests))
	m.status.Add(MetricOverruns, float64(m.tally.overruns))
	m.status.Add(MetricPollSeconds, m.tally.spent.Seconds())
	m.tally = tally{}
}

// unitTally is what was counted of one unit of a member. A bus can have very many
// units: it is at most unitTime and one poll behind.
type unitTally struct {
	slave                                   uint8
	requests, replies, exceptions, timeouts int
	spent                                   time.Duration
	up                                      bool
	stale                                   bool // the status knows less
}

const unitTime = 250 * time.Millisecond

// request counts one read, which took so long and ended with err.
func (u *unitTally) request(took time.Duration, err error) {
	u.stale = true
	u.requests++
	var ex exception
	switch {
	case err == nil:
	case errors.As(err, &ex):
		u.exceptions++
	case errors.Is(err, errSilent):
		u.timeouts++
		return
	default:
		return
	}
	u.replies++
	u.spent += took
}

// setUp says whether the unit answers.
func (u *unitTally) setUp(up bool) {
	u.stale = u.stale || u.up != up
	u.up = up
}

func (u *unitTally) settle(s *sources.Status) {
	if !u.stale {
		return
	}
	s.Add(ofUnit(MetricUnitRequests, u.slave), float64(u.requests))
	s.Add(ofUnit(MetricUnitReplies, u.slave), float64(u.replies))
	s.Add(ofUnit(MetricUnitSeconds, u.slave), u.spent.Seconds())
	s.Add(ofUnit(MetricUnitExceptions, u.slave), float64(u.exceptions))
	s.Add(ofUnit(MetricUnitTimeouts, u.slave), float64(u.timeouts))
	s.Gauge(ofUnit(MetricUnitUp, u.slave), float64(bit(u.up)))
	*u = unitTally{slave: u.slave, up: u.up}
}

// unit returns the tally of one unit of the member.
func (m *member) unit(slave uint8) *unitTally {
	i := slices.IndexFunc(m.units, func(u *unitTally) bool { return u.slave == slave })
	if i >= 0 {
		return m.units[i]
	}
	u := &unitTally{slave: slave}
	m.units = append(m.units, u)
	return u
}

// settleUnits settles the tallies of the units when they have waited for long
// enough, or would have when the bus has slept for idle.
func (m *member) settleUnits(now time.Time, idle time.Duration) {
	if now.Sub(m.unitsAt) < unitTime && idle < unitTime {
		return
	}
	m.unitsAt = now
	for _, u := range m.units {
		u.settle(m.status)
	}
}
