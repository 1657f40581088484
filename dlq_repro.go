package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
)

func deadLetterReproCommand() *cli.Command {
	return &cli.Command{
		Name:      "repro",
		Usage:     "run the record of one entry through a module file, here and now",
		ArgsUsage: "ID",
		Description: "Shows whether the module rejects the record, or fails at it, with the same words. With --config the\n" +
			"module gets the configuration, limits and outputs of its pipeline in that file; else those of --set and\n" +
			"--output. Its state is empty. When modules before it change the record, name them all, in order.\n" +
			"--out writes the record for edgehost module test. Without --module and --out it says where the module is.\n\n" +
			"Examples:\n   edgehost dlq repro 17 --config connector.yaml --module scale.wasm\n   edgehost dlq repro 17 --out letter17",
		CustomHelpTemplate: cli.CommandHelpTemplate + "\nEXIT CODES:\n   0 the same happened   1 it did not, or it failed   2 wrong usage   69 no running host\n",
		Flags: hostFlags(
			&cli.StringSliceFlag{Name: "module", Usage: "run the module in this `FILE`; more than once: a chain, in order"},
			&cli.StringFlag{Name: "out", Usage: "write the record and the entry into this `FOLDER`"},
			setFlag(), outputFlag()),
		Action: withHost(deadLetterRepro),
	}
}

func deadLetterRepro(c *cli.Context, host *control.Client) error {
	if err := wantArgs(c, 1, 1, "one ID"); err != nil {
		return err
	}
	if c.IsSet("module") && c.IsSet("out") {
		return usagef("--module and --out exclude each other")
	}
	set := trialSetup{Config: map[string]string{}}
	if err := set.add(c); err != nil {
		return err
	}
	d, err := host.DeadLetter(c.Context, c.Args().First())
	switch {
	case control.CodeOf(err) == control.NotFound:
		return fmt.Errorf("%w; edgehost dlq list shows those that are there", err)
	case err != nil:
		return err
	}
	if len(d.Record) == 0 {
		return fmt.Errorf("dead letter %s holds no record that can be read: %s", d.ID, oneLine(d.Error))
	}
	stages, err := stagesOf(c, &d, set)
	switch {
	case err != nil:
		return err
	case c.IsSet("out"):
		return writeRepro(c, &d)
	case d.Module == "" && !c.IsSet("module"):
		return fmt.Errorf("dead letter %s comes from the destination %s (%s: %s), not from a module. Mend the cause there, then: edgehost dlq replay %s",
			d.ID, dash(d.Destination), d.Reason, oneLine(d.Error), d.ID)
	case !c.IsSet("module"):
		return fmt.Errorf("say which module: %s", whereIs(c, &d))
	}
	r, err := reproduce(c, &d, stages)
	if err != nil {
		return err
	}
	if err := show(c, r, func(w io.Writer) { printRepro(w, &r) }); err != nil {
		return err
	}
	if !r.Reproduced {
		return fmt.Errorf("dead letter %s is not reproduced", d.ID)
	}
	return nil
}

// stagesOf says how the modules of --module, or at least the one that failed, are
// set up.
func stagesOf(c *cli.Context, d *control.DeadLetter, set trialSetup) ([]trialSetup, error) {
	files := c.StringSlice("module")
	n := max(1, len(files))
	stages := make([]trialSetup, n)
	for i := range n - 1 {
		stages[i] = trialSetup{Name: moduleName(files[i]), Outputs: set.Outputs}
	}
	stages[n-1] = set
	stages[n-1].Name = d.Module
	if !c.IsSet("config") || d.Pipeline == "" {
		return stages, nil
	}
	cfg, err := loadConfig(c.String("config"), os.LookupEnv)
	if err != nil {
		return nil, err
	}
	plans := cfg.plan()
	at := slices.IndexFunc(plans, func(p pipelinePlan) bool { return p.Name == d.Pipeline })
	if at < 0 {
		return nil, fmt.Errorf("%s has no pipeline %s any more", c.String("config"), d.Pipeline)
	}
	mods := plans[at].Modules
	last := slices.IndexFunc(mods, func(m moduleConfig) bool { return m.Name == d.Module })
	if last < 0 {
		return nil, fmt.Errorf("pipeline %s has no module %s any more", d.Pipeline, d.Module)
	}
	if n > last+1 {
		return nil, usagef("--module is given %d times, but module %s is number %d of pipeline %s", n, d.Module, last+1, d.Pipeline)
	}
	for i := range stages {
		stages[i] = setupFor(plans[at], mods[last+1-n+i])
		for _, name := range set.Outputs {
			if !slices.Contains(stages[i].Outputs, name) {
				stages[i].Outputs = append(stages[i].Outputs, name)
			}
		}
	}
	maps.Copy(stages[n-1].Config, set.Config)
	return stages, nil
}

// whereIs says how to get the module of a dead letter.
func whereIs(c *cli.Context, d *control.DeadLetter) string {
	socket, err := findSocket(c)
	file := filepath.Join(filepath.Dir(socket), "modules", "revisions", d.Revision+".wasm")
	if err == nil && d.Revision != "" {
		if _, err := os.Stat(file); err == nil {
			return fmt.Sprintf("%s was in force; try\n   %s", short(d.Revision), strings.Join(append(again(c, "edgehost", "dlq", "repro", d.ID), "--module", file), " "))
		}
	}
	return fmt.Sprintf("--module FILE, with the file that was pushed as %s (revision %s). The host keeps the newest ones in its state_dir, as modules/revisions/%s.wasm",
		d.Module, dash(short(d.Revision)), dash(d.Revision))
}

// again adds to a command how this one was told where the host is.
func again(c *cli.Context, command ...string) []string {
	for _, flag := range []string{"socket", "config", "state-dir"} {
		if c.IsSet(flag) {
			command = append(command, "--"+flag, c.String(flag))
		}
	}
	return command
}

// reproReport is what dlq repro says.
type reproReport struct {
	ID         string          `json:"id"`
	Reproduced bool            `json:"reproduced"`
	Module     string          `json:"module"`
	Then       reproResult     `json:"then"`
	Now        reproResult     `json:"now"`
	Emitted    []string        `json:"emitted"`
	Logs       []logLine       `json:"logs"`
	Record     json.RawMessage `json:"record"`
}

// reproResult is how a record ended: the reason as in the queue and the words.
type reproResult struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// reproduce sends the record through the modules.
func reproduce(c *cli.Context, d *control.DeadLetter, stages []trialSetup) (reproReport, error) {
	r := reproReport{ID: d.ID, Module: d.Module, Then: reproResult{d.Reason, faultWords(d)}, Now: reproResult{Reason: "filtered"},
		Emitted: []string{}, Logs: []logLine{}, Record: d.Record}
	rec, err := abi.ParseJSON(d.Record)
	if err != nil {
		return r, fmt.Errorf("read dead letter %s: %w", d.ID, err)
	}
	in := []abi.Record{rec}
	for i, file := range c.StringSlice("module") {
		var ended bool
		err := withTrial(c, file, stages[i], func(t *trial) error {
			in, ended = r.stage(c.Context, t, in, d.Time.UnixMicro())
			return nil
		})
		if err != nil {
			return r, err
		}
		if r.Module = stages[i].Name; ended || len(in) == 0 {
			break
		}
	}
	// One that failed in an earlier module is another failure.
	r.Reproduced = r.Now == r.Then && (d.Module == "" || r.Module == d.Module)
	return r, nil
}

// stage runs one module and returns what goes on to the next, and whether the
// record ended here.
func (r *reproReport) stage(ctx context.Context, t *trial, in []abi.Record, at int64) (out []abi.Record, ended bool) {
	err := t.process(ctx, &abi.Batch{Seq: 1, Time: at, Records: in}, 1)
	r.Logs, r.Emitted = append(r.Logs, t.Logs...), r.Emitted[:0]
	switch {
	case err != nil:
		r.Now = reproResult{"host", err.Error()}
		return nil, true
	case len(t.Faults) > 0:
		f := t.Faults[0]
		r.Now = reproResult{"module_" + f.Class, f.Message}
		return nil, true
	}
	for i := range t.Outcomes {
		o := &t.Outcomes[i]
		if o.Rejected != "" {
			r.Now = reproResult{"rejected", o.Rejected}
			return nil, true
		}
		r.Now = reproResult{"emitted", ""}
		r.Emitted = append(r.Emitted, string(o.appendJSON(nil)))
		if o.Output == "" {
			out = append(out, o.Record)
		}
	}
	if len(t.Outcomes) == 0 {
		r.Now = reproResult{Reason: "filtered"}
	}
	return out, false
}

// faultWords is the message of a dead letter without what names the module: the
// same module has another name here.
func faultWords(d *control.DeadLetter) string {
	class, isFault := strings.CutPrefix(d.Reason, "module_")
	if !isFault {
		return d.Error
	}
	_, words, ok := strings.Cut(d.Error, "): "+class+": ")
	if !ok {
		return d.Error
	}
	return words
}

func printRepro(w io.Writer, r *reproReport) {
	for _, l := range r.Logs {
		fmt.Fprintf(w, "log %s: %s\n", strings.ToLower(l.Level), oneLine(l.Text))
	}
	for _, line := range r.Emitted {
		fmt.Fprintf(w, "emitted %s\n", line)
	}
	if r.Reproduced {
		fmt.Fprintf(w, "reproduced: %s in module %s: %s\n", r.Now.Reason, r.Module, oneLine(r.Now.Message))
		return
	}
	fmt.Fprintf(w, "then: %s: %s\nnow:  %s in module %s: %s\n", r.Then.Reason, oneLine(r.Then.Message), r.Now.Reason, r.Module, oneLine(r.Now.Message))
}

// writeRepro writes the record where module test can read it.
func writeRepro(c *cli.Context, d *control.DeadLetter) error {
	dir := c.String("out")
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists: choose another folder, or remove it", dir)
	} else if err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	rec, err := abi.ParseJSON(d.Record)
	if err != nil {
		return fmt.Errorf("read dead letter %s: %w", d.ID, err)
	}
	letter, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	files := map[string][]byte{"in.ndjson": append(abi.AppendJSON(nil, &rec), '\n'), "letter.json": append(letter, '\n')}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o600); err != nil {
			return fmt.Errorf("write dead letter: %w", err)
		}
	}
	command := []string{"edgehost", "module", "test", "FILE", "--input", filepath.Join(dir, "in.ndjson")}
	set := trialSetup{Config: map[string]string{}}
	if c.IsSet("config") && d.Module != "" {
		command = append(command, "--config", c.String("config"), "--pipeline", d.Pipeline, "--name", d.Module)
	}
	if err := set.add(c); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(set.Config)) {
		command = append(command, "--set", "'"+strings.ReplaceAll(key+"="+set.Config[key], "'", `'\''`)+"'")
	}
	for _, name := range set.Outputs {
		command = append(command, "--output", name)
	}
	return show(c, map[string]any{"folder": dir, "command": command}, func(w io.Writer) {
		fmt.Fprintf(w, "%s has the record (in.ndjson) and the entry (letter.json). Try a module with\n   %s\n", dir, strings.Join(command, " "))
	})
}
