package spool

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// DeadLetters is the dead-letter queue. It never drops: when it is full, Put
// says so and nothing was stored. Any goroutine may call any method.
//
//	'l' | id u64           version u8 | codec u8 | sealed letter
//	'k' | HMAC of origin and key 32   id u64
//	'n'                    the next id u64
type DeadLetters struct {
	store   *smallStore
	nameKey []byte
	max     int64

	mu      sync.Mutex // held over each Put and Delete
	closed  bool
	next    uint64
	stat    LetterStat
	deleted uint64 // bytes since the last compaction
}

const (
	letterKeyLen   = 1 + 8
	nameEntryBytes = 1 + sha256.Size + 8
	compactAfter   = 8 << 20
)

// Filter chooses letters. Empty fields choose all.
type Filter struct {
	Reason      string
	Destination string
	Since       int64  // Time is this or later, µs since 1970
	After       uint64 // IDs greater than this: for the next page
	Limit       int    // at most so many; 0: 1,000
}

// LetterStat is the dead-letter queue at one moment.
type LetterStat struct {
	Letters  uint64
	Records  uint64
	Bytes    uint64            // sealed, what MaxLetterBytes bounds
	ByReason map[string]uint64 // records
	Damaged  uint64            // letters, or blocks of them, that do not open; they are in no other number
}

func (s *Spool) openDeadLetters(keep func(Owner) bool) (*DeadLetters, error) {
	store, err := s.openSmall("dead letters", s.disk.PathJoin(s.dir, dlqDir), "ehd1")
	if err != nil {
		return nil, err
	}
	d := &DeadLetters{store: store, nameKey: s.nameKey, max: s.o.MaxLetterBytes, next: 1,
		stat: LetterStat{ByReason: map[string]uint64{}}}
	if err := d.recover(keep); err != nil {
		return nil, errors.Join(fmt.Errorf("open dead letters: %w", err), store.close())
	}
	return d, nil
}

// recover counts the letters and removes those whose commit never came.
func (d *DeadLetters) recover(keep func(Owner) bool) error {
	stored, closer, err := d.store.db.Get([]byte{'n'})
	if err == nil {
		if len(stored) == 8 {
			d.next = binary.BigEndian.Uint64(stored)
		}
		err = closer.Close()
	}
	if err != nil && !errors.Is(err, pebble.ErrNotFound) {
		return err
	}
	b := d.store.db.NewBatch()
	defer func() { _ = b.Close() }()
	d.stat.Damaged, err = d.each(0, func(l Letter, size int) (bool, error) {
		d.next = max(d.next, l.ID+1)
		if l.Owner.ID != [16]byte{} && !keep(l.Owner) {
			return true, d.remove(b, l)
		}
		d.count(l, size, 1)
		return true, nil
	})
	if err != nil {
		return err
	}
	if b.Empty() {
		return nil
	}
	return d.store.commit(b)
}

// each calls fn for the letters behind id after, in order, until it returns
// false, and passes over those that do not open.
func (d *DeadLetters) each(after uint64, fn func(l Letter, size int) (bool, error)) (damaged uint64, err error) {
	it, err := d.store.db.NewIter(&pebble.IterOptions{UpperBound: []byte{'l' + 1}})
	if err != nil {
		return 0, err
	}
	readable := func(id uint64) bool {
		if it.SeekGE(letterKey(id)) {
			_, err := it.ValueAndErr()
			return err == nil
		}
		return it.Error() == nil
	}
	at := after + 1
	it.SeekGE(letterKey(at))
	for more := true; more && err == nil; {
		value, errValue := []byte(nil), it.Error()
		if it.Valid() {
			value, errValue = it.ValueAndErr()
		}
		switch {
		case pebble.IsCorruptionError(errValue):
			damaged++ // a block: how many letters it held is lost with it
			at = firstGood(at, math.MaxUint64, readable)
			more = readable(at) && it.Valid()
		case errValue != nil:
			err = errValue
		case !it.Valid():
			more = false
		default:
			l, errOpen := d.openLetter(it.Key(), value)
			at = l.ID + 1
			if errOpen == nil {
				more, err = fn(l, len(value))
			} else {
				damaged++
			}
			it.Next()
		}
	}
	if errClose := it.Close(); !pebble.IsCorruptionError(errClose) {
		err = errors.Join(err, errClose)
	}
	return damaged, err
}

func letterKey(id uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'l'}, id) }

func (d *DeadLetters) openLetter(key, value []byte) (Letter, error) {
	if len(key) != letterKeyLen {
		return Letter{}, fmt.Errorf("%w: dead letter key", ErrDamaged)
	}
	id := binary.BigEndian.Uint64(key[1:])
	body, err := d.store.seal.open(key, value, smallHeader)
	if err != nil {
		return Letter{ID: id}, err
	}
	l, err := decodeLetter(body)
	l.ID = id
	return l, err
}

func (d *DeadLetters) keyOfName(l Letter) []byte {
	mac := hmac.New(sha256.New, d.nameKey)
	mac.Write(binary.AppendUvarint([]byte("letter|"), uint64(len(l.Origin))))
	mac.Write([]byte(l.Origin))
	mac.Write([]byte(l.Key))
	return mac.Sum([]byte{'k'})
}

// count adds (by 1) or takes away (by -1) a letter. mu is held.
func (d *DeadLetters) count(l Letter, size int, by int64) {
	n := uint64(by)
	d.stat.Letters += n
	d.stat.Records += n * uint64(l.Count)
	d.stat.Bytes += n * uint64(letterKeyLen+size+nameEntryBytes)
	if d.stat.ByReason[l.Reason] += n * uint64(l.Count); d.stat.ByReason[l.Reason] == 0 {
		delete(d.stat.ByReason, l.Reason)
	}
}

// change is a Put or Delete that is being put together: what it does to the
// numbers happens when it is on the disk.
type change struct {
	b     *pebble.Batch
	stat  []func()
	grown int64
}

// Put stores all letters or none, and returns when they are on the disk.
// ErrFull: they do not fit; the caller waits until somebody has made room. ctx
// ends the wait before the letters are written, not the write.
func (d *DeadLetters) Put(ctx context.Context, letters ...Letter) error {
	for i := range letters {
		if err := letters[i].check(); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c := change{b: d.store.db.NewIndexedBatch()}
	defer func() { _ = c.b.Close() }()
	next := d.next
	for _, l := range letters {
		if err := d.put(&c, l, &next); err != nil {
			return fmt.Errorf("put dead letter: %w", err)
		}
	}
	if c.grown > 0 && int64(d.stat.Bytes)+c.grown > d.max {
		return fmt.Errorf("%w: %d of %d bytes are taken: replay or delete letters, or allow it more", ErrFull, d.stat.Bytes, d.max)
	}
	if err := c.b.Set([]byte{'n'}, binary.BigEndian.AppendUint64(nil, next), nil); err != nil {
		return fmt.Errorf("put dead letter: %w", err)
	}
	if err := d.store.commit(c.b); err != nil {
		return fmt.Errorf("put dead letters: %w", err)
	}
	d.next = next
	c.count()
	return nil
}

func (c *change) count() {
	for _, f := range c.stat {
		f()
	}
}

func (d *DeadLetters) put(c *change, l Letter, next *uint64) error {
	name := d.keyOfName(l)
	stored, closer, err := c.b.Get(name)
	switch {
	case err == nil:
		l.ID = binary.BigEndian.Uint64(stored)
		if err := closer.Close(); err != nil {
			return err
		}
		if err := d.replace(c, l.ID); err != nil {
			return err
		}
	case errors.Is(err, pebble.ErrNotFound):
		l.ID = *next
		*next++
		if err := c.b.Set(name, binary.BigEndian.AppendUint64(nil, l.ID), nil); err != nil {
			return err
		}
	default:
		return err
	}
	key := letterKey(l.ID)
	plain := encodeLetter(l)
	if len(plain) > maxPayload {
		return fmt.Errorf("letter of %d bytes is over %d", len(plain), maxPayload)
	}
	codec, body := compress(plain)
	value, err := d.store.seal.seal(key, []byte{valueVersion, codec}, body)
	if err != nil {
		return err
	}
	c.grown += int64(letterKeyLen + len(value) + nameEntryBytes)
	l.Payload = nil
	c.stat = append(c.stat, func() { d.count(l, len(value), 1) })
	return c.b.Set(key, value, nil)
}

// replace takes the letter under id out of the numbers: another takes its place.
func (d *DeadLetters) replace(c *change, id uint64) error {
	old, size, err := d.find(c.b, id)
	if errors.Is(err, pebble.ErrNotFound) || errors.Is(err, ErrDamaged) {
		return nil // it was in no number
	}
	if err != nil {
		return err
	}
	c.grown -= int64(letterKeyLen + size + nameEntryBytes)
	old.Payload = nil
	c.stat = append(c.stat, func() { d.count(old, size, -1) })
	return nil
}

func (d *DeadLetters) find(r pebble.Reader, id uint64) (l Letter, size int, err error) {
	key := letterKey(id)
	stored, closer, err := r.Get(key)
	if err != nil {
		return l, 0, err
	}
	size = len(stored)
	l, err = d.openLetter(key, stored)
	if errClose := closer.Close(); err == nil {
		err = errClose
	}
	return l, size, err
}

// ErrNoLetter means that there is no letter with this ID.
var ErrNoLetter = errors.New("no such dead letter")

// Get returns the letter with this ID. ErrNoLetter: there is none.
func (d *DeadLetters) Get(id uint64) (Letter, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return Letter{}, ErrClosed
	}
	l, _, err := d.find(d.store.db, id)
	if errors.Is(err, pebble.ErrNotFound) {
		return Letter{}, fmt.Errorf("%w: %d", ErrNoLetter, id)
	}
	if err != nil {
		return Letter{}, fmt.Errorf("read dead letter %d: %w", id, err)
	}
	return l, nil
}

// List returns the letters that f chooses, by ID. Letters that do not open are
// left out and counted in Stat.
func (d *DeadLetters) List(f Filter) ([]Letter, error) {
	if f.Limit == 0 {
		f.Limit = 1000
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	var found []Letter
	_, err := d.each(f.After, func(l Letter, _ int) (bool, error) {
		if (f.Reason == "" || l.Reason == f.Reason) && (f.Destination == "" || l.Destination == f.Destination) && l.Time >= f.Since {
			found = append(found, l)
		}
		return len(found) < f.Limit, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return found, nil
}

// Delete removes letters for good and returns when they are gone from the disk
// too. An ID that is not there is passed over.
func (d *DeadLetters) Delete(ids ...uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	c := change{b: d.store.db.NewIndexedBatch()}
	defer func() { _ = c.b.Close() }()
	for _, id := range ids {
		l, size, err := d.find(c.b, id)
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if errors.Is(err, ErrDamaged) {
			if err := c.b.Delete(letterKey(id), nil); err != nil {
				return fmt.Errorf("delete dead letter: %w", err)
			}
			c.stat = append(c.stat, func() { d.stat.Damaged -= min(1, d.stat.Damaged) })
			continue
		}
		if err == nil {
			err = d.remove(c.b, l)
		}
		if err != nil {
			return fmt.Errorf("delete dead letter %d: %w", id, err)
		}
		l.Payload = nil
		c.stat = append(c.stat, func() { d.count(l, size, -1) })
		d.deleted += uint64(size)
	}
	if err := d.store.commit(c.b); err != nil {
		return fmt.Errorf("delete dead letters: %w", err)
	}
	c.count()
	return d.compact()
}

func (d *DeadLetters) remove(b *pebble.Batch, l Letter) error {
	if err := b.Delete(d.keyOfName(l), nil); err != nil {
		return err
	}
	return b.Delete(letterKey(l.ID), nil)
}

// compact gives the room of deleted letters back to the disk once there is
// enough of it.
func (d *DeadLetters) compact() error {
	if d.deleted < compactAfter {
		return nil
	}
	d.deleted = 0
	if err := d.store.db.Compact(context.Background(), []byte{0}, []byte{0xff}, false); err != nil {
		return fmt.Errorf("compact dead letters: %w", err)
	}
	return nil
}

// Stat returns the numbers as they are now.
func (d *DeadLetters) Stat() LetterStat {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stat
	s.ByReason = maps.Clone(s.ByReason)
	return s
}

func (d *DeadLetters) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if err := d.store.close(); err != nil {
		return fmt.Errorf("close dead letters: %w", err)
	}
	return nil
}
