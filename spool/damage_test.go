package spool

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// backlog is a queue with tables and a log on a disk that can be copied.
type backlog struct {
	o      Options
	frames []Stored
	total  uint64
}

// newBacklog fills a queue: some tables, and newer frames in the log only. The
// disk is as kill -9 leaves it.
func newBacklog(t *testing.T) *backlog {
	t.Helper()
	b := newBed(t, vfs.NewCrashableMem())
	q := b.queue("q")
	l := &backlog{}
	for seq := uint64(1); seq <= 60; seq++ {
		payload := make([]byte, 900)
		rand.Read(payload)
		f := frame(alice, seq, 1+int(seq%5), string(payload))
		base := add(t, q, f)[0]
		l.frames = append(l.frames, Stored{base, f})
		l.total = base + uint64(f.Count)
		q.Commit(alice, seq)
		if seq%10 == 0 && seq <= 50 {
			if err := q.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	q.tick(time.Now())
	q.mu.Lock()
	q.keep.dirty = true
	q.mu.Unlock()
	q.tick(time.Now()) // both slots know all
	l.o = b.o
	l.o.FS = l.clone(b.o.FS)
	b.close()
	return l
}

func (l *backlog) clone(fs vfs.FS) *vfs.MemFS {
	return fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: mathrand.New(mathrand.NewPCG(1, 1))})
}

// files lists the files of the queue, as paths below its directory.
func (l *backlog) files(t *testing.T) (all []string) {
	t.Helper()
	d := disk{FS: l.o.FS}
	var walk func(dir, rel string)
	walk = func(dir, rel string) {
		names, err := d.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			p := d.PathJoin(dir, n)
			if info, err := d.Stat(p); err != nil {
				t.Fatal(err)
			} else if info.IsDir() {
				walk(p, rel+n+"/")
			} else {
				all = append(all, rel+n)
			}
		}
	}
	walk(d.PathJoin(l.o.Dir, "q", "q"), "")
	return all
}

// check opens the spool on fs and reads everything. Each frame has to be intact
// or reported as damaged, and a new one has to go through.
func (l *backlog) check(t *testing.T, fs *vfs.MemFS) (damaged uint64, startErr error) {
	t.Helper()
	o := l.o
	o.FS = fs
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	q, err := s.Queue("q", func(Owner) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	startErr = q.Stat().Err
	add(t, q, frame(alice, 1000, 1, "new"))
	q.Commit(alice, 1000)
	r := q.Reader(q.Head())
	at, i, last := q.Head(), 0, ""
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for last != "new" {
		st, err := r.Next(ctx)
		var d *DamagedFrame
		switch {
		case errors.As(err, &d):
			if d.Base != at {
				t.Fatalf("damage at %d reported when %d was next", d.Base, at)
			}
			damaged += d.Count
			at += d.Count
			continue
		case err != nil:
			t.Fatal(err)
		}
		if last = string(st.Payload); last == "new" {
			break
		}
		for i < len(l.frames) && l.frames[i].Base < st.Base {
			i++
		}
		if st.Base != at || i == len(l.frames) || l.frames[i].Base != at || !bytes.Equal(l.frames[i].Payload, st.Payload) {
			t.Fatalf("frame at %d is not what was stored at %d", st.Base, at)
		}
		at += uint64(st.Count)
	}
	if at < l.total {
		t.Fatalf("records %d to %d are gone without a word", at, l.total)
	}
	st := q.Stat()
	if n, err := q.CountWaiting(); err != nil || n != st.WaitingRecords || st.Damaged != damaged {
		t.Fatalf("%d waiting by keys (%v), %d damaged: %+v", n, err, damaged, st)
	}
	if err := q.Advance(st.Tail, Settled{Dropped: damaged, Delivered: st.WaitingRecords - damaged}); err != nil {
		t.Fatal(err)
	}
	if st := q.Stat(); st.WaitingRecords != 0 || st.Damaged != damaged {
		t.Fatalf("after all is settled: %+v", st)
	}
	return damaged, startErr
}

// damages are the ways to spoil a file. Each returns false when it cannot.
var damages = map[string]func(t *testing.T, fs *vfs.MemFS, path string, rng *mathrand.Rand) bool{
	"flipped": func(t *testing.T, fs *vfs.MemFS, path string, rng *mathrand.Rand) bool {
		data, err := fs.UnsafeGetFileDataBuffer(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) == 0 {
			return false
		}
		data[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
		return true
	},
	"truncated": func(t *testing.T, fs *vfs.MemFS, path string, rng *mathrand.Rand) bool {
		data, err := disk{FS: fs}.readFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) == 0 {
			return false
		}
		if err := (disk{FS: fs}).writeFile(path, data[:rng.IntN(len(data))]); err != nil {
			t.Fatal(err)
		}
		return true
	},
	"removed": func(t *testing.T, fs *vfs.MemFS, path string, rng *mathrand.Rand) bool {
		if err := fs.Remove(path); err != nil {
			t.Fatal(err)
		}
		return true
	},
}

// TestDamagedFiles: whatever is broken, one file at a time, the queue opens,
// nothing disappears without a report, and what comes later flows.
func TestDamagedFiles(t *testing.T) {
	l := newBacklog(t)
	if damaged, err := l.check(t, l.clone(l.o.FS)); damaged != 0 || err != nil {
		t.Fatalf("intact backlog: %d records damaged, %v", damaged, err)
	}
	seed := uint64(time.Now().UnixNano())
	rng := mathrand.New(mathrand.NewPCG(seed, 0))
	trials := map[string]int{"flipped": 8, "truncated": 4, "removed": 1}
	moved := 0
	for _, file := range l.files(t) {
		for how, damage := range damages {
			n := trials[how]
			if strings.Contains(file, "MANIFEST") {
				n *= 4
			}
			for i := range n {
				fs := l.clone(l.o.FS)
				if !damage(t, fs, "/state/spool/q/q/"+file, rng) {
					break
				}
				ok := t.Run(fmt.Sprintf("%s %s %d", file, how, i), func(t *testing.T) {
					if _, err := l.check(t, fs); err != nil {
						moved++
					}
				})
				if !ok {
					t.Fatalf("seed %d", seed)
				}
			}
		}
	}
	if moved == 0 {
		t.Fatal("no damage was loud: the trials do not reach anything")
	}
}

// TestDamagedManifestKeepsTables: the tables that a damaged MANIFEST does not
// list any more are in the quarantine, not deleted.
func TestDamagedManifestKeepsTables(t *testing.T) {
	l := newBacklog(t)
	fs := l.clone(l.o.FS)
	tables := 0
	for _, f := range l.files(t) {
		if strings.HasSuffix(f, ".sst") {
			tables++
		}
		if strings.Contains(f, "MANIFEST") {
			data, err := disk{FS: fs}.readFile("/state/spool/q/q/" + f)
			if err != nil {
				t.Fatal(err)
			}
			if err := (disk{FS: fs}).writeFile("/state/spool/q/q/"+f, data[:len(data)/2]); err != nil {
				t.Fatal(err)
			}
		}
	}
	damaged, err := l.check(t, fs)
	if damaged != l.total || err == nil || !strings.Contains(err.Error(), "quarantine") {
		t.Fatalf("%d of %d records reported as damaged, %v", damaged, l.total, err)
	}
	aside, err := fs.List("/state/spool/quarantine")
	if err != nil || len(aside) != 1 {
		t.Fatal(aside, err)
	}
	saved := 0
	files, err := fs.List("/state/spool/quarantine/" + aside[0] + "/data")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, ".sst") {
			saved++
		}
	}
	if saved < tables || tables < 5 {
		t.Fatalf("%d of %d tables are in the quarantine", saved, tables)
	}
}

// TestTamperedFrame: a frame that was changed with all of Pebble's checksums
// right is caught by its seal, and the rest flows.
func TestTamperedFrame(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	for seq := range uint64(3) {
		add(t, q, frame(alice, seq, 2, fmt.Sprint("frame ", seq)))
	}
	q.Commit(alice, 2)
	q.tick(time.Now())
	other := b.queue("other")
	add(t, other, frame(alice, 1, 2, "of another queue"))

	value := func(q *Queue, base uint64) []byte {
		v, closer, err := q.db.Get(frameKey(base, 2))
		if err != nil {
			t.Fatal(err)
		}
		defer closer.Close()
		return bytes.Clone(v)
	}
	good := value(q, 2)
	for name, bad := range map[string][]byte{
		"header":                flip(good, 5),
		"version":               flip(good, 0),
		"codec":                 flip(good, 1),
		"time":                  flip(good, 30),
		"body":                  flip(good, len(good)-1),
		"short":                 good[:10],
		"empty":                 {},
		"another frame's":       value(q, 4),
		"that of another queue": value(other, 0),
	} {
		t.Run(name, func(t *testing.T) {
			if err := q.db.Set(frameKey(2, 2), bad, pebble.Sync); err != nil {
				t.Fatal(err)
			}
			b.reopen()
			q = b.queue("q")
			r := q.Reader(0)
			read(t, r, 1)
			_, err := r.Next(t.Context())
			var d *DamagedFrame
			if !errors.As(err, &d) || d.Base != 2 || d.Count != 2 || !bytes.Equal(d.Raw, bad) || !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			if st := read(t, r, 1)[0]; st.Base != 4 {
				t.Fatal(st)
			}
			if st := q.Stat(); st.Damaged != 2 || st.WaitingRecords != 6 {
				t.Fatalf("%+v", st)
			}
		})
	}
	if err := q.Advance(6, Settled{Delivered: 4, Dropped: 2}); err != nil {
		t.Fatal(err)
	}
	b.reopen()
	if st := b.queue("q").Stat(); st.Damaged != 2 || st.WaitingRecords != 0 || st.Settled != (Settled{Delivered: 4, Dropped: 2}) {
		t.Fatalf("%+v", st)
	}
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
}

// TestForgedVoid: nobody takes a frame away by writing the mark of a voided one.
func TestForgedVoid(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	add(t, q, frame(alice, 1, 2, "x"), frame(alice, 2, 1, "y"))
	q.Commit(alice, 2)
	q.tick(time.Now())
	v, closer, err := q.db.Get(frameKey(0, 2))
	if err != nil {
		t.Fatal(err)
	}
	batch := q.db.NewBatch()
	forged := voidOp{key: frameKey(0, 2), voidKey: frameKey(0, 2|voidBit), voidValue: bytes.Clone(v)}
	closer.Close()
	if err := forged.addTo(batch); err != nil {
		t.Fatal(err)
	}
	if err := batch.Commit(pebble.Sync); err != nil {
		t.Fatal(err)
	}
	b.reopen()
	q = b.queue("q")
	r := q.Reader(0)
	var d *DamagedFrame
	if _, err := r.Next(t.Context()); !errors.As(err, &d) || d.Count != 2 {
		t.Fatal(err)
	}
	if n, err := q.CountWaiting(); n != 3 || err != nil {
		t.Fatal(n, err)
	}
}

// TestTamperedOwner: a changed owner cannot make the spool void a committed frame.
func TestTamperedOwner(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	add(t, q, frame(alice, 1, 2, "x"))
	v, closer, err := q.db.Get(frameKey(0, 2))
	if err != nil {
		t.Fatal(err)
	}
	bad := flip(v, 4)
	closer.Close()
	if err := q.db.Set(frameKey(0, 2), bad, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	b.keep = func(o Owner) bool { return o.ID == alice }
	b.reopen()
	r := b.queue("q").Reader(0)
	var d *DamagedFrame
	if _, err := r.Next(t.Context()); !errors.As(err, &d) {
		t.Fatal(err)
	}
}

// TestLostSideFiles: identity and cursor can each be lost; without both, frames
// cannot be opened, and the queue says so and changes nothing.
func TestLostSideFiles(t *testing.T) {
	fs := vfs.NewMem()
	b := newBed(t, fs)
	q := b.queue("q")
	add(t, q, frame(alice, 1, 2, "x"))
	q.Commit(alice, 1)
	b.close()
	for _, lost := range []string{identityName, cursorName} {
		if err := fs.Remove("/state/spool/q/q/" + lost); err != nil {
			t.Fatal(err)
		}
		b.open()
		q := b.queue("q")
		read(t, q.Reader(q.Head()), 1)
		if err := q.Stat().Err; (err != nil) != (lost == cursorName) {
			t.Fatalf("without %s: %v", lost, err)
		}
		b.close()
	}
	for _, lost := range []string{identityName, cursorName} {
		if err := fs.Remove("/state/spool/q/q/" + lost); err != nil {
			t.Fatal(err)
		}
	}
	b.open()
	if _, err := b.s.Queue("q", b.keep); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Fatal(err)
	}
}

// TestDiskFullAtStart: a disk without room is an error of the start, not a start
// that never ends; with room again everything is there.
func TestDiskFullAtStart(t *testing.T) {
	mem := vfs.NewCrashableMem()
	b := newBed(t, mem)
	add(t, b.queue("q"), frame(alice, 1, 7, "x"))
	st, err := b.s.State("host")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Commit([]Set{{"a", "b", []byte("c")}}); err != nil {
		t.Fatal(err)
	}
	var full atomic.Bool
	full.Store(true)
	o := b.o
	// What is in the logs is not in tables yet.
	o.FS = errorfs.Wrap(mem.CrashClone(vfs.CrashCloneCfg{}), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileWrite && strings.HasSuffix(op.Path, ".sst") {
			return syscall.ENOSPC
		}
		return nil
	}))
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	_, errQueue := s.Queue("q", b.keep)
	_, errState := s.State("host")
	for _, err := range []error{errQueue, errState} {
		if !errors.Is(err, ErrDisk) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "no space left on device; check the disk and make room on it") {
			t.Errorf("on a full disk: %v", err)
		}
	}
	full.Store(false) // and what was left behind ends
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	b.o.FS = mem.CrashClone(vfs.CrashCloneCfg{})
	b.reopen()
	q := b.queue("q")
	if n, err := q.CountWaiting(); n != 7 || err != nil {
		t.Errorf("%d records wait, %v", n, err)
	}
}

func TestLastWords(t *testing.T) {
	var out bytes.Buffer
	var status []int
	l := &lastWords{log: textLog(&out), exit: func(code int) { status = append(status, code) }}
	l.Fatalf("sync of %s failed", "000002.log")
	l.Errorf("e %d", 1)
	l.Infof("i")
	if len(status) != 1 || status[0] != 74 || !strings.Contains(out.String(), "sync of 000002.log failed") || strings.Contains(out.String(), "msg=i") {
		t.Fatal(status, out.String())
	}
}

// TestWatchSaysLittle: an error that comes hundreds of times a second is shown once.
func TestWatchSaysLittle(t *testing.T) {
	var out bytes.Buffer
	l := newWatch(textLog(&out)).listener()
	for range 500 {
		l.BackgroundError(errors.New("no space"))
		l.DataCorruption(pebble.DataCorruptionInfo{Path: "000005.sst", Details: errors.New("checksum")})
	}
	if n := strings.Count(out.String(), "\n"); n != 2 || !strings.Contains(out.String(), "000005.sst") {
		t.Fatal(n, out.String())
	}
}
