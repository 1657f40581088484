package spool

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

const (
	lingerRecords = 512
	lingerBytes   = 128 << 10
	commitBytes   = 8 << 20  // of one group commit
	windowBytes   = 16 << 20 // of a memory window, whatever its records
)

// Queue is one durable queue. Any goroutine may call any method.
//
// A frame goes through these hands: Append numbers and seals it, the writer
// makes it durable, Commit makes it readable, Advance settles it, trim removes it.
type Queue struct {
	s    *Spool
	name string
	dir  string
	log  *slog.Logger
	seal sealer
	db   *pebble.DB

	// numbering holds sequence numbers, seals and the writer's list in one order.
	numbering sync.Mutex
	// advancing lets one Advance count at a time.
	advancing sync.Mutex
	// using is held for reading while db is used outside the writer, and for
	// writing when it is closed.
	using sync.RWMutex

	work    chan struct{} // one token: ops wait for the writer
	stop    chan struct{} // closed: no more Append
	running sync.WaitGroup

	// flushing lets one goroutine at a time write the cursor file.
	flushing sync.Mutex
	cursor   *cursorFile

	mu          sync.Mutex
	closing     bool
	closed      bool          // db is closed
	broken      error         // a commit failed: nothing can be appended any more
	wake        chan struct{} // closed and replaced when readers may find more
	next        uint64
	ops         []op
	opRecords   int
	opBytes     int
	uncommitted []*appended // in order of sequence
	pos         position
	boundary    uint64 // first base of the frame at pos.head
	oldest      uint64
	acked       uint64 // sealed bytes on disk below boundary, and those trimmed since the queue was opened
	window      []Stored
	windowSizes []int
	windowFrom  uint64 // readers at or behind it find all frames in window
	windowUsed  struct{ records, bytes uint64 }
	damage      map[uint64]uint64 // base to count of what readers could not read, not settled yet
	keep        keeping
	startErr    error // what happened when the queue was opened
	commits     uint64
	frames      uint64
	latency     time.Duration
}

// appended is a frame that is not readable yet.
type appended struct {
	Stored
	size      int // sealed
	synced    bool
	committed bool
	voided    bool // durably
	voiding   bool
}

func (s Stored) end() uint64 { return s.Base + uint64(s.Count) }

// op is one thing for the writer: a frame to store or frames to void.
type op struct {
	frame *appended
	key   []byte
	value []byte
	done  func(base uint64, err error)

	void   []voidOp
	voided chan error
}

type voidOp struct {
	frame        *appended
	key, voidKey []byte
	voidValue    []byte
}

// Append seals the frame and hands it to the queue's writer, which commits
// whatever has gathered while the last commit was under way. Frames get
// sequence numbers in the order of the calls. done runs once, on the writer's
// goroutine: with the number of the frame's first record when the frame is on
// the disk, or with the error. It must not block, nor call Void. A frame that is
// refused at once gets its error before Append returns.
//
// The queue keeps f.Payload: do not change it any more. Append does not block
// for the disk, so the caller bounds what it has under way. Readers do not see
// the frame until Commit.
func (q *Queue) Append(f Frame, done func(base uint64, err error)) {
	if err := f.check(); err != nil {
		done(0, err)
		return
	}
	codec, body := compress(f.Payload)
	if err := q.enqueue(f, codec, body, done); err != nil {
		done(0, err)
		return
	}
	q.poke()
}

func (q *Queue) enqueue(f Frame, codec byte, body []byte, done func(uint64, error)) error {
	q.numbering.Lock()
	defer q.numbering.Unlock()
	q.mu.Lock()
	base, err := q.next, q.refusal()
	q.mu.Unlock()
	if err != nil {
		return err
	}
	if base+uint64(f.Count) < base {
		return errSequenceEnd
	}
	key := frameKey(base, uint32(f.Count))
	value, err := q.seal.seal(key, frameHeaderOf(f, codec), body)
	if err != nil {
		return err
	}
	a := &appended{Stored: Stored{Base: base, Frame: f}, size: len(value)}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.refusal(); err != nil {
		return err
	}
	q.next = a.end()
	q.uncommitted = append(q.uncommitted, a)
	q.addOp(op{frame: a, key: key, value: value, done: done}, f.Count, len(value))
	return nil
}

// refusal says why nothing can be appended; nil when it can. It is called with
// mu held.
func (q *Queue) refusal() error {
	if q.closing {
		return ErrClosed
	}
	return q.broken
}

// addOp is called with mu held.
func (q *Queue) addOp(o op, records, bytes int) {
	q.ops = append(q.ops, o)
	q.opRecords += records
	q.opBytes += bytes
}

func (q *Queue) poke() {
	select {
	case q.work <- struct{}{}:
	default:
	}
}

// write is the writer's goroutine: the only one that writes frames.
func (q *Queue) write() {
	var last time.Time
	for {
		stopped := false
		select {
		case <-q.work:
		case <-q.stop:
			stopped = true
		}
		for {
			q.linger(last)
			ops := q.take()
			if len(ops) == 0 {
				break
			}
			last = time.Now()
			q.commitGroup(ops, last)
		}
		if stopped {
			return
		}
	}
}

// linger waits until enough has gathered or enough time has passed since the
// last commit began.
func (q *Queue) linger(last time.Time) {
	wait := q.s.o.Linger - time.Since(last)
	if wait <= 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		q.mu.Lock()
		enough := q.opRecords >= lingerRecords || q.opBytes >= lingerBytes
		q.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-q.work:
		case <-timer.C:
			return
		case <-q.stop:
			return
		}
	}
}

// take removes the next group of ops from the list.
func (q *Queue) take() []op {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, bytes := 0, 0
	for n < len(q.ops) && (n == 0 || bytes < commitBytes) {
		bytes += len(q.ops[n].value)
		n++
	}
	ops := q.ops[:n:n]
	if q.ops = q.ops[n:]; len(q.ops) == 0 {
		q.ops, q.opRecords, q.opBytes = nil, 0, 0
	}
	return ops
}

// commitGroup makes ops durable with one fsync and tells their owners.
func (q *Queue) commitGroup(ops []op, began time.Time) {
	err := q.store(ops)
	frames := uint64(0)
	q.mu.Lock()
	for _, o := range ops {
		switch {
		case err != nil:
		case o.frame != nil:
			o.frame.synced = true
			frames++
		default:
			for _, v := range o.void {
				v.frame.voided = true
			}
		}
	}
	if err != nil && q.broken == nil {
		q.broken = fmt.Errorf("queue %s cannot write any more, restart to continue: %w", q.name, err)
	}
	if err == nil {
		q.latency = time.Since(began)
		q.commits++
		q.frames += frames
		q.publish()
	}
	q.mu.Unlock()
	for _, o := range ops {
		if o.frame != nil {
			o.done(o.frame.Base, err)
		} else {
			o.voided <- err
		}
	}
}

func (q *Queue) store(ops []op) error {
	q.mu.Lock()
	broken := q.broken
	q.mu.Unlock()
	// After a failed commit its numbers are missing: what follows would lie behind a gap.
	if broken != nil {
		return broken
	}
	size := 0
	for _, o := range ops {
		size += len(o.value) + 64
	}
	b := q.db.NewBatchWithSize(size)
	defer func() { _ = b.Close() }()
	for _, o := range ops {
		if o.frame != nil {
			if err := b.Set(o.key, o.value, nil); err != nil {
				return fmt.Errorf("store frame: %w", err)
			}
		}
		for _, v := range o.void {
			if err := v.addTo(b); err != nil {
				return err
			}
		}
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("commit frames: %w", err)
	}
	return nil
}

func (v voidOp) addTo(b *pebble.Batch) error {
	if err := b.Delete(v.key, nil); err != nil {
		return fmt.Errorf("void frame: %w", err)
	}
	if err := b.Set(v.voidKey, v.voidValue, nil); err != nil {
		return fmt.Errorf("void frame: %w", err)
	}
	return nil
}

// voidOp seals the mark that takes the place of a frame: its numbers stay
// taken, so that a gap always means damage, and nobody can forge a mark.
func (q *Queue) voidOp(base uint64, f Frame) (voidOp, error) {
	v := voidOp{key: frameKey(base, uint32(f.Count)), voidKey: frameKey(base, uint32(f.Count)|voidBit)}
	var err error
	v.voidValue, err = q.seal.seal(v.voidKey, frameHeaderOf(f, codecRaw), nil)
	return v, err
}

// Commit tells that the commits of owner id up to seq are durable: their frames
// may be read. It is cheap, changes memory only and wakes readers. Call it
// after the commit itself is on the disk.
func (q *Queue) Commit(id [16]byte, seq uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, a := range q.uncommitted {
		if a.Owner.ID == id && a.Owner.Seq <= seq && !a.voiding {
			a.committed = true
		}
	}
	q.publish()
}

// Void removes the frames of owner id from commit seq on that are not
// committed, because that commit failed. It returns when they are gone from the
// disk too; their done has run before.
func (q *Queue) Void(id [16]byte, seq uint64) error {
	o := op{voided: make(chan error, 1)}
	q.mu.Lock()
	for _, a := range q.uncommitted {
		if a.Owner.ID != id || a.Owner.Seq < seq || a.committed || a.voiding {
			continue
		}
		v, err := q.voidOp(a.Base, a.Frame)
		if err != nil {
			q.mu.Unlock()
			return fmt.Errorf("void frames: %w", err)
		}
		v.frame = a
		o.void = append(o.void, v)
	}
	if len(o.void) == 0 {
		q.mu.Unlock()
		return nil
	}
	if err := q.refusal(); err != nil {
		q.mu.Unlock()
		return err
	}
	for _, v := range o.void {
		v.frame.voiding = true
	}
	q.addOp(o, lingerRecords, 0)
	q.mu.Unlock()
	q.poke()
	return <-o.voided
}

// publish moves the tail over frames whose fate is known, and wakes readers. It
// is called with mu held.
func (q *Queue) publish() {
	n := 0
	for _, a := range q.uncommitted {
		switch {
		case a.voided:
			q.pos.voided += uint64(a.Count)
		case a.synced && a.committed:
			q.pos.waitingRecords += uint64(a.Count)
			q.pos.waitingBytes += uint64(a.size)
			q.remember(a)
		default:
			q.uncommitted = slices.Delete(q.uncommitted, 0, n)
			q.wakeReaders(n)
			return
		}
		q.pos.tail = a.end()
		n++
	}
	q.uncommitted = nil
	q.wakeReaders(n)
}

func (q *Queue) wakeReaders(published int) {
	if published > 0 {
		q.keep.dirty = true
		close(q.wake)
		q.wake = make(chan struct{})
	}
}

// remember puts a frame into the memory window.
func (q *Queue) remember(a *appended) {
	q.window = append(q.window, a.Stored)
	q.windowSizes = append(q.windowSizes, a.size)
	q.windowUsed.records += uint64(a.Count)
	q.windowUsed.bytes += uint64(len(a.Payload))
	for q.windowUsed.records > uint64(q.s.o.WindowRecords) || q.windowUsed.bytes > windowBytes {
		q.forget()
	}
}

// forget drops the oldest frame of the window. Readers find it on the disk.
func (q *Queue) forget() {
	f := &q.window[0]
	q.windowFrom = f.end()
	q.windowUsed.records -= uint64(f.Count)
	q.windowUsed.bytes -= uint64(len(f.Payload))
	*f = Stored{}
	q.window, q.windowSizes = q.window[1:], q.windowSizes[1:]
}

// Head is the first record that is not settled.
func (q *Queue) Head() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.pos.head
}

// Oldest is the first record that is still on the disk, for replay.
func (q *Queue) Oldest() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.oldest
}

// close lets the writer finish, writes the cursor and closes the store.
func (q *Queue) close() error {
	q.mu.Lock()
	q.closing = true
	close(q.wake)
	q.wake = make(chan struct{})
	q.mu.Unlock()
	close(q.stop)
	q.running.Wait()
	err := q.flush(time.Now())
	q.using.Lock()
	defer q.using.Unlock()
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	_ = q.cursor.close()
	if errDB := q.db.Close(); err == nil && errDB != nil {
		err = fmt.Errorf("close queue %s: %w", q.name, errDB)
	}
	return err
}
