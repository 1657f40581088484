package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "check a configuration file, and make its tables",
		Subcommands: []*cli.Command{{
			Name:      "check",
			Usage:     "say everything that is wrong with a file, and what it comes to",
			ArgsUsage: "FILE",
			Description: "Reads the file and the environment and connects to nothing. --strict also refuses what keeps a\n" +
				"site from being safe: connections in the clear, peers believed unseen, secrets in the file.\n\n" +
				"Example:\n   edgehost config check config/connector.yaml --strict",
			Flags:  []cli.Flag{jsonFlag(), &cli.BoolFlag{Name: "strict", Usage: "refuse what is not secure"}},
			Action: configCheck,
		}, configTablesCommand()},
	}
}

// finding is a problem as JSON.
type finding struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Path    string `json:"path"`
	Message string `json:"message"`
}

func findings(p problems) []finding {
	out := make([]finding, len(p))
	for i, x := range p {
		out[i] = finding{x.file, x.line, x.col, x.path, x.msg}
	}
	return out
}

// checkReport is what config check says.
type checkReport struct {
	OK         bool           `json:"ok"`
	Problems   []finding      `json:"problems"`
	Warnings   []finding      `json:"warnings"`
	NotInForce []string       `json:"not_in_force"`
	Incomplete string         `json:"incomplete,omitempty"` // what serve would miss
	Pipelines  []pipelineInfo `json:"pipelines"`
}

type pipelineInfo struct {
	Name    string            `json:"name"`
	Modules []string          `json:"modules"`
	Targets map[string]string `json:"targets"` // by source
	Outputs map[string]string `json:"outputs,omitempty"`
}

func configCheck(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "one FILE"); err != nil {
		return err
	}
	name := c.Args().First()
	src, err := readConfig(name)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	cfg := parseConfig(name, src, os.LookupEnv)
	bad := cfg.doc.found
	r := checkReport{NotInForce: []string{}, Warnings: []finding{}, Pipelines: []pipelineInfo{}}
	if len(bad) == 0 {
		if c.Bool("strict") {
			bad = cfg.strict()
		}
		r.Warnings, r.NotInForce = findings(cfg.warnings()), append(r.NotInForce, cfg.NotInForce()...)
		r.Pipelines = pipelineInfos(cfg.plan())
		if err := cfg.checkComplete(); err != nil {
			r.Incomplete, _, _ = strings.Cut(err.Error(), ".")
		}
	}
	r.OK, r.Problems = len(bad) == 0, findings(bad)
	if err := show(c, r, func(w io.Writer) { printReport(w, name, cfg, r) }); err != nil {
		return err
	}
	switch {
	case r.OK:
		return nil
	case c.Bool("json"):
		return &exitError{exitConfig, fmt.Errorf("%s has %s", name, problemCount(len(bad)))}
	}
	return &exitError{exitConfig, errors.Join(fmt.Errorf("%s has %s", name, problemCount(len(bad))), bad)}
}

func problemCount(n int) string {
	if n == 1 {
		return "1 problem"
	}
	return fmt.Sprintf("%d problems", n)
}

func pipelineInfos(plans []pipelinePlan) []pipelineInfo {
	out := []pipelineInfo{}
	for _, p := range plans {
		info := pipelineInfo{Name: p.Name, Modules: []string{}, Targets: map[string]string{}, Outputs: map[string]string{}}
		for _, m := range p.Modules {
			info.Modules = append(info.Modules, m.Name)
		}
		for source, t := range p.Targets {
			info.Targets[source] = t.String()
		}
		for output, t := range p.Outputs {
			info.Outputs[output] = t.String()
		}
		out = append(out, info)
	}
	return out
}

func printReport(w io.Writer, name string, cfg *config, r checkReport) {
	if !r.OK {
		return
	}
	fmt.Fprintf(w, "%s is valid\n", name)
	for _, f := range cfg.warnings() {
		fmt.Fprintf(w, "warning: %v\n", f)
	}
	for _, k := range r.NotInForce {
		fmt.Fprintf(w, "not in force: %s\n", k)
	}
	if r.Incomplete != "" {
		fmt.Fprintf(w, "serve would refuse it: %s\n", r.Incomplete)
	}
	rows := [][]string{{"PIPELINE", "SOURCE", "MODULES", "TARGET"}}
	for _, p := range r.Pipelines {
		for _, source := range slices.Sorted(maps.Keys(p.Targets)) {
			rows = append(rows, []string{p.Name, source, dash(strings.Join(p.Modules, " ")), p.Targets[source]})
		}
		for _, output := range slices.Sorted(maps.Keys(p.Outputs)) {
			rows = append(rows, []string{p.Name, "", "output " + output, p.Outputs[output]})
		}
	}
	section(w, rows)
}
