// Package host runs pipelines: it takes batches from sources, has modules
// transform them, makes what comes out durable in the spool with one commit, and
// drains the queues into the sinks. It never sees a protocol: sources and sinks
// come to it as interfaces.
//
//	source ─emit─> pipeline: intake ─> chain of modules ─> commit ──done(nil)──> source
//	                                      │ fault            │
//	                                      v                  ├─ frames ─> queue of each destination ─> drain ─> sink
//	                              held/<pipeline>            ├─ rejects ─> dead-letter queue
//	                                                         └─ commit record in the state store
//
// A commit is: frames of every destination synced, then one record in the state
// store (sequence number, ledger, resume points, points), then done(nil). Whatever lies
// in a queue without its commit record does not exist: it is voided at start.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
	"github.com/edgehost/edgehost/modules"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/spool"
)

// Config is everything that a Host needs. Names are unique; main resolved the
// globs and defaults of the configuration file.
type Config struct {
	Version      string
	Spool        *spool.Spool
	Modules      *modules.Registry
	Sandbox      *sandbox.Host
	Logger       *slog.Logger
	Sources      []SourceConfig
	Pipelines    []PipelineConfig
	Destinations []DestinationConfig
	// MemoryRecords bounds the records that a pipeline holds in memory before
	// they are committed; the seed's memory_queue.max_size. At least 1.
	MemoryRecords int
	// Workers is how many sources of one pipeline are transformed at the same time;
	// 0 is 1.
	Workers int
	// LetterCap is the size of the dead-letter queue in bytes, for the status.
	LetterCap uint64
	// Spooled is what the status shows of the spool's configuration. Its Cap bounds
	// the files of all queues, in bytes; 0 is no bound.
	Spooled control.SpoolStatus
	// NotInForce lists configuration keys that have no effect yet.
	NotInForce []string
	// Grace bounds how long a stop waits for acknowledgements of what was sent.
	Grace time.Duration
}

// SourceConfig is one source. Source is nil when the source is disabled.
type SourceConfig struct {
	Name, Protocol string
	Source         sources.Source
	Status         *sources.Status
	Reconnect      sources.ReconnectConfig
	Watch          sources.WatchConfig
	// Points says in a few bytes which points the configuration of the source names
	// and what their records say of them. What is known of points is kept over a
	// restart while it stays the same; "": it is not kept.
	Points string
}

// PipelineConfig is one pipeline.
type PipelineConfig struct {
	Name    string
	Sources []string // names of sources; each belongs to one pipeline
	Modules []ModuleConfig
	// Bypass sends records past a module that was never uploaded; otherwise the
	// sources wait for it.
	Bypass bool
	// Targets is the default destination of the records of each source, and
	// Target that of records that no input record stands behind.
	Targets map[string]string
	Target  string
	// Outputs are the names that modules may route to, and their destinations.
	Outputs map[string]string
}

// ModuleConfig is one step of a pipeline's chain.
type ModuleConfig struct {
	Name   string
	Config map[string]string // what config_get returns
	Limits sandbox.Limits
	// Tick calls edgehost_tick with this period, for each source of the pipeline;
	// 0 never.
	Tick time.Duration
	// Strict has every batch find the module as it was after init.
	Strict bool
	// OnFault is what happens when a module faults beyond the budget of a
	// bisection; "" is FaultHold.
	OnFault string
}

// The policies for a module that faults again and again. The module is tried
// again with a back-off, and at once after an upload or a rollback.
const (
	FaultHold       = "hold"   // keep the pipeline's input until the module works
	FaultDeadLetter = "dlq"    // dead-letter what would have gone through it
	FaultBypass     = "bypass" // let records pass without it
)

// DestinationConfig is one table.
type DestinationConfig struct {
	Name string // catalog.schema.table
	Kind string // zerobus or file
	// NewSink makes a sink for the table: one for the drain, one for each replay.
	NewSink   func() sinks.Sink
	Breaker   sinks.BreakerConfig
	Reconnect sinks.ReconnectConfig
	// MaxBatch bounds the records of one request to the service; MaxWait is how
	// long a smaller batch may wait for more while others are unacknowledged.
	MaxBatch int
	MaxWait  time.Duration
	// Retain keeps acknowledged frames for replay.
	Retain time.Duration
}

// Host runs everything that is configured. Make it with New, run it once with
// Run; all other methods may be called by any goroutine from New to the end.
type Host struct {
	cfg   Config
	log   *slog.Logger
	state *spool.State
	dlq   *spool.DeadLetters
	start time.Time

	pipelines    []*pipeline
	destinations map[string]*destination
	gates        map[string]*gate // of sources that are not disabled; fixed once the host is made
	order        []string         // names of destinations as configured
	// requeue commits what leaves the dead-letter queue for a destination.
	requeue   *committer
	requeueMu sync.Mutex
	retired   []*book  // of pipelines that are no longer configured
	strays    []string // queues on disk with waiting records that nothing configured drains

	// books orders commits and readers of the ledger: a commit takes it to change
	// counters and queues together, the status to read them together.
	books sync.RWMutex

	changing nameLocks // modules that are uploaded or rolled back

	filling filling

	readyMu sync.Mutex
	ready   bool
}

// New opens the queues, drops what no commit record covers, and loads the active
// revisions of the modules. A module that cannot be loaded holds its pipeline
// and fails nothing else.
func New(ctx context.Context, cfg Config) (*Host, error) {
	h := &Host{cfg: cfg, log: cfg.Logger, start: time.Now(), destinations: map[string]*destination{}, gates: map[string]*gate{},
		changing: nameLocks{held: map[string]chan struct{}{}}}
	for _, sc := range cfg.Sources {
		if sc.Source != nil {
			h.gates[sc.Name] = newGate()
		}
	}
	var err error
	if h.state, err = cfg.Spool.State("host"); err != nil {
		return nil, fmt.Errorf("open state store: %w", err)
	}
	books, err := loadBooks(h.state)
	if err != nil {
		return nil, fmt.Errorf("read commit records: %w", err)
	}
	committed := books.committed
	if h.dlq, err = cfg.Spool.DeadLetters(committed); err != nil {
		return nil, fmt.Errorf("open dead-letter queue: %w", err)
	}
	for _, dc := range cfg.Destinations {
		q, err := cfg.Spool.Queue(dc.Name, committed)
		if err != nil {
			return nil, fmt.Errorf("open queue of %s: %w", dc.Name, err)
		}
		q.Retain(dc.Retain)
		h.destinations[dc.Name] = newDestination(h, dc, q)
		h.order = append(h.order, dc.Name)
	}
	if err := cfg.checkMembers(); err != nil {
		return nil, err
	}
	for _, pc := range cfg.Pipelines {
		p, err := h.openPipeline(ctx, pc, books)
		if err != nil {
			return nil, err
		}
		h.pipelines = append(h.pipelines, p)
	}
	requeue, err := books.book(requeueName)
	if err != nil {
		return nil, err
	}
	h.requeue = newCommitter(h, h.log, nil, nil, requeue)
	if err := h.forgetStrayPoints(); err != nil {
		return nil, err
	}
	return h, h.findStrays(books)
}

// checkMembers holds the configuration to one pipeline for each source, and to
// destinations that exist.
func (c *Config) checkMembers() error {
	owner, known := map[string]string{}, map[string]bool{}
	for _, d := range c.Destinations {
		known[d.Name] = true
	}
	for _, p := range c.Pipelines {
		for _, s := range p.Sources {
			if other, taken := owner[s]; taken {
				return fmt.Errorf("source %s belongs to the pipelines %s and %s", s, other, p.Name)
			}
			owner[s] = p.Name
		}
		for _, m := range []map[string]string{p.Targets, p.Outputs, {"": p.Target}} {
			for _, name := range m {
				if !known[name] {
					return fmt.Errorf("pipeline %s delivers to %s, which is no destination", p.Name, name)
				}
			}
		}
	}
	for _, s := range c.Sources {
		if owner[s.Name] == "" {
			return fmt.Errorf("source %s belongs to no pipeline", s.Name)
		}
	}
	return nil
}

// findStrays keeps the books of pipelines that are gone, for the ledger, and
// finds queues that still hold records for something that is gone.
func (h *Host) findStrays(bs *books) error {
	known := map[string]bool{}
	for _, name := range h.order {
		known[name] = true
	}
	live := map[string]bool{requeueName: true}
	for _, p := range h.pipelines {
		live[p.cfg.Name], known[heldQueue(p.cfg.Name)] = true, true
	}
	for _, name := range sortedKeys(bs.byName) {
		if !live[name] {
			h.retired = append(h.retired, bs.byName[name])
		}
	}
	for _, name := range h.cfg.Spool.Queues() {
		if known[name] {
			continue
		}
		q, err := h.cfg.Spool.Queue(name, bs.committed)
		if err != nil {
			return fmt.Errorf("open queue of %s, which is no longer configured: %w", name, err)
		}
		if n := q.Stat().WaitingRecords; n > 0 {
			h.log.Warn("queue holds records and nothing configured drains it", "queue", name, "records", n)
			h.strays = append(h.strays, name)
		}
	}
	return nil
}

// Run starts drains, pipelines and sources, and stops them in the other order
// when ctx ends: sources first, then what they emitted is committed, then what
// was sent is acknowledged for at most Grace. It returns when all have stopped.
func (h *Host) Run(ctx context.Context) error {
	drainCtx, stopDrains := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDrains()
	pipeCtx, stopPipes := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPipes()

	var drains, pipes, srcs sync.WaitGroup
	for _, name := range h.order {
		d := h.destinations[name]
		drains.Go(func() { d.run(drainCtx) })
	}
	byName := map[string]*pipeline{}
	for _, p := range h.pipelines {
		pipes.Go(func() { p.run(pipeCtx) })
		for _, s := range p.cfg.Sources {
			byName[s] = p
		}
	}
	for _, sc := range h.cfg.Sources {
		if sc.Source == nil {
			continue
		}
		p := byName[sc.Name]
		srcs.Go(func() {
			h.runSource(ctx, sc, p.emit(sc.Name))
		})
	}
	h.setReady(true)
	<-ctx.Done()
	h.setReady(false)
	srcs.Wait()
	stopPipes()
	pipes.Wait()
	stopDrains()
	drains.Wait()
	return nil
}

// Close releases the modules' instances. It is called after Run returned; the
// spool belongs to the caller.
func (h *Host) Close(ctx context.Context) error {
	var errs []error
	for _, p := range h.pipelines {
		errs = append(errs, p.chain.close(ctx))
	}
	return errors.Join(errs...)
}

// Resume returns the resume point that was committed last for the source, nil
// when there is none.
func (h *Host) Resume(source string) []byte {
	b, err := h.state.Get(spaceResume, source)
	if err != nil {
		h.log.Error("resume point cannot be read; the source starts afresh", "source", source, "error", err)
		return nil
	}
	return b
}

func (h *Host) setReady(v bool) {
	h.readyMu.Lock()
	defer h.readyMu.Unlock()
	h.ready = v
}
