package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/abi"
)

// benchTime is how long module bench runs when --records does not say how much.
const benchTime = 5 * time.Second

func moduleBenchCommand() *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure what a module costs and suggest limits for it",
		ArgsUsage: "FILE",
		Description: "Sends the records of --input, over and over, or made-up numbers. The figures are those of this machine\n" +
			"as busy as it is now; fuel and memory are the same everywhere. The suggested limits leave room: four\n" +
			"times the fuel, twenty times the time of the costliest batch.\n\n" +
			"Example:\n   edgehost module bench scale.wasm --input in.ndjson --config factor=1.8",
		CustomHelpTemplate: cli.CommandHelpTemplate + trialExitHelp,
		Flags: trialFlags(
			&cli.StringFlag{Name: "input", Aliases: []string{"i"}, Usage: "records in NDJSON, `FILE` or - for standard input"},
			&cli.IntFlag{Name: "records", Usage: "stop after `N` records; 0: after 5 seconds"},
			&cli.IntFlag{Name: "batch", Usage: "`N` records in a batch", Value: batchRecords}),
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
	Emitted          int          `json:"emitted"`
	Rejected         int          `json:"rejected"`
	Suggested        limitsReport `json:"limits"`
}

// limitsReport is the part of limitsConfig that bench can suggest, in JSON.
type limitsReport struct {
	MemoryMB       int   `json:"memory_mb"`
	Fuel           int64 `json:"fuel"`
	FuelPerRow     int64 `json:"fuel_per_row"`
	DeadlineMS     int   `json:"deadline_ms"`
	InitDeadlineMS int   `json:"init_deadline_ms"`
}

func moduleBench(c *cli.Context) (err error) {
	if err := wantArgs(c, 1, 1, "one FILE"); err != nil {
		return err
	}
	setup, err := setupOf(c, "config")
	if err != nil {
		return err
	}
	most, size := c.Int("records"), c.Int("batch")
	if most < 0 || size < 1 {
		return usagef("--records %d is below 0 or --batch %d below 1", most, size)
	}
	recs := madeUp(size)
	if c.IsSet("input") {
		if recs, err = readRecords(c.App.Reader, c.String("input")); err != nil {
			return err
		}
		if len(recs) == 0 {
			return usagef("--input %s has no record", c.String("input"))
		}
	}
	t, err := openFile(c, c.Args().First(), setup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close(c.Context)) }()
	r, err := bench(c.Context, t, recs, size, most)
	if err != nil {
		return fmt.Errorf("%w\nedgehost module test finds the record", err)
	}
	return show(c, r, func(w io.Writer) { printBench(w, &r) })
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

// bench sends batches of recs, over and over. Time runs on with each round, so
// that a module sees no record twice at the same time.
func bench(ctx context.Context, t *trial, recs []abi.Record, size, most int) (benchReport, error) {
	r := benchReport{Batch: size, CompileMS: ms(t.started), StartMS: ms(t.ready)}
	span := readAt(&recs[len(recs)-1]) - readAt(&recs[0]) + 1000
	batch := make([]abi.Record, 0, size)
	var spent time.Duration
	var slowest time.Duration
	var fuel int64
	begin := time.Now()
	for next := 0; (most > 0 && r.Records < most) || (most == 0 && time.Since(begin) < benchTime); {
		batch = batch[:0]
		for n := size; n > 0 && (most == 0 || r.Records+len(batch) < most); n-- {
			rec := recs[next%len(recs)]
			shift := int64(next/len(recs)) * span
			rec.EventTime, rec.IngestTime = rec.EventTime+shift, rec.IngestTime+shift
			batch = append(batch, rec)
			next++
		}
		b := &abi.Batch{Seq: uint64(next), Time: readAt(&batch[len(batch)-1]), Records: batch}
		t.state.now = b.Time
		start := time.Now()
		res, err := t.instance.Process(ctx, b)
		took := time.Since(start)
		if err != nil {
			return r, err
		}
		t.state.commit(res.KV)
		spent, slowest, fuel = spent+took, max(slowest, took), fuel+res.Fuel
		r.Records, r.Emitted, r.Rejected = r.Records+len(batch), r.Emitted+len(res.Out), r.Rejected+len(res.Rejects)
		r.FuelBatchMax = max(r.FuelBatchMax, res.Fuel)
		r.FuelPerRowMax = max(r.FuelPerRowMax, float64(res.Fuel)/float64(len(batch)))
	}
	r.NSPerRecord = float64(spent.Nanoseconds()) / float64(r.Records)
	r.RecordsPerSecond = 1e9 / r.NSPerRecord
	r.FuelPerRecord = float64(fuel) / float64(r.Records)
	r.SlowestBatchMS, r.MemoryBytes = ms(slowest), t.instance.MemoryBytes()
	r.Suggested = suggestLimits(&r)
	return r, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// suggestLimits leaves room above what was measured: batches of another size,
// a garbage collection in a small one, a machine that is slower or busier.
func suggestLimits(r *benchReport) limitsReport {
	return limitsReport{
		MemoryMB:       max(4, int(r.MemoryBytes*3/2)>>20+1),
		Fuel:           max(1_000_000, round2(4*float64(r.FuelBatchMax))),
		FuelPerRow:     max(1000, round2(4*r.FuelPerRowMax)),
		DeadlineMS:     int(min(60_000, max(100, round2(20*r.SlowestBatchMS)))),
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
	table(w, [][]string{
		{"records", strconv.Itoa(r.Records), fmt.Sprintf("in batches of %d", r.Batch)},
		{"records/s", fmt.Sprintf("%.0f", r.RecordsPerSecond), fmt.Sprintf("%.0f ns a record", r.NSPerRecord)},
		{"slowest batch", fmt.Sprintf("%.1f ms", r.SlowestBatchMS), ""},
		{"fuel", fmt.Sprintf("%.0f a record", r.FuelPerRecord), fmt.Sprintf("%.0f in the costliest batch", r.FuelPerRowMax)},
		{"memory", size(r.MemoryBytes), ""},
		{"compile", fmt.Sprintf("%.0f ms", r.CompileMS), ""},
		{"start", fmt.Sprintf("%.1f ms", r.StartMS), ""},
		{"emitted", strconv.Itoa(r.Emitted), fmt.Sprintf("%d rejected", r.Rejected)},
	})
	s := r.Suggested
	fmt.Fprintf(w, "\nlimits with room to spare, for modules: of a pipeline:\n    limits:\n      memory_mb: %d\n      fuel: %d\n      fuel_per_row: %d\n      deadline_ms: %d\n      init_deadline_ms: %d\n",
		s.MemoryMB, s.Fuel, s.FuelPerRow, s.DeadlineMS, s.InitDeadlineMS)
}
