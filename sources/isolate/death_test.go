package isolate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// store is a pipeline that makes batches durable on a goroutine of its own, with
// their resume points, a millisecond each.
type store struct {
	queue  chan stored
	wg     sync.WaitGroup
	refuse func() bool // gives a batch back

	mu      sync.Mutex
	numbers []int
	resume  []byte
}

type stored struct {
	b    sources.Batch
	done func(error)
}

func newStore(t *testing.T) *store {
	s := &store{queue: make(chan stored, 4), refuse: func() bool { return false }}
	s.wg.Go(func() {
		for it := range s.queue {
			<-time.After(time.Millisecond)
			if s.refuse() {
				it.done(errors.New("no room"))
				continue
			}
			s.mu.Lock()
			for _, r := range it.b.Records {
				s.numbers = append(s.numbers, int(r.Value.AsInt()))
			}
			if it.b.Resume != nil {
				s.resume = it.b.Resume
			}
			s.mu.Unlock()
			it.done(nil)
		}
	})
	t.Cleanup(func() { close(s.queue); s.wg.Wait() })
	return s
}

func (s *store) emit(ctx context.Context, b sources.Batch, done func(error)) error {
	select {
	case s.queue <- stored{b, done}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *store) resumePoint() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resume
}

func (s *store) all() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.numbers)
}

// supervise runs src until the test ends, and then holds the machine to having
// no process left of those that p saw.
func supervise(t *testing.T, src sources.Source, st *sources.Status, emit sources.Emit, log *slog.Logger, p *peer) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	fast := sources.ReconnectConfig{InitialDelaySeconds: 0.01, MaxDelaySeconds: 0.05}
	wg.Go(func() { sources.Supervise(ctx, src, emit, st, fast, log) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		for _, pid := range p.processes() {
			eventually(t, fmt.Sprintf("process %d to be gone, zombies too", pid), func() bool {
				_, err := os.Stat("/proc/" + strconv.Itoa(pid))
				return errors.Is(err, fs.ErrNotExist)
			})
		}
	})
}

// killAtRandom kills the child again and again while batches flow, and returns
// the last number.
func killAtRandom(t *testing.T, s *store) (last int, st *sources.Status) {
	t.Helper()
	p := newPeer(t)
	log := slog.New(slog.DiscardHandler)
	src, st := newModel(t, modelConfig{Endpoint: p.lis.Addr().String()}, s.resumePoint, log)
	supervise(t, src, st, s.emit, log, p)
	eventually(t, "a process", func() bool { return len(p.processes()) == 1 })
	for range 8 {
		pids := p.processes()
		last += 500
		p.publish(0, last)
		<-time.After(time.Duration(rand.IntN(50)) * time.Millisecond)
		if err := syscall.Kill(pids[len(pids)-1], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the next process", func() bool { return len(p.processes()) > len(pids) })
	}
	eventually(t, "the last number", func() bool { return slices.Contains(s.all(), last) })
	return last, st
}

// TestKilledAtRandom: nothing is lost, order holds, and what comes twice is only
// what was not committed.
func TestKilledAtRandom(t *testing.T) {
	s := newStore(t)
	last, st := killAtRandom(t, s)
	seen, repeats := 0, 0
	for _, n := range s.all() {
		switch {
		case n == seen+1:
			seen = n
		case n <= seen:
			repeats++
		default:
			t.Fatalf("%d came after %d", n, seen)
		}
	}
	t.Logf("%d numbers, %d of them twice", seen, repeats)
	// The child that lives reports what it counted only every statusEvery.
	eventually(t, "every number to be counted", func() bool { return int(st.Snapshot().Records) >= last })
	if counted := int(st.Snapshot().Records); counted > last+repeats+8*500 {
		t.Errorf("%d records counted of %d numbers, %d of them twice", counted, last, repeats)
	}
}

// TestGivenBack kills the child while the pipeline gives batches back and
// commits later ones, with resume points behind those that it gave back.
func TestGivenBack(t *testing.T) {
	s := newStore(t)
	s.refuse = func() bool { return rand.IntN(20) == 0 }
	last, _ := killAtRandom(t, s)
	eventually(t, "every number", func() bool {
		all := s.all()
		slices.Sort(all)
		return len(slices.Compact(all)) == last
	})
}

// TestPipelineFull kills the child while the pipeline takes nothing: a new child
// comes all the same, and nothing is lost.
func TestPipelineFull(t *testing.T) {
	p, s := newPeer(t), newStore(t)
	log := slog.New(slog.DiscardHandler)
	open := make(chan struct{})
	emit := func(ctx context.Context, b sources.Batch, done func(error)) error {
		select {
		case <-open:
		case <-ctx.Done():
			return ctx.Err()
		}
		return s.emit(ctx, b, done)
	}
	src, st := newModel(t, modelConfig{Endpoint: p.lis.Addr().String()}, s.resumePoint, log)
	supervise(t, src, st, emit, log, p)
	p.publish(0, 100)
	eventually(t, "a process", func() bool { return len(p.processes()) == 1 })
	if err := syscall.Kill(p.processes()[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next process", func() bool { return len(p.processes()) == 2 })
	close(open)
	eventually(t, "the last number", func() bool { return slices.Contains(s.all(), 100) })
	all := s.all()
	for n := 1; n <= 100; n++ {
		if !slices.Contains(all, n) {
			t.Errorf("%d is lost", n)
		}
	}
}

// TestHostilePeer lets a peer do to the child what one does to a library, while
// another source in the same parent keeps running.
func TestHostilePeer(t *testing.T) {
	good, goodStore := newPeer(t), newStore(t)
	discard := slog.New(slog.DiscardHandler)
	src, goodStatus := newModel(t, modelConfig{Endpoint: good.lis.Addr().String()}, goodStore.resumePoint, discard)
	supervise(t, src, goodStatus, goodStore.emit, discard, good)
	published := 0
	for command, want := range map[string]string{
		"panic":    "source process ended: a fault .*: exit status 2: panic: decoder: index out of range",
		"allocate": "source process ended: out of memory, .*: exit status (2|66): .*(cannot allocate|address space collisions for -race|failed to allocate)",
		"overflow": "source process ended: (its stack is used up, .*: exit status 2: .*stack overflow|out of memory, .*: exit status 66: .*failed to allocate)",
		"exit":     "source process ended: exit status 3: last; words",
	} {
		t.Run(command, func(t *testing.T) {
			var out safeBuffer
			log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("log:\n%s", out.String())
				}
			})
			p, s := newPeer(t), newStore(t)
			src, st := newModel(t, modelConfig{Endpoint: p.lis.Addr().String()}, s.resumePoint, log)
			supervise(t, src, st, s.emit, log, p)
			p.publish(0, 50)
			eventually(t, "what was read", func() bool { return slices.Contains(s.all(), 50) })
			p.order(command)
			eventually(t, "the reason in the log: "+want, func() bool { return regexp.MustCompile(want).MatchString(out.String()) })
			p.publish(0, 100)
			eventually(t, "the next process to read on", func() bool { return slices.Contains(s.all(), 100) })
			if st.Snapshot().Counters[sources.MetricReconnects] == 0 {
				t.Error("the restart was not counted")
			}
			for line := range strings.Lines(out.String()) {
				if strings.Contains(line, "source process ended") && len(line) > 1500 {
					t.Errorf("the reason has %d bytes", len(line))
				}
			}
			published += 100
			good.publish(0, published)
			eventually(t, "the other source", func() bool { return slices.Contains(goodStore.all(), published) })
		})
	}
	if snap := goodStatus.Snapshot(); snap.State != sources.Connected || snap.Counters[sources.MetricReconnects] != 0 || len(good.processes()) != 1 {
		t.Errorf("the other source is %s, with %d processes", snap.State, len(good.processes()))
	}
}

// TestOneChild: a lost connection is taken up by the same child, with the back-
// off of the supervisor, and the states are those of the source.
func TestOneChild(t *testing.T) {
	var out safeBuffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	p, s := newPeer(t), newStore(t)
	src, st := newModel(t, modelConfig{Endpoint: p.lis.Addr().String()}, s.resumePoint, log)
	supervise(t, src, st, s.emit, log, p)
	p.publish(0, 50)
	eventually(t, "what was read", func() bool { return slices.Contains(s.all(), 50) })
	p.cut()
	eventually(t, "the next connection", func() bool { return len(p.processes()) == 2 })
	if pids := p.processes(); pids[0] != pids[1] {
		t.Errorf("processes %v for one source", pids)
	}
	eventually(t, "the state", func() bool { return st.Snapshot().State == sources.Connected })
	p.order("refuse")
	eventually(t, "the mark of the error", func() bool { return strings.Contains(out.String(), "source auth_failed") })
	for _, line := range []string{"source reconnecting", "the peer closed the connection", "wrong password", "msg=\"model connected\" endpoint="} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("the log does not say %q", line)
		}
	}
	// Once told, not twice: by the child and by the parent.
	eventually(t, "three connections", func() bool { return strings.Count(out.String(), "\"model connected\"") >= 3 })
	if n := strings.Count(out.String(), "msg=\"source auth_failed\""); n != 1 {
		t.Errorf("one change of state is %d lines of the log:\n%s", n, out.String())
	}
}

// TestStopsByForce: a child that does not end when told is killed after its
// grace, and Run returns.
func TestStopsByForce(t *testing.T) {
	p, s := newPeer(t), newStore(t)
	src, st := newModel(t, modelConfig{Endpoint: p.lis.Addr().String()}, nil, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- src.Run(ctx, s.emit) }()
	eventually(t, "the source to connect", func() bool { return st.Snapshot().State == sources.Connected })
	p.order("hang")
	p.publish(0, 10) // sent in front of the order; the source hangs afterwards
	eventually(t, "the number", func() bool { return slices.Contains(s.all(), 10) })
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	case <-time.After(stopGrace + 20*time.Second):
		t.Fatal("Run did not return")
	}
	if err := syscall.Kill(p.processes()[0], 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the child is there: %v", err)
	}
}

// TestParentGone: a child whose socket closes ends by itself.
func TestParentGone(t *testing.T) {
	p := newPeer(t)
	src, _ := newModel(t, modelConfig{Endpoint: p.lis.Addr().String()}, nil, slog.New(slog.DiscardHandler))
	child, err := startProcess(src)
	if err != nil {
		t.Fatal(err)
	}
	child.send(kindRun, nil)
	eventually(t, "the source to connect", func() bool { return len(p.processes()) == 1 })
	if err := child.conn.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-child.dead:
	case <-time.After(20 * time.Second):
		t.Fatal("the child lives on")
	}
}

// TestBuildRefuses: what the child cannot be made of is told like any error of
// configuration.
func TestBuildRefuses(t *testing.T) {
	src, _ := newModel(t, modelConfig{Refuse: "there is no certificate"}, nil, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	for range 2 {
		err := src.Run(ctx, nil)
		if err == nil || err.Error() != "there is no certificate" || sources.ErrorState(err) != sources.Failed {
			t.Errorf("Run returned %v", err)
		}
	}
	child := src.child
	cancel()
	<-child.dead // between two runs, too, the context ends the child
}

func TestNoProgram(t *testing.T) {
	st := sources.NewStatus("m", "opcua")
	src := New(Config{Command: []string{"/nowhere/edgehost"}, Name: "m", Status: st, Logger: slog.New(slog.DiscardHandler)})
	err := src.Run(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "start process of source: ") {
		t.Errorf("Run returned %v", err)
	}
	// A program that is not ours ends, and its words are told.
	src = New(Config{Command: []string{"/bin/sh", "-c", "echo no such command >&2"}, Name: "m", Status: st, Logger: slog.New(slog.DiscardHandler)})
	err = src.Run(t.Context(), nil)
	if err == nil || err.Error() != "source process ended: exit status 0: no such command" {
		t.Errorf("Run returned %v", err)
	}
}

// TestSecrets looks for a secret of the payload wherever another user or a log
// could see it.
func TestSecrets(t *testing.T) {
	const canary = "canary-5f1d"
	t.Setenv("EDGEHOST_TEST_PASSWORD", canary)
	var out safeBuffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p, s := newPeer(t), newStore(t)
	src, st := newModel(t, modelConfig{Endpoint: p.lis.Addr().String(), Secret: canary}, nil, log)
	supervise(t, src, st, s.emit, log, p)
	eventually(t, "a process", func() bool { return len(p.processes()) == 1 })
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.processes()[0], file))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), canary) {
			t.Errorf("%s holds the secret: %q", file, b)
		}
		for part := range strings.SplitSeq(string(b), "\x00") {
			if name, _, _ := strings.Cut(part, "="); file == "environ" && name != "" && name != "GOTRACEBACK" && name != "TZ" && !strings.HasPrefix(name, "LANG") && !strings.HasPrefix(name, "LC_") && !strings.HasPrefix(name, "SSL_CERT_") {
				t.Errorf("the child has the variable %s", name)
			}
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.processes()[0]))
	if err != nil || !strings.Contains(string(limits), "Max core file size        0 ") || strings.Contains(string(limits), "Max address space         unlimited") {
		t.Errorf("limits: %v\n%s", err, limits)
	}
	p.order("panic")
	eventually(t, "the reason in the log", func() bool { return strings.Contains(out.String(), "source process ended") })
	if strings.Contains(out.String(), canary) || strings.Contains(fmt.Sprintf("%+v", st.Snapshot()), canary) {
		t.Errorf("the secret is told:\n%s", out.String())
	}
}
