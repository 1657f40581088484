package modbus

import (
	"errors"
	"time"
)

// doubt is the reads of one unit, on RTU framing, whose replies may still come.
//
// RTU replies carry no number: only unit, function and length tell which
// request they answer. A late one that fits the next request would pass for its
// reply, and from then on every value would be the one of the request before.
// So after a failure, the next read of the unit is preceded by one whose reply
// has a length that no outstanding reply has. A unit answers in order: when
// that reply has come, no older one will.
//
//	read 0+10 ──> (nothing)        doubt {10}
//	read 0+1  ──> late reply of 10: wrong length, closed, doubt {10, 1}
//	read 0+2  ──> reply of 2: in step, doubt {}
//	read 0+10 ──> its own reply
type doubt map[shape]outstanding

// outstanding is a request whose reply has not come.
type outstanding struct {
	start uint16
	sent  time.Time
}

// latest is how late a reply can be: after this, nobody holds it any more.
const latest = time.Minute

// shape is what an RTU reply shows of the request that it answers.
type shape struct {
	table RegisterType
	size  int // of the reply's data, in registers or in bytes of bits
}

func shapeOf(t RegisterType, count int) shape {
	if t.bits() {
		return shape{t, (count + 7) / 8}
	}
	return shape{t, count}
}

func (d *doubt) add(t RegisterType, start uint16, count int) {
	if *d == nil {
		*d = doubt{}
	}
	(*d)[shapeOf(t, count)] = outstanding{start, time.Now()}
}

// expire forgets what can no longer be answered.
func (d doubt) expire(now time.Time) {
	for shape, o := range d {
		if now.Sub(o.sent) > latest {
			delete(d, shape)
		}
	}
}

// firstDoubt puts every read that the members make of a unit into doubt before
// the first one: whoever had the line before, this process before it was killed
// most likely, may have left one of them without its reply.
func (b *bus) firstDoubt(slave uint8, u *unit) {
	if !b.rtu {
		return
	}
	b.buses.mu.Lock()
	defer b.buses.mu.Unlock()
	for _, m := range b.members {
		for _, g := range m.groups {
			if g.slave != slave {
				continue
			}
			for _, r := range g.runs(m.limits, m.points) {
				u.doubt.add(g.table, r.start, r.count)
			}
		}
	}
}

// errOutOfStep says that a reply cannot be told from an older one.
var errOutOfStep = errors.New("replies may be out of step after a time-out: raise timeout_ms above the device's slowest reply")

func (d doubt) oldest() time.Time {
	sent := time.Now()
	for _, o := range d {
		if o.sent.Before(sent) {
			sent = o.sent
		}
	}
	return sent
}

// probe returns how much to read from start on so that the reply is like none
// that is outstanding; ok is false when every length is. It begins with the
// shortest, which is a part of the read that is wanted.
func (d doubt) probe(t RegisterType, start uint16) (n int, ok bool) {
	step, most := 1, maxRegisters
	if t.bits() {
		step, most = 8, maxRegisters*bitsPerWord
	}
	for n := 1; n <= most && int(start)+n <= tableSize; n += step {
		if _, taken := d[shapeOf(t, n)]; !taken {
			return n, true
		}
	}
	return 0, false
}

// resync brings the unit back into step before a read of count from start on.
func (p *poller) resync(u *unit, start uint16, count int) error {
	n, ok := u.doubt.probe(p.group.table, start)
	if !ok {
		return errOutOfStep
	}
	_, _, err := p.request(u, start, n, nil)
	var ex exception
	switch {
	case err == nil:
		clear(u.doubt)
		return nil
	case errors.As(err, &ex):
		// An exception shows no length: it may be an older one. The probe joins
		// the doubt, and leaves it with the oldest, so that a unit that answers
		// with nothing else is not probed for ever.
		older, taken := u.doubt[shapeOf(p.group.table, count)]
		u.doubt[shapeOf(p.group.table, n)] = outstanding{start, u.doubt.oldest()}
		if taken && older.start != start {
			p.bus.drop(errOutOfStep)
			return errOutOfStep
		}
		return nil
	}
	return err
}
