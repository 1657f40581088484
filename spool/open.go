package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// openQueue opens the queue called name: its side files, then its frames under
// guard, then it decides on the frames whose fate was not written down.
func (s *Spool) openQueue(name string, keep func(Owner) bool) (*Queue, error) {
	file, err := safeName(name)
	if err != nil {
		return nil, err
	}
	q := &Queue{s: s, name: name, dir: s.disk.PathJoin(s.dir, queueDir, file), log: s.log.With("queue", name),
		work: make(chan struct{}, 1), stop: make(chan struct{}), wake: make(chan struct{}), damage: map[uint64]uint64{}, keep: keeping{step: trimBytes}}
	if err := s.disk.mkdir(s.disk.PathJoin(s.dir, queueDir)); err != nil {
		return nil, err
	}
	if err := s.disk.mkdir(q.dir); err != nil {
		return nil, err
	}
	gen, known, err := q.readSide()
	if err != nil {
		return nil, err
	}
	if q.db, err = q.openData(known); err != nil {
		return nil, err
	}
	if err := q.recover(keep, known); err != nil {
		return nil, errors.Join(err, q.db.Close())
	}
	q.cursor, err = openCursor(s.disk, s.disk.PathJoin(q.dir, cursorName), s.cursorKey, q.seal.uuid, gen, q.pos)
	if err != nil {
		return nil, errors.Join(err, q.db.Close())
	}
	q.keep.note(sample{time.Now(), q.boundary, q.acked})
	if q.startErr != nil {
		q.log.Error("spool queue was damaged; it runs", "error", q.startErr)
	}
	q.running.Go(q.write)
	q.running.Go(q.housekeep)
	return q, nil
}

// readSide reads identity and cursor. Either one can be made again from the
// other; known is false when no cursor can be read.
func (q *Queue) readSide() (gen uint64, known bool, err error) {
	d := q.s.disk
	uuid, found, errID := readIdentity(d, q.dir, q.s.identityKey)
	gen, uuidCursor, pos, errCursor := readCursor(d, d.PathJoin(q.dir, cursorName), q.s.cursorKey)
	for _, err := range []error{errID, errCursor} {
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, errNoCursor) {
			return 0, false, err
		}
	}
	data, err := d.list(d.PathJoin(q.dir, dataName))
	if err != nil {
		return 0, false, fmt.Errorf("list frames: %w", err)
	}
	haveID, haveCursor := found && errID == nil, errCursor == nil
	switch {
	case haveID && haveCursor && uuid == uuidCursor:
		q.pos = pos
	case haveCursor && !haveID:
		uuid, q.pos = uuidCursor, pos
		err = writeIdentity(d, q.dir, uuid, q.s.identityKey)
	case haveID:
		haveCursor, gen = false, 0
		if len(data) > 0 {
			q.startErr = fmt.Errorf("%w: the cursor of queue %s cannot be read: all frames on disk are delivered again, and its counters begin at 0", ErrDamaged, q.name)
		}
	case len(data) > 0:
		return 0, false, fmt.Errorf("%w: identity and cursor in %s are missing or belong to another keyring, so its frames cannot be opened: put them or the keyring back from your backup; nothing was changed", ErrDamaged, q.dir)
	default:
		uuid = newUUID()
		err = writeIdentity(d, q.dir, uuid, q.s.identityKey)
	}
	q.seal = sealer{aead: q.s.keys.aead, magic: "ehs1", uuid: uuid}
	return gen, haveCursor, err
}

// openData opens the Pebble of the queue. Pebble opens without an error, and
// then deletes what it does not know any more, when its MANIFEST is damaged
// (cockroachdb/pebble#4560). So the store is looked at first with a read-only
// open, which deletes nothing, and moved aside when it lost records.
func (q *Queue) openData(known bool) (*pebble.DB, error) {
	data := q.s.disk.PathJoin(q.dir, dataName)
	err := q.inspect(data, known)
	if err == nil {
		var db *pebble.DB
		if db, err = q.s.openPebble(q.name, data); err == nil {
			return db, nil
		}
		err = asDamage(err)
	}
	if !errors.Is(err, ErrDamaged) {
		return nil, fmt.Errorf("open frames: %w", err)
	}
	aside, errMove := q.s.moveAside(q.dir)
	if errMove != nil {
		return nil, fmt.Errorf("move damaged queue aside: %w (damage: %w)", errMove, err)
	}
	q.startErr = fmt.Errorf("the files of queue %s were damaged and lie in %s now; it starts again behind them, and readers report the records as damaged: %w", q.name, aside, err)
	db, err := q.s.openPebble(q.name, data)
	if err != nil {
		return nil, fmt.Errorf("open frames: %w", err)
	}
	return db, nil
}

// asDamage marks the error of an open as damage of the files, unless it comes
// from the machine: a missing file is damage, a lock or a failing disk is not.
func asDamage(err error) error {
	var errno syscall.Errno
	if errors.Is(err, ErrDisk) || errors.As(err, &errno) && errno != syscall.ENOENT {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// inspect looks for lost records without changing a file. nil: the store may be
// opened for writing.
func (q *Queue) inspect(data string, known bool) error {
	names, err := q.s.disk.list(data)
	if err != nil || len(names) == 0 {
		return err
	}
	o := q.s.pebbleOptions(q.name)
	o.ReadOnly, o.ErrorIfNotExists = true, true
	db, err := pebble.Open(data, o)
	if errors.Is(err, pebble.ErrDBDoesNotExist) {
		if known && q.pos.tail > 0 && slices.ContainsFunc(names, isTable) {
			return fmt.Errorf("%w: there are tables, but nothing says which", ErrDamaged)
		}
		return nil // a crash while the queue was made
	}
	if err != nil {
		return asDamage(err)
	}
	err = q.inspectChain(db, names)
	if errClose := db.Close(); err == nil && errClose != nil {
		err = asDamage(errClose)
	}
	return err
}

func isTable(name string) bool { return strings.HasSuffix(name, ".sst") }

// inspectChain walks from the head to the tail over the bounds of the tables,
// and over keys where no table is. Records that are missing are damage to move
// aside only when there are tables that nobody refers to: opening for writing
// would delete those. Otherwise nothing more can be lost, and readers report it.
func (q *Queue) inspectChain(db *pebble.DB, names []string) error {
	spans, used, err := tableSpans(db)
	if err != nil {
		return asDamage(err)
	}
	it, err := db.NewIter(nil)
	if err != nil {
		return asDamage(err)
	}
	defer func() { _ = it.Close() }()
	at := q.pos.head
	for at < q.pos.tail {
		if end := spans.end(at); end > at {
			at = end
			continue
		}
		if it.SeekLT(frameKey(at+1, 0)) {
			if base, count, _, err := parseFrameKey(it.Key()); err == nil && base+count > at {
				at = base + count
				continue
			}
		}
		break
	}
	if at >= q.pos.tail {
		return nil
	}
	for _, name := range names {
		if isTable(name) && !used[name] {
			return fmt.Errorf("%w: records from %d on are missing, and table %s is not listed any more: the MANIFEST is damaged", ErrDamaged, at, name)
		}
	}
	return nil
}

// spans are the sequence numbers that each table covers.
type spans [][2]uint64

// end returns the first number behind the tables that hold at; at when none does.
func (s spans) end(at uint64) uint64 {
	for _, t := range s {
		if t[0] <= at && at < t[1] {
			at = t[1]
		}
	}
	return at
}

// tableSpans returns what the tables of db cover, sorted, and their file names.
func tableSpans(db *pebble.DB) (spans, map[string]bool, error) {
	levels, err := db.SSTables()
	if err != nil {
		return nil, nil, fmt.Errorf("list tables: %w", err)
	}
	var all spans
	used := map[string]bool{}
	for _, level := range levels {
		for _, t := range level {
			used[fmt.Sprintf("%s.sst", t.BackingSSTNum)] = true
			from, _, _, errFrom := parseFrameKey(t.Smallest.UserKey)
			base, count, _, errTo := parseFrameKey(t.Largest.UserKey)
			if err := errors.Join(errFrom, errTo); err != nil {
				return nil, nil, err
			}
			all = append(all, [2]uint64{from, base + count})
		}
	}
	slices.SortFunc(all, func(a, b [2]uint64) int {
		if a[0] != b[0] {
			if a[0] < b[0] {
				return -1
			}
			return 1
		}
		return 0
	})
	return all, used, nil
}

// moveAside puts the damaged Pebble of the store in dir, with copies of the side
// files that are needed to open what is left of it, into the quarantine. The
// store keeps its identity and cursor, so that its numbers and counters go on.
func (s *Spool) moveAside(dir string) (string, error) {
	d := s.disk
	name := fmt.Sprintf("%s-%s", time.Now().UTC().Format("20060102T150405.000000Z"), d.PathBase(dir))
	aside := d.PathJoin(s.dir, quarantineDir, name)
	if err := d.mkdir(d.PathJoin(s.dir, quarantineDir)); err != nil {
		return "", err
	}
	if err := d.mkdir(aside); err != nil {
		return "", err
	}
	for _, side := range []string{identityName, cursorName} {
		text, err := d.readFile(d.PathJoin(dir, side))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if err := d.writeFile(d.PathJoin(aside, side), text); err != nil {
			return "", err
		}
	}
	if err := d.Rename(d.PathJoin(dir, dataName), d.PathJoin(aside, dataName)); err != nil {
		return "", err
	}
	return aside, errors.Join(d.syncDir(aside), d.syncDir(dir))
}

// recover finds out what is on the disk, and voids the frames whose commit
// never came. After it, all of [head, next) is committed or voided.
func (q *Queue) recover(keep func(Owner) bool, known bool) error {
	first, end, err := q.bounds()
	if err != nil {
		return err
	}
	if !known {
		q.pos = position{head: first, tail: first}
	}
	gap := end < q.pos.tail || q.startErr != nil
	q.oldest = min(first, q.pos.head)
	if first == end {
		q.oldest = q.pos.head
	}
	if err := q.decide(keep, max(end, q.pos.tail)); err != nil {
		return err
	}
	q.next = q.pos.tail
	q.windowFrom = q.pos.tail
	if gap {
		if q.pos.waitingRecords, err = q.countLive(q.pos.head, q.pos.tail); err != nil {
			return err
		}
	}
	return q.findBoundary()
}

// decide settles the frames of [tail, end): kept ones wait, others are voided.
// A frame is voided only when its seal proves that its owner is what it says.
func (q *Queue) decide(keep func(Owner) bool, end uint64) error {
	b := q.db.NewBatch()
	defer func() { _ = b.Close() }()
	var errVoid error
	waiting, bytes, voided := uint64(0), uint64(0), uint64(0)
	err := q.scan(q.pos.tail, end, func(e entry) bool {
		switch {
		case e.void:
			voided += e.count
		case e.err != nil || q.kept(e, keep):
			waiting += e.count
			bytes += uint64(len(e.value))
		default:
			voided += e.count
			f, err := parseFrameHeader(e.value)
			if err == nil {
				var v voidOp
				f.Count = int(e.count)
				if v, err = q.voidOp(e.base, f); err == nil {
					err = v.addTo(b)
				}
			}
			errVoid = errors.Join(errVoid, err)
		}
		return true
	})
	if err = errors.Join(err, errVoid); err != nil {
		return err
	}
	if !b.Empty() {
		if err := b.Commit(pebble.Sync); err != nil {
			return fmt.Errorf("void frames that were not committed: %w", err)
		}
	}
	q.pos.tail = end
	q.pos.waitingRecords += waiting
	q.pos.waitingBytes += bytes
	q.pos.voided += voided
	return nil
}

func (q *Queue) kept(e entry, keep func(Owner) bool) bool {
	f, err := parseFrameHeader(e.value)
	if err != nil || keep(f.Owner) {
		return true
	}
	_, err = q.seal.openFrame(e.key, e.value)
	return err != nil
}

// bounds returns the first record on disk and the one behind the last. With a
// damaged first or last block the tables' bounds have to do.
func (q *Queue) bounds() (first, end uint64, err error) {
	all, _, err := tableSpans(q.db)
	if err != nil {
		return 0, 0, err
	}
	it, err := q.db.NewIter(nil)
	if err != nil {
		return 0, 0, fmt.Errorf("read frames: %w", err)
	}
	found := false
	note := func(from, to uint64) {
		if !found || from < first {
			first = from
		}
		end = max(end, to)
		found = true
	}
	for _, valid := range []func() bool{it.First, it.Last} {
		if valid() {
			if base, count, _, err := parseFrameKey(it.Key()); err == nil {
				note(base, base+count)
			}
		} else if err := it.Error(); err != nil {
			if !pebble.IsCorruptionError(err) {
				_ = it.Close()
				return 0, 0, fmt.Errorf("read frames: %w", err)
			}
			for _, t := range all {
				note(t[0], t[1])
			}
		}
	}
	if err := it.Close(); err != nil && !pebble.IsCorruptionError(err) {
		return 0, 0, fmt.Errorf("read frames: %w", err)
	}
	return first, end, nil
}

// findBoundary finds the first record of the frame at the head, and how much
// lies settled before it.
func (q *Queue) findBoundary() error {
	q.boundary = q.pos.head
	if q.pos.head < q.pos.tail {
		err := q.scan(q.pos.head, q.pos.tail, func(e entry) bool {
			q.boundary = min(e.base, q.pos.head)
			return false
		})
		if err != nil {
			return err
		}
	}
	if q.boundary == 0 {
		return nil
	}
	used, err := q.db.EstimateDiskUsage(frameKey(0, 0), frameKey(q.boundary, 0))
	if err != nil {
		return fmt.Errorf("estimate settled bytes: %w", err)
	}
	q.acked = used
	return nil
}
