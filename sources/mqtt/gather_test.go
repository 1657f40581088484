package mqtt

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// arrivals is a connection on which size bytes arrive every gap, count times,
// and what is not read waits, as it does in a kernel.
type arrivals struct {
	begin        time.Time
	gap          time.Duration
	size, count  int
	taken, reads int
	latest       time.Duration // that something waited
}

func (a *arrivals) Read(p []byte) (int, error) {
	a.reads++
	if a.taken == a.size*a.count {
		return 0, io.EOF
	}
	next := a.begin.Add(time.Duration(a.taken/a.size+1) * a.gap)
	time.Sleep(time.Until(next))
	a.latest = max(a.latest, time.Since(next))
	here := min(int(time.Since(a.begin)/a.gap), a.count) * a.size
	n := min(len(p), here-a.taken)
	a.taken += n
	return n, nil
}

func TestGatherer(t *testing.T) {
	for name, test := range map[string]struct {
		gap           time.Duration
		size, count   int
		piece         int // what is asked for at once
		reads, waited int // at most, the latter in microseconds
	}{
		"many messages are read together":  {20 * time.Microsecond, 60, 50_000, readBytes, 1050, 1000},
		"and handed on without pauses":     {20 * time.Microsecond, 60, 50_000, 5, 1050, 1000},
		"rare messages are read at once":   {3 * time.Millisecond, 60, 1000, readBytes, 1002, 0},
		"after a silence the first is too": {time.Second, 60, 3, readBytes, 5, 0},
		"bulk is not held up":              {500 * time.Microsecond, 20_000, 1000, readBytes, 1002, 0},
		"nor are large payloads":           {500 * time.Microsecond, 20_000, 1000, 1 << 20, 1002, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &arrivals{begin: time.Now(), gap: test.gap, size: test.size, count: test.count}
				g := newGatherer(readerConn{Reader: a})
				got, err := 0, error(nil)
				for n, p := 0, make([]byte, test.piece); err == nil; got += n {
					n, err = g.Read(p)
				}
				if !errors.Is(err, io.EOF) || got != test.size*test.count {
					t.Errorf("%d bytes, %v, want %d", got, err, test.size*test.count)
				}
				if a.reads > test.reads || a.latest > time.Duration(test.waited)*time.Microsecond {
					t.Errorf("%d reads, and something waited for %v; want at most %d and %d us", a.reads, a.latest, test.reads, test.waited)
				}
			})
		})
	}
}

func TestGathererHandsOnErrors(t *testing.T) {
	g := newGatherer(readerConn{Reader: bytes.NewReader(nil)})
	for range 3 {
		if n, err := g.Read(make([]byte, 10)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%d, %v", n, err)
		}
	}
}
