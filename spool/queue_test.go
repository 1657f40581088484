package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
)

// TestGroupCommit: what gathers while a commit is under way goes to the disk
// with one fsync, in order.
func TestGroupCommit(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	busy, release := make(chan struct{}), make(chan struct{})
	q.Append(frame(alice, 1, 1, "first"), func(uint64, error) {
		close(busy)
		<-release // the writer's goroutine is here
	})
	<-busy
	var order []uint64
	done := make(chan struct{})
	for i := range 50 {
		q.Append(frame(alice, 2, 2, "x"), func(base uint64, err error) {
			if err != nil {
				t.Error(err)
			}
			if order = append(order, base); i == 49 {
				close(done)
			}
		})
	}
	close(release)
	<-done
	for i, base := range order {
		if base != uint64(1+2*i) {
			t.Fatalf("bases out of order: %v", order)
		}
	}
	if st := q.Stat(); st.Commits != 2 || st.Frames != 51 || st.LastCommitLatency <= 0 {
		t.Fatalf("%+v", st)
	}
}

func TestLinger(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	b.o.Linger = time.Hour
	b.reopen()
	q := b.queue("q")
	add(t, q, frame(alice, 1, 1, "a lone frame does not wait"))
	small := make(chan error, 1)
	q.Append(frame(alice, 2, 1, "x"), func(_ uint64, err error) { small <- err })
	add(t, q, frame(alice, 3, lingerRecords, "much ends the wait"))
	if err := <-small; err != nil {
		t.Fatal(err)
	}
	if st := q.Stat(); st.Commits != 2 {
		t.Fatalf("%+v", st)
	}
	q.Append(frame(alice, 4, 1, "x"), func(_ uint64, err error) { small <- err })
	if err := q.Void(alice, 3); err != nil { // so does a Void
		t.Fatal(err)
	}
	if err := <-small; err != nil {
		t.Fatal(err)
	}
	q.Append(frame(alice, 5, 1, "x"), func(_ uint64, err error) { small <- err })
	b.close() // and Close
	if err := <-small; err != nil {
		t.Fatal(err)
	}
}

func TestAppendRefuses(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	tooMany := int64(voidBit)
	for _, f := range []Frame{{Count: 0}, {Count: -1}, {Count: int(tooMany)}, {Count: 1, Payload: make([]byte, maxPayload+1)}} {
		var got error
		q.Append(f, func(_ uint64, err error) { got = err })
		if got == nil {
			t.Fatalf("frame of %d records and %d bytes was taken", f.Count, len(f.Payload))
		}
	}
	q.mu.Lock()
	q.next = 1<<64 - 3
	q.mu.Unlock()
	var got error
	q.Append(frame(alice, 1, 3, ""), func(_ uint64, err error) { got = err })
	if !errors.Is(got, errSequenceEnd) {
		t.Fatal(got)
	}
}

// TestManyWriters: frames of several owners keep their order per owner, and a
// reader beside them gets each once.
func TestManyWriters(t *testing.T) {
	b := newBed(t, nil)
	b.o.WindowRecords = 20
	b.reopen()
	q := b.queue("q")
	const owners, each = 4, 100
	var wg sync.WaitGroup
	for o := range owners {
		wg.Go(func() {
			id := [16]byte{byte(o + 1)}
			for seq := uint64(1); seq <= each; seq++ {
				ack := make(chan error, 1)
				q.Append(frame(id, seq, 1+int(seq)%3, fmt.Sprint(o, seq)), func(_ uint64, err error) { ack <- err })
				if err := <-ack; err != nil {
					t.Error(err)
				}
				q.Commit(id, seq)
			}
		})
	}
	r := q.Reader(0)
	last := map[[16]byte]uint64{}
	at := uint64(0)
	for _, st := range read(t, r, owners*each) {
		if st.Base != at || st.Owner.Seq != last[st.Owner.ID]+1 {
			t.Fatalf("frame %v at %d, want base %d after seq %d", st.Owner, st.Base, at, last[st.Owner.ID])
		}
		at, last[st.Owner.ID] = st.end(), st.Owner.Seq
		if err := q.Advance(at, Settled{Delivered: uint64(st.Count)}); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if st := q.Stat(); st.WaitingRecords != 0 || st.WaitingBytes != 0 || st.Head != st.Next {
		t.Fatalf("%+v", st)
	}
}

// TestVisibility: readers stop before the first frame whose commit is missing,
// and go over voided ones.
func TestVisibility(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	add(t, q, frame(alice, 1, 1, "a1"), frame(bob, 1, 2, "b1"), frame(alice, 2, 3, "a2"), frame(bob, 2, 4, "b2"))
	r := q.Reader(0)
	q.Commit(alice, 2)
	if got := read(t, r, 1); string(got[0].Payload) != "a1" {
		t.Fatal(got)
	}
	nothing(t, r)
	if st := q.Stat(); st.Tail != 1 || st.UncommittedRecords != 9 || st.WaitingRecords != 1 {
		t.Fatalf("%+v", st)
	}
	if err := q.Advance(3, Settled{Delivered: 2}); err == nil || !strings.Contains(err.Error(), "not committed") {
		t.Fatal(err)
	}
	if err := q.Void(bob, 1); err != nil {
		t.Fatal(err)
	}
	q.Commit(bob, 2) // too late
	if got := read(t, r, 1); string(got[0].Payload) != "a2" {
		t.Fatal(got)
	}
	nothing(t, r)
	check := func() {
		t.Helper()
		st := q.Stat()
		n, err := q.CountWaiting()
		if st.Voided != 6 || st.WaitingRecords != 4 || n != 4 || err != nil || st.UncommittedRecords != 0 || st.Tail != 10 {
			t.Fatalf("%d %v %+v", n, err, st)
		}
	}
	check()
	b.keep = func(Owner) bool { t.Error("asked about frames whose fate is on the disk"); return true }
	b.reopen()
	q = b.queue("q")
	check()
	if got := read(t, q.Reader(0), 2); string(got[1].Payload) != "a2" {
		t.Fatal(got)
	}
	if err := q.Void(bob, 0); err != nil {
		t.Fatal("nothing to void:", err)
	}
}

// TestCrashLeavesUncommitted: at open, keep decides about the newest frames only.
func TestCrashLeavesUncommitted(t *testing.T) {
	fs := vfs.NewCrashableMem()
	b := newBed(t, fs)
	q := b.queue("q")
	add(t, q, frame(alice, 1, 1, "a1"))
	q.Commit(alice, 1)
	q.tick(time.Now())
	add(t, q, frame(alice, 2, 1, "a2"), frame(bob, 1, 5, "b1"))
	clone := fs.CrashClone(vfs.CrashCloneCfg{})
	b.close()
	b.o.FS = clone
	var asked []Owner
	b.keep = func(o Owner) bool {
		asked = append(asked, o)
		return o.ID == alice
	}
	b.open()
	q = b.queue("q")
	if diff := cmp.Diff([]Owner{{alice, 2}, {bob, 1}}, asked); diff != "" {
		t.Fatal(diff)
	}
	r := q.Reader(0)
	read(t, r, 2)
	nothing(t, r)
	if st := q.Stat(); st.Voided != 5 || st.WaitingRecords != 2 || st.Next != 7 {
		t.Fatalf("%+v", st)
	}
	add(t, q, frame(alice, 3, 1, "a3"))
	q.Commit(alice, 3)
	if got := read(t, r, 1)[0]; got.Base != 7 {
		t.Fatalf("sequence numbers of voided frames were used again: %d", got.Base)
	}
}

// TestWindowAndDisk: slow readers cross from the disk into memory without a
// gap, whatever the sizes.
func TestWindowAndDisk(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	b.o.WindowRecords = 100
	b.reopen()
	q := b.queue("q")
	for seq := range uint64(300) {
		add(t, q, frame(alice, seq, 2, fmt.Sprint(seq)))
		q.Commit(alice, seq)
	}
	if st := q.Stat(); st.MemoryRecords != 100 || st.WaitingRecords != 600 {
		t.Fatalf("%+v", st)
	}
	for _, from := range []uint64{0, 1, 127, 128, 498, 499, 500, 501, 502, 598} {
		n := int(600-from+1) / 2
		for i, st := range read(t, q.Reader(from), n) {
			if want := from/2*2 + uint64(2*i); st.Base != want || string(st.Payload) != fmt.Sprint(want/2) {
				t.Fatalf("reader from %d: frame %d is at %d: %s", from, i, st.Base, st.Payload)
			}
		}
	}
	r := q.Reader(600)
	nothing(t, r)
	add(t, q, frame(alice, 300, 101, "too large for the window"))
	q.Commit(alice, 300)
	if st := read(t, r, 1)[0]; st.Base != 600 || st.Count != 101 {
		t.Fatal(st)
	}
	if st := q.Stat(); st.MemoryRecords != 0 || st.MemoryBytes != 0 {
		t.Fatalf("%+v", st)
	}
}

// TestWakesReader: a waiting reader gets a frame as soon as it is committed.
func TestWakesReader(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	got := make(chan Stored)
	for range 3 {
		r := q.Reader(0)
		go func() {
			st, err := r.Next(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- st
		}()
	}
	add(t, q, frame(alice, 1, 1, "x"))
	q.Commit(alice, 1)
	for range 3 {
		if st := <-got; string(st.Payload) != "x" {
			t.Fatal(st)
		}
	}
}

func TestAdvance(t *testing.T) {
	for _, window := range []int{1, 1000} {
		t.Run(fmt.Sprint("window ", window), func(t *testing.T) {
			b := newBed(t, vfs.NewMem())
			b.o.WindowRecords = window
			b.reopen()
			q := b.queue("q")
			add(t, q, frame(alice, 1, 10, "a"), frame(bob, 1, 10, "b"), frame(alice, 2, 10, "c"))
			if err := q.Void(bob, 1); err != nil {
				t.Fatal(err)
			}
			q.Commit(alice, 2)
			for _, bad := range []struct {
				to uint64
				s  Settled
			}{{5, Settled{}}, {5, Settled{Delivered: 6}}, {20, Settled{Delivered: 20}}, {0, Settled{Dropped: 1}}, {31, Settled{Delivered: 21}}} {
				if err := q.Advance(bad.to, bad.s); err == nil {
					t.Fatalf("Advance took %+v", bad)
				}
			}
			if q.Head() != 0 {
				t.Fatal("a refused Advance moved the head")
			}
			step := func(to uint64, s Settled, waiting uint64) {
				t.Helper()
				if err := q.Advance(to, s); err != nil {
					t.Fatal(err)
				}
				n, err := q.CountWaiting()
				if st := q.Stat(); st.WaitingRecords != waiting || n != waiting || err != nil || q.Head() != to {
					t.Fatalf("%d %v %+v", n, err, st)
				}
			}
			step(4, Settled{Delivered: 4}, 16)
			step(4, Settled{}, 16)
			step(10, Settled{Delivered: 3, DeadLettered: 2, Dropped: 1}, 10)
			b.reopen()
			q = b.queue("q")
			step(25, Settled{Delivered: 5}, 5)
			if got := read(t, q.Reader(q.Head()), 1)[0]; got.Base != 20 {
				t.Fatal(got)
			}
			step(30, Settled{Delivered: 5}, 0)
			if st := q.Stat(); st.Settled != (Settled{Delivered: 17, DeadLettered: 2, Dropped: 1}) || st.WaitingBytes != 0 {
				t.Fatalf("%+v", st)
			}
		})
	}
}

// TestSkipVoided: a queue of voided frames only is empty, also for the disk.
func TestSkipVoided(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	add(t, q, frame(alice, 1, 10, "a"), frame(alice, 2, 10, "b"))
	if err := q.Void(alice, 1); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	q.tick(now)
	if st := q.Stat(); st.Head != 20 || st.Oldest != 0 || st.Settled != (Settled{}) {
		t.Fatalf("%+v", st)
	}
	q.tick(now.Add(trimIdle))
	if st := q.Stat(); st.Oldest != 20 {
		t.Fatalf("%+v", st)
	}
}

// TestTrim: settled frames leave the disk in steps, or when the queue has been
// empty for a while, and never before the cursor is on the disk.
func TestTrim(t *testing.T) {
	fs := vfs.NewCrashableMem()
	b := newBed(t, fs)
	q := b.queue("q")
	q.keep.step = 1000
	for seq := range uint64(4) {
		add(t, q, frame(alice, seq, 1, fmt.Sprintf("%400d", seq)))
		q.Commit(alice, seq)
	}
	now := time.Now()
	oldest := func(want uint64) {
		t.Helper()
		if got := q.Oldest(); got != want {
			t.Fatalf("oldest is %d, want %d", got, want)
		}
	}
	advance := func(to, n uint64) {
		t.Helper()
		if err := q.Advance(to, Settled{Delivered: n}); err != nil {
			t.Fatal(err)
		}
	}
	advance(1, 1)
	q.tick(now)
	oldest(0) // too little
	advance(3, 2)
	oldest(0) // the cursor is not on the disk
	q.tick(now)
	oldest(3)
	if got := read(t, q.Reader(0), 1)[0]; got.Base != 3 {
		t.Fatal(got)
	}
	advance(4, 1)
	q.tick(now)
	q.tick(now.Add(trimIdle - time.Second))
	oldest(3)
	q.tick(now.Add(trimIdle))
	oldest(4)
	b.reopen()
	q = b.queue("q")
	if st := q.Stat(); st.Oldest != 4 || st.Next != 4 || st.Head != 4 {
		t.Fatalf("%+v", st)
	}
}

// TestReplayBesideTrim: a reader behind the head takes trimmed frames for
// trimmed, not for lost.
func TestReplayBesideTrim(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	b.o.WindowRecords = 1
	b.reopen()
	q := b.queue("q")
	q.keep.step = 1
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			r := q.Reader(0)
			for range 3 {
				select {
				case <-stop:
					return
				default:
				}
				if _, wake, err := r.try(); wake == nil && err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for seq := range uint64(1500) {
		add(t, q, frame(alice, seq, 1, "x"))
		q.Commit(alice, seq)
		if err := q.Advance(seq+1, Settled{Delivered: 1}); err != nil {
			t.Fatal(err)
		}
		if seq%3 == 0 {
			q.tick(time.Now())
		}
	}
	close(stop)
	wg.Wait()
}

func TestRetain(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	q.keep.step = 1
	q.Retain(time.Hour)
	now := time.Now()
	for seq := range uint64(1000) {
		add(t, q, frame(alice, seq, 1, "x"))
		q.Commit(alice, seq)
		if err := q.Advance(seq+1, Settled{Delivered: 1}); err != nil {
			t.Fatal(err)
		}
		q.tick(now.Add(time.Duration(seq) * 10 * time.Second)) // 10,000 s in all
	}
	if n := len(q.keep.samples); n > maxSamples {
		t.Fatal(n)
	}
	// Of 1,000 records, 360 are younger than an hour; thinning may keep some more.
	if got := q.Oldest(); got > 640 || got < 580 {
		t.Fatalf("oldest is %d", got)
	}
	if got := read(t, q.Reader(q.Oldest()), 1)[0]; got.Base != q.Oldest() {
		t.Fatal(got)
	}
	b.reopen()
	q = b.queue("q")
	q.keep.step = 1
	q.Retain(time.Hour)
	q.tick(time.Now().Add(time.Minute))
	if q.Oldest() > 640 {
		t.Fatal("retained frames went after a restart")
	}
	q.tick(time.Now().Add(2 * time.Hour))
	if q.Oldest() != 1000 {
		t.Fatal(q.Oldest())
	}
}

// TestHousekeeper: nobody has to call tick.
func TestHousekeeper(t *testing.T) {
	b := newBed(t, nil)
	q := b.queue("q")
	add(t, q, frame(alice, 1, 7, "x"))
	q.Commit(alice, 1)
	if err := q.Advance(5, Settled{Delivered: 5}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		_, _, p, err := readCursor(b.s.disk, filepath.Join(q.dir, cursorName), b.s.cursorKey)
		if err != nil {
			t.Fatal(err)
		}
		if p.head == 5 && p.settled.Delivered == 5 {
			return
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("the cursor on disk is still %+v", p)
		}
	}
}

// TestNothingInTheClear: no payload, key, name or text that goes in can be found
// in the files.
func TestNothingInTheClear(t *testing.T) {
	const canary = "CANARYcanary0815"
	b := newBed(t, nil)
	q := b.queue("q")
	st, err := b.s.State("host")
	if err != nil {
		t.Fatal(err)
	}
	dlq, err := b.s.DeadLetters(b.keep)
	if err != nil {
		t.Fatal(err)
	}
	for i, payload := range []string{canary, strings.Repeat(canary, 500)} {
		add(t, q, frame(alice, uint64(i), 1, payload))
		if err := st.Commit([]Set{{canary, canary, []byte(payload)}, {canary, strings.Repeat(canary, 100), []byte{}}}); err != nil {
			t.Fatal(err)
		}
		err = dlq.Put(t.Context(), Letter{Origin: canary, Key: canary, Reason: canary, Error: canary, Source: canary, Pipeline: canary,
			Module: canary, Revision: canary, Destination: canary, Payload: []byte(payload), Count: 1})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Void(alice, 1); err != nil {
		t.Fatal(err)
	}
	for _, db := range []interface{ Flush() error }{q.db, st.store.db, dlq.store.db} {
		if err := db.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	b.close()
	files := 0
	for path := range hashDir(t, b.o.Dir) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(data, []byte("CANARY")); i >= 0 {
			t.Errorf("%s has it at %d", path, i)
		}
		if files++; strings.Contains(path, canary) {
			t.Error(path)
		}
	}
	if files < 15 {
		t.Fatalf("only %d files", files)
	}
}

func TestUsage(t *testing.T) {
	b := newBed(t, nil)
	add(t, b.queue("q"), frame(alice, 1, 1, "x"))
	u, err := b.s.Usage()
	if err != nil || u.Bytes < 2*slotSize || u.FreeBytes == 0 || u.QuarantineBytes != 0 {
		t.Fatal(u, err)
	}
}
