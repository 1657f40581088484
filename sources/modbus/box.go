package modbus

import (
	"sync"
	"time"
)

// gatherTime is how long a result may wait for others before its source is
// woken: a bus that is never idle wakes a source once for many polls.
const gatherTime = 5 * time.Millisecond

// box is where a bus puts the results of one source. The source is woken when
// the bus has nothing else to do, when a group is about to be polled anew, and
// in any case after gatherTime, so that no result waits for the time-out of the
// next poll.
//
//	bus:    put, put, put, … knock
//	source: <-ready or <-late, then take
type box struct {
	ready chan struct{} // one slot
	late  *time.Timer

	mu    sync.Mutex
	list  []result
	armed bool // late is running: it is not started again for each result, which costs a thread's wake-up
}

func newBox() *box {
	b := &box{ready: make(chan struct{}, 1), late: time.NewTimer(time.Hour)}
	b.late.Stop()
	return b
}

// put adds a result.
func (b *box) put(r result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.armed {
		b.late.Reset(gatherTime)
		b.armed = true
	}
	r.group.boxed.Store(true)
	b.list = append(b.list, r)
}

// knock wakes the source. It never waits.
func (b *box) knock() {
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// expire says that late has fired.
func (b *box) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.armed = false
}

// take empties the box. into is a list that the caller gives back for reuse.
func (b *box) take(into []result) []result {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.list
	b.list = into[:0]
	for i := range list {
		list[i].group.boxed.Store(false)
	}
	return list
}
