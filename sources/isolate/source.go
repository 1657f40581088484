package isolate

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// Command is the hidden command of the program that serves a source.
const Command = "source-worker"

const (
	// stopGrace is how long a child may take to end in order.
	stopGrace = 3 * time.Second
	// silence is how long a child may send nothing, when it sends its status
	// every second.
	silence = 30 * time.Second
	// drainWait is how long the end of a run waits until the pipeline has taken
	// what the child sent, and settleWait how long a new child waits for the
	// batches of the last one to become durable, so that it starts behind them.
	drainWait  = time.Second
	settleWait = 3 * time.Second
)

// Config is what the parent needs. Name, Status and Logger are never empty.
type Config struct {
	// Command is the program and its arguments; nil is this program with the
	// hidden command.
	Command []string
	Name    string // of the source in the configuration
	// Payload is whatever the child's build function needs, secrets included.
	Payload []byte
	Status  *sources.Status
	// Resume returns the resume point of the last commit. nil means that the
	// source never resumes.
	Resume func() []byte
	// Peers are the TCP addresses that the child connects to; see sources.Peered.
	Peers  []string
	Logger *slog.Logger
	Limits Limits
}

// Limits bound a child. A zero field takes its default.
type Limits struct {
	// AddressSpace is how much a child may map beyond what it has at its start,
	// in bytes. Default 512 MiB.
	AddressSpace uint64 `json:"address_space"`
	// Memory is the soft limit of Go's memory, in bytes. Default 256 MiB.
	Memory int64 `json:"memory"`
	// Stack is the largest stack of one goroutine, in bytes. Default 64 MiB.
	Stack int `json:"stack"`
}

func (l Limits) withDefaults() Limits {
	if l.AddressSpace == 0 {
		l.AddressSpace = 512 << 20
	}
	if l.Memory == 0 {
		l.Memory = 256 << 20
	}
	if l.Stack == 0 {
		l.Stack = 64 << 20
	}
	return l
}

// Source is a source in a child process. Make it with New. The child lives from
// the first Run until the context of a Run ends, also when it ends between two
// runs.
type Source struct {
	cfg   Config
	log   *slog.Logger
	queue *queue

	// Run's own.
	child *process
	watch func() bool // stops the watch on the context of the last Run

	mu      sync.Mutex
	running bool
	state   sources.State // what the child said last, "" in a run: nothing yet
	detail  string
}

// New makes a source that runs in a child process. It starts nothing.
func New(cfg Config) *Source {
	if cfg.Command == nil {
		cfg.Command = ownCommand(cfg.Name)
	}
	cfg.Limits = cfg.Limits.withDefaults()
	return &Source{cfg: cfg, log: cfg.Logger, queue: newQueue()}
}

// ownCommand is this program as it was started, even when its file was replaced
// since: the two halves must be of one version. The name is for ps.
func ownCommand(name string) []string {
	if runtime.GOOS == "linux" {
		return []string{"/proc/self/exe", Command, name}
	}
	path, err := os.Executable()
	if err != nil {
		path = os.Args[0]
	}
	return []string{path, Command, name}
}

// argv is what the child sees as its arguments.
func argv(command []string) []string {
	out := append([]string(nil), command...)
	if out[0] == "/proc/self/exe" {
		out[0] = "edgehost"
	}
	out[0] = filepath.Base(out[0])
	return out
}

// Peers implements sources.Peered.
func (s *Source) Peers() []string { return s.cfg.Peers }

// Run runs the source in its child, which it starts when there is none. See
// sources.Source. The error of a child that died says how it died and what it
// wrote last.
func (s *Source) Run(ctx context.Context, emit sources.Emit) error {
	work, cancel := context.WithCancel(ctx)
	var emitter sync.WaitGroup
	emitter.Go(func() { s.emitAll(work, emit) })
	defer func() {
		s.setRunning(false)
		cancel()
		emitter.Wait()
	}()
	p, err := s.process(ctx)
	if err != nil {
		return err
	}
	s.setRunning(true)
	p.send(kindRun, s.resume())
	select {
	case <-ctx.Done():
	case err = <-p.ended:
		s.setRunning(false)
		s.await(ctx, drainWait, s.queue.idle)
	case <-p.dead:
		s.setRunning(false)
		s.child, err = nil, p.err
		s.await(ctx, drainWait, s.queue.idle)
	}
	switch {
	case ctx.Err() != nil:
		p.stop()
		s.child = nil
		return ctx.Err()
	case s.child != nil:
		// It waits for the next run; the context may end before.
		s.watch = context.AfterFunc(ctx, p.stop)
	}
	return err
}

// process returns the child, a new one when there is none. What the last one
// emitted is given time to settle first.
func (s *Source) process(ctx context.Context) (*process, error) {
	if s.watch != nil {
		if !s.watch() { // the context of the last Run ended, and with it the child
			<-s.child.dead
			s.child = nil
		}
		s.watch = nil
	}
	if s.child != nil {
		return s.child, nil
	}
	s.await(ctx, settleWait, s.queue.settled)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	p, err := startProcess(s)
	if err != nil {
		return nil, fmt.Errorf("start process of source: %w", err)
	}
	s.child = p
	return p, nil
}

func (s *Source) resume() []byte {
	if s.cfg.Resume == nil {
		return nil
	}
	return s.cfg.Resume()
}

// await waits until cond holds, at most for a while.
func (s *Source) await(ctx context.Context, most time.Duration, cond func() (bool, <-chan struct{})) {
	timeout := time.NewTimer(most)
	defer timeout.Stop()
	for {
		ok, changed := cond()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// emitAll hands batches to the pipeline until ctx ends: those that it gave back
// first, and then what the child sends.
func (s *Source) emitAll(ctx context.Context, emit sources.Emit) {
	for ctx.Err() == nil {
		h, wait, changed := s.queue.next()
		if h == nil {
			var retry <-chan time.Time
			if wait > 0 {
				retry = time.After(wait)
			}
			select {
			case <-changed:
			case <-retry:
			case <-ctx.Done():
			}
			continue
		}
		err := emit(ctx, h.batch, func(err error) { s.settle(h, err) })
		switch {
		case err != nil && ctx.Err() != nil:
			s.queue.giveBack(h, nil)
		case err != nil:
			s.queue.giveBack(h, err)
			s.report()
		case !h.again:
			h.again = true
			h.from.queued(h)
		}
	}
}

// settle takes the outcome of a batch from the pipeline.
func (s *Source) settle(h *held, err error) {
	before := s.queue.faulty()
	for _, done := range s.queue.settle(h, err) {
		done.from.acknowledge(done)
	}
	if before != nil || s.queue.faulty() != nil {
		s.report()
	}
}

// setRunning says whether the states of the child are those of the source: in
// between the supervisor has the word.
func (s *Source) setRunning(running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.state, s.detail = running, "", ""
}

// childState takes a state of the child.
func (s *Source) childState(state sources.State, detail string) {
	s.mu.Lock()
	if s.running && state != sources.Starting {
		s.state, s.detail = state, detail
	}
	s.mu.Unlock()
	s.report()
}

// report says how the source is: as the child says, unless the pipeline gives
// batches back, of which the child does not know.
func (s *Source) report() {
	fault := s.queue.faulty()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.running || s.state == "":
	case fault != nil:
		s.cfg.Status.Report(s.log, sources.Degraded, fmt.Sprintf("the pipeline gave a batch back, which is emitted again: %v", fault))
	default:
		s.cfg.Status.Report(s.log, s.state, s.detail)
	}
}
