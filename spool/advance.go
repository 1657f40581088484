package spool

import (
	"context"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

const (
	flushEvery = time.Second // the cursor on disk is at most this much behind
	trimBytes  = 16 << 20
	trimIdle   = 30 * time.Second
	maxSamples = 256
)

// keeping is what the queue's housekeeper knows. It is guarded by Queue.mu.
type keeping struct {
	dirty     bool
	cursorErr error
	retain    time.Duration
	samples   []sample // places of the durable head, oldest first
	trimmed   uint64   // acked bytes that are gone
	step      uint64   // as many must be there before a trim is worth it
	idle      time.Time
}

// sample is where the durable head was at a time: what lies before boundary may
// go once the retention has passed.
type sample struct {
	when     time.Time
	boundary uint64
	acked    uint64
}

// sum is how many records were settled.
func (s Settled) sum() uint64 { return s.Delivered + s.DeadLettered + s.Dropped }

// Advance moves the head to to: every record before it is settled, and settled
// says how those since the last Advance were; its sum must be the number of
// live records passed, as the keys have it, or nothing moves. to may lie inside
// a frame. Memory changes at once, the disk at most a second later, before
// each trim, and at Close: a crash hands out again what was settled since.
func (q *Queue) Advance(to uint64, settled Settled) error {
	q.advancing.Lock()
	defer q.advancing.Unlock()
	q.mu.Lock()
	head, tail, closed := q.pos.head, q.pos.tail, q.closing
	q.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case to > tail:
		return fmt.Errorf("advance queue %s to %d: records from %d on are not committed", q.name, to, tail)
	case to <= head && settled.sum() != 0:
		return fmt.Errorf("advance queue %s to %d: its head is %d already, but %d records are said to be settled", q.name, to, head, settled.sum())
	case to <= head:
		return nil
	}
	p, err := q.pass(head, to)
	if err != nil {
		return fmt.Errorf("advance queue %s to %d: %w", q.name, to, err)
	}
	if p.live != settled.sum() {
		return fmt.Errorf("advance queue %s from %d to %d: %d records lie between, but %d are said to be settled", q.name, head, to, p.live, settled.sum())
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.moveHead(to, p)
	q.pos.settled.Delivered += settled.Delivered
	q.pos.settled.DeadLettered += settled.DeadLettered
	q.pos.settled.Dropped += settled.Dropped
	return nil
}

// moveHead is called with mu held.
func (q *Queue) moveHead(to uint64, p passed) {
	q.pos.head, q.boundary = to, p.boundary
	q.pos.waitingRecords -= min(p.live, q.pos.waitingRecords)
	q.pos.waitingBytes -= min(p.bytes, q.pos.waitingBytes)
	q.acked += p.bytes
	for base, count := range q.damage {
		if base+count <= to {
			q.pos.damaged += count
			delete(q.damage, base)
		}
	}
	for len(q.window) > 0 && q.window[0].end() <= to {
		q.forget()
	}
	q.keep.dirty = true
}

// passed is what lies between the head and its next place.
type passed struct {
	live     uint64 // records
	bytes    uint64 // of the frames that are passed to their end
	boundary uint64 // first base of the frame that holds the new head
}

func (p *passed) add(e entry, size int, from, to uint64) {
	p.live += e.live(from, to)
	if e.end() <= to {
		p.bytes += uint64(size)
	} else {
		p.boundary = e.base
	}
}

// pass counts what lies in [from, to), on the disk as far as it must.
func (q *Queue) pass(from, to uint64) (passed, error) {
	p := passed{boundary: to}
	for at := from; at < to; {
		q.mu.Lock()
		if at >= q.windowFrom {
			for i, f := range q.window {
				if f.end() > at && f.Base < to {
					p.add(entry{base: f.Base, count: uint64(f.Count)}, q.windowSizes[i], at, to)
				}
			}
			q.mu.Unlock()
			break
		}
		limit := min(to, q.windowFrom)
		q.mu.Unlock()
		err := q.scan(at, limit, func(e entry) bool {
			p.add(e, len(e.value), at, limit)
			return true
		})
		if err != nil {
			return p, err
		}
		at = limit
	}
	return p, nil
}

// Retain keeps settled frames on disk for d, so that they can be replayed; 0
// is the default. They go with the next trim after that: in steps of 16 MB, or
// when the queue has been empty for 30 seconds.
func (q *Queue) Retain(d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.keep.retain = d
}

// housekeep is the goroutine that writes the cursor and trims.
func (q *Queue) housekeep() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-q.stop:
			return
		case now := <-tick.C:
			q.tick(now)
		}
	}
}

// tick is one round. What fails is shown by Stat and tried again next time.
func (q *Queue) tick(now time.Time) {
	err := q.skipVoided()
	if err == nil {
		err = q.flush(now)
	}
	if err == nil {
		err = q.trim(now)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil && q.keep.cursorErr == nil {
		q.log.Error("spool queue cannot be kept in order; trying again", "queue", q.name, "error", err)
	}
	q.keep.cursorErr = err
}

// skipVoided moves the head of a queue with nothing waiting over the voided
// frames behind it, since no reader ever returns them.
func (q *Queue) skipVoided() error {
	q.advancing.Lock()
	defer q.advancing.Unlock()
	q.mu.Lock()
	head, tail, waiting := q.pos.head, q.pos.tail, q.pos.waitingRecords
	q.mu.Unlock()
	if waiting > 0 || head == tail {
		return nil
	}
	p, err := q.pass(head, tail)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if p.live > 0 {
		q.pos.waitingRecords += p.live // damage made the count wrong; the keys are right
		return nil
	}
	q.moveHead(tail, p)
	return nil
}

// flush writes the cursor file when anything has changed.
func (q *Queue) flush(now time.Time) error {
	q.flushing.Lock()
	defer q.flushing.Unlock()
	q.mu.Lock()
	p, s, dirty := q.pos, sample{now, q.boundary, q.acked}, q.keep.dirty
	q.keep.dirty = false
	q.mu.Unlock()
	if !dirty {
		return nil
	}
	err := q.cursor.write(p, now)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		q.keep.dirty = true
		return err
	}
	q.keep.note(s)
	return nil
}

// note remembers where the durable head is. Old samples are thinned out, which
// only keeps frames longer.
func (k *keeping) note(s sample) {
	if n := len(k.samples); n > 0 && k.samples[n-1].boundary == s.boundary {
		return
	}
	k.samples = append(k.samples, s)
	if len(k.samples) > maxSamples {
		thin := k.samples[:0]
		for i, old := range k.samples {
			if i%2 == 0 || i == len(k.samples)-1 {
				thin = append(thin, old)
			}
		}
		k.samples = thin
	}
}

// due returns the last sample that is old enough to be trimmed to.
func (k *keeping) due(now time.Time) (s sample, found bool) {
	for i := len(k.samples) - 1; i >= 0; i-- {
		if now.Sub(k.samples[i].when) >= k.retain {
			return k.samples[i], true
		}
	}
	return s, false
}

// trim removes settled frames from the disk. Only what lies below the cursor
// that is on the disk may go.
func (q *Queue) trim(now time.Time) error {
	q.mu.Lock()
	empty := q.pos.waitingRecords == 0 && len(q.uncommitted) == 0
	if !empty {
		q.keep.idle = time.Time{}
	} else if q.keep.idle.IsZero() {
		q.keep.idle = now
	}
	s, found := q.keep.due(now)
	much := s.acked >= q.keep.trimmed+q.keep.step
	idle := empty && now.Sub(q.keep.idle) >= trimIdle
	oldest := q.oldest
	q.mu.Unlock()
	if !found || s.boundary <= oldest || !much && !idle {
		return nil
	}
	q.using.RLock()
	defer q.using.RUnlock()
	span := pebble.KeyRange{Start: frameKey(0, 0), End: frameKey(s.boundary, 0)}
	if err := q.db.Excise(context.Background(), span); err != nil {
		return fmt.Errorf("trim queue: %w", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.oldest, q.keep.trimmed = s.boundary, s.acked
	return nil
}

// Stat returns the queue as it is now.
func (q *Queue) Stat() Stat {
	q.mu.Lock()
	s := Stat{
		Oldest: q.oldest, Head: q.pos.head, Tail: q.pos.tail, Next: q.next,
		WaitingRecords: q.pos.waitingRecords, WaitingBytes: q.pos.waitingBytes,
		MemoryRecords: q.windowUsed.records, MemoryBytes: q.windowUsed.bytes,
		Settled: q.pos.settled, Voided: q.pos.voided, Damaged: q.pos.damaged,
		Commits: q.commits, Frames: q.frames, LastCommitLatency: q.latency,
	}
	for _, a := range q.uncommitted {
		if !a.voided {
			s.UncommittedRecords += uint64(a.Count)
		}
	}
	for _, n := range q.damage {
		s.Damaged += n
	}
	for _, err := range []error{q.broken, q.startErr, q.keep.cursorErr} {
		if s.Err == nil {
			s.Err = err
		}
	}
	if len(q.window) > 0 && q.windowFrom <= q.pos.head {
		s.OldestWaiting = q.window[0].MinTime
	}
	closed := q.closed
	q.mu.Unlock()
	if !closed {
		q.statDisk(&s)
	}
	return s
}

// statDisk adds what only the disk knows.
func (q *Queue) statDisk(s *Stat) {
	if s.WaitingRecords > 0 && s.OldestWaiting == 0 {
		// A scan that fails leaves the field unknown; readers report the damage.
		_ = q.scan(s.Head, s.Tail, func(e entry) bool {
			if e.void || e.err != nil {
				return true
			}
			if f, err := parseFrameHeader(e.value); err == nil {
				s.OldestWaiting = f.MinTime
			}
			return false
		})
	}
	q.using.RLock()
	defer q.using.RUnlock()
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if !closed {
		s.DiskBytes = q.db.Metrics().DiskSpaceUsage() + 2*slotSize
	}
}
