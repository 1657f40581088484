package spool

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
)

func (b *bed) state() *State {
	b.t.Helper()
	st, err := b.s.State("host")
	if err != nil {
		b.t.Fatal(err)
	}
	return st
}

func contents(t *testing.T, st *State, space string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := st.Scan(space, func(key string, value []byte) error {
		all[key] = string(value)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestState(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	st := b.state()
	long := string(bytes.Repeat([]byte("kv"), 5000))
	err := st.Commit([]Set{{"a", "1", []byte("one")}, {"a", "", []byte{}}, {"ab", "1", []byte("of ab")}, {"a", "b1", []byte(long)}, {"a", "gone", []byte("x")}, {"a", "gone", nil}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if diff := cmp.Diff(map[string]string{"1": "one", "": "", "b1": long}, contents(t, st, "a")); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(map[string]string{"1": "of ab"}, contents(t, st, "ab")); diff != "" {
			t.Fatal(diff)
		}
		if v, err := st.Get("a", ""); v == nil || len(v) != 0 || err != nil {
			t.Fatal(v, err)
		}
		for _, absent := range [][2]string{{"a", "gone"}, {"b", "1"}, {"", "a1"}} {
			if v, err := st.Get(absent[0], absent[1]); v != nil || err != nil {
				t.Fatal(absent, v, err)
			}
		}
		b.reopen()
		st = b.state()
	}
	if st != b.state() {
		t.Fatal("opened twice")
	}
	enough := errors.New("enough")
	if err := st.Scan("a", func(string, []byte) error { return enough }); !errors.Is(err, enough) {
		t.Fatal(err)
	}
	if err := st.Commit([]Set{{"a", "1", []byte("two")}, {"a", "2", make([]byte, maxPayload)}}); err == nil {
		t.Fatal("a value that is too large was taken")
	}
	if v, err := st.Get("a", "1"); string(v) != "one" || err != nil {
		t.Fatalf("half a commit: %s, %v", v, err)
	}
}

// TestStateIsAtomic: after any crash, each commit is there whole or not at all,
// and those that returned are there.
func TestStateIsAtomic(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		fs := vfs.NewCrashableMem()
		b := newBed(t, fs)
		st := b.state()
		var wg sync.WaitGroup
		var clone *vfs.MemFS
		known := make([]int, 3) // the last commit of each writer that had returned
		var mu sync.Mutex
		stopAt := 1 + rng.IntN(40)
		var returned [3]int
		for w := range 3 {
			wg.Go(func() {
				for i := 1; i <= 30; i++ {
					v := fmt.Append(nil, i)
					space := fmt.Sprint(w)
					if err := st.Commit([]Set{{space, "x", v}, {space, fmt.Sprint("y", i%5), v}, {space, "z", v}}); err != nil {
						t.Error(err)
					}
					mu.Lock()
					returned[w] = i
					if stopAt--; stopAt == 0 {
						copy(known, returned[:])
						clone = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		b.close()
		b.o.FS = clone
		b.open()
		st = b.state()
		for w := range 3 {
			space := fmt.Sprint(w)
			x, errX := st.Get(space, "x")
			z, errZ := st.Get(space, "z")
			if errX != nil || errZ != nil || !bytes.Equal(x, z) {
				t.Fatalf("seed %d: half a commit: x=%s z=%s (%v, %v)", seed, x, z, errX, errZ)
			}
			n := 0
			fmt.Sscan(string(x), &n)
			if n < known[w] {
				t.Fatalf("seed %d: commit %d had returned, %d is there", seed, known[w], n)
			}
		}
		b.close()
	}
}

// TestTamperedState: values cannot be changed, nor put under another key.
func TestTamperedState(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	st := b.state()
	if err := st.Commit([]Set{{"s", "limit", []byte("10")}, {"s", "other", []byte("99")}}); err != nil {
		t.Fatal(err)
	}
	stored := func(key string) []byte {
		v, closer, err := st.db.Get(st.diskKey("s", key))
		if err != nil {
			t.Fatal(err)
		}
		defer closer.Close()
		return bytes.Clone(v)
	}
	for name, bad := range map[string][]byte{"flipped": flip(stored("limit"), 20), "moved": stored("other"), "cut": stored("limit")[:1], "empty": {}} {
		if err := st.db.Set(st.diskKey("s", "limit"), bad, pebble.Sync); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Get("s", "limit"); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: %v", name, err)
		}
		if err := st.Scan("s", func(string, []byte) error { return nil }); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// TestSmallStoreWithoutIdentity: a state whose values cannot be opened is not
// taken for an empty one.
func TestSmallStoreWithoutIdentity(t *testing.T) {
	fs := vfs.NewMem()
	b := newBed(t, fs)
	if err := b.state().Commit([]Set{{"s", "k", []byte("v")}}); err != nil {
		t.Fatal(err)
	}
	b.close()
	path := "/state/spool/state/host/identity"
	for _, spoil := range []func() error{
		func() error { return disk{FS: fs}.writeFile(path, make([]byte, identityLen)) },
		func() error { return fs.Remove(path) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		b.open()
		if _, err := b.s.State("host"); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		b.close()
	}
}
