package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/host/control"
)

// filterFlags select dead letters.
func filterFlags(more ...cli.Flag) []cli.Flag {
	return hostFlags(append([]cli.Flag{
		&cli.StringFlag{Name: "reason", Usage: "only this `REASON` (schema, rejected, too_large, …)"},
		&cli.StringFlag{Name: "destination", Usage: "only for this `TABLE`"},
		&cli.StringFlag{Name: "pipeline", Usage: "only of this `PIPELINE`"},
		&cli.StringFlag{Name: "source", Usage: "only of this `SOURCE`"},
	}, more...)...)
}

func deadLetterCommand() *cli.Command {
	all := func() cli.Flag { return &cli.BoolFlag{Name: "all", Usage: "every entry"} }
	return &cli.Command{
		Name:  "dlq",
		Usage: "list, show, reproduce, replay and purge the dead-letter queue of a running host",
		Subcommands: []*cli.Command{
			{
				Name:        "list",
				Usage:       "list entries, oldest first",
				Description: "Example:\n   edgehost dlq list --reason schema --limit 20",
				Flags: filterFlags(
					&cli.IntFlag{Name: "limit", Usage: "at most `N` entries", Value: 100},
					&cli.StringFlag{Name: "after", Usage: "what follows the entry `ID`"}),
				Action: withHost(deadLetterList),
			},
			{
				Name:        "show",
				Usage:       "show one entry with its record",
				ArgsUsage:   "ID",
				Description: "Example:\n   edgehost dlq show 17",
				Flags:       hostFlags(),
				Action:      withHost(deadLetterShow),
			},
			deadLetterReproCommand(),
			{
				Name:      "replay",
				Usage:     "send entries back to where they came from",
				ArgsUsage: "[ID…]",
				Description: "A record that a module rejected goes through the modules of its pipeline again; one that a\n" +
					"destination refused goes back to its queue. Mend the cause first, else it comes back.\n\n" +
					"Examples:\n   edgehost dlq replay 17 18\n   edgehost dlq replay --reason schema",
				Flags: filterFlags(all()),
				Action: withHost(func(c *cli.Context, host *control.Client) error {
					return deadLetterMove(c, "replayed", host.ReplayDeadLetters)
				}),
			},
			{
				Name:        "purge",
				Usage:       "delete entries for ever",
				ArgsUsage:   "[ID…]",
				Description: "Example:\n   edgehost dlq purge --pipeline line1 --reason rejected",
				Flags:       filterFlags(all()),
				Action: withHost(func(c *cli.Context, host *control.Client) error {
					return deadLetterMove(c, "deleted", host.PurgeDeadLetters)
				}),
			},
		},
	}
}

func filterOf(c *cli.Context) control.DeadLetterFilter {
	return control.DeadLetterFilter{IDs: c.Args().Slice(), Reason: c.String("reason"), Destination: c.String("destination"),
		Pipeline: c.String("pipeline"), Source: c.String("source"), After: c.String("after"), Limit: c.Int("limit")}
}

func deadLetterList(c *cli.Context, host *control.Client) error {
	if err := wantArgs(c, 0, 0, "no argument (dlq show ID shows one)"); err != nil {
		return err
	}
	f := filterOf(c)
	if f.Limit < 1 {
		return usagef("--limit %d is below 1", f.Limit)
	}
	list, err := host.DeadLetters(c.Context, f)
	if err != nil {
		return err
	}
	return show(c, list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(w, "no dead letters")
			return
		}
		rows := [][]string{{"ID", "TIME", "REASON", "SOURCE", "ADDRESS", "DESTINATION", "ERROR"}}
		for _, d := range list {
			rows = append(rows, []string{d.ID, stamp(d.Time), d.Reason, d.Source, d.Address, dash(d.Destination), d.Error})
		}
		table(w, rows)
		if len(list) == f.Limit {
			fmt.Fprintf(w, "there may be more: --after %s\n", list[len(list)-1].ID)
		}
	})
}

func deadLetterShow(c *cli.Context, host *control.Client) error {
	if err := wantArgs(c, 1, 1, "one ID"); err != nil {
		return err
	}
	d, err := host.DeadLetter(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return show(c, d, func(w io.Writer) {
		rows := [][]string{{"id", d.ID}, {"time", stamp(d.Time)}, {"reason", d.Reason}, {"error", d.Error}}
		for _, row := range [][]string{{"pipeline", d.Pipeline}, {"module", d.Module}, {"revision", d.Revision}, {"destination", d.Destination}} {
			if row[1] != "" {
				rows = append(rows, row)
			}
		}
		rows = append(rows, []string{"source", d.Source}, []string{"address", d.Address},
			[]string{"event time", stamp(d.EventTime)}, []string{"size", size(d.Bytes)}, []string{"record", string(d.Record)})
		table(w, rows)
	})
}

// deadLetterMove replays or purges. Everything at once must be said.
func deadLetterMove(c *cli.Context, verb string, move func(ctx context.Context, f control.DeadLetterFilter) (int, error)) error {
	f := filterOf(c)
	selected := len(f.IDs) > 0 || f.Reason != "" || f.Destination != "" || f.Pipeline != "" || f.Source != ""
	switch {
	case !selected && !c.Bool("all"):
		return usagef("say which entries: ids, --reason, --destination, --pipeline, --source, or --all")
	case selected && c.Bool("all"):
		return usagef("--all and a selection exclude each other")
	}
	n, err := move(c.Context, f)
	if err != nil {
		return err
	}
	return show(c, map[string]int{verb: n}, func(w io.Writer) { fmt.Fprintf(w, "%d entries %s\n", n, verb) })
}
