package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// What module test, module bench and dlq repro have in common: the flags that say
// what a pipeline would give to a module, and the way from them to a trial.

// batchRecords is how many records a source puts into one batch.
const batchRecords = 500

const trialExitHelp = `
EXIT CODES:
   0 as expected   1 refused, a fault, or not as expected   2 wrong usage
`

// trialFlags are those of a command that runs a module FILE over records.
func trialFlags(more ...cli.Flag) []cli.Flag {
	return append(more, jsonFlag(),
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "give the module what its pipeline in this configuration `FILE` gives it: config, limits, stateless, tick_seconds, outputs"},
		&cli.StringFlag{Name: "pipeline", Usage: "`NAME` of the pipeline, when several use the module"},
		&cli.StringFlag{Name: "name", Usage: "`NAME` under which pipelines know the module; else that of the file"},
		setFlag(), outputFlag(),
		&cli.StringFlag{Name: "stateless", Usage: "`relaxed` or strict: with strict the module is put back after every batch"},
		&cli.StringSliceFlag{Name: "limit", Usage: "one of the module's limits, `KEY=NUMBER` as in the configuration; more than once if needed"})
}

func setFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "set", Usage: "what the module reads as its config, `KEY=VALUE`; more than once if needed"}
}

func outputFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "output", Usage: "offer an output of this `NAME`; more than once if needed"}
}

func inputFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "input", Aliases: []string{"i"}, Usage: "records in NDJSON, `FILE` or - for standard input; more than once: one after the other"}
}

// setupFor is what a pipeline gives to one of its modules.
func setupFor(p pipelinePlan, m moduleConfig) trialSetup {
	s := trialSetup{Name: m.Name, Config: map[string]string{}, Outputs: slices.Sorted(maps.Keys(p.Outputs)), Limits: m.Limits.sandbox(),
		Strict: m.Stateless == statelessStrict, Tick: secondsOf(m.TickSeconds)}
	maps.Copy(s.Config, m.Config)
	return s
}

// moduleName is what a file would probably be pushed as.
func moduleName(path string) string {
	return strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
}

// setupOf reads the flags of trialFlags. What they say of one thing is above what
// --config says.
func setupOf(c *cli.Context) (s trialSetup, err error) {
	if err := wantArgs(c, 1, 1, "one FILE"); err != nil {
		return s, err
	}
	name := c.String("name")
	if name == "" {
		name = moduleName(c.Args().First())
	}
	var p pipelinePlan
	m := moduleConfig{Name: name}
	m.setDefaults()
	switch {
	case c.IsSet("config"):
		if p, m, err = inPipeline(c.String("config"), c.String("pipeline"), name); err != nil {
			return s, err
		}
	case c.IsSet("pipeline"):
		return s, usagef("--pipeline needs --config: a configuration FILE that has the pipeline")
	}
	if err := limitsOf(c.StringSlice("limit"), &m.Limits); err != nil {
		return s, err
	}
	s = setupFor(p, m)
	if word := c.String("stateless"); c.IsSet("stateless") {
		if word != statelessStrict && word != statelessRelaxed {
			return s, usagef("--stateless %q is neither %s nor %s", word, statelessRelaxed, statelessStrict)
		}
		s.Strict = word == statelessStrict
	}
	return s, s.add(c)
}

// add sets what --set and --output say.
func (s *trialSetup) add(c *cli.Context) error {
	for _, pair := range c.StringSlice("set") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return usagef("--set %q is not KEY=VALUE", pair)
		}
		s.Config[key] = value
	}
	names := c.StringSlice("output")
	for i, name := range names {
		if name == "" || slices.Contains(names[:i], name) {
			return usagef("--output %q is empty or given twice", name)
		}
		if !slices.Contains(s.Outputs, name) {
			s.Outputs = append(s.Outputs, name)
		}
	}
	return nil
}

// inPipeline finds a module in the pipelines of a configuration.
func inPipeline(file, pipeline, module string) (p pipelinePlan, m moduleConfig, err error) {
	if key, _, ok := strings.Cut(file, "="); ok {
		if _, err := os.Stat(file); err != nil {
			return p, m, usagef("--config takes the FILE of a configuration; to set the key %s of the module: --set %s", key, file)
		}
	}
	cfg, err := loadConfig(file, os.LookupEnv)
	if err != nil {
		return p, m, err
	}
	var names, users []string
	for _, plan := range cfg.plan() {
		for _, mod := range plan.Modules {
			names = append(names, mod.Name)
			if mod.Name == module && (pipeline == "" || pipeline == plan.Name) {
				p, m, users = plan, mod, append(users, plan.Name)
			}
		}
	}
	slices.Sort(names)
	switch {
	case len(users) == 0 && pipeline != "":
		return p, m, fmt.Errorf("%s has no pipeline %s with a module %s: say with --name what the pipeline calls the module", file, pipeline, module)
	case len(users) == 0:
		return p, m, fmt.Errorf("%s has no pipeline with a module %s%s (--name says what the pipelines call it)", file, module, meant(nearest(module, names), slices.Compact(names)))
	case len(users) > 1:
		return p, m, usagef("the pipelines %s have a module %s: choose one with --pipeline", strings.Join(users, ", "), module)
	}
	return p, m, nil
}

// limitsOf reads --limit as if it stood under limits: of a configuration.
func limitsOf(pairs []string, l *limitsConfig) error {
	var text strings.Builder
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return usagef("--limit %q is not KEY=NUMBER", pair)
		}
		fmt.Fprintf(&text, "%s: %s\n", key, value)
	}
	doc := &document{file: "--limit"}
	doc.decode([]byte(text.String()), l)
	if len(doc.found) == 0 {
		m := moduleConfig{Name: "limited", Limits: *l}
		m.setDefaults()
		(&config{doc: doc}).checkModule("", m)
	}
	for _, p := range doc.found {
		return usagef("--limit: %s: %s", strings.TrimPrefix(p.path, ".limits."), p.msg)
	}
	return nil
}

// tickOf is the period of ticks: that of the flag, else that of the configuration.
func tickOf(c *cli.Context, s trialSetup) time.Duration {
	if c.IsSet("tick") {
		return c.Duration("tick")
	}
	return s.Tick
}

// readInputs reads the files of --input.
func readInputs(c *cli.Context) (inputs [][]abi.Record, err error) {
	for _, file := range c.StringSlice("input") {
		recs, err := readRecords(c.App.Reader, file)
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, recs)
	}
	return inputs, nil
}

// withTrial starts the module FILE for f and closes it afterwards.
func withTrial(c *cli.Context, path string, s trialSetup, f func(t *trial) error) (err error) {
	wasm, err := readModule(c, path)
	if err != nil {
		return err
	}
	t, err := openTrial(c.Context, wasm, s)
	var refused *sandbox.Refusal
	switch {
	case errors.Is(err, errNotAdmitted):
		return refusedError(c.Context, path, wasm, err)
	case errors.As(err, &refused):
		return fmt.Errorf("%s does not start: %s", path, strings.Join(refused.Reasons, "\n  "))
	case err != nil:
		return fmt.Errorf("%s does not start: %w", path, err)
	}
	defer func() { err = errors.Join(err, t.close(c.Context)) }()
	return f(t)
}

// shownReasons is how many reasons stand in an error; module inspect shows all.
const shownReasons = 8

// refusedError says why a module is not admitted and what its author can do.
func refusedError(ctx context.Context, path string, wasm []byte, err error) error {
	var refused *sandbox.Refusal
	if !errors.As(err, &refused) {
		return err
	}
	advice, err := adviceOn(ctx, wasm)
	if err != nil {
		return err
	}
	text := path + " is refused:\n  " + strings.Join(refused.Reasons[:min(shownReasons, len(refused.Reasons))], "\n  ")
	if more := len(refused.Reasons) - shownReasons; more > 0 {
		text += fmt.Sprintf("\n  … and %d more", more)
	}
	if advice != "" {
		text += "\nWhat to do: " + advice
	}
	return fmt.Errorf("%s\nedgehost module inspect %s shows more", text, path)
}

// wantTicks is why a module cannot tick though it should.
func wantTicks(t *trial) error {
	if t.module.Ticks() {
		return nil
	}
	return usagef("ticks are wanted (--tick, or tick_seconds of the configuration), but the module does not export edgehost_tick (Go: call guest.Tick)")
}
