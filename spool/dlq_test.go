package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
)

func (b *bed) letters() *DeadLetters {
	b.t.Helper()
	d, err := b.s.DeadLetters(b.keep)
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

func letter(key, reason string, count int) Letter {
	return Letter{Owner: Owner{alice, 1}, Origin: "line-1", Key: key, Time: 100, FirstTime: 90, Attempts: 3, Count: count, Reason: reason,
		Error: "column unit is unknown", Source: "plc", Pipeline: "line-1", Module: "clean", Revision: "sha256:1", Destination: "main.bronze.t",
		Payload: []byte("records of " + key)}
}

func put(t *testing.T, d *DeadLetters, letters ...Letter) {
	t.Helper()
	if err := d.Put(t.Context(), letters...); err != nil {
		t.Fatal(err)
	}
}

func TestDeadLetters(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	d := b.letters()
	a, c := letter("a", "schema", 2), letter("c", "rejected", 5)
	c.Time, c.Destination, c.Payload = 200, "main.bronze.u", bytes.Repeat([]byte("long "), 1000)
	put(t, d, a, c)
	a.ID, c.ID = 1, 2
	want := LetterStat{Letters: 2, Records: 7, ByReason: map[string]uint64{"schema": 2, "rejected": 5}}
	check := func() {
		t.Helper()
		got := d.Stat()
		if got.Bytes == 0 && want.Letters > 0 {
			t.Fatal("no bytes")
		}
		got.Bytes = 0
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
	for range 2 {
		check()
		for _, l := range []Letter{a, c} {
			got, err := d.Get(l.ID)
			if diff := cmp.Diff(l, got); diff != "" || err != nil {
				t.Fatal(err, diff)
			}
		}
		bytes := d.Stat().Bytes
		b.reopen()
		if d = b.letters(); d.Stat().Bytes != bytes {
			t.Fatalf("%d bytes after reopening, %d before", d.Stat().Bytes, bytes)
		}
	}
	for _, f := range []struct {
		Filter
		want []uint64
	}{
		{Filter{}, []uint64{1, 2}},
		{Filter{Limit: 1}, []uint64{1}},
		{Filter{After: 1}, []uint64{2}},
		{Filter{Reason: "schema"}, []uint64{1}},
		{Filter{Since: 101}, []uint64{2}},
		{Filter{Destination: "main.bronze.u"}, []uint64{2}},
		{Filter{Destination: "main.bronze.u", Reason: "schema"}, nil},
		{Filter{After: 2}, nil},
	} {
		got, err := d.List(f.Filter)
		if err != nil {
			t.Fatal(err)
		}
		var ids []uint64
		for _, l := range got {
			ids = append(ids, l.ID)
		}
		if diff := cmp.Diff(f.want, ids); diff != "" {
			t.Fatalf("%+v: %s", f.Filter, diff)
		}
	}

	// The same origin and key again: the newer one counts, under the old ID.
	a.Attempts, a.Reason, a.Count = 4, "expired", 3
	put(t, d, a, a)
	want = LetterStat{Letters: 2, Records: 8, ByReason: map[string]uint64{"expired": 3, "rejected": 5}}
	check()
	if got, err := d.Get(1); got.Attempts != 4 || err != nil {
		t.Fatal(got, err)
	}
	if err := d.Delete(2, 2, 77); err != nil {
		t.Fatal(err)
	}
	want = LetterStat{Letters: 1, Records: 3, ByReason: map[string]uint64{"expired": 3}}
	check()
	if _, err := d.Get(2); !errors.Is(err, ErrNoLetter) {
		t.Fatal(err)
	}
	b.reopen()
	d = b.letters()
	check()
	put(t, d, c)
	if got, err := d.List(Filter{After: 1}); err != nil || len(got) != 1 || got[0].ID != 3 {
		t.Fatal("an ID was used twice:", got, err)
	}
	if err := d.Delete(1, 3); err != nil {
		t.Fatal(err)
	}
	want = LetterStat{ByReason: map[string]uint64{}}
	check()
	if d.Stat().Bytes != 0 {
		t.Fatal(d.Stat().Bytes)
	}
}

func TestDeadLettersRefuse(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	d := b.letters()
	nameless, empty := letter("", "x", 1), letter("a", "x", 0)
	nameless.Origin = ""
	huge := letter("h", "x", 1)
	huge.Payload = make([]byte, maxPayload+1)
	for _, l := range []Letter{nameless, empty, huge} {
		if err := d.Put(t.Context(), letter("fine", "x", 1), l); err == nil {
			t.Fatal("a bad letter was taken")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Put(ctx, letter("fine", "x", 1)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if st := d.Stat(); st.Letters != 0 {
		t.Fatalf("%+v", st)
	}
	b.close()
	_, errGet := d.Get(1)
	_, errList := d.List(Filter{})
	for _, err := range []error{errGet, errList, d.Put(t.Context(), letter("a", "x", 1)), d.Delete(1)} {
		if !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	}
}

// TestDeadLettersFull: a full queue takes nothing and loses nothing; a newer
// form of a letter that it has is no growth.
func TestDeadLettersFull(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	b.o.MaxLetterBytes = 5000
	b.reopen()
	d := b.letters()
	n := 0
	for ; ; n++ {
		err := d.Put(t.Context(), letter(fmt.Sprint("key ", n), "x", 1))
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	full := d.Stat()
	if full.Letters != uint64(n) || full.Bytes > 5000 || full.Bytes < 4000 || n < 5 {
		t.Fatalf("%d letters: %+v", n, full)
	}
	if err := d.Put(t.Context(), letter("key 0", "x", 1), letter("new", "x", 1)); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	put(t, d, letter("key 0", "x", 1))
	if diff := cmp.Diff(full, d.Stat()); diff != "" {
		t.Fatal(diff)
	}
	b.reopen()
	d = b.letters()
	if all, err := d.List(Filter{}); err != nil || len(all) != n {
		t.Fatal(len(all), err)
	}
	if err := d.Delete(1); err != nil {
		t.Fatal(err)
	}
	put(t, d, letter("new", "x", 1))
}

// TestDeadLettersOfLostCommits: letters of a commit that never came go.
func TestDeadLettersOfLostCommits(t *testing.T) {
	fs := vfs.NewCrashableMem()
	b := newBed(t, fs)
	d := b.letters()
	lost, drain := letter("lost", "x", 1), letter("of a drain", "x", 1)
	lost.Owner.Seq, drain.Owner = 2, Owner{}
	put(t, d, letter("kept", "x", 1), lost, drain)
	clone := fs.CrashClone(vfs.CrashCloneCfg{})
	b.close()
	b.o.FS = clone
	b.keep = func(o Owner) bool {
		if o.ID != alice {
			t.Errorf("asked about %v", o)
		}
		return o.Seq == 1
	}
	for range 2 {
		b.open()
		d = b.letters()
		all, err := d.List(Filter{})
		if err != nil || len(all) != 2 || all[0].Key != "kept" || all[1].Key != "of a drain" || d.Stat().Letters != 2 {
			t.Fatal(all, err)
		}
		b.close()
	}
}

// TestDamagedLetters: a letter or a block that does not open hides no other.
func TestDamagedLetters(t *testing.T) {
	fs := vfs.NewMem()
	b := newBed(t, fs)
	d := b.letters()
	const n = 200
	for i := range n {
		l := letter(fmt.Sprint(i), "x", 1)
		l.Payload = []byte(newKey() + newKey() + newKey() + newKey())
		put(t, d, l)
	}
	if err := d.store.db.Set(letterKey(5), []byte("rubbish"), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := d.store.db.Flush(); err != nil {
		t.Fatal(err)
	}
	b.close()
	names, err := fs.List("/state/spool/dlq/data")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			data, err := fs.UnsafeGetFileDataBuffer("/state/spool/dlq/data/" + name)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
		}
	}
	b.open()
	d = b.letters()
	all, err := d.List(Filter{})
	st := d.Stat()
	if err != nil || len(all) > n-2 || len(all) < n-30 || st.Damaged != 2 || st.Letters != uint64(len(all)) {
		t.Fatalf("%d letters, %v, %+v", len(all), err, st)
	}
	if _, err := d.Get(5); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if err := d.Delete(5); err != nil {
		t.Fatal(err)
	}
	if st := d.Stat(); st.Damaged != 1 {
		t.Fatalf("%+v", st)
	}
}

// TestDeletedLettersLeaveTheDisk: room comes back without a restart.
func TestDeletedLettersLeaveTheDisk(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	d := b.letters()
	var ids []uint64
	for i := range 12 {
		l := letter(fmt.Sprint(i), "x", 1)
		for range 1 << 14 {
			l.Payload = append(l.Payload, newKey()...)
		}
		put(t, d, l)
		ids = append(ids, uint64(i+1))
	}
	if err := d.store.db.Flush(); err != nil {
		t.Fatal(err)
	}
	before := d.store.db.Metrics().Total().TablesSize
	if err := d.Delete(ids...); err != nil {
		t.Fatal(err)
	}
	if after := d.store.db.Metrics().Total().TablesSize; before < 8<<20 || after > before/10 {
		t.Fatalf("%d bytes of tables, %d before", after, before)
	}
}
