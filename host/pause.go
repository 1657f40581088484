package host

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sources"
)

// gate lets one source run or keeps it paused. The order of a person holds until
// the next order or the end of the process: it is not kept on disk.
type gate struct {
	mu      sync.Mutex
	paused  bool
	by      string             // who paused it
	stop    context.CancelFunc // of the run that is under way; nil: none
	stuck   <-chan struct{}    // closed when a run that did not stop has ended; nil: there is none
	changed chan struct{}      // closed and made anew at every change
}

func newGate() *gate { return &gate{changed: make(chan struct{})} }

// change lets f change the gate and wakes who waits for it.
func (g *gate) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	close(g.changed)
	g.changed = make(chan struct{})
}

// wait returns when cond, which is called under the gate's lock, is true.
func (g *gate) wait(ctx context.Context, cond func() bool) error {
	for {
		g.mu.Lock()
		ok, changed := cond(), g.changed
		g.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// enter returns the context of a run unless the source is paused.
func (g *gate) enter(ctx context.Context) (run context.Context, ok bool) {
	g.change(func() {
		if ok = !g.paused; ok {
			run, g.stop = context.WithCancel(ctx)
		}
	})
	return run, ok
}

// leave ends a run; stuck is what Supervise returned.
func (g *gate) leave(stuck <-chan struct{}) {
	g.change(func() {
		g.stop()
		g.stop, g.stuck = nil, stuck
	})
}

// left returns once a run that did not stop has ended, at once when there is none;
// false when ctx ends before.
func (g *gate) left(ctx context.Context) bool {
	g.mu.Lock()
	stuck := g.stuck
	g.mu.Unlock()
	if stuck == nil {
		return true
	}
	select {
	case <-stuck:
	case <-ctx.Done():
		return false
	}
	g.change(func() { g.stuck = nil })
	return true
}

// check is the answer to an order for a source that does not stop.
func (g *gate) check(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stuck == nil {
		return nil
	}
	return control.Errorf(control.Busy, "source %s was told to stop and does not: it may still read, and it runs again only when it has ended; a restart of edgehost ends it", name)
}

// detail is what the status says of a paused source.
func (g *gate) detail() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.by + " paused it: edgehost source resume starts it again, and so does a restart"
}

// runSource runs a source under its supervisor, again and again as it is paused
// and resumed, until ctx ends. The watch over its points goes on in between.
func (h *Host) runSource(ctx context.Context, sc SourceConfig, pipeline sources.Emit) {
	log := h.log.With("component", "source", "source", sc.Name)
	watch := sources.NewWatch(sc.Watch, sc.Status, log)
	if err := h.recallPoints(sc, watch); err != nil {
		log.Error("points that fell silent while the host was down will not be reported", "error", err)
	}
	emit := watch.Emit(pipeline)
	var watching sync.WaitGroup
	watching.Go(func() { watch.Run(ctx, pipeline) })
	defer watching.Wait()
	runGated(ctx, sc, h.gates[sc.Name], emit, log)
}

// runGated runs a source whenever its gate lets it, until ctx ends.
func runGated(ctx context.Context, sc SourceConfig, g *gate, emit sources.Emit, log *slog.Logger) {
	for ctx.Err() == nil {
		if !g.left(ctx) {
			return // its state says that it does not stop
		}
		run, ok := g.enter(ctx)
		if ok {
			g.leave(sources.Supervise(run, sc.Source, emit, sc.Status, sc.Reconnect, log))
			continue
		}
		sc.Status.Report(log, sources.Paused, g.detail())
		// An error means that ctx has ended.
		_ = g.wait(ctx, func() bool { return !g.paused })
	}
	if g.check(sc.Name) == nil {
		sc.Status.Report(log, sources.Stopped, "")
	}
}

// PauseSource implements control.Backend.
func (h *Host) PauseSource(ctx context.Context, name string) error {
	g, err := h.gate(name)
	if err != nil {
		return err
	}
	g.change(func() {
		if !g.paused {
			g.paused, g.by = true, cmp.Or(control.Caller(ctx), "a person")
		}
		if g.stop != nil {
			g.stop()
		}
	})
	if err := g.wait(ctx, func() bool { return g.stop == nil }); err != nil {
		return err
	}
	return g.check(name)
}

// ResumeSource implements control.Backend.
func (h *Host) ResumeSource(_ context.Context, name string) error {
	g, err := h.gate(name)
	if err != nil {
		return err
	}
	g.change(func() { g.paused = false })
	return g.check(name)
}

func (h *Host) gate(name string) (*gate, error) {
	if g := h.gates[name]; g != nil {
		return g, nil
	}
	var names []string
	for _, sc := range h.cfg.Sources {
		names = append(names, sc.Name)
	}
	if slices.Contains(names, name) {
		return nil, control.Errorf(control.Invalid, "source %s is disabled in the configuration: set enabled: true there and restart", name)
	}
	return nil, control.Errorf(control.NotFound, "no source is called %s; there are: %s", name, strings.Join(names, ", "))
}
