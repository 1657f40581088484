package sandbox_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// cacheKey is the key of all caches of these tests but those that want a wrong one.
var cacheKey = bytes.Repeat([]byte("k"), 32)

func cacheIn(dir string) sandbox.CacheConfig {
	return sandbox.CacheConfig{Dir: dir, Key: cacheKey, Logger: slog.New(slog.DiscardHandler)}
}

// noted is a log that tests read: a line a record, "LEVEL message key=value …".
type noted struct {
	mu    sync.Mutex
	lines []string
}

func (n *noted) Enabled(context.Context, slog.Level) bool { return true }
func (n *noted) WithAttrs([]slog.Attr) slog.Handler       { return n }
func (n *noted) WithGroup(string) slog.Handler            { return n }
func (n *noted) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { line += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, line)
	return nil
}

func (n *noted) has(words ...string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, l := range n.lines {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(l, w) }) {
			count++
		}
	}
	return count
}

// cached is a host with a cache, and what it logs.
type cached struct {
	*sandbox.Host
	log *noted
}

func openCached(t testing.TB, c sandbox.CacheConfig) cached {
	t.Helper()
	n := &noted{}
	c.Logger = slog.New(n)
	h, err := sandbox.New(sandbox.Config{Cache: c, Limits: sandbox.Limits{CompileDeadline: 10 * time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	return cached{h, n}
}

func (c cached) close(t testing.TB) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// use compiles a module and runs a batch of three through it.
func (c cached) use(t testing.TB, wasm []byte) (status uint32) {
	t.Helper()
	m, err := c.Compile(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	i, err := m.Instantiate(t.Context(), sandbox.Env{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	res, err := i.Process(t.Context(), batch(3))
	if err != nil || len(res.Out) != 3 {
		t.Fatalf("%v, %v", res, err)
	}
	if err := errors.Join(i.Close(t.Context()), m.Close(t.Context())); err != nil {
		t.Error(err)
	}
	return res.Out[0].Status
}

// stamp is a module that gives records the status n.
func stamp(n int64) []byte {
	return guest{always: body(setRow(abi.RowStatus, n))}.bytes()
}

// entries are the files of a cache.
func entries(t testing.TB, dir string) (paths []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "work" {
			paths = append(paths, filepath.Join(dir, f.Name()))
		}
	}
	return paths
}

// filled is a cache directory with the entry of stamp(7), and that entry.
func filled(t testing.TB) (dir, path string, entry []byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "cache")
	h := openCached(t, cacheIn(dir))
	h.use(t, stamp(7))
	h.close(t)
	paths := entries(t, dir)
	if len(paths) != 1 || h.log.has("INFO module compiled", "from_cache=false") != 1 {
		t.Fatalf("%v, %v", paths, h.log.lines)
	}
	entry, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	return dir, paths[0], entry
}

// replace puts another file in the place of one, or of none.
func replace(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, b, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// An entry that is not what this host, or one with its key, wrote for this module
// is never executed: it is dropped, which is told once, and made anew.
func TestCacheRefusesWhatItDidNotWrite(t *testing.T) {
	dir, path, good := filled(t)
	try := func(name, reason string) {
		t.Helper()
		h := openCached(t, cacheIn(dir))
		for range 2 {
			if got := h.use(t, stamp(7)); got != 7 {
				t.Errorf("%s: the module gives %d", name, got)
			}
		}
		h.close(t)
		if h.log.has("is dropped", reason) != 1 || h.log.has("from_cache=false") != 1 || h.log.has("from_cache=true") != 1 || len(h.log.lines) != 3 {
			t.Errorf("%s: log %q, want %q", name, h.log.lines, reason)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, good) {
			t.Errorf("%s: the entry was not made anew: %v", name, err)
		}
	}
	put := func(b []byte) { t.Helper(); replace(t, path, b) }
	step := max(1, len(good)/places)
	for at := 0; at < len(good); at += step {
		b := slices.Clone(good)
		b[at] ^= 1 << (at % 8)
		put(b)
		try(fmt.Sprintf("bit %d of byte %d", at%8, at), "reason=it")
	}
	for _, n := range []int{0, 1, 100, len(good) / 2, len(good) - sha256.Size, len(good) - 1} {
		put(good[:n])
		try(fmt.Sprintf("%d of %d bytes", n, len(good)), "reason=it")
	}
	put(append(slices.Clone(good), 0))
	try("a byte more", "its seal does not match")
	put([]byte(strings.Repeat("foreign ", 1000)))
	try("a foreign file", "it is no compiled code")
	put(bytes.Replace(good, []byte(" wazero-"), []byte(" wazero-v0.0.1-"), 1))
	try("another version", "by another version")
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	try("a directory", "it is no file")
	if err := errors.Join(os.Remove(path), os.WriteFile(filepath.Join(dir, "..", "elsewhere"), good, 0o600), os.Symlink("../elsewhere", path)); err != nil {
		t.Fatal(err)
	}
	try("a link", "it is no file")

	other := cacheIn(t.TempDir())
	other.Key = bytes.Repeat([]byte("o"), 32)
	h := openCached(t, other)
	h.use(t, stamp(7))
	h.close(t)
	sealed, err := os.ReadFile(entries(t, other.Dir)[0])
	if err != nil || len(sealed) != len(good) || bytes.Equal(sealed, good) {
		t.Fatalf("the entry of another key: %v", err)
	}
	put(sealed)
	try("another key", "its seal does not match")
}

func TestCacheRefusesSwappedEntries(t *testing.T) {
	dir, a, _ := filled(t)
	h := openCached(t, cacheIn(dir))
	h.use(t, stamp(8))
	h.close(t)
	b := entries(t, dir)[0]
	if b == a {
		b = entries(t, dir)[1]
	}
	if err := errors.Join(os.Rename(a, dir+"/x"), os.Rename(b, a), os.Rename(dir+"/x", b)); err != nil {
		t.Fatal(err)
	}
	h = openCached(t, cacheIn(dir))
	defer h.close(t)
	if one, two := h.use(t, stamp(7)), h.use(t, stamp(8)); one != 7 || two != 8 {
		t.Errorf("the modules give %d and %d", one, two)
	}
	if h.log.has("is dropped", "reason=it is the code of another module") != 2 {
		t.Errorf("log %q", h.log.lines)
	}
}

func TestCacheDirectory(t *testing.T) {
	broken := func(t *testing.T, c sandbox.CacheConfig, warning string) {
		t.Helper()
		h := openCached(t, c)
		defer h.close(t)
		h.use(t, stamp(7))
		h.use(t, stamp(7))
		if h.log.has("WARN", warning) != 1 || h.log.has("module compiled") != 0 {
			t.Errorf("log %q, want %q", h.log.lines, warning)
		}
	}
	t.Run("open to others", func(t *testing.T) {
		dir, _, _ := filled(t)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		h := openCached(t, cacheIn(dir))
		defer h.close(t)
		h.use(t, stamp(7))
		st, err := os.Stat(dir)
		if err != nil || st.Mode().Perm() != 0o700 || h.log.has("WARN others could enter") != 1 || h.log.has("from_cache=true") != 1 {
			t.Errorf("mode %v, log %q", st.Mode(), h.log.lines)
		}
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "cache")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		broken(t, cacheIn(path), "are not kept")
	})
	t.Run("cannot be made", func(t *testing.T) { broken(t, cacheIn("/proc/cache"), "are not kept") })
	t.Run("nothing can be made in it", func(t *testing.T) {
		dir := t.TempDir()
		for n := 4091 - len(dir); n > 0; n = 4091 - len(dir) { // work would be beyond the longest path
			dir += "/" + strings.Repeat("d", min(n-1, 200))
		}
		broken(t, cacheIn(dir), "are not kept")
	})
	t.Run("in use", func(t *testing.T) {
		dir, _, _ := filled(t)
		h := openCached(t, cacheIn(dir))
		defer h.close(t)
		broken(t, cacheIn(dir), "another host uses")
		h.use(t, stamp(7))
		if h.log.has("from_cache=true") != 1 {
			t.Errorf("the first host: log %q", h.log.lines)
		}
	})
	t.Run("no key", func(t *testing.T) {
		c := cacheIn(t.TempDir())
		c.Key = nil
		if h, err := sandbox.New(sandbox.Config{Cache: c}); err == nil || !strings.Contains(err.Error(), "has 0 bytes") {
			t.Errorf("%v, %v", h, err)
		}
	})
}

// A disk that takes nothing more, or a directory that was removed, costs time and
// a warning.
func TestCacheThatFailsWhileItRuns(t *testing.T) {
	dir, path, good := filled(t)
	h := openCached(t, cacheIn(dir))
	defer h.close(t)
	if err := os.RemoveAll(filepath.Join(dir, "work")); err != nil {
		t.Fatal(err)
	}
	if one, two := h.use(t, stamp(7)), h.use(t, stamp(8)); one != 7 || two != 8 {
		t.Errorf("the modules give %d and %d", one, two)
	}
	if h.log.has("WARN the cache of compiled code does not work") == 0 || h.log.has("from_cache=true") != 0 {
		t.Errorf("log %q", h.log.lines)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, good) {
		t.Errorf("the good entry is gone: %v", err)
	}
	var refusal *sandbox.Refusal
	if _, err := h.Compile(t.Context(), []byte("\x00asm\x01\x00\x00\x00")); !errors.As(err, &refusal) {
		t.Errorf("a bad module: error %v", err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	_, _, good := filled(t)
	c := cacheIn(t.TempDir())
	c.MaxBytes = int64(len(good))*5/2 + 100
	h := openCached(t, c)
	defer h.close(t)
	old := time.Now().Add(-time.Hour)
	for k, n := range []int64{1, 2} {
		h.use(t, stamp(n))
		for _, p := range entries(t, c.Dir) {
			if st, err := os.Stat(p); err != nil || st.ModTime().After(old) {
				at := old.Add(time.Duration(k) * time.Minute)
				if err := os.Chtimes(p, at, at); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	h.use(t, stamp(1)) // 2 was not used for longest
	h.use(t, stamp(3))
	if n := len(entries(t, c.Dir)); n != 2 {
		t.Errorf("%d entries", n)
	}
	h.use(t, stamp(1))
	h.use(t, stamp(3))
	if h.log.has("from_cache=true") != 3 {
		t.Errorf("log %q", h.log.lines)
	}
	h.use(t, stamp(2))
	if h.log.has("from_cache=false") != 4 {
		t.Errorf("log %q", h.log.lines)
	}
}

func TestCacheUnderConcurrency(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	for round := range 2 {
		h := openCached(t, cacheIn(dir))
		var wg sync.WaitGroup
		for k := range 24 {
			wg.Go(func() {
				if got := h.use(t, stamp(int64(k%6))); got != uint32(k%6) {
					t.Errorf("module %d gives %d", k%6, got)
				}
			})
		}
		wg.Wait()
		h.close(t)
		if n := len(entries(t, dir)); n != 6 || h.log.has("WARN") != 0 || (round == 1 && h.log.has("from_cache=false") != 0) {
			t.Errorf("%d entries, log %q", n, h.log.lines)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "work")); err == nil {
			t.Errorf("left behind: %v", left)
		}
	}
}

// What a crash leaves in the work directory is not code that runs after it.
func TestCacheAfterACrash(t *testing.T) {
	dir, _, good := filled(t)
	left := filepath.Join(dir, "work", "wazero-vX", "00")
	if err := errors.Join(os.MkdirAll(filepath.Dir(left), 0o700), os.WriteFile(left, good, 0o600)); err != nil {
		t.Fatal(err)
	}
	h := openCached(t, cacheIn(dir))
	defer h.close(t)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	h.use(t, stamp(7))
	if h.log.has("from_cache=true") != 1 {
		t.Errorf("log %q", h.log.lines)
	}
}
