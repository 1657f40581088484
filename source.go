package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/host/control"
)

func sourceCommand() *cli.Command {
	return &cli.Command{
		Name:  "source",
		Usage: "look at the sources of a running host, pause them, try one, and import tags",
		Subcommands: []*cli.Command{
			sourceTestCommand(),
			{
				Name:        "list",
				Usage:       "show every source with its state and its counters",
				Description: "Example:\n   edgehost source list --config config/connector.yaml",
				Flags:       hostFlags(),
				Action:      withHost(sourceList),
			},
			{
				Name:      "pause",
				Usage:     "stop reading a source until it is resumed",
				ArgsUsage: "NAME",
				Description: "Ends the source's connection in order; what it has read is delivered. The source stays paused until\n" +
					"it is resumed or the host is restarted.\n\nExample:\n   edgehost source pause plc_modbus_tcp",
				Flags:  hostFlags(),
				Action: withHost(sourceOrder("paused", (*control.Client).PauseSource)),
			},
			{
				Name:        "resume",
				Usage:       "read a paused source again",
				ArgsUsage:   "NAME",
				Description: "Example:\n   edgehost source resume plc_modbus_tcp",
				Flags:       hostFlags(),
				Action:      withHost(sourceOrder("resumed", (*control.Client).ResumeSource)),
			},
			sourceImportCommand(),
		},
	}
}

func sourceList(c *cli.Context, host *control.Client) error {
	if err := wantArgs(c, 0, 0, "no argument"); err != nil {
		return err
	}
	s, err := host.Status(c.Context)
	if err != nil {
		return err
	}
	return show(c, s.Sources, func(w io.Writer) {
		rows := [][]string{{"SOURCE", "PROTOCOL", "PIPELINE", "STATE", "RECORDS", "LAST", "DETAIL"}}
		for _, x := range s.Sources {
			rows = append(rows, []string{x.Name, x.Protocol, x.Pipeline, x.State, count(x.Records), ago(x.LastRead), x.Detail})
		}
		table(w, rows)
		for _, x := range s.Sources {
			if words := counters(x); len(words) > 0 {
				fmt.Fprintf(w, "\n%s\n  %s\n", oneLine(x.Name), strings.Join(words, "\n  "))
			}
		}
	})
}

// counters lists what a source has counted, sorted by name.
func counters(s control.SourceStatus) []string {
	var words []string
	for _, reason := range slices.Sorted(maps.Keys(s.Failed)) {
		if n := s.Failed[reason]; n > 0 {
			words = append(words, oneLine("failed: "+reason+" "+count(n)))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		// Those with a label are for /metrics: there can be hundreds of them.
		if v := s.Counters[name]; v != 0 && !strings.Contains(name, "{") {
			words = append(words, oneLine(name+" "+strconv.FormatFloat(v, 'f', -1, 64)))
		}
	}
	return words
}

// sourceOrder makes the action of a command that gives one source an order; done
// is what has become of it.
func sourceOrder(done string, order func(*control.Client, context.Context, string) error) func(*cli.Context, *control.Client) error {
	return func(c *cli.Context, host *control.Client) error {
		if err := wantArgs(c, 1, 1, "the NAME of a source"); err != nil {
			return err
		}
		name := c.Args().First()
		if err := order(host, c.Context, name); err != nil {
			return err
		}
		return show(c, map[string]string{done: name}, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", oneLine(name), done) })
	}
}
