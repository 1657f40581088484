package main

import (
	"runtime"
	"testing"
)

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
