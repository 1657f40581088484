package modbus

import (
	"sync/atomic"
	"time"
)

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
