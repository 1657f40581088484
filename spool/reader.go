package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

const (
	chunkFrames = 64
	chunkBytes  = 4 << 20
)

// DamagedFrame is the error of Reader.Next for records that cannot be read any
// more: [Base, Base+Count). The next call goes on behind them. Advance counts
// them like other records, so the caller settles them, as dropped or
// dead-lettered.
type DamagedFrame struct {
	Base  uint64
	Count uint64
	Raw   []byte // the sealed bytes as they were found; nil when nothing was
	Err   error
}

// Error implements error.
func (d *DamagedFrame) Error() string {
	return fmt.Sprintf("records %d to %d of the queue are damaged: %v", d.Base, d.Base+d.Count-1, d.Err)
}

// Unwrap returns what is wrong.
func (d *DamagedFrame) Unwrap() error { return d.Err }

// Reader reads the committed frames of a queue in order. One goroutine calls
// Next; Close may come from any.
type Reader struct {
	q      *Queue
	pos    uint64 // the next record
	buf    []entry
	closed chan struct{}
	once   sync.Once
}

// Reader starts with the frame that holds record from, or the first one behind
// it that is still on disk. A queue may have any number of readers; none of
// them moves the head.
func (q *Queue) Reader(from uint64) *Reader {
	return &Reader{q: q, pos: from, closed: make(chan struct{})}
}

// Close ends a Next that waits, and all later ones, with ErrClosed.
func (r *Reader) Close() { r.once.Do(func() { close(r.closed) }) }

// Next returns the next committed frame and waits for one when there is none.
// Errors: a *DamagedFrame, behind which the next call goes on; the cause of
// ctx; ErrClosed; any other is of the disk, and the next call tries again.
func (r *Reader) Next(ctx context.Context) (Stored, error) {
	for {
		select {
		case <-r.closed:
			return Stored{}, ErrClosed
		case <-ctx.Done():
			return Stored{}, context.Cause(ctx)
		default:
		}
		st, wake, err := r.try()
		if wake == nil {
			return st, err
		}
		select {
		case <-wake:
		case <-r.closed:
		case <-ctx.Done():
		}
	}
}

// try returns the next frame, or the channel that is closed when there may be one.
func (r *Reader) try() (st Stored, wake <-chan struct{}, err error) {
	for {
		if len(r.buf) > 0 {
			e := r.buf[0]
			r.buf = r.buf[1:]
			r.pos = e.end()
			st, err = r.q.openEntry(e)
			return st, nil, err
		}
		at := r.q.look(r.pos)
		switch {
		case at.err != nil:
			return st, nil, at.err
		case at.found:
			r.pos = at.frame.end()
			return at.frame, nil, nil
		case at.diskTo == 0:
			return st, at.wake, nil
		}
		if err := r.fill(at.diskTo); err != nil {
			return st, nil, err
		}
	}
}

// place is where a reader finds its next frame: here, on the disk below diskTo,
// or nowhere before wake is closed.
type place struct {
	frame  Stored
	found  bool
	diskTo uint64
	wake   <-chan struct{}
	err    error
}

func (q *Queue) look(pos uint64) place {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closing {
		return place{err: ErrClosed}
	}
	if pos < q.pos.tail && pos < q.windowFrom {
		return place{diskTo: min(q.windowFrom, q.pos.tail)}
	}
	// Between the frames of the window lie voided ones only.
	i := sort.Search(len(q.window), func(i int) bool { return q.window[i].end() > pos })
	if i < len(q.window) {
		return place{frame: q.window[i], found: true}
	}
	return place{wake: q.wake}
}

// fill reads the next frames below to from the disk. The iterator lives no
// longer than that: an open one keeps removed files on the disk.
func (r *Reader) fill(to uint64) error {
	bytes := 0
	err := r.q.scan(r.pos, to, func(e entry) bool {
		if e.void {
			return true
		}
		e.key, e.value = slices.Clone(e.key), slices.Clone(e.value)
		r.buf = append(r.buf, e)
		bytes += len(e.value)
		return len(r.buf) < chunkFrames && bytes < chunkBytes
	})
	if err != nil {
		r.buf = nil
		return err
	}
	if len(r.buf) == 0 {
		r.pos = to
	}
	return nil
}

func (q *Queue) openEntry(e entry) (Stored, error) {
	err := e.err
	if err == nil {
		st, openErr := q.seal.openFrame(e.key, e.value)
		if openErr == nil {
			return st, nil
		}
		err = openErr
	}
	q.mu.Lock()
	if e.end() > q.pos.head {
		q.damage[e.base] = e.count
	}
	q.mu.Unlock()
	return Stored{}, &DamagedFrame{Base: e.base, Count: e.count, Raw: e.value, Err: err}
}

// entry is what lies at one place of the disk: a frame, the mark of a voided
// one, or, with err set, records that should be there and are not readable.
type entry struct {
	base, count uint64
	void        bool
	key, value  []byte // valid until the callback returns
	err         error
}

func (e entry) end() uint64 { return e.base + e.count }

// scan calls fn for all that lies in [from, to), in order and without gaps,
// beginning with the frame that holds from, until fn returns false. What was
// trimmed below the head is passed over.
func (q *Queue) scan(from, to uint64, fn func(entry) bool) error {
	q.using.RLock()
	defer q.using.RUnlock()
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if closed {
		return ErrClosed
	}
	it, err := q.db.NewIter(&pebble.IterOptions{UpperBound: frameKey(to, 0)})
	if err != nil {
		return fmt.Errorf("read queue: %w", err)
	}
	// After the iterator: what a trim had taken before it lies below this head.
	head := q.Head()
	w := walk{q: q, it: it, at: from, to: to, fn: fn}
	err = w.run(head)
	if errClose := it.Close(); err == nil && errClose != nil && !pebble.IsCorruptionError(errClose) {
		err = fmt.Errorf("read queue: %w", errClose)
	}
	return err
}

// walk is one scan.
type walk struct {
	q      *Queue
	it     *pebble.Iterator
	at, to uint64 // all of [.., at) was shown
	fn     func(entry) bool
}

var errMissing = fmt.Errorf("%w: the records are missing", ErrDamaged)

func (w *walk) run(head uint64) error {
	valid := w.it.SeekLT(frameKey(w.at+1, 0))
	if valid {
		if base, count, _, err := parseFrameKey(w.it.Key()); err == nil && base+count > w.at {
			w.at = base
		} else {
			valid = w.it.Next()
		}
	} else if w.it.Error() == nil {
		valid = w.it.First()
	}
	first := true
	for {
		if !valid {
			if err := w.it.Error(); err != nil {
				more, err := w.skipDamage(err)
				if !more || err != nil {
					return err
				}
				valid = w.it.Valid()
				continue
			}
			break
		}
		base, count, void, err := parseFrameKey(w.it.Key())
		if err != nil || base < w.at {
			valid = w.it.Next() // not ours; the gap that it leaves is reported
			continue
		}
		if first && base > w.at {
			w.at = min(base, max(w.at, head))
		}
		first = false
		if base > w.at && !w.show(entry{base: w.at, count: base - w.at, err: errMissing}) {
			return nil
		}
		value, err := w.it.ValueAndErr()
		if err != nil {
			more, err := w.skipDamage(err)
			if !more || err != nil {
				return err
			}
			valid = w.it.Valid()
			continue
		}
		if !w.show(w.q.entry(base, count, void, w.it.Key(), value)) {
			return nil
		}
		valid = w.it.Next()
	}
	if first {
		w.at = max(w.at, min(head, w.to))
	}
	if w.at < w.to {
		w.show(entry{base: w.at, count: w.to - w.at, err: errMissing})
	}
	return nil
}

func (w *walk) show(e entry) bool {
	w.at = e.end()
	return w.fn(e)
}

// entry checks the mark of a voided frame, so that nobody takes frames away by
// writing marks. Frames are opened by who needs them.
func (q *Queue) entry(base, count uint64, void bool, key, value []byte) entry {
	e := entry{base: base, count: count, void: void, key: key, value: value}
	if void {
		if _, err := q.seal.open(key, value, frameHeader); err != nil {
			e.void, e.err = false, err
		}
	}
	return e
}

// skipDamage finds the first readable key behind a damaged block, shows what
// lies between as one damaged entry and leaves the iterator there. Every key in
// the block fails and every key behind it does not, so that doubling and halving
// find the place. An error that is no corruption is returned.
func (w *walk) skipDamage(cause error) (more bool, err error) {
	if !pebble.IsCorruptionError(cause) {
		return false, fmt.Errorf("read queue: %w", cause)
	}
	good := firstGood(w.at, w.to, w.readable)
	end := w.to
	if w.readable(good) && w.it.Valid() {
		base, _, _, err := parseFrameKey(w.it.Key())
		if err != nil {
			return false, fmt.Errorf("read queue: %w", err)
		}
		end = base
	}
	if end <= w.at {
		return w.it.Valid(), nil
	}
	err = fmt.Errorf("%w: %w", ErrDamaged, cause)
	return w.show(entry{base: w.at, count: end - w.at, err: err}) && w.it.Valid(), nil
}

// firstGood returns the first number in [from, to) at which readable is true,
// and to when there is none, for damage that begins at from or before it and has
// one end.
func firstGood(from, to uint64, readable func(uint64) bool) uint64 {
	if readable(from) {
		return from
	}
	bad, good := from, to
	for step := uint64(1); step < to-bad; step *= 2 {
		if readable(bad + step) {
			good = bad + step
			break
		}
		bad += step
	}
	for good-bad > 1 {
		if mid := bad + (good-bad)/2; readable(mid) {
			good = mid
		} else {
			bad = mid
		}
	}
	return good
}

// readable reports whether the iterator can be put at the first key at or
// behind seq, with its value.
func (w *walk) readable(seq uint64) bool {
	if w.it.SeekGE(frameKey(seq, 0)) {
		_, err := w.it.ValueAndErr()
		return err == nil
	}
	return w.it.Error() == nil
}

// CountWaiting counts the committed records at and behind the head from the
// keys on disk. It reads the whole backlog; Stat has the same number, kept up
// as frames come and go.
func (q *Queue) CountWaiting() (uint64, error) {
	q.mu.Lock()
	head, tail, closed := q.pos.head, q.pos.tail, q.closed
	q.mu.Unlock()
	if closed {
		return 0, ErrClosed
	}
	return q.countLive(head, tail)
}

func (q *Queue) countLive(from, to uint64) (uint64, error) {
	if from >= to {
		return 0, nil
	}
	var n uint64
	err := q.scan(from, to, func(e entry) bool {
		n += e.live(from, to)
		return true
	})
	if errors.Is(err, ErrClosed) {
		return 0, err
	}
	if err != nil {
		return 0, fmt.Errorf("count records: %w", err)
	}
	return n, nil
}

// live is how many of the entry's records lie in [from, to) and were not voided.
func (e entry) live(from, to uint64) uint64 {
	lo, hi := max(e.base, from), min(e.end(), to)
	if e.void || lo >= hi {
		return 0
	}
	return hi - lo
}
