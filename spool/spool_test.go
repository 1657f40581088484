package spool

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SPOOL_TEST_OPEN"); dir != "" {
		_, err := Open(Options{Dir: dir, Logger: quiet()})
		fmt.Print(err)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func newKey() string {
	b := make([]byte, 32)
	rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}

// env is an environment of one variable, and the KeyConfig that names it.
func env(key string) (KeyConfig, func(string) string) {
	return KeyConfig{KeyEnv: "TEST_KEY"}, func(name string) string {
		if name == "TEST_KEY" {
			return key
		}
		return ""
	}
}

// bed is a spool on a disk that can be opened again.
type bed struct {
	t    *testing.T
	o    Options
	s    *Spool
	keep func(Owner) bool
}

func newBed(t *testing.T, fs vfs.FS) *bed {
	t.Helper()
	dir := "/state/spool"
	if fs == nil {
		dir = filepath.Join(t.TempDir(), "spool")
	}
	b := &bed{t: t, o: Options{Dir: dir, FS: fs, Logger: quiet()}, keep: func(Owner) bool { return true }}
	b.o.Keys, b.o.Getenv = env(newKey())
	b.open()
	t.Cleanup(func() { b.s.Close() })
	return b
}

func (b *bed) open() {
	b.t.Helper()
	s, err := Open(b.o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.s = s
}

func (b *bed) close() {
	b.t.Helper()
	if err := b.s.Close(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) reopen() {
	b.t.Helper()
	b.close()
	b.open()
}

func (b *bed) queue(name string) *Queue {
	b.t.Helper()
	q, err := b.s.Queue(name, b.keep)
	if err != nil {
		b.t.Fatal(err)
	}
	return q
}

var alice, bob = [16]byte{1}, [16]byte{2}

func frame(id [16]byte, seq uint64, count int, payload string) Frame {
	return Frame{Owner: Owner{id, seq}, Count: count, MinTime: int64(seq) * 10, MaxTime: int64(seq)*10 + 9, Payload: []byte(payload)}
}

// add appends frames and waits until they are durable.
func add(t *testing.T, q *Queue, frames ...Frame) (bases []uint64) {
	t.Helper()
	type result struct {
		base uint64
		err  error
	}
	got := make(chan result, len(frames))
	for _, f := range frames {
		q.Append(f, func(base uint64, err error) { got <- result{base, err} })
	}
	for range frames {
		r := <-got
		if r.err != nil {
			t.Fatal(r.err)
		}
		bases = append(bases, r.base)
	}
	return bases
}

// read returns the next n frames.
func read(t *testing.T, r *Reader, n int) []Stored {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var all []Stored
	for range n {
		st, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("after %d frames: %v", len(all), err)
		}
		all = append(all, st)
	}
	return all
}

// nothing checks that r has no frame to give now.
func nothing(t *testing.T, r *Reader) {
	t.Helper()
	if st, wake, err := r.try(); wake == nil {
		t.Fatalf("reader has something to give: %v, %v", st, err)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, kind := range []string{"disk", "memory"} {
		t.Run(kind, func(t *testing.T) {
			var fs vfs.FS
			if kind == "memory" {
				fs = vfs.NewMem()
			}
			b := newBed(t, fs)
			q := b.queue("main.bronze.opcua_raw")
			long := strings.Repeat("ratio ", 1000)
			want := []Frame{frame(alice, 1, 3, "one"), frame(alice, 2, 1, long), frame(bob, 1, 500, "")}
			if diff := cmp.Diff([]uint64{0, 3, 4}, add(t, q, want...)); diff != "" {
				t.Fatal(diff)
			}
			r := q.Reader(0)
			nothing(t, r)
			q.Commit(alice, 2)
			q.Commit(bob, 1)
			check := func(r *Reader) {
				t.Helper()
				for i, st := range read(t, r, 3) {
					if diff := cmp.Diff(want[i], st.Frame, cmp.Comparer(bytes.Equal)); diff != "" || st.Base != []uint64{0, 3, 4}[i] {
						t.Fatalf("frame %d at %d: %s", i, st.Base, diff)
					}
				}
				nothing(t, r)
			}
			check(r)
			if st := q.Stat(); st.WaitingRecords != 504 || st.Tail != 504 || st.Next != 504 || st.OldestWaiting != 10 || st.WaitingBytes == 0 || st.DiskBytes == 0 {
				t.Fatalf("%+v", st)
			}

			b.reopen()
			q = b.queue("main.bronze.opcua_raw")
			check(q.Reader(0))
			if st := q.Stat(); st.WaitingRecords != 504 || st.MemoryRecords != 0 || st.OldestWaiting != 10 {
				t.Fatalf("%+v", st)
			}
			if mid := read(t, q.Reader(250), 1)[0]; mid.Base != 4 {
				t.Fatalf("reader from inside a frame begins at %d", mid.Base)
			}
			if diff := cmp.Diff([]string{"main.bronze.opcua_raw"}, b.s.Queues()); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

func TestQueueNames(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	names := []string{"..", "A b", "a/../b", "held/line-1", "ö"}
	for _, n := range names {
		b.queue(n)
	}
	if diff := cmp.Diff(names, b.s.Queues()); diff != "" {
		t.Fatal(diff)
	}
	for _, n := range []string{"", strings.Repeat("x", 201)} {
		if _, err := b.s.Queue(n, b.keep); err == nil {
			t.Fatalf("queue name %q was taken", n)
		}
	}
	if first, again := b.queue("ö"), b.queue("ö"); first != again {
		t.Fatal("a queue was opened twice")
	}
}

func TestClosed(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	q := b.queue("q")
	r := q.Reader(0)
	waiting := make(chan error, 1)
	go func() {
		_, err := r.Next(t.Context())
		waiting <- err
	}()
	b.close()
	if err := <-waiting; !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	q.Append(frame(alice, 1, 1, "x"), func(_ uint64, err error) { waiting <- err })
	if err := <-waiting; !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	_, errQueue := b.s.Queue("q", b.keep)
	_, errState := b.s.State("s")
	_, errCount := q.CountWaiting()
	for _, err := range []error{errQueue, errState, errCount, q.Advance(1, Settled{Delivered: 1})} {
		if !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	}
	q.Stat()
	if err := b.s.Close(); err != nil {
		t.Fatal("second Close:", err)
	}
}

func TestReaderCloseAndContext(t *testing.T) {
	b := newBed(t, vfs.NewMem())
	r := b.queue("q").Reader(0)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := r.Next(ctx); !errors.Is(err, why) {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := r.Next(t.Context())
		got <- err
	}()
	r.Close()
	r.Close()
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

// hashDir returns a hash of every file below dir but the lock.
func hashDir(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == lockName {
			return err
		}
		data, err := os.ReadFile(p)
		sum := sha256.Sum256(data)
		sums[p] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

func TestSecondProcessIsRefused(t *testing.T) {
	b := newBed(t, nil)
	before := hashDir(t, b.o.Dir)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SPOOL_TEST_OPEN="+b.o.Dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatal(err, string(out))
	}
	if want := fmt.Sprintf("process %d holds", os.Getpid()); !strings.Contains(string(out), want) {
		t.Fatalf("want %q in %q", want, out)
	}
	if _, err := Open(b.o); !errors.Is(err, ErrLocked) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, hashDir(t, b.o.Dir)); diff != "" {
		t.Fatal(diff)
	}
}
