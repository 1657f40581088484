package isolate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/edgehost/edgehost/sources"
)

const (
	// statusEvery is how often the child looks whether its status changed, and
	// aliveEvery how often it sends it all the same.
	statusEvery = 200 * time.Millisecond
	aliveEvery  = time.Second
	// startWait is how long the child waits for its first frame.
	startWait = 10 * time.Second
)

// errParent ends a child whose parent went away.
var errParent = errors.New("edgehost has ended")

// Deps are what a source in the child gets in place of the house's.
type Deps struct {
	Name   string
	Logger *slog.Logger
	Status *sources.Status
	Resume func() []byte // the resume point that the parent sent last
}

// Inherited returns the connection to the parent, on file descriptor 3.
func Inherited() (net.Conn, error) {
	f := os.NewFile(3, "parent")
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, errors.Join(errors.New("edgehost starts this command itself; it is of no use otherwise"), err)
	}
	return conn, f.Close()
}

// Serve is the child: it reads the first frame from conn, limits its process,
// and runs the source that build makes of the payload whenever the parent says.
// A source that build refuses is built again at the next run. Serve returns nil
// when the parent says stop, and an error when ctx ends or conn fails.
func Serve(ctx context.Context, conn net.Conn, build func(payload []byte, deps Deps) (sources.Source, error)) error {
	in := newFrameReader(conn)
	first, err := readStart(conn, in)
	if err != nil {
		return err
	}
	if err := first.Limits.apply(); err != nil {
		return err
	}
	w := newWorker(conn, first)
	w.build = func() (sources.Source, error) { return build(first.Payload, w.deps) }
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := context.AfterFunc(work, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stopped()
	w.wg.Go(func() { w.report(work) })
	err = w.serve(work, in)
	cancel()
	ended := make(chan struct{})
	go func() { w.wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(stopGrace):
	}
	return err
}

func readStart(conn net.Conn, in *frameReader) (first start, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(startWait)); err != nil {
		return first, fmt.Errorf("read first frame: %w", err)
	}
	k, body, err := in.next()
	if err == nil && k != kindStart {
		err = fmt.Errorf("%w: kind %q", errFrame, byte(k))
	}
	if err == nil {
		err = json.Unmarshal(body, &first)
	}
	if err != nil {
		return first, fmt.Errorf("read first frame: %w", err)
	}
	clear(body) // it holds secrets
	return first, conn.SetReadDeadline(time.Time{})
}

// worker is the child at work: serve reads the socket, a goroutine runs the
// source, another reports.
type worker struct {
	build func() (sources.Source, error)
	deps  Deps
	wg    sync.WaitGroup

	// emit's own, reused.
	body, numbers, frame []byte
	shapes               shaper

	write sync.Mutex // one frame at a time
	conn  net.Conn

	mu      sync.Mutex
	resume  []byte
	running bool
	number  uint64     // of the last batch
	sent    []sentPart // not settled, in order
	room    int        // bytes of the window that are taken
	freed   chan struct{}
	last    sources.Snapshot
	lastAt  time.Time
}

// sentPart is a frame with records. done is nil when more of the batch follows.
type sentPart struct {
	number uint64
	size   int
	queued bool
	done   func(error)
}

func newWorker(conn net.Conn, first start) *worker {
	w := &worker{conn: conn, freed: make(chan struct{}), shapes: shaper{of: map[string]*shape{}}}
	w.deps = Deps{Name: first.Name, Status: sources.NewStatus(first.Name, first.Protocol),
		Logger: slog.New(slog.NewJSONHandler(logWriter{w}, &slog.HandlerOptions{Level: first.Level})),
		Resume: func() []byte {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.resume
		}}
	return w
}

// serve takes frames until stop.
func (w *worker) serve(ctx context.Context, in *frameReader) error {
	var src sources.Source
	dropped := false // a part of the batch whose parts are being settled
	for {
		k, body, err := in.next()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return errors.Join(errParent, err)
		}
		switch k {
		case kindRun:
			w.mu.Lock()
			busy := w.running
			w.running, w.resume = true, nil
			if len(body) > 0 {
				w.resume = append([]byte(nil), body...)
			}
			w.mu.Unlock()
			if busy {
				return fmt.Errorf("%w: run while running", errFrame)
			}
			w.wg.Go(func() { w.run(ctx, &src) })
		case kindQueued:
			number, err := decodeNumber(body)
			if err != nil {
				return err
			}
			w.free(number)
		case kindAck:
			number, lost, err := decodeAck(body)
			if err != nil {
				return err
			}
			dropped = dropped || lost
			done, err := w.settled(number)
			if err != nil {
				return err
			}
			if done != nil {
				if dropped {
					done(sources.ErrDropped)
				} else {
					done(nil)
				}
				dropped = false
			}
		case kindStop:
			return nil
		default:
			return fmt.Errorf("%w: kind %q", errFrame, byte(k))
		}
	}
}

// run runs the source once and tells the parent how it ended. A panic is not
// caught: it ends the process, and the parent says what it was.
func (w *worker) run(ctx context.Context, src *sources.Source) {
	w.deps.Status.Set(sources.Starting, "")
	err := func() (err error) {
		if *src == nil {
			if *src, err = w.build(); err != nil {
				*src = nil
				return sources.ConfigError(err)
			}
		}
		return (*src).Run(ctx, w.emit)
	}()
	w.sendStatus(true)
	// What it said last is not true of the next run.
	w.deps.Status.Set(sources.Starting, "")
	e := ended{State: sources.ErrorState(err)}
	if err != nil {
		e.Text = err.Error()
	}
	w.mu.Lock()
	w.running = false
	w.mu.Unlock()
	w.sendJSON(kindEnded, e)
}

// report sends the status until ctx ends.
func (w *worker) report(ctx context.Context) {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.sendStatus(false)
		case <-ctx.Done():
			return
		}
	}
}

// sendStatus sends the status when it changed, or was not sent for long, or at
// once.
func (w *worker) sendStatus(now bool) {
	w.mu.Lock()
	s := w.deps.Status.Snapshot()
	due := now || time.Since(w.lastAt) >= aliveEvery || !reflect.DeepEqual(s, w.last)
	if due {
		w.last, w.lastAt = s, time.Now()
	}
	w.mu.Unlock()
	if due {
		s.Counters = maps.Clone(s.Counters)
		maps.DeleteFunc(s.Counters, func(_ string, v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) }) // no JSON
		w.sendJSON(kindStatus, s)
	}
}

func (w *worker) sendJSON(k kind, v any) {
	b, err := json.Marshal(v)
	if err != nil { // texts and finite numbers always encode
		return
	}
	frame, err := endFrame(append(beginFrame(nil, k), b...))
	if err == nil {
		// An error means that the parent is gone, which serve notices.
		_ = w.send(frame)
	}
}

func (w *worker) send(frame []byte) error {
	w.write.Lock()
	defer w.write.Unlock()
	_, err := w.conn.Write(frame)
	return err
}

// logWriter sends each line of the log to the parent.
type logWriter struct{ w *worker }

// Write implements io.Writer.
func (l logWriter) Write(line []byte) (int, error) {
	if len(line) > maxLogLine {
		l.w.sendJSON(kindLog, map[string]any{slog.TimeKey: time.Now(), slog.LevelKey: slog.LevelWarn.String(),
			slog.MessageKey: "a line of the log was too long", "bytes": len(line)})
		return len(line), nil
	}
	frame, err := endFrame(append(beginFrame(nil, kindLog), line...))
	if err != nil {
		return 0, err
	}
	return len(line), l.w.send(frame)
}

var _ io.Writer = logWriter{}
