package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

const (
	// benchTime is how long module bench runs when --records does not say how much.
	benchTime = 5 * time.Second
	// benchDeadline is longer than that of a host, so that what takes too long there
	// on this machine can be measured.
	benchDeadline = 20 * time.Second
)

func moduleBenchCommand() *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure what a module costs and suggest limits for it",
		ArgsUsage: "FILE",
		Description: "Sends the records of --input, over and over, or made-up numbers. A module with edgehost_tick ticks\n" +
			"after each batch in which a multiple of --tick has passed. The figures are those of this machine\n" +
			"as busy as it is now; fuel and memory are the same everywhere. The suggested limits leave room: four\n" +
			"times the fuel, twenty times the time of the costliest batch or tick.\n\n" +
			"Example:\n   edgehost module bench scale.wasm --input in.ndjson --set factor=1.8",
		CustomHelpTemplate: cli.CommandHelpTemplate + trialExitHelp,
		Flags: trialFlags(inputFlag(),
			&cli.IntFlag{Name: "records", Usage: "stop after `N` records; 0: after 5 seconds"},
			&cli.IntFlag{Name: "batch", Usage: "`N` records in a batch", Value: batchRecords},
			&cli.DurationFlag{Name: "tick", Usage: "`DURATION` between ticks, in the time of the records; made-up ones are 1 ms apart", Value: time.Second}),
		Action: moduleBench,
	}
}

// benchReport is what module bench says.
type benchReport struct {
	Records          int          `json:"records"`
	Batch            int          `json:"batch"`
	RecordsPerSecond float64      `json:"records_per_second"`
	NSPerRecord      float64      `json:"ns_per_record"`
	FuelPerRecord    float64      `json:"fuel_per_record"`
	FuelPerRowMax    float64      `json:"fuel_per_row_max"` // of the costliest batch
	FuelBatchMax     int64        `json:"fuel_batch_max"`
	SlowestBatchMS   float64      `json:"slowest_batch_ms"`
	MemoryBytes      uint64       `json:"memory_bytes"`
	CompileMS        float64      `json:"compile_ms"`
	StartMS          float64      `json:"start_ms"` // instantiation, _initialize and edgehost_init
	Emitted          int          `json:"emitted"`  // ticks included
	Rejected         int          `json:"rejected"`
	Tick             *tickReport  `json:"tick,omitempty"` // nil: the module has no tick
	Suggested        limitsReport `json:"limits"`
}

// tickReport is what the ticks of a module cost.
type tickReport struct {
	Ticks         int     `json:"ticks"`
	NSPerTick     float64 `json:"ns_per_tick"`
	SlowestTickMS float64 `json:"slowest_tick_ms"`
	FuelPerTick   float64 `json:"fuel_per_tick"`
	FuelTickMax   int64   `json:"fuel_tick_max"`
	Emitted       int     `json:"emitted"`
}

// limitsReport is the part of limitsConfig that bench can suggest, in JSON.
type limitsReport struct {
	MemoryMB       int   `json:"memory_mb"`
	Fuel           int64 `json:"fuel"`
	FuelPerRow     int64 `json:"fuel_per_row"`
	DeadlineMS     int   `json:"deadline_ms"`
	InitDeadlineMS int   `json:"init_deadline_ms"`
}

func moduleBench(c *cli.Context) error {
	setup, err := setupOf(c)
	if err != nil {
		return err
	}
	most, size := c.Int("records"), c.Int("batch")
	if most < 0 || size < 1 {
		return usagef("--records %d is below 0 or --batch %d below 1", most, size)
	}
	tick := tickOf(c, setup)
	if wanted := tick > 0 || c.IsSet("tick"); !wanted {
		tick = c.Duration("tick")
	}
	if tick < time.Millisecond {
		return usagef("--tick %s is below 1ms", tick)
	}
	recs := madeUp(size)
	if c.IsSet("input") {
		inputs, err := readInputs(c)
		if err != nil {
			return err
		}
		if recs = slices.Concat(inputs...); len(recs) == 0 {
			return usagef("--input %s has no record", strings.Join(c.StringSlice("input"), ", "))
		}
	}
	setup.Limits.Deadline = benchDeadline
	return withTrial(c, c.Args().First(), setup, func(t *trial) error {
		switch {
		case t.module.Ticks():
		case c.IsSet("tick") || setup.Tick > 0:
			return wantTicks(t)
		default:
			tick = 0
		}
		r, err := bench(c.Context, t, recs, size, most, tick)
		if err != nil {
			return fmt.Errorf("%w\nedgehost module test finds the record", err)
		}
		return show(c, r, func(w io.Writer) { printBench(w, &r) })
	})
}

// madeUp makes records like those of a plant.
func madeUp(n int) []abi.Record {
	out := make([]abi.Record, n)
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	for i := range out {
		out[i] = abi.Record{EventTime: begin + int64(i)*1000, IngestTime: begin + int64(i)*1000 + 500, Source: "plant",
			Address: fmt.Sprintf("plant/line1/pump%d/temperature", i%100), Protocol: abi.ProtocolMQTT, Value: abi.Float(20 + math.Sin(float64(i))),
			Attrs: []abi.Attr{{Key: abi.AttrUnit, Value: abi.String("°C")}, {Key: abi.AttrQoS, Value: abi.Int(1)}}}
	}
	return out
}

// bencher is one measurement under way.
type bencher struct {
	t *trial
	benchReport

	spent, slowest         time.Duration // in batches
	fuel                   int64
	tickSpent, tickSlowest time.Duration
	tickFuel               int64
}

// bench sends batches of recs, over and over, with a tick after each in which a
// multiple of tick has passed; 0 is no ticks. Time runs on with each round, so
// that a module sees no record twice at the same time.
func bench(ctx context.Context, t *trial, recs []abi.Record, size, most int, tick time.Duration) (benchReport, error) {
	b := &bencher{t: t, benchReport: benchReport{Batch: size, CompileMS: ms(t.started), StartMS: ms(t.ready)}}
	if tick > 0 {
		b.Tick = &tickReport{}
	}
	span := readAt(&recs[len(recs)-1]) - readAt(&recs[0]) + 1000
	batch := make([]abi.Record, 0, size)
	period, ticked := tick.Microseconds(), readAt(&recs[0])
	begin := time.Now()
	for next := 0; (most > 0 && b.Records < most) || (most == 0 && time.Since(begin) < benchTime); {
		batch = batch[:0]
		for n := size; n > 0 && (most == 0 || b.Records+len(batch) < most); n-- {
			rec := recs[next%len(recs)]
			shift := int64(next/len(recs)) * span
			rec.EventTime, rec.IngestTime = rec.EventTime+shift, rec.IngestTime+shift
			batch = append(batch, rec)
			next++
		}
		now := readAt(&batch[len(batch)-1])
		if err := b.process(ctx, &abi.Batch{Seq: uint64(next), Time: now, Records: batch}); err != nil {
			return b.benchReport, err
		}
		if period > 0 && floor(now, period) > floor(ticked, period) {
			ticked = now
			if err := b.tick(ctx, &abi.Batch{Seq: uint64(next), Time: now}); err != nil {
				return b.benchReport, err
			}
		}
	}
	if b.Tick != nil && b.Tick.Ticks == 0 { // the records cover less than a period
		if err := b.tick(ctx, &abi.Batch{Seq: uint64(b.Records), Time: ticked + period}); err != nil {
			return b.benchReport, err
		}
	}
	return b.report(), nil
}

func (b *bencher) process(ctx context.Context, batch *abi.Batch) error {
	res, took, err := b.call(batch.Time, func() (*sandbox.Result, error) { return b.t.instance.Process(ctx, batch) })
	if err != nil {
		return err
	}
	n := len(batch.Records)
	b.spent, b.slowest, b.fuel = b.spent+took, max(b.slowest, took), b.fuel+res.Fuel
	b.Records, b.Emitted, b.Rejected = b.Records+n, b.Emitted+len(res.Out), b.Rejected+len(res.Rejects)
	b.FuelBatchMax = max(b.FuelBatchMax, res.Fuel)
	b.FuelPerRowMax = max(b.FuelPerRowMax, float64(res.Fuel)/float64(n))
	return nil
}

func (b *bencher) tick(ctx context.Context, batch *abi.Batch) error {
	res, took, err := b.call(batch.Time, func() (*sandbox.Result, error) { return b.t.instance.Tick(ctx, batch) })
	if err != nil {
		return fmt.Errorf("tick: %w", err)
	}
	b.tickSpent, b.tickSlowest, b.tickFuel = b.tickSpent+took, max(b.tickSlowest, took), b.tickFuel+res.Fuel
	b.Tick.Ticks, b.Tick.Emitted, b.Emitted = b.Tick.Ticks+1, b.Tick.Emitted+len(res.Out), b.Emitted+len(res.Out)
	b.Tick.FuelTickMax = max(b.Tick.FuelTickMax, res.Fuel)
	return nil
}

// call measures one call of the module and keeps what it wrote.
func (b *bencher) call(now int64, f func() (*sandbox.Result, error)) (*sandbox.Result, time.Duration, error) {
	b.t.state.now = now
	start := time.Now()
	res, err := f()
	took := time.Since(start)
	if err == nil {
		b.t.state.commit(res.KV)
	}
	return res, took, err
}

func (b *bencher) report() benchReport {
	r := b.benchReport
	r.NSPerRecord = float64(b.spent.Nanoseconds()) / float64(r.Records)
	r.RecordsPerSecond = 1e9 / r.NSPerRecord
	r.FuelPerRecord = float64(b.fuel) / float64(r.Records)
	r.SlowestBatchMS, r.MemoryBytes = ms(b.slowest), b.t.instance.MemoryBytes()
	if t := r.Tick; t != nil {
		t.NSPerTick = float64(b.tickSpent.Nanoseconds()) / float64(t.Ticks)
		t.FuelPerTick = float64(b.tickFuel) / float64(t.Ticks)
		t.SlowestTickMS = ms(b.tickSlowest)
	}
	r.Suggested = suggestLimits(&r)
	return r
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// suggestLimits leaves room above what was measured: batches of another size,
// a garbage collection in a small one, a machine that is slower or busier.
func suggestLimits(r *benchReport) limitsReport {
	fuel, slowest := r.FuelBatchMax, r.SlowestBatchMS
	if t := r.Tick; t != nil {
		fuel, slowest = max(fuel, t.FuelTickMax), max(slowest, t.SlowestTickMS)
	}
	return limitsReport{
		MemoryMB:       max(4, int(r.MemoryBytes*3/2)>>20+1),
		Fuel:           max(1_000_000, round2(4*float64(fuel))),
		FuelPerRow:     max(1000, round2(4*r.FuelPerRowMax)),
		DeadlineMS:     int(min(60_000, max(100, round2(20*slowest)))),
		InitDeadlineMS: int(min(60_000, max(500, round2(20*r.StartMS)))),
	}
}

// round2 rounds up to two digits.
func round2(v float64) int64 {
	step := 1.0
	for v/step >= 100 {
		step *= 10
	}
	return int64(math.Ceil(v/step) * step)
}

func printBench(w io.Writer, r *benchReport) {
	rows := [][]string{
		{"records", strconv.Itoa(r.Records), fmt.Sprintf("in batches of %d", r.Batch)},
		{"records/s", fmt.Sprintf("%.0f", r.RecordsPerSecond), fmt.Sprintf("%.0f ns a record", r.NSPerRecord)},
		{"slowest batch", fmt.Sprintf("%.1f ms", r.SlowestBatchMS), ""},
		{"fuel", fmt.Sprintf("%.0f a record", r.FuelPerRecord), fmt.Sprintf("%.0f in the costliest batch", r.FuelPerRowMax)},
		{"memory", size(r.MemoryBytes), ""},
		{"compile", fmt.Sprintf("%.0f ms", r.CompileMS), ""},
		{"start", fmt.Sprintf("%.1f ms", r.StartMS), ""},
		{"emitted", strconv.Itoa(r.Emitted), fmt.Sprintf("%d rejected", r.Rejected)},
	}
	if t := r.Tick; t != nil {
		rows = append(rows,
			[]string{"ticks", strconv.Itoa(t.Ticks), fmt.Sprintf("%d emitted", t.Emitted)},
			[]string{"time of a tick", fmt.Sprintf("%.3f ms", t.NSPerTick/1e6), fmt.Sprintf("%.1f ms the slowest", t.SlowestTickMS)},
			[]string{"fuel of a tick", fmt.Sprintf("%.0f", t.FuelPerTick), fmt.Sprintf("%d the costliest", t.FuelTickMax)})
	}
	table(w, rows)
	s := r.Suggested
	fmt.Fprintf(w, "\nlimits with room to spare, for modules: of a pipeline:\n    limits:\n      memory_mb: %d\n      fuel: %d\n      fuel_per_row: %d\n      deadline_ms: %d\n      init_deadline_ms: %d\n",
		s.MemoryMB, s.Fuel, s.FuelPerRow, s.DeadlineMS, s.InitDeadlineMS)
}
