package spool

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// State is a small sealed key-value store. Keys are sorted into spaces. On disk
// a key is an HMAC, since names may say as much as values; the clear key lies
// inside the sealed value. Any goroutine may call any method.
//
//	key    HMAC(space) 16 | HMAC(space, key) 24
//	value  version u8 | codec u8 | sealed: uvarint length of key | key | value
type State struct {
	name    string
	store   *smallStore
	nameKey []byte

	using  sync.RWMutex // held for writing when the store is closed
	closed bool
}

const (
	spaceLen    = 16
	stateKeyLen = spaceLen + 24
)

// Set is one change of a State: Value replaces what is stored under Space and
// Key; nil deletes it, and empty is a value.
type Set struct {
	Space, Key string
	Value      []byte
}

func (s *Spool) openState(name string) (*State, error) {
	file, err := safeName(name)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	if err := s.disk.mkdir(s.disk.PathJoin(s.dir, stateDir)); err != nil {
		return nil, fmt.Errorf("open state %s: %w", name, err)
	}
	store, err := s.openSmall("state "+name, s.disk.PathJoin(s.dir, stateDir, file), "ehv1")
	if err != nil {
		return nil, err
	}
	return &State{name: name, store: store, nameKey: s.nameKey}, nil
}

func (s *State) spaceKey(space string) []byte {
	mac := hmac.New(sha256.New, s.nameKey)
	mac.Write([]byte("space|"))
	mac.Write([]byte(space))
	return mac.Sum(nil)[:spaceLen]
}

func (s *State) diskKey(space, key string) []byte {
	mac := hmac.New(sha256.New, s.nameKey)
	mac.Write(binary.AppendUvarint([]byte("key|"), uint64(len(space))))
	mac.Write([]byte(space))
	mac.Write([]byte(key))
	return append(s.spaceKey(space), mac.Sum(nil)[:stateKeyLen-spaceLen]...)
}

// Get returns the value under space and key, and nil when there is none. The
// caller owns it.
func (s *State) Get(space, key string) ([]byte, error) {
	s.using.RLock()
	defer s.using.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	diskKey := s.diskKey(space, key)
	stored, closer, err := s.store.db.Get(diskKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state %s: %w", s.name, err)
	}
	found, value, err := s.openValue(diskKey, stored)
	if errClose := closer.Close(); err == nil {
		err = errClose
	}
	if err == nil && found != key {
		err = fmt.Errorf("%w: it belongs to another key", ErrDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("read state %s: %w", s.name, err)
	}
	return value, nil
}

// openValue returns the clear key and the value, both of their own.
func (s *State) openValue(diskKey, stored []byte) (key string, value []byte, err error) {
	body, err := s.store.seal.open(diskKey, stored, smallHeader)
	if err != nil {
		return "", nil, err
	}
	n, w := binary.Uvarint(body)
	if w <= 0 || n > uint64(len(body)-w) {
		return "", nil, fmt.Errorf("%w: state value", ErrDamaged)
	}
	body = body[w:]
	return string(body[:n]), append([]byte{}, body[n:]...), nil
}

// Scan calls fn for every key of space, in no particular order, and stops at
// its first error, which it returns. fn owns value; it must not call Commit.
func (s *State) Scan(space string, fn func(key string, value []byte) error) error {
	s.using.RLock()
	defer s.using.RUnlock()
	if s.closed {
		return ErrClosed
	}
	prefix := s.spaceKey(space)
	it, err := s.store.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: behind(prefix)})
	if err != nil {
		return fmt.Errorf("read state %s: %w", s.name, err)
	}
	for valid := it.First(); valid && err == nil; valid = it.Next() {
		err = s.visit(it, fn)
	}
	if err == nil {
		err = it.Error()
	}
	if errClose := it.Close(); err == nil {
		err = errClose
	}
	return err
}

func (s *State) visit(it *pebble.Iterator, fn func(string, []byte) error) error {
	stored, err := it.ValueAndErr()
	if err != nil {
		return fmt.Errorf("read state %s: %w", s.name, err)
	}
	key, value, err := s.openValue(it.Key(), stored)
	if err != nil {
		return fmt.Errorf("read state %s: %w", s.name, err)
	}
	return fn(key, value)
}

// behind returns the first key behind all that begin with prefix; nil when
// there is none.
func behind(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// Commit makes all changes, in their order, or none, and returns when they are
// on the disk. Calls that overlap share an fsync.
func (s *State) Commit(sets []Set) error {
	s.using.RLock()
	defer s.using.RUnlock()
	if s.closed {
		return ErrClosed
	}
	b := s.store.db.NewBatch()
	defer func() { _ = b.Close() }()
	for _, set := range sets {
		if err := s.add(b, set); err != nil {
			return fmt.Errorf("commit state %s: %w", s.name, err)
		}
	}
	if err := s.store.commit(b); err != nil {
		return fmt.Errorf("commit state %s: %w", s.name, err)
	}
	return nil
}

func (s *State) add(b *pebble.Batch, set Set) error {
	diskKey := s.diskKey(set.Space, set.Key)
	if set.Value == nil {
		return b.Delete(diskKey, nil)
	}
	body := make([]byte, 0, binary.MaxVarintLen64+len(set.Key)+len(set.Value))
	body = binary.AppendUvarint(body, uint64(len(set.Key)))
	body = append(body, set.Key...)
	body = append(body, set.Value...)
	if len(body) > maxPayload {
		return fmt.Errorf("value of %d bytes is over %d", len(set.Value), maxPayload)
	}
	codec, body := compress(body)
	value, err := s.store.seal.seal(diskKey, []byte{valueVersion, codec}, body)
	if err != nil {
		return err
	}
	return b.Set(diskKey, value, nil)
}

func (s *State) close() error {
	s.using.Lock()
	defer s.using.Unlock()
	s.closed = true
	if err := s.store.close(); err != nil {
		return fmt.Errorf("close state %s: %w", s.name, err)
	}
	return nil
}
