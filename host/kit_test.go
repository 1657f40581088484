package host

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
	"github.com/edgehost/edgehost/modules"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/spool"
)

//go:embed testdata/*.wasm
var testModules embed.FS

func wasm(t testing.TB, name string) []byte {
	t.Helper()
	b, err := testModules.ReadFile("testdata/" + name + ".wasm")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// table is a destination in memory: what it holds is durable, whatever happens
// to the host.
type table struct {
	mu      sync.Mutex
	changed chan struct{}
	rows    []sinks.Record
	down    bool               // Open and Send fail
	refuse  func(string) bool  // by address: refuse the record
	watch   func(sinks.Record) // called instead of keeping the rows
	streams int
}

func newTable() *table { return &table{changed: make(chan struct{})} }

func (tb *table) Open(context.Context) (sinks.Stream, error) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if tb.down {
		return nil, errors.New("table is down")
	}
	tb.streams++
	return &tableStream{tb: tb, acks: sinks.NewAckQueue()}, nil
}

type tableStream struct {
	tb     *table
	acks   *sinks.AckQueue
	err    error
	closed bool
}

func (s *tableStream) Send(_ context.Context, recs []sinks.Record) error {
	s.tb.mu.Lock()
	defer s.tb.mu.Unlock()
	if s.tb.down {
		s.err = errors.New("table went down")
		s.end()
		return s.err
	}
	a := sinks.Ack{Seq: recs[len(recs)-1].Seq}
	for _, r := range recs {
		if s.tb.refuse != nil && s.tb.refuse(r.Address) {
			a.Refused = append(a.Refused, sinks.Refusal{Seq: r.Seq, Reason: sinks.ReasonRejectedPermanent, Err: sinks.Permanent(errors.New("no such column"))})
			continue
		}
		if s.tb.watch != nil {
			s.tb.watch(r)
			continue
		}
		s.tb.rows = append(s.tb.rows, r)
	}
	close(s.tb.changed)
	s.tb.changed = make(chan struct{})
	s.acks.Put(a)
	return nil
}

func (s *tableStream) end() {
	if !s.closed {
		s.closed = true
		s.acks.Close()
	}
}

func (s *tableStream) Acks() <-chan sinks.Ack { return s.acks.C() }
func (s *tableStream) Err() error             { return s.err }
func (s *tableStream) Close(context.Context) error {
	s.tb.mu.Lock()
	defer s.tb.mu.Unlock()
	s.end()
	return nil
}

func (tb *table) setDown(down bool) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.down = down
}

func (tb *table) setRefuse(f func(string) bool) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.refuse = f
}

func (tb *table) all() []sinks.Record {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return slices.Clone(tb.rows)
}

// wait returns once the table holds n distinct record ids.
func (tb *table) wait(t testing.TB, n int) []sinks.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		tb.mu.Lock()
		ids := map[sinks.ID]bool{}
		for i := range tb.rows {
			ids[tb.rows[i].ID] = true
		}
		rows, changed := slices.Clone(tb.rows), tb.changed
		tb.mu.Unlock()
		if len(ids) >= n {
			return rows
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("table holds %d distinct records, want %d", len(ids), n)
		}
	}
}

// feed is a source that emits what the test hands it.
type feed struct {
	in   chan sources.Batch
	done chan fed
}

// fed is one done call: which batch, and how it went.
type fed struct {
	b   sources.Batch
	err error
}

func newFeed() *feed { return &feed{in: make(chan sources.Batch), done: make(chan fed, 100000)} }

func (f *feed) Run(ctx context.Context, emit sources.Emit) error {
	for {
		select {
		case b := <-f.in:
			if err := emit(ctx, b, func(err error) { f.done <- fed{b, err} }); err != nil {
				f.done <- fed{b, err}
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// give emits records with the addresses and waits until they are settled.
func (f *feed) give(t testing.TB, recs ...abi.Record) error {
	t.Helper()
	f.send(t, recs...)
	return f.settled(t)
}

func (f *feed) send(t testing.TB, recs ...abi.Record) {
	t.Helper()
	select {
	case f.in <- sources.Batch{Time: 1, Records: recs}:
	case <-time.After(30 * time.Second):
		t.Fatal("the source does not take the batch")
	}
}

func (f *feed) settled(t testing.TB) error {
	t.Helper()
	select {
	case d := <-f.done:
		return d.err
	case <-time.After(30 * time.Second):
		t.Fatal("the batch is not settled")
		return nil
	}
}

// rec is a record of the source "s1".
func rec(address string, v int64) abi.Record { return recOf("s1", address, v) }

func recOf(source, address string, v int64) abi.Record {
	return abi.Record{EventTime: v, IngestTime: time.Now().UnixMicro(), Source: source, Address: address, Protocol: abi.ProtocolMQTT, Value: abi.Int(v)}
}

func batchOf(recs []abi.Record) sources.Batch { return sources.Batch{Time: 1, Records: recs} }

func recs(address string, from, n int) []abi.Record { return recsOf("s1", address, from, n) }

func recsOf(source, address string, from, n int) []abi.Record {
	out := make([]abi.Record, n)
	for i := range out {
		out[i] = recOf(source, address, int64(from+i))
	}
	return out
}

// rig is a host with one pipeline, one source unless it is wide, and two tables,
// or more when its targets say so.
type rig struct {
	t     testing.TB
	fs    vfs.FS
	dir   string
	main  *table
	other *table
	feed  *feed // of the first source
	feeds []*feed
	// workers is how many sources are transformed at a time; 0 is 1.
	workers int
	// tables are those beside main and other, by name.
	tables map[string]*table
	retain time.Duration
	host   *Host
	sp     *spool.Spool
	box    *sandbox.Host
	cfg    PipelineConfig
	stop   func()
	key    string
	// letterBytes bounds the dead-letter queue; 0 is its default.
	letterBytes int64
	cap         uint64 // of the spool; 0 is none
	// watch and points are those of every source.
	watch  sources.WatchConfig
	points string
}

const (
	mainTable  = "c.s.main"
	otherTable = "c.s.other"
)

// newRig makes a rig whose pipeline has the modules.
func newRig(t testing.TB, names ...string) *rig {
	r := &rig{t: t, fs: vfs.NewMem(), dir: t.TempDir(), main: newTable(), other: newTable(),
		retain: time.Hour, key: "mVb0jcZ0yfC1yHcZ0cXW6bq0m7n3pE4wH4a3v8y2rT0="}
	r.cfg = PipelineConfig{Name: "line1", Sources: []string{"s1"}, Targets: map[string]string{"s1": mainTable},
		Target: mainTable, Outputs: map[string]string{"second": otherTable}}
	for _, n := range names {
		r.cfg.Modules = append(r.cfg.Modules, ModuleConfig{Name: n, Limits: sandbox.Limits{Deadline: 10 * time.Second}})
	}
	return r
}

// wide gives the pipeline n sources, s1 to sn, and workers.
func (r *rig) wide(n, workers int) *rig {
	r.workers, r.cfg.Sources = workers, nil
	for i := range n {
		name := "s" + strconv.Itoa(i+1)
		r.cfg.Sources = append(r.cfg.Sources, name)
		r.cfg.Targets[name] = mainTable
	}
	return r
}

// apart gives each source a table of its own, named like it.
func (r *rig) apart() *rig {
	r.tables = map[string]*table{}
	for _, source := range r.cfg.Sources {
		r.cfg.Targets[source] = "c.s." + source
		r.tables["c.s."+source] = newTable()
	}
	return r
}

func (r *rig) start() *rig {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	r.sp, err = spool.Open(spool.Options{Dir: "spool", FS: r.fs, Logger: log, MaxLetterBytes: r.letterBytes, Keys: spool.KeyConfig{KeyEnv: "KEY"},
		Getenv: func(string) string { return r.key }})
	r.must(err)
	if r.box == nil {
		r.box, err = sandbox.New(sandbox.Config{})
		r.must(err)
		r.t.Cleanup(func() { r.must(r.box.Close()) })
	}
	reg, err := modules.Open(r.dir)
	r.must(err)
	r.feeds = nil
	var srcs []SourceConfig
	for _, name := range r.cfg.Sources {
		f := newFeed()
		r.feeds = append(r.feeds, f)
		srcs = append(srcs, SourceConfig{Name: name, Protocol: "mqtt", Source: f, Status: sources.NewStatus(name, "mqtt"),
			Watch: r.watch, Points: r.points})
	}
	r.feed = r.feeds[0]
	dest := func(name string, tb *table) DestinationConfig {
		return DestinationConfig{Name: name, Kind: "table", NewSink: func() sinks.Sink { return tb },
			Breaker: sinks.BreakerConfig{}, Reconnect: sinks.ReconnectConfig{InitialDelaySeconds: 0.01, MaxDelaySeconds: 0.05, BackoffMultiplier: 2},
			MaxBatch: 100, MaxWait: time.Second, Retain: r.retain}
	}
	dests := []DestinationConfig{dest(mainTable, r.main), dest(otherTable, r.other)}
	for name, tb := range r.tables {
		dests = append(dests, dest(name, tb))
	}
	r.host, err = New(r.t.Context(), Config{Version: "test", Spool: r.sp, Modules: reg, Sandbox: r.box, Logger: log,
		Sources: srcs, Pipelines: []PipelineConfig{r.cfg}, Destinations: dests, Workers: r.workers,
		Spooled: control.SpoolStatus{Cap: r.cap}, MemoryRecords: 10000, Grace: time.Second})
	r.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	h, sp := r.host, r.sp
	go func() { done <- h.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		r.must(<-done)
		r.must(h.Close(context.Background()))
		r.must(sp.Close())
	})
	r.t.Cleanup(r.stop)
	return r
}

// restart stops the host in order and starts it again on the same disk.
func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.start()
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) push(name, file string) {
	r.t.Helper()
	_, err := r.host.PushModule(r.t.Context(), control.PushRequest{Name: name, Wasm: wasm(r.t, file), Activate: true})
	r.must(err)
}

func (r *rig) status() control.Status {
	r.t.Helper()
	s, err := r.host.Status(r.t.Context())
	r.must(err)
	return s
}

// until polls the status: it has no event of its own.
func (r *rig) until(what string, ok func(control.Status) bool) control.Status {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for {
		s := r.status()
		if ok(s) {
			return s
		}
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("never: %s; status %+v", what, s)
		}
	}
}

// balanced waits until nothing waits, and demands a ledger that balances with
// the numbers.
func (r *rig) balanced(want control.Ledger) {
	r.t.Helper()
	s := r.until("everything delivered", func(s control.Status) bool { return s.Ledger.Waiting == 0 })
	l := s.Ledger
	if !l.Balanced {
		r.t.Fatalf("ledger does not balance: %+v", l)
	}
	got := control.Ledger{Read: l.Read, Delivered: l.Delivered, Filtered: l.Filtered, DeadLettered: l.DeadLettered, Dropped: l.Dropped, Held: l.Held}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		r.t.Fatalf("ledger: read %d delivered %d filtered %d dead-lettered %d held %d, want %+v", l.Read, l.Delivered, l.Filtered, l.DeadLettered, l.Held, want)
	}
}

// values lists the integer values of rows as text, in order, without repeats.
func values(rows []sinks.Record) []string {
	seen := map[sinks.ID]bool{}
	var out []string
	for _, r := range rows {
		if !seen[r.ID] {
			seen[r.ID] = true
			out = append(out, strconv.FormatInt(r.Value.AsInt(), 10))
		}
	}
	return out
}

func numbers(from, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = strconv.Itoa(from + i)
	}
	return out
}
