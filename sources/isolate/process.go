package isolate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgehost/edgehost/sources"
)

// window is how many bytes of batches a child may send that are not with the
// pipeline yet; one batch more is always allowed.
const window = 8 << 20

// process is one child. Its goroutines read and write the socket and wait for
// its end; dead is closed when all of them have ended.
type process struct {
	src    *Source
	cmd    *exec.Cmd
	conn   net.Conn
	stderr *headTail
	status counted
	last   uint64 // number of the last batch
	shapes shapes

	ended chan error    // Run of the source in the child returned
	dead  chan struct{} // closed at the end
	err   error         // why it died; valid after dead

	mu      sync.Mutex
	out     []byte // frames to be written
	news    chan struct{}
	gone    bool // nothing is written any more
	pending int  // bytes of batches in the window
	reason  string
}

// startProcess starts a child and sends it its first frame.
func startProcess(s *Source) (*process, error) {
	conn, remote, err := socketPair()
	if err != nil {
		return nil, err
	}
	p := &process{src: s, conn: conn, stderr: &headTail{}, ended: make(chan error, 1), dead: make(chan struct{}), news: make(chan struct{}, 1)}
	p.cmd = &exec.Cmd{Path: s.cfg.Command[0], Args: argv(s.cfg.Command), Env: environment(os.LookupEnv),
		Stderr: p.stderr, ExtraFiles: []*os.File{remote}, SysProcAttr: dieWithParent(), WaitDelay: time.Second}
	exited, err := p.launch()
	if err := errors.Join(err, remote.Close()); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	first, err := json.Marshal(start{Name: s.cfg.Name, Protocol: s.cfg.Status.Snapshot().Protocol, Level: lowestLevel(s.log),
		Limits: s.cfg.Limits, Payload: s.cfg.Payload})
	if err != nil { // texts and numbers always encode
		p.fail(err.Error())
	}
	p.send(kindStart, first)
	go p.run(exited)
	return p, nil
}

// socketPair returns our end and the child's.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "source"), os.NewFile(uintptr(fds[1]), "source")
	conn, err := net.FileConn(ours)
	if err := errors.Join(err, ours.Close()); err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", errors.Join(err, theirs.Close()))
	}
	return conn, theirs, nil
}

// launch starts the command and waits for it in one goroutine that keeps its
// thread: the kernel kills the child when the thread that started it ends.
func (p *process) launch() (exited <-chan error, err error) {
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			ended <- p.cmd.Wait()
		}
	}()
	return ended, <-started
}

// run looks after the child until it is dead.
func (p *process) run(exited <-chan error) {
	defer close(p.dead)
	var io sync.WaitGroup
	io.Go(p.write)
	io.Go(p.read)
	err := <-exited
	// What it sent before its end is still in the socket; a deadline in case
	// somebody else holds its end.
	_ = p.conn.SetDeadline(time.Now().Add(time.Second))
	p.mu.Lock()
	p.gone = true
	reason := p.reason
	p.mu.Unlock()
	p.signal()
	io.Wait()
	_ = p.conn.Close()
	p.status.close(p.src.cfg.Status)
	p.err = deathError(reason, err, p.stderr.text())
}

// stop ends the child in order, and after stopGrace by force. It returns when it
// is dead.
func (p *process) stop() {
	p.send(kindStop, nil)
	grace := time.AfterFunc(stopGrace, func() { p.fail("it did not end when told to") })
	defer grace.Stop()
	<-p.dead
}

// fail kills the child, for a reason that is told.
func (p *process) fail(reason string) {
	p.mu.Lock()
	if p.reason == "" {
		p.reason = reason
	}
	p.mu.Unlock()
	// An error means that it has ended already.
	_ = p.cmd.Process.Kill()
}

// send queues a frame. It never blocks.
func (p *process) send(k kind, body []byte) {
	frame, err := endFrame(append(beginFrame(nil, k), body...))
	if err != nil {
		p.fail(err.Error())
		return
	}
	p.mu.Lock()
	if !p.gone {
		p.out = append(p.out, frame...)
	}
	p.mu.Unlock()
	p.signal()
}

func (p *process) signal() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// write writes what was queued. What is queued is bounded, because the child
// can have only so many batches that are not settled.
func (p *process) write() {
	for range p.news {
		p.mu.Lock()
		out, gone := p.out, p.gone
		p.out = nil
		p.mu.Unlock()
		if gone {
			return
		}
		// An error means that the child is about to end; its end is told.
		_, _ = p.conn.Write(out)
	}
}

// queued gives the window what a batch took of it.
func (p *process) queued(h *held) {
	p.mu.Lock()
	p.pending -= h.size
	p.mu.Unlock()
	p.send(kindQueued, appendNumber(nil, h.number))
}

// acknowledge tells the child the outcome of a batch.
func (p *process) acknowledge(h *held) { p.send(kindAck, appendAck(nil, h.number, h.dropped)) }

// read takes frames until the child closes its end. It never waits for the
// pipeline.
func (p *process) read() {
	watch := time.AfterFunc(silence, func() { p.fail(fmt.Sprintf("it was silent for %v", silence)) })
	defer watch.Stop()
	in := newFrameReader(p.conn)
	for {
		k, body, err := in.next()
		if err == nil {
			watch.Reset(silence)
			err = p.take(k, body)
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ECONNRESET):
			return
		default:
			p.fail("it sent what cannot be: " + err.Error())
			return
		}
	}
}

func (p *process) take(k kind, body []byte) error {
	switch k {
	case kindBatch:
		return p.takeBatch(body)
	case kindStatus:
		var s sources.Snapshot
		if err := json.Unmarshal(body, &s); err != nil {
			return fmt.Errorf("%w: status: %w", errFrame, err)
		}
		p.status.apply(p.src.cfg.Status, s)
		if known(s.State) {
			p.src.childState(s.State, oneLine(s.Detail, maxDetail))
		}
	case kindLog:
		relay(p.src.log, body)
	case kindEnded:
		var e ended
		if err := json.Unmarshal(body, &e); err != nil {
			return fmt.Errorf("%w: end: %w", errFrame, err)
		}
		select {
		case p.ended <- e.err():
		default:
			return fmt.Errorf("%w: it ended twice", errFrame)
		}
	default:
		return fmt.Errorf("%w: kind %q", errFrame, byte(k))
	}
	return nil
}

func (p *process) takeBatch(body []byte) error {
	number, b, size, err := p.shapes.batch(body, p.src.cfg.Name)
	if err != nil {
		return err
	}
	if number != p.last+1 {
		return fmt.Errorf("%w: batch %d after %d", errFrame, number, p.last)
	}
	p.last = number
	p.status.emitted += uint64(len(b.Records))
	h := &held{from: p, number: number, size: size, batch: b}
	p.mu.Lock()
	full := p.pending > window
	p.pending += h.size
	p.mu.Unlock()
	if full {
		return fmt.Errorf("%w: more batches than the window allows", errFrame)
	}
	p.src.queue.add(h)
	return nil
}

// err is the error that Run returned, with its mark.
func (e ended) err() error {
	if e.Text == "" {
		return nil
	}
	err := errors.New(oneLine(e.Text, maxDetail))
	switch e.State {
	case sources.AuthFailed:
		return sources.AuthError(err)
	case sources.Failed:
		return sources.ConfigError(err)
	default:
		return err
	}
}

// environment is what a child gets of ours: where the authorities are, the time
// zone, the language. Nothing else, since variables hold secrets.
func environment(lookup func(string) (string, bool)) []string {
	env := []string{"GOTRACEBACK=single"}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "TZ", "LANG", "LC_ALL", "LC_CTYPE"} {
		if v, ok := lookup(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// lowestLevel is the level below which log writes nothing.
func lowestLevel(log *slog.Logger) slog.Level {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(context.Background(), l) {
			return l
		}
	}
	return slog.LevelError
}
