package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// smallStore is the Pebble of a State or of the dead letters: keys in no order
// of time, and no chain of numbers that would show a loss. So every commit
// carries a counter, and a side file (a cursor) knows it, at most a second late:
// a store that was set back, as by a damaged MANIFEST, is not opened.
//
// Calls that overlap are committed together.
type smallStore struct {
	db   *pebble.DB
	seal sealer

	queueing sync.Mutex
	waiting  []*commitCall

	writing sync.Mutex // held over each commit
	commits uint64
	side    *cursorFile
	sideAt  time.Time
	sideHas uint64
	sideErr error
}

type commitCall struct {
	b    *pebble.Batch
	done bool
	err  error
}

// commitsKey holds the counter. No other key of a small store is as short.
var commitsKey = []byte{'c'}

// openSmall opens the store in dir, or makes it. magic tells the kinds apart.
func (s *Spool) openSmall(name, dir, magic string) (*smallStore, error) {
	st, err := s.openSmallFiles(name, dir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	st.seal.aead, st.seal.magic = s.keys.aead, magic
	return st, nil
}

func (s *Spool) openSmallFiles(name, dir string) (*smallStore, error) {
	if err := s.disk.mkdir(dir); err != nil {
		return nil, err
	}
	data, sidePath := s.disk.PathJoin(dir, dataName), s.disk.PathJoin(dir, cursorName)
	names, err := s.disk.list(data)
	if err != nil {
		return nil, err
	}
	uuid, err := s.smallIdentity(dir, len(names) > 0)
	if err != nil {
		return nil, err
	}
	gen, sideUUID, pos, err := readCursor(s.disk, sidePath, s.cursorKey)
	if err != nil && !errors.Is(err, errNoCursor) {
		return nil, err
	}
	if err == nil && sideUUID == uuid {
		if err := s.inspectSmall(name, data, pos.tail); err != nil {
			return nil, fmt.Errorf("%w; put %s back from your backup, or move it away to start empty; nothing was changed", err, dir)
		}
	}
	st := &smallStore{seal: sealer{uuid: uuid}}
	if st.db, err = s.openOrMake(name, dir, err == nil); err != nil {
		return nil, err
	}
	if st.commits, err = readCommits(st.db); err == nil {
		st.sideAt, st.sideHas = time.Now(), st.commits
		st.side, err = openCursor(s.disk, sidePath, s.cursorKey, uuid, gen, st.position())
	}
	if err != nil {
		return nil, errors.Join(err, st.db.Close())
	}
	return st, nil
}

// openOrMake opens the Pebble of the store in dir. A crash while Pebble made it
// can leave one that does not open; made is false as long as the side file, which
// comes last, is not there, and then it is moved aside for a new one.
func (s *Spool) openOrMake(name, dir string, made bool) (*pebble.DB, error) {
	data := s.disk.PathJoin(dir, dataName)
	db, err := s.openPebble(name, data)
	if err == nil {
		return db, nil
	}
	err = asDamage(err)
	if made || !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	aside, errMove := s.moveAside(dir)
	if errMove != nil {
		return nil, fmt.Errorf("move damaged store aside: %w (damage: %w)", errMove, err)
	}
	s.log.Error("spool store was not finished when the host stopped; it starts empty", "store", name, "old_files", aside, "error", err)
	return s.openPebble(name, data)
}

func (s *Spool) smallIdentity(dir string, hasData bool) ([16]byte, error) {
	uuid, found, err := readIdentity(s.disk, dir, s.identityKey)
	if err == nil && !found && hasData {
		err = fmt.Errorf("%w: the identity file is missing", ErrDamaged)
	}
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w: without it the data in %s cannot be opened: put it back from your backup, or move the directory away to start empty", err, dir)
	}
	if err != nil || found {
		return uuid, err
	}
	uuid = newUUID()
	return uuid, writeIdentity(s.disk, dir, uuid, s.identityKey)
}

// inspectSmall looks whether the store has at least so many commits, without
// changing a file: opening it for writing deletes what a damaged MANIFEST forgot.
func (s *Spool) inspectSmall(name, data string, commits uint64) error {
	if commits == 0 {
		return nil
	}
	o := s.pebbleOptions(name)
	o.ReadOnly, o.ErrorIfNotExists = true, true
	db, err := pebble.Open(data, o)
	if err != nil {
		return asDamage(err)
	}
	has, err := readCommits(db)
	if err = errors.Join(err, db.Close()); err != nil {
		return asDamage(err)
	}
	if has < commits {
		return fmt.Errorf("%w: it has %d commits, but had %d", ErrDamaged, has, commits)
	}
	return nil
}

func readCommits(db *pebble.DB) (uint64, error) {
	stored, closer, err := db.Get(commitsKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read commit counter: %w", err)
	}
	defer func() { _ = closer.Close() }()
	if len(stored) != 8 {
		return 0, fmt.Errorf("%w: commit counter", ErrDamaged)
	}
	return binary.BigEndian.Uint64(stored), nil
}

func (st *smallStore) position() position { return position{head: st.commits, tail: st.commits} }

// commit makes b durable, together with what others commit at the same time.
func (st *smallStore) commit(b *pebble.Batch) error {
	c := &commitCall{b: b}
	st.queueing.Lock()
	st.waiting = append(st.waiting, c)
	st.queueing.Unlock()

	st.writing.Lock()
	defer st.writing.Unlock()
	if c.done {
		return c.err // whoever had the lock before took it along
	}
	st.queueing.Lock()
	group := st.waiting
	st.waiting = nil
	st.queueing.Unlock()
	err := st.commitGroup(group)
	for _, other := range group {
		other.done, other.err = true, err
	}
	return err
}

func (st *smallStore) commitGroup(group []*commitCall) error {
	all := st.db.NewBatch()
	defer func() { _ = all.Close() }()
	for _, c := range group {
		if err := all.Apply(c.b, nil); err != nil {
			return err
		}
	}
	if err := all.Set(commitsKey, binary.BigEndian.AppendUint64(nil, st.commits+1), nil); err != nil {
		return err
	}
	if err := all.Commit(pebble.Sync); err != nil {
		return err
	}
	st.commits++
	if now := time.Now(); now.Sub(st.sideAt) >= flushEvery {
		st.writeSide(now)
	}
	return nil
}

// writeSide writes the side file. An error is no error of the commit, which is
// on the disk: the next one tries again, and close returns the last.
func (st *smallStore) writeSide(now time.Time) {
	if st.sideHas == st.commits {
		return
	}
	if st.sideErr = st.side.write(st.position(), now); st.sideErr == nil {
		st.sideAt, st.sideHas = now, st.commits
	}
}

func (st *smallStore) close() error {
	st.writing.Lock()
	defer st.writing.Unlock()
	st.writeSide(time.Now())
	return errors.Join(st.sideErr, st.side.close(), st.db.Close())
}
