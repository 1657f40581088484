package sources

import (
	"time"

	"github.com/edgehost/edgehost/abi"
)

// The size and age at which a batch is emitted unless a protocol has reason
// for others.
const (
	BatchRecords = 500
	BatchWait    = 50 * time.Millisecond
)

// Batcher gathers records until there are enough of them or the first has
// waited long enough. It is used by one goroutine:
//
//	case r := <-in:     if b.Add(r) { emit(b.Take()) }
//	case <-b.Due():     emit(b.Take())
type Batcher struct {
	max   int
	wait  time.Duration
	recs  []abi.Record
	last  int // length of the last batch
	timer *time.Timer
	due   time.Time
}

// NewBatcher makes a Batcher of at most max records (0: BatchRecords) that
// wait at most wait (0: BatchWait).
func NewBatcher(max int, wait time.Duration) *Batcher {
	if max <= 0 {
		max = BatchRecords
	}
	if wait <= 0 {
		wait = BatchWait
	}
	return &Batcher{max: max, wait: wait}
}

// Add appends r and reports whether the batch is full.
func (b *Batcher) Add(r abi.Record) (full bool) {
	if len(b.recs) == 0 {
		b.start(time.Now().Add(b.wait))
		b.recs = make([]abi.Record, 0, max(b.last, 1)) // the next is mostly as large
	}
	b.recs = append(b.recs, r)
	return len(b.recs) >= b.max
}

// Hurry makes the batch due at most wait from now: for a record that must not
// wait as long as its neighbours. It never puts the batch off.
func (b *Batcher) Hurry(wait time.Duration) {
	if due := time.Now().Add(wait); len(b.recs) > 0 && due.Before(b.due) {
		b.start(due)
	}
}

func (b *Batcher) start(due time.Time) {
	b.due = due
	if b.timer == nil {
		b.timer = time.NewTimer(time.Until(due))
		return
	}
	b.timer.Reset(time.Until(due))
}

// Len is the number of records that wait.
func (b *Batcher) Len() int { return len(b.recs) }

// Due fires when the batch that is being gathered has waited long enough. It
// is nil, so that a select never chooses it, while there is no record.
func (b *Batcher) Due() <-chan time.Time {
	if len(b.recs) == 0 {
		return nil
	}
	return b.timer.C
}

// Take returns the gathered records, which are the caller's, and starts anew;
// nil when there are none.
func (b *Batcher) Take() []abi.Record {
	recs := b.recs
	b.recs, b.last = nil, len(recs)
	if b.timer != nil {
		b.timer.Stop()
	}
	return recs
}
