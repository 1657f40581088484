package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// trial is one module in a sandbox without a host around it, for those who write
// modules. It treats the module as a pipeline does: the same limits, batches of one
// source, state of each source that is committed batch by batch, records at fault
// set apart by bisection. Its methods are called by one goroutine.
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
	Strict  bool
	Tick    time.Duration // 0: none
}

// errNotAdmitted is in front of why a module is refused before anything of it runs.
var errNotAdmitted = errors.New("the module is not admitted")

// openTrial admits and starts a module. One that is not admitted gives
// errNotAdmitted and a *sandbox.Refusal; one that refuses its configuration a
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
	t = &trial{names: append([]string{""}, s.Outputs...), state: trialState{values: map[string]map[string]trialValue{}}}
	t.Metrics = map[string]float64{}
	t.env = sandbox.Env{Name: s.Name, Config: s.Config, Outputs: map[string]uint32{}, KV: &t.state, Limits: s.Limits, Strict: s.Strict, Logger: slog.New(trialLog{t})}
	for i, name := range s.Outputs {
		t.env.Outputs[name] = uint32(i + 1)
	}
	begin := time.Now()
	if t.module, err = h.Compile(ctx, wasm); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", errNotAdmitted, err), t.close(ctx))
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
	t.state.now, t.state.source = b.Time, b.Records[0].Source
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

// tick runs the module's tick for one source.
func (t *trial) tick(ctx context.Context, source string, seq uint64, at int64) error {
	t.Ticks++
	t.state.now, t.state.source = at, source
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

// trialRun is a run under way.
type trialRun struct {
	*trial
	trialPlan
	seq     uint64
	sources []string // that have sent something, in that order
}

// run sends the records of each input through the module. A batch has records of
// one input and one source. Time is that of the records: a batch has that of its
// last one, and a tick for each source comes at every multiple of the period, the
// last one after the last record. A gap without records has two ticks at most.
func (t *trial) run(ctx context.Context, p trialPlan, inputs ...[]abi.Record) error {
	r := &trialRun{trial: t, trialPlan: p}
	for i, recs := range inputs {
		if err := r.input(ctx, recs, slices.Concat(inputs[i+1:]...)); err != nil {
			return err
		}
	}
	return nil
}

// input sends the records of one input; later are those of the inputs after it.
func (r *trialRun) input(ctx context.Context, recs, later []abi.Record) error {
	period := r.Tick.Microseconds()
	for len(recs) > 0 {
		n, now := batchOf(recs, r.Batch, period)
		b, line := &abi.Batch{Time: now, Records: recs[:n]}, r.Records+1
		recs = recs[n:]
		err := r.call(ctx, func() error { b.Seq = r.seq; return r.process(ctx, b, line) })
		if err != nil {
			return err
		}
		r.Records, r.Batches = r.Records+n, r.Batches+1
		if source := b.Records[0].Source; !slices.Contains(r.sources, source) {
			r.sources = append(r.sources, source)
		}
		rest := recs
		if len(rest) == 0 {
			rest = later
		}
		for _, at := range ticksBetween(now, rest, period) {
			for _, source := range r.sources {
				if err := r.call(ctx, func() error { return r.tick(ctx, source, r.seq, at) }); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// call numbers a call of the module.
func (r *trialRun) call(ctx context.Context, f func() error) error {
	if r.seq++; r.Restart && r.seq > 1 {
		if err := r.restart(ctx); err != nil {
			return err
		}
	}
	return f()
}

// readAt is when edgehost received a record, as far as it says.
func readAt(r *abi.Record) int64 {
	if r.IngestTime != 0 {
		return r.IngestTime
	}
	return r.EventTime
}

// batchOf takes records of one source up to the next tick and says when the last
// one came.
func batchOf(recs []abi.Record, most int, period int64) (n int, now int64) {
	now = readAt(&recs[0])
	for n = 1; n < min(most, len(recs)) && recs[n].Source == recs[0].Source; n++ {
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
	now    int64                            // of the running call
	source string                           // of the running call
	values map[string]map[string]trialValue // by source and key
}

type trialValue struct {
	value   []byte
	expires int64 // 0: never
}

func (v trialValue) expired(now int64) bool { return v.expires != 0 && v.expires <= now }

// Get implements sandbox.KV.
func (s *trialState) Get(key string) ([]byte, bool, error) {
	v, ok := s.values[s.source][key]
	if !ok || v.expired(s.now) {
		return nil, false, nil
	}
	return v.value, true, nil
}

func (s *trialState) commit(writes []sandbox.KVWrite) {
	values := s.values[s.source]
	if values == nil && len(writes) > 0 {
		values = map[string]trialValue{}
		s.values[s.source] = values
	}
	for _, w := range writes {
		switch {
		case w.Delete:
			delete(values, w.Key)
		case w.TTL > 0:
			values[w.Key] = trialValue{slices.Clone(w.Value), s.now + w.TTL.Microseconds()}
		default:
			values[w.Key] = trialValue{slices.Clone(w.Value), 0}
		}
	}
}

// all lists what has not expired, by source and key.
func (s *trialState) all() map[string]map[string]string {
	out := map[string]map[string]string{}
	for source, values := range s.values {
		for key, v := range values {
			if v.expired(s.now) {
				continue
			}
			if out[source] == nil {
				out[source] = map[string]string{}
			}
			out[source][key] = string(v.value)
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
