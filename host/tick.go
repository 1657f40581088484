package host

import (
	"time"

	"github.com/edgehost/edgehost/abi"
)

// tick is the clock of a module with a period, for one source, whose state it works
// on. Missed ticks are not made up for.
type tick struct {
	stage int
	every time.Duration
	next  time.Time
}

// due is a clock of the lane whose time has come.
func (l *lane) due(now time.Time) *tick {
	for _, t := range l.ticks {
		if !now.Before(t.next) {
			return t
		}
	}
	return nil
}

// tick numbers a tick, which goes through the chain as a batch of its own.
func (p *pipeline) tick(l *lane, t *tick, now time.Time) *job {
	for !now.Before(t.next) {
		t.next = t.next.Add(t.every)
	}
	p.seq++
	return &job{lane: l, source: l.source, clock: t, batch: &abi.Batch{Seq: p.seq, Time: now.UnixMicro()},
		effect: &effect{seq: p.seq, source: l.source}}
}

// wakeAt is when loop must look again though nothing came; zero is never. A
// pipeline that holds input does not tick: ticks come after what is held.
func (p *pipeline) wakeAt() time.Time {
	if p.heldLeft > 0 {
		if p.flying > 0 {
			return time.Time{} // it looks when they are settled
		}
		return p.retryAt
	}
	if !p.free() {
		return time.Time{}
	}
	var at time.Time
	for _, l := range p.lanes {
		for _, t := range l.ticks {
			if !l.busy && (at.IsZero() || t.next.Before(at)) {
				at = t.next
			}
		}
	}
	return at
}
