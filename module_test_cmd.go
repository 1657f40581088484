package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/host/sandbox"
)

// batchRecords is how many records a source puts into one batch.
const batchRecords = 500

func moduleTestCommand() *cli.Command {
	return &cli.Command{
		Name:      "test",
		Usage:     "run a module over records in the real sandbox, without a host",
		ArgsUsage: "FILE",
		Description: "Prints one line for each record that the module emits or rejects, in the form of docs/abi.md,\n" +
			"with \"output\" or \"rejected\" in front where they apply; what else it did goes to standard error.\n" +
			"With --expect it compares the lines with a file and prints the differences. State, metrics, limits\n" +
			"and the search for a record at fault are as in a host; time is that of the records.\n\n" +
			"Examples:\n   edgehost module test scale.wasm --input in.ndjson --config factor=1.8 > out.ndjson\n" +
			"   edgehost module test scale.wasm --input in.ndjson --config factor=1.8 --expect out.ndjson\n" +
			"   edgehost module test minutes.wasm --input in.ndjson --tick 1m --restart",
		CustomHelpTemplate: cli.CommandHelpTemplate + trialExitHelp,
		Flags: trialFlags(
			&cli.StringFlag{Name: "input", Aliases: []string{"i"}, Usage: "records in NDJSON, `FILE` or - for standard input"},
			&cli.StringFlag{Name: "expect", Usage: "compare with the lines of this `FILE`"},
			&cli.IntFlag{Name: "batch", Usage: "at most `N` records in a batch", Value: batchRecords},
			&cli.DurationFlag{Name: "tick", Usage: "call edgehost_tick at every multiple of this `DURATION`, and once after the last record"},
			&cli.BoolFlag{Name: "restart", Usage: "start the module afresh before every call: only its state survives"}),
		Action: moduleTest,
	}
}

const trialExitHelp = `
EXIT CODES:
   0 as expected   1 refused, a fault, or not as expected   2 wrong usage
`

// trialFlags say what a deployment of a module would have.
func trialFlags(more ...cli.Flag) []cli.Flag {
	return append(more, jsonFlag(),
		&cli.StringSliceFlag{Name: "config", Aliases: []string{"c"}, Usage: "what the module reads as its configuration, `KEY=VALUE`; more than once if needed"},
		&cli.StringSliceFlag{Name: "output", Usage: "offer an output of this `NAME`; more than once if needed"})
}

// setupOf reads the flags of trialFlags.
func setupOf(c *cli.Context, flag string) (trialSetup, error) {
	s := trialSetup{Config: map[string]string{}, Outputs: c.StringSlice("output")}
	for _, pair := range c.StringSlice(flag) {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return s, usagef("--%s %q is not KEY=VALUE", flag, pair)
		}
		s.Config[key] = value
	}
	for i, name := range s.Outputs {
		if name == "" || slices.Contains(s.Outputs[:i], name) {
			return s, usagef("--output %q is empty or given twice", name)
		}
	}
	return s, nil
}

// moduleName is what a file would probably be pushed as.
func moduleName(path string) string {
	return strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
}

// openFile starts the module of a file and says why it cannot.
func openFile(c *cli.Context, path string, s trialSetup) (*trial, error) {
	wasm, err := readModule(c, path)
	if err != nil {
		return nil, err
	}
	if s.Name == "" {
		s.Name = moduleName(path)
	}
	t, err := openTrial(c.Context, wasm, s)
	var refused *sandbox.Refusal
	if errors.As(err, &refused) {
		return nil, fmt.Errorf("%s is refused:\n  %s\nedgehost module inspect %s shows more", path, strings.Join(refused.Reasons, "\n  "), path)
	}
	return t, err
}

func moduleTest(c *cli.Context) (err error) {
	if err := wantArgs(c, 1, 1, "one FILE"); err != nil {
		return err
	}
	setup, err := setupOf(c, "config")
	if err != nil {
		return err
	}
	plan := trialPlan{Batch: c.Int("batch"), Tick: c.Duration("tick"), Restart: c.Bool("restart")}
	switch {
	case c.String("input") == "":
		return usagef("--input is missing: a file of records, one a line (edgehost module new makes a sample)")
	case plan.Batch < 1:
		return usagef("--batch %d is below 1", plan.Batch)
	case plan.Tick < 0 || plan.Tick%time.Microsecond != 0:
		return usagef("--tick %s is not a number of microseconds above 0", plan.Tick)
	}
	recs, err := readRecords(c.App.Reader, c.String("input"))
	if err != nil {
		return err
	}
	var want []outcome
	if c.IsSet("expect") {
		if want, err = readOutcomes(c.App.Reader, c.String("expect")); err != nil {
			return err
		}
	}
	t, err := openFile(c, c.Args().First(), setup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close(c.Context)) }()
	if plan.Tick > 0 && !t.module.Ticks() {
		return usagef("--tick is given, but the module does not export edgehost_tick (Go: call guest.Tick)")
	}
	ended := t.run(c.Context, recs, plan)
	r := reportOf(t)
	if c.IsSet("expect") {
		r.Differences = diffOutcomes(want, t.Outcomes)
		equal := len(r.Differences) == 0
		r.Equal = &equal
	}
	if err := printTrial(c, r); err != nil {
		return err
	}
	return errors.Join(ended, trialError(&r))
}

// trialError is why a trial that ran is not what its author wants.
func trialError(r *trialReport) error {
	var errs []error
	if n := len(r.Faults); n > 0 {
		errs = append(errs, fmt.Errorf("the module failed at %d records or ticks", n))
	}
	if n := len(r.Differences); n > 0 {
		errs = append(errs, fmt.Errorf("%d differences from what was expected", n))
	}
	return errors.Join(errs...)
}

// trialReport is what module test says.
type trialReport struct {
	Records     int                `json:"records"`
	Batches     int                `json:"batches"`
	Ticks       int                `json:"ticks"`
	Emitted     int                `json:"emitted"`
	Rejected    int                `json:"rejected"`
	Filtered    int                `json:"filtered"`
	Outcomes    []json.RawMessage  `json:"outcomes"`
	Faults      []trialFault       `json:"faults"`
	KV          map[string]string  `json:"kv"`
	Metrics     map[string]float64 `json:"metrics"`
	Logs        []logLine          `json:"logs"`
	Fuel        int64              `json:"fuel"`
	MemoryBytes uint64             `json:"memory_bytes"`
	Equal       *bool              `json:"equal,omitempty"` // with --expect
	Differences []difference       `json:"differences,omitempty"`
}

func reportOf(t *trial) trialReport {
	r := trialReport{Records: t.Records, Batches: t.Batches, Ticks: t.Ticks, Filtered: t.Filtered, Outcomes: []json.RawMessage{},
		Faults: append([]trialFault{}, t.Faults...), KV: t.state.all(), Metrics: t.Metrics, Logs: append([]logLine{}, t.Logs...),
		Fuel: t.Fuel, MemoryBytes: t.instance.MemoryBytes()}
	for i := range t.Outcomes {
		o := &t.Outcomes[i]
		if o.Rejected != "" {
			r.Rejected++
		} else {
			r.Emitted++
		}
		r.Outcomes = append(r.Outcomes, o.appendJSON(nil))
	}
	return r
}

func printTrial(c *cli.Context, r trialReport) error {
	return show(c, r, func(w io.Writer) {
		if r.Equal == nil {
			for _, line := range r.Outcomes {
				fmt.Fprintf(w, "%s\n", line)
			}
		}
		printDifferences(w, c.String("expect"), r.Differences)
		printSummary(c.App.ErrWriter, &r)
	})
}

// printSummary says what a module did beside records.
func printSummary(w io.Writer, r *trialReport) {
	for _, l := range r.Logs {
		fmt.Fprintf(w, "log %s: %s\n", strings.ToLower(l.Level), oneLine(l.Text))
	}
	for _, f := range r.Faults {
		where := "tick"
		if f.Line > 0 {
			where = fmt.Sprintf("record %d (%s)", f.Line, oneLine(f.Address))
		}
		fmt.Fprintf(w, "fault at %s: %s: %s\n", where, f.Class, oneLine(f.Message))
	}
	for _, key := range slices.Sorted(maps.Keys(r.KV)) {
		fmt.Fprintf(w, "kv %q = %q\n", key, r.KV[key])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Metrics)) {
		fmt.Fprintf(w, "metric %s = %v\n", name, r.Metrics[name])
	}
	fmt.Fprintf(w, "%d records in %d batches, %d ticks: %d emitted, %d rejected, %d filtered", r.Records, r.Batches, r.Ticks, r.Emitted, r.Rejected, r.Filtered)
	if r.Equal != nil && *r.Equal {
		fmt.Fprint(w, ", all as expected")
	}
	fmt.Fprintln(w)
}
