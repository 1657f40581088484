package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/host/control"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show what a running host is doing",
		Description: "Exits with 1 when the host is unhealthy.\n\n" +
			"Examples:\n   edgehost status --config config/connector.yaml\n   edgehost status --json | jq .ledger",
		Flags: hostFlags(),
		Action: withHost(func(c *cli.Context, host *control.Client) error {
			if err := wantArgs(c, 0, 0, "no argument"); err != nil {
				return err
			}
			s, err := host.Status(c.Context)
			if err != nil {
				return err
			}
			if err := show(c, s, func(w io.Writer) { printStatus(w, s) }); err != nil {
				return err
			}
			if s.Status == control.Unhealthy {
				return fmt.Errorf("the host is unhealthy: %s", strings.Join(s.Reasons, "; "))
			}
			return nil
		}),
	}
}

func printStatus(w io.Writer, s control.Status) {
	up := time.Duration(s.UptimeSeconds * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(w, "edgehost %s, up %s: %s\n", oneLine(s.Version), up, s.Status)
	for _, r := range s.Reasons {
		fmt.Fprintf(w, "  %s\n", oneLine(r))
	}
	rows := [][]string{{"SOURCE", "PROTOCOL", "STATE", "RECORDS", "LAST", "DETAIL"}}
	for _, x := range s.Sources {
		rows = append(rows, []string{x.Name, x.Protocol, x.State, count(x.Records), ago(x.LastRead), x.Detail})
	}
	section(w, rows)

	rows = [][]string{{"PIPELINE", "STATE", "MODULES", "READ", "EMITTED", "FILTERED", "REJECTED", "HELD", "DROPPED", "DETAIL"}}
	for _, p := range s.Pipelines {
		var use []string
		for _, m := range p.Modules {
			use = append(use, m.Name+"@"+dash(short(m.Digest)))
		}
		l := p.Ledger
		rows = append(rows, []string{p.Name, p.State, dash(strings.Join(use, " ")), count(l.Read), count(l.Emitted),
			count(l.Filtered), count(l.Rejected), count(l.Held), count(l.Dropped), p.Detail})
	}
	section(w, rows)

	rows = [][]string{{"DESTINATION", "STATE", "BREAKER", "DELIVERED", "WAITING", "DEAD", "DROPPED", "OLDEST", "DETAIL"}}
	for _, d := range s.Destinations {
		l := d.Ledger
		oldest := "-"
		if !d.Oldest.IsZero() {
			oldest = ago(d.Oldest)
		}
		rows = append(rows, []string{d.Name, d.State, d.Breaker.State, count(l.Delivered), count(l.Waiting),
			count(l.DeadLettered), count(l.Dropped), oldest, d.Detail})
	}
	section(w, rows)

	balanced := "balanced"
	if !s.Ledger.Balanced {
		balanced = "NOT BALANCED: please report this"
	}
	l := s.Ledger
	fmt.Fprintf(w, "\nledger: %d read, %d delivered, %d waiting, %d filtered, %d dead-lettered, %d dropped, %d held: %s\n",
		l.Read, l.Delivered, l.Waiting, l.Filtered, l.DeadLettered, l.Dropped, l.Held, balanced)
	for _, k := range s.NotInForce {
		fmt.Fprintf(w, "not in force: %s\n", oneLine(k))
	}
}

// section prints a table below an empty line, or nothing when it has no rows.
func section(w io.Writer, rows [][]string) {
	if len(rows) > 1 {
		fmt.Fprintln(w)
		table(w, rows)
	}
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }
