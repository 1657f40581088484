package modbus

import "time"

// unit is what a bus knows of one of its units. It belongs to the bus's
// goroutine. Its breaker keeps a unit that does not answer from costing the
// others its time-outs.
type unit struct {
	fails int       // in a row
	until time.Time // not zero: open, one request is let through from then on
	err   error     // the last failure
	doubt doubt
}

type unitState int

const (
	unitUp unitState = iota
	unitDown
	unitProbe // down, but one request is due
)

func (u *unit) state() unitState {
	switch {
	case u.until.IsZero():
		return unitUp
	case time.Until(u.until) > 0:
		return unitDown
	}
	return unitProbe
}

// unit is the unit that the group is read from.
func (p *poller) unit() *unit {
	if p.group.unit == nil {
		p.group.unit = p.bus.unit(p.group.slave)
	}
	return p.group.unit
}

func (b *bus) unit(slave uint8) *unit {
	u := b.units[slave]
	if u == nil {
		u = &unit{}
		b.units[slave] = u
		b.firstDoubt(slave, u)
	}
	return u
}

func (p *poller) unitAnswered(u *unit) {
	wasDown := !u.until.IsZero()
	u.fails, u.until, u.err = 0, time.Time{}, nil
	p.group.tally.setUp(true)
	if wasDown {
		p.bus.log.Info("modbus unit answers again", "unit", p.group.slave)
		p.bus.countDown()
	}
}

func (p *poller) unitFailed(u *unit, err error) {
	u.err = err
	u.fails++
	if u.fails < p.member.breaker.Failures {
		return
	}
	first := u.until.IsZero()
	u.until = time.Now().Add(seconds(p.member.breaker.RetrySeconds))
	if first {
		p.bus.log.Warn("modbus unit does not answer and is tried seldom", "unit", p.group.slave,
			"retry_seconds", p.member.breaker.RetrySeconds, "err", err)
		p.bus.countDown()
	}
}

// countDown sets the gauge of every member to the number of its units that are
// left alone.
func (b *bus) countDown() {
	b.buses.mu.Lock()
	defer b.buses.mu.Unlock()
	for _, m := range b.members {
		down := map[uint8]bool{}
		for _, g := range m.groups {
			if u := b.units[g.slave]; u != nil && !u.until.IsZero() {
				down[g.slave] = true
				g.tally.setUp(false)
			}
		}
		m.status.Gauge(MetricUnitsDown, float64(len(down)))
	}
}
