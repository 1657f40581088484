package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/host/sandbox"
)

func moduleTestCommand() *cli.Command {
	return &cli.Command{
		Name:      "test",
		Usage:     "run a module over records in the real sandbox, without a host",
		ArgsUsage: "FILE",
		Description: "Prints one line for each record that the module emits or rejects, in the form of docs/abi.md,\n" +
			"with \"output\" or \"rejected\" in front where they apply; what else it did goes to standard error: its\n" +
			"log, faults, state and metrics. With --expect it compares the lines with a file and prints the\n" +
			"differences. Limits, state and the search for a record at fault are as in a host, and a batch has\n" +
			"records of one source and one input; time is that of the records.\n\n" +
			"With --config the module gets what a host would give it: its config, limits, stateless and\n" +
			"tick_seconds, and the outputs of its pipeline. Single flags are above that.\n\n" +
			"Examples:\n   edgehost module test scale.wasm --input in.ndjson --set factor=1.8 > out.ndjson\n" +
			"   edgehost module test scale.wasm --input in.ndjson --set factor=1.8 --expect out.ndjson\n" +
			"   edgehost module test scale.wasm --input in.ndjson --config connector.yaml\n" +
			"   edgehost module test minutes.wasm --input monday.ndjson --input tuesday.ndjson --tick 1m --restart",
		CustomHelpTemplate: cli.CommandHelpTemplate + trialExitHelp,
		Flags: trialFlags(inputFlag(),
			&cli.StringFlag{Name: "expect", Usage: "compare with the lines of this `FILE`"},
			&cli.IntFlag{Name: "batch", Usage: "at most `N` records in a batch", Value: batchRecords},
			&cli.DurationFlag{Name: "tick", Usage: "call edgehost_tick for each source at every multiple of this `DURATION`, and once after the last record"},
			&cli.BoolFlag{Name: "restart", Usage: "start the module afresh before every call: only its state survives"}),
		Action: moduleTest,
	}
}

func moduleTest(c *cli.Context) error {
	setup, err := setupOf(c)
	if err != nil {
		return err
	}
	plan := trialPlan{Batch: c.Int("batch"), Tick: tickOf(c, setup), Restart: c.Bool("restart")}
	switch {
	case len(c.StringSlice("input")) == 0:
		return usagef("--input is missing: a file of records, one a line (edgehost module new makes a sample)")
	case plan.Batch < 1:
		return usagef("--batch %d is below 1", plan.Batch)
	case plan.Tick < 0 || plan.Tick%time.Microsecond != 0:
		return usagef("--tick %s is not a number of microseconds above 0", plan.Tick)
	}
	inputs, err := readInputs(c)
	if err != nil {
		return err
	}
	var want []outcome
	if c.IsSet("expect") {
		if want, err = readOutcomes(c.App.Reader, c.String("expect")); err != nil {
			return err
		}
	}
	return withTrial(c, c.Args().First(), setup, func(t *trial) error {
		if plan.Tick > 0 {
			if err := wantTicks(t); err != nil {
				return err
			}
		}
		ended := t.run(c.Context, plan, inputs...)
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
	})
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
	Records     int                          `json:"records"`
	Batches     int                          `json:"batches"`
	Ticks       int                          `json:"ticks"`
	Emitted     int                          `json:"emitted"`
	Rejected    int                          `json:"rejected"`
	Filtered    int                          `json:"filtered"`
	Outcomes    []json.RawMessage            `json:"outcomes"`
	Faults      []trialFault                 `json:"faults"`
	KV          map[string]map[string]string `json:"kv"` // by source and key
	Metrics     map[string]float64           `json:"metrics"`
	Logs        []logLine                    `json:"logs"`
	Fuel        int64                        `json:"fuel"`
	MemoryBytes uint64                       `json:"memory_bytes"`
	Equal       *bool                        `json:"equal,omitempty"` // with --expect
	Differences []difference                 `json:"differences,omitempty"`
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

// shownValue is how many bytes of a value of the state people get to see.
const shownValue = 256

// printSummary says what a module did beside records.
func printSummary(w io.Writer, r *trialReport) {
	printRuns(w, r.Logs, func(l logLine) string { return fmt.Sprintf("log %s: %s", strings.ToLower(l.Level), oneLine(l.Text)) })
	printFaults(w, r.Faults)
	for _, source := range slices.Sorted(maps.Keys(r.KV)) {
		for _, key := range slices.Sorted(maps.Keys(r.KV[source])) {
			value := r.KV[source][key]
			fmt.Fprintf(w, "kv of %s: %q = %q", dash(oneLine(source)), key, value[:min(len(value), shownValue)])
			if len(value) > shownValue {
				fmt.Fprintf(w, "… (%d bytes)", len(value))
			}
			fmt.Fprintln(w)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Metrics)) {
		fmt.Fprintf(w, "metric %s = %v\n", name, r.Metrics[name])
	}
	fmt.Fprintf(w, "%d records in %d batches, %d ticks: %d emitted, %d rejected, %d filtered", r.Records, r.Batches, r.Ticks, r.Emitted, r.Rejected, r.Filtered)
	if n := len(r.Faults); n > 0 {
		fmt.Fprintf(w, ", %d at fault", n)
	}
	if r.Equal != nil && *r.Equal {
		fmt.Fprint(w, ", all as expected")
	}
	fmt.Fprintln(w)
}

// printRuns prints one line for each item, and once where one repeats itself.
func printRuns[T any](w io.Writer, items []T, line func(T) string) {
	for i := 0; i < len(items); {
		text, n := line(items[i]), 1
		for i+n < len(items) && line(items[i+n]) == text {
			n++
		}
		if i += n; n > 1 {
			text += fmt.Sprintf(" (%d times)", n)
		}
		fmt.Fprintln(w, text)
	}
}

// printFaults prints faults and, after the last one of a class, what can be done.
func printFaults(w io.Writer, faults []trialFault) {
	last := map[sandbox.Class]int{}
	for i, f := range faults {
		last[sandbox.Class(f.Class)] = i
	}
	for i, f := range faults {
		where := "tick"
		if f.Line > 0 {
			where = fmt.Sprintf("record %d (%s)", f.Line, oneLine(f.Address))
		}
		fmt.Fprintf(w, "fault at %s: %s: %s\n", where, f.Class, oneLine(f.Message))
		if class := sandbox.Class(f.Class); last[class] == i && faultAdvice[class] != "" {
			fmt.Fprintf(w, "  what to do: %s\n", faultAdvice[class])
		}
	}
}
