package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func TestLiesIn(t *testing.T) {
	root := t.TempDir()
	state, elsewhere := filepath.Join(root, "state"), filepath.Join(root, "elsewhere")
	link, inside := filepath.Join(root, "link"), filepath.Join(elsewhere, "key")
	err := errors.Join(os.MkdirAll(filepath.Join(state, "keys"), 0o700), os.Mkdir(elsewhere, 0o700), os.Symlink("state", link),
		os.WriteFile(filepath.Join(state, "keys", "k"), nil, 0o600), os.Symlink("../state/keys/k", inside))
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	for path, want := range map[string]bool{
		filepath.Join(state, "key"): true, "state/keys/k": true, "./state/../state/keys/k": true, filepath.Join(link, "keys", "k"): true,
		inside: true, filepath.Join(elsewhere, "other"): false, state + "2/key": false, "/run/secrets/key": false,
	} {
		if got := liesIn("state", path); got != want {
			t.Errorf("liesIn(state, %s) = %v", path, got)
		}
	}
}

// TestPipelineWorkers: reader_threads bounds the sources that are transformed at a
// time, and more than the cores are never of use.
func TestPipelineWorkers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for threads, want := range map[int]int{0: 4, 1: 1, 3: 3, 4: 4, 1024: 4} {
		if got := pipelineWorkers(threads); got != want {
			t.Errorf("reader_threads %d: %d workers, want %d", threads, got, want)
		}
	}
}
