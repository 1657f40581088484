package spool

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The cursor file has two slots of 4 KB that are written in turn, so that a
// torn write leaves the other one. A slot is:
//
//	"ehc1" | generation u64 | uuid 16 | 10 numbers u64 | HMAC-SHA256 32 | zeroes
//
// It lies outside Pebble because a key that changes all the time between keys
// that never do would make every table overlap the others.
const (
	cursorName  = "cursor"
	cursorMagic = "ehc1"
	slotSize    = 4096
	slotNumbers = 10
	slotMAC     = 4 + 8 + 16 + 8*slotNumbers
	slotLen     = slotMAC + sha256.Size
)

// position is all that a queue knows beside its frames.
type position struct {
	head, tail     uint64 // tail: frames below it are committed or voided
	waitingRecords uint64 // of [head, tail)
	waitingBytes   uint64
	settled        Settled
	voided         uint64 // below tail
	damaged        uint64 // below head
	written        uint64 // when, µs since 1970
}

func (p *position) numbers() [slotNumbers]*uint64 {
	return [slotNumbers]*uint64{&p.head, &p.tail, &p.waitingRecords, &p.waitingBytes,
		&p.settled.Delivered, &p.settled.DeadLettered, &p.settled.Dropped, &p.voided, &p.damaged, &p.written}
}

func encodeSlot(gen uint64, uuid [16]byte, p position, key []byte) []byte {
	b := make([]byte, 0, slotSize)
	b = append(b, cursorMagic...)
	b = binary.BigEndian.AppendUint64(b, gen)
	b = append(b, uuid[:]...)
	for _, n := range p.numbers() {
		b = binary.BigEndian.AppendUint64(b, *n)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(b)
	b = mac.Sum(b)
	return b[:slotSize]
}

func decodeSlot(b, key []byte) (gen uint64, uuid [16]byte, p position, err error) {
	if len(b) < slotLen || string(b[:4]) != cursorMagic {
		return 0, uuid, p, fmt.Errorf("%w: not a cursor slot", ErrDamaged)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(b[:slotMAC])
	if !hmac.Equal(mac.Sum(nil), b[slotMAC:slotLen]) {
		return 0, uuid, p, fmt.Errorf("%w: cursor slot does not match its code", ErrDamaged)
	}
	gen = binary.BigEndian.Uint64(b[4:])
	copy(uuid[:], b[12:])
	for i, n := range p.numbers() {
		*n = binary.BigEndian.Uint64(b[28+8*i:])
	}
	if p.head > p.tail {
		return 0, uuid, p, fmt.Errorf("%w: cursor head %d lies behind its tail %d", ErrDamaged, p.head, p.tail)
	}
	return gen, uuid, p, nil
}

// cursorFile writes positions. One goroutine at a time.
type cursorFile struct {
	f    vfs.File
	key  []byte
	uuid [16]byte
	gen  uint64
}

var errNoCursor = errors.New("no readable cursor")

// readCursor returns the newest valid slot of the file at path; errNoCursor
// when there is none.
func readCursor(d disk, path string, key []byte) (gen uint64, uuid [16]byte, p position, err error) {
	data, err := d.readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, uuid, p, errNoCursor
	}
	if err != nil {
		return 0, uuid, p, fmt.Errorf("read cursor: %w", err)
	}
	err = errNoCursor
	for ; len(data) > 0; data = data[min(slotSize, len(data)):] {
		g, u, q, slotErr := decodeSlot(data[:min(slotSize, len(data))], key)
		if slotErr == nil && (err != nil || g > gen) {
			gen, uuid, p, err = g, u, q, nil
		}
	}
	return gen, uuid, p, err
}

// openCursor opens the file at path for writing, makes it when needed, and
// writes p as its first slot of this run.
func openCursor(d disk, path string, key []byte, uuid [16]byte, gen uint64, p position) (*cursorFile, error) {
	if _, err := d.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := d.writeFile(path, make([]byte, 2*slotSize)); err != nil {
			return nil, fmt.Errorf("make cursor: %w", err)
		}
	}
	f, err := d.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("open cursor: %w", err)
	}
	c := &cursorFile{f: f, key: key, uuid: uuid, gen: gen}
	if err := c.write(p, time.Now()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return c, nil
}

// write returns when p is on the disk. After an error the slot that was written
// last still holds.
func (c *cursorFile) write(p position, now time.Time) error {
	p.written = uint64(now.UnixMicro())
	gen := c.gen + 1
	if _, err := c.f.WriteAt(encodeSlot(gen, c.uuid, p, c.key), int64(gen&1)*slotSize); err != nil {
		return fmt.Errorf("write cursor: %w", err)
	}
	if err := c.f.SyncData(); err != nil {
		return fmt.Errorf("sync cursor: %w", err)
	}
	c.gen = gen
	return nil
}

func (c *cursorFile) close() error { return c.f.Close() }
