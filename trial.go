package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// trial is one module in a sandbox without a host around it, for those who write
// modules. It treats the module as a pipeline does: the same limits, state that
// is committed batch by batch, records at fault set apart by bisection. Its
// methods are called by one goroutine.
type trial struct {
	host     *sandbox.Host // nil: the caller's
	module   *sandbox.Module
	instance *sandbox.Instance
	env      sandbox.Env
	names    []string // of the outputs, by handle
	state    trialState
	started  time.Duration // what compiling took
	ready    time.Duration // what the last start took

	trialResult
}

// trialResult is what a trial has seen until now.
type trialResult struct {
	Outcomes []outcome
	Records  int
	Batches  int
	Ticks    int
	Filtered int
	Faults   []trialFault
	Metrics  map[string]float64
	Logs     []logLine
	Fuel     int64 // of all calls that succeeded
}

// trialFault is a record that the module cannot take, or a tick.
type trialFault struct {
	Line    int    `json:"line,omitempty"` // of the input, from 1; 0: a tick
	Class   string `json:"class"`
	Message string `json:"message"`
	Address string `json:"address,omitempty"`
}

// logLine is what a module logged.
type logLine struct {
	Level string `json:"level"`
	Text  string `json:"text"`
}

// trialSetup is what a deployment of the module would get from a pipeline.
type trialSetup struct {
	Name    string
	Config  map[string]string
	Outputs []string
	Limits  sandbox.Limits
}

// openTrial admits and starts a module. A module that is refused gives a
// *sandbox.Refusal, one that fails while it starts a *sandbox.Fault.
func openTrial(ctx context.Context, wasm []byte, s trialSetup) (*trial, error) {
	h, err := sandbox.New(sandbox.Config{Limits: s.Limits})
	if err != nil {
		return nil, err
	}
	t, err := newTrial(ctx, h, wasm, s)
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	t.host = h
	return t, nil
}

// newTrial is openTrial in a sandbox of the caller's.
func newTrial(ctx context.Context, h *sandbox.Host, wasm []byte, s trialSetup) (t *trial, err error) {
	t = &trial{names: append([]string{""}, s.Outputs...), state: trialState{values: map[string]trialValue{}}}
	t.Metrics = map[string]float64{}
	t.env = sandbox.Env{Name: s.Name, Config: s.Config, Outputs: map[string]uint32{}, KV: &t.state, Limits: s.Limits, Logger: slog.New(trialLog{t})}
	for i, name := range s.Outputs {
		t.env.Outputs[name] = uint32(i + 1)
	}
	begin := time.Now()
	if t.module, err = h.Compile(ctx, wasm); err != nil {
		return nil, errors.Join(err, t.close(ctx))
	}
	t.started, t.env.Revision = time.Since(begin), short(t.module.Digest())
	if err := t.restart(ctx); err != nil {
		return nil, errors.Join(err, t.close(ctx))
	}
	return t, nil
}

// restart makes a fresh instance: only the state stays, as after a restart of
// the host.
func (t *trial) restart(ctx context.Context) error {
	if t.instance != nil {
		if err := t.instance.Close(ctx); err != nil {
			return err
		}
		t.instance = nil
	}
	begin := time.Now()
	instance, err := t.module.Instantiate(ctx, t.env)
	if err != nil {
		return err
	}
	t.instance, t.ready = instance, time.Since(begin)
	return nil
}

func (t *trial) close(ctx context.Context) error {
	var errs []error
	if t.instance != nil {
		errs = append(errs, t.instance.Close(ctx))
	}
	if t.module != nil {
		errs = append(errs, t.module.Close(ctx))
	}
	if t.host != nil {
		errs = append(errs, t.host.Close())
	}
	return errors.Join(errs...)
}

// trialFaults is how many faults a trial reports; a pipeline is held after as
// many in one batch.
const trialFaults = 16

var errTooManyFaults = fmt.Errorf("the module failed %d times; a pipeline would be held long before: mend the first fault and try again", trialFaults)

// process runs one batch. An error is not about single records.
func (t *trial) process(ctx context.Context, b *abi.Batch, line int) error {
	t.state.now = b.Time
	res, err := t.instance.Process(ctx, b)
	var fault *sandbox.Fault
	switch n := len(b.Records); {
	case err == nil:
		t.take(res, b.Records)
		return nil
	case !errors.As(err, &fault):
		return err
	case n == 1:
		t.Faults = append(t.Faults, trialFault{line, string(fault.Class), fault.Message, b.Records[0].Address})
		if len(t.Faults) == trialFaults {
			return errTooManyFaults
		}
		return nil
	default:
		first, second := *b, *b
		first.Records, second.Records = b.Records[:n/2], b.Records[n/2:]
		if err := t.process(ctx, &first, line); err != nil {
			return err
		}
		return t.process(ctx, &second, line+n/2)
	}
}

// tick runs the module's tick.
func (t *trial) tick(ctx context.Context, seq uint64, at int64) error {
	t.Ticks++
	t.state.now = at
	res, err := t.instance.Tick(ctx, &abi.Batch{Seq: seq, Time: at})
	var fault *sandbox.Fault
	switch {
	case err == nil:
		t.take(res, nil)
	case errors.As(err, &fault):
		t.Faults = append(t.Faults, trialFault{0, string(fault.Class), fault.Message, ""})
		if len(t.Faults) == trialFaults {
			return errTooManyFaults
		}
	default:
		return err
	}
	return nil
}

// take commits what a call left.
func (t *trial) take(res *sandbox.Result, in []abi.Record) {
	named := map[int]bool{}
	for _, o := range res.Out {
		named[o.Index] = true
		t.Outcomes = append(t.Outcomes, outcome{Record: o.Record, Output: t.names[o.Handle]})
	}
	for _, r := range res.Rejects {
		named[r.Index] = true
		t.Outcomes = append(t.Outcomes, outcome{Record: in[r.Index], Rejected: r.Reason})
	}
	for i := range in {
		if !named[i] {
			t.Filtered++
		}
	}
	t.state.commit(res.KV)
	for _, m := range res.Metrics {
		if m.Kind == sandbox.Counter {
			t.Metrics[m.Name] += m.Value
		} else {
			t.Metrics[m.Name] = m.Value
		}
	}
	t.Fuel += res.Fuel
}

// trialPlan says how records become batches and ticks.
type trialPlan struct {
	Batch   int           // records in one batch, at least 1
	Tick    time.Duration // period of ticks; 0: none
	Restart bool          // start the module afresh before every call
}

// run sends records through the module. Time is that of the records: a batch has
// that of its last one, and a tick comes at every multiple of the period, the
// last one after the last record. A gap without records has two ticks at most.
func (t *trial) run(ctx context.Context, recs []abi.Record, p trialPlan) error {
	var seq uint64
	call := func(f func() error) error {
		if seq++; p.Restart && seq > 1 {
			if err := t.restart(ctx); err != nil {
				return err
			}
		}
		return f()
	}
	period := p.Tick.Microseconds()
	for done := 0; done < len(recs); {
		n, now := batchOf(recs[done:], p.Batch, period)
		line := done + 1
		b := &abi.Batch{Seq: seq + 1, Time: now, Records: recs[done : done+n]}
		if err := call(func() error { return t.process(ctx, b, line) }); err != nil {
			return err
		}
		done += n
		t.Records, t.Batches = done, t.Batches+1
		for _, at := range ticksBetween(now, recs[done:], period) {
			if err := call(func() error { return t.tick(ctx, seq, at) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// readAt is when edgehost received a record, as far as it says.
func readAt(r *abi.Record) int64 {
	if r.IngestTime != 0 {
		return r.IngestTime
	}
	return r.EventTime
}

// batchOf takes records up to the next tick and says when the last one came.
func batchOf(recs []abi.Record, most int, period int64) (n int, now int64) {
	now = readAt(&recs[0])
	for n = 1; n < min(most, len(recs)); n++ {
		at := max(now, readAt(&recs[n]))
		if period > 0 && floor(at, period) != floor(now, period) {
			break
		}
		now = at
	}
	return n, now
}

// ticksBetween lists the ticks after now and until the first of the records that
// follow.
func ticksBetween(now int64, rest []abi.Record, period int64) []int64 {
	if period == 0 {
		return nil
	}
	first := floor(now, period) + period
	if len(rest) == 0 {
		return []int64{first}
	}
	last := floor(readAt(&rest[0]), period)
	switch {
	case last < first:
		return nil
	case last == first:
		return []int64{first}
	}
	return []int64{first, last}
}

func floor(at, period int64) int64 {
	rest := at % period
	if rest < 0 {
		rest += period
	}
	return at - rest
}

// trialState is the state of a module, in memory.
type trialState struct {
	now    int64
	values map[string]trialValue
}

type trialValue struct {
	value   []byte
	expires int64 // 0: never
}

// Get implements sandbox.KV.
func (s *trialState) Get(key string) ([]byte, bool, error) {
	v, ok := s.values[key]
	if !ok || (v.expires != 0 && v.expires <= s.now) {
		return nil, false, nil
	}
	return v.value, true, nil
}

func (s *trialState) commit(writes []sandbox.KVWrite) {
	for _, w := range writes {
		switch {
		case w.Delete:
			delete(s.values, w.Key)
		case w.TTL > 0:
			s.values[w.Key] = trialValue{slices.Clone(w.Value), s.now + w.TTL.Microseconds()}
		default:
			s.values[w.Key] = trialValue{slices.Clone(w.Value), 0}
		}
	}
}

// all lists what has not expired.
func (s *trialState) all() map[string]string {
	out := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		if v, ok, _ := s.Get(key); ok {
			out[key] = string(v)
		}
	}
	return out
}

// trialLog keeps what a module logs.
type trialLog struct{ t *trial }

func (trialLog) Enabled(context.Context, slog.Level) bool { return true }
func (l trialLog) WithAttrs([]slog.Attr) slog.Handler     { return l }
func (l trialLog) WithGroup(string) slog.Handler          { return l }

func (l trialLog) Handle(_ context.Context, r slog.Record) error {
	l.t.Logs = append(l.t.Logs, logLine{r.Level.String(), r.Message})
	return nil
}
