package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/sandbox"
)

// TestTwoModulesCompileAtOnce: while one module is compiled there is an engine for
// another, and modules of both run.
func TestTwoModulesCompileAtOnce(t *testing.T) {
	for _, cache := range []sandbox.CacheConfig{{}, cacheIn(filepath.Join(t.TempDir(), "cache"))} {
		h := openCached(t, cache)
		free := h.HoldCompilers(1)
		if got := h.use(t, stamp(7)); got != 7 {
			t.Errorf("the second engine's module gives %d", got)
		}
		free()
		if got := h.use(t, stamp(7)); got != 7 {
			t.Errorf("the first engine's module gives %d", got)
		}
		if n := h.CacheStat(); cache.Dir != "" && (n.Hits != 1 || n.Misses != 1) {
			t.Errorf("what the one engine keeps the other does not find: %+v", n)
		}
		h.close(t)
	}
}

// TestWaitForACompiler: a module waits while both engines compile, not for ever, not
// when nobody wants it any more, and it is not told that it is at fault.
func TestWaitForACompiler(t *testing.T) {
	h, err := sandbox.New(sandbox.Config{Limits: sandbox.Limits{CompileDeadline: 10 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	free := h.HoldCompilers(2)
	var refusal *sandbox.Refusal
	if _, err := h.Compile(t.Context(), stamp(1)); err == nil || errors.As(err, &refusal) || !strings.Contains(err.Error(), "try again") {
		t.Errorf("two modules compile, and a third: %v", err)
	}
	gone, goAway := context.WithCancel(t.Context())
	goAway()
	if _, err := h.Compile(gone, stamp(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits: %v", err)
	}
	free()
}

// slow is a module that takes a good while longer than a millisecond to compile.
func slow() guest {
	return guest{functions: func(a *asm) {
		var ifs []byte
		for range 40 {
			ifs = cat(ifs, get(0), when(get(0), i32(1), add, set(0)))
		}
		for range 60 {
			a.fn("", "i", "i", ifs, get(0))
		}
	}}
}

// TestCompileEnds: a compilation that takes longer than its deadline, or that nobody
// waits for any more, is given up at once, and the host goes on.
func TestCompileEnds(t *testing.T) {
	wasm := slow().bytes()
	h, err := sandbox.New(sandbox.Config{Limits: sandbox.Limits{CompileDeadline: time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close() // waits for what still compiles
	var refusal *sandbox.Refusal
	if _, err := h.Compile(t.Context(), wasm); !errors.As(err, &refusal) || !strings.Contains(err.Error(), "compiling takes longer than 1ms") {
		t.Errorf("past the deadline: %v", err)
	}
	other := openCached(t, sandbox.CacheConfig{})
	defer other.close(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := other.Compile(ctx, wasm); !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &refusal) {
		t.Errorf("the uploader went away: %v", err)
	}
	if got := other.use(t, stamp(3)); got != 3 {
		t.Errorf("the next module gives %d", got)
	}
}

// TestCacheCounts: what the cache did is counted.
func TestCacheCounts(t *testing.T) {
	dir, path, good := filled(t)
	c := cacheIn(dir)
	c.MaxEntries = 2
	for _, x := range []struct {
		name string
		file []byte // what lies in the entry's place
		uses int64  // modules that are compiled, each twice
		want sandbox.CacheStat
	}{
		{"a good entry", good, 1, sandbox.CacheStat{Hits: 2, Entries: 1}},
		{"a flipped bit", append(append([]byte{}, good[:len(good)-1]...), good[len(good)-1]^1), 1, sandbox.CacheStat{Hits: 1, Misses: 1, Refused: 1, Entries: 1}},
		{"a foreign file", []byte("foreign"), 1, sandbox.CacheStat{Hits: 1, Misses: 1, Refused: 1, Entries: 1}},
		{"of another version", bytes.Replace(good, []byte(" wazero-"), []byte(" wazero-v0.0.1-"), 1), 1, sandbox.CacheStat{Hits: 1, Misses: 1, Removed: 1, Entries: 1}},
		{"three revisions of two", good, 3, sandbox.CacheStat{Hits: 4, Misses: 2, Removed: 1, Entries: 2}},
	} {
		replace(t, path, x.file)
		h := openCached(t, c)
		for n := range x.uses {
			for range 2 {
				h.use(t, stamp(7+n))
			}
		}
		got := h.CacheStat()
		if got.Bytes < int64(got.Entries*len(good)*9/10) {
			t.Errorf("%s: %d entries of %d bytes", x.name, got.Entries, got.Bytes)
		}
		got.Bytes = 0
		if got != x.want {
			t.Errorf("%s: %+v, want %+v", x.name, got, x.want)
		}
		h.close(t)
	}
}

// TestCacheSweep: what lies in the directory and is no good goes at the start, used
// or not, and so does what is beyond the bounds.
func TestCacheSweep(t *testing.T) {
	dir, path, good := filled(t)
	replace(t, filepath.Join(dir, "x"), []byte("foreign"))
	replace(t, filepath.Join(dir, strings.Repeat("0", 64)), good)
	replace(t, filepath.Join(dir, strings.Repeat("1", 64)), bytes.Replace(good, []byte(filepath.Base(path)), []byte(strings.Repeat("1", 64)), 1))
	c := cacheIn(dir)
	c.MaxEntries = 1
	h := openCached(t, c)
	defer h.close(t)
	if n := h.CacheStat(); n.Refused != 2 || n.Removed != 1 || n.Entries != 1 || len(entries(t, dir)) != 1 {
		t.Errorf("%+v, %v", n, entries(t, dir))
	}
}
