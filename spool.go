package main

import (
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/host/control"
)

func spoolCommand() *cli.Command {
	return &cli.Command{
		Name:  "spool",
		Usage: "look into the queues of a running host and send again what they keep",
		Subcommands: []*cli.Command{
			{
				Name:        "status",
				Usage:       "show what waits, how old it is and how long the disk lasts",
				Description: "Example:\n   edgehost spool status",
				Flags:       hostFlags(),
				Action:      withHost(spoolStatus),
			},
			{
				Name:  "replay",
				Usage: "deliver once more what was delivered and is still kept",
				Description: "What is kept is set by backpressure.disk_spool.retention_seconds. Replay runs beside the live\n" +
					"traffic and until all is acknowledged; interrupt it to stop. Records keep their record_id.\n\n" +
					"Examples:\n   edgehost spool replay --since 2h --dry-run\n" +
					"   edgehost spool replay --destination mqtt.scada_data.mqtt_events_bronze --since 2026-06-01T00:00:00Z --rate 1000",
				Flags: hostFlags(
					&cli.StringFlag{Name: "destination", Usage: "only this `TABLE` (catalog.schema.table)"},
					&cli.StringFlag{Name: "since", Usage: "appended at or after `TIME`: RFC 3339, or how long ago (90m)"},
					&cli.StringFlag{Name: "until", Usage: "appended before `TIME`"},
					&cli.Uint64Flag{Name: "from-seq", Usage: "from this sequence `NUMBER` of the queue on"},
					&cli.IntFlag{Name: "rate", Usage: "at most `N` records a second; 0: the host's default"},
					&cli.BoolFlag{Name: "dry-run", Usage: "only count"}),
				Action: withHost(spoolReplay),
			},
		},
	}
}

func spoolStatus(c *cli.Context, host *control.Client) error {
	if err := wantArgs(c, 0, 0, "no argument"); err != nil {
		return err
	}
	s, err := host.Status(c.Context)
	if err != nil {
		return err
	}
	out := struct {
		Spool        control.SpoolStatus         `json:"spool"`
		Destinations []control.DestinationStatus `json:"destinations"`
		DeadLetters  control.DeadLetterStatus    `json:"dead_letters"`
	}{s.Spool, s.Destinations, s.DeadLetters}
	return show(c, out, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s of %s, when full: %s\n", dash(s.Spool.Dir), size(s.Spool.Bytes), size(s.Spool.Cap), s.Spool.DropPolicy)
		if n := s.Spool.SecondsToFull; n > 0 {
			fmt.Fprintf(w, "at the present rates it is full in %s\n", (time.Duration(n) * time.Second).String())
		}
		if s.Spool.Error != "" {
			fmt.Fprintf(w, "nothing can be written: %s\n", oneLine(s.Spool.Error))
		}
		rows := [][]string{{"DESTINATION", "WAITING", "BYTES", "ON DISK", "OLDEST", "LAST DELIVERED"}}
		for _, d := range s.Destinations {
			rows = append(rows, []string{d.Name, count(d.Queue.Records), size(d.Queue.Bytes), size(d.BytesOnDisk), ago(d.Oldest), ago(d.LastDelivered)})
		}
		section(w, rows)
		fmt.Fprintf(w, "\ndead letters: %d, %s of %s\n", s.DeadLetters.Entries, size(s.DeadLetters.Bytes), size(s.DeadLetters.Cap))
	})
}

func spoolReplay(c *cli.Context, host *control.Client) error {
	if err := wantArgs(c, 0, 0, "no argument"); err != nil {
		return err
	}
	r := control.ReplayRequest{Destination: c.String("destination"), FromSeq: c.Uint64("from-seq"), Rate: c.Int("rate"), DryRun: c.Bool("dry-run")}
	if r.Destination != "" {
		if _, ok := parseTarget(r.Destination); !ok {
			return usagef("--destination %q is not catalog.schema.table (edgehost status lists them)", r.Destination)
		}
	}
	if r.FromSeq != 0 && r.Destination == "" {
		return usagef("--from-seq needs --destination: each queue counts on its own")
	}
	if r.Rate < 0 {
		return usagef("--rate %d is below 0", r.Rate)
	}
	var err error
	if r.Since, err = timeFlag(c, "since"); err != nil {
		return err
	}
	if r.Until, err = timeFlag(c, "until"); err != nil {
		return err
	}
	if !r.Since.IsZero() && !r.Until.IsZero() && !r.Since.Before(r.Until) {
		return usagef("--since is not before --until: nothing lies between them")
	}
	result, err := host.Replay(c.Context, r)
	if err != nil {
		return err
	}
	return show(c, result, func(w io.Writer) {
		verb := "sent again"
		if result.DryRun {
			verb = "would be sent again"
		}
		rows := [][]string{{"DESTINATION", "RECORDS", "BYTES", "FIRST", "LAST"}}
		for _, d := range result.Destinations {
			rows = append(rows, []string{d.Name, count(d.Records), size(d.Bytes), stamp(d.First), stamp(d.Last)})
		}
		if len(rows) > 1 {
			table(w, rows)
		}
		fmt.Fprintf(w, "%d records (%s) %s\n", result.Records, size(result.Bytes), verb)
	})
}

// timeFlag reads a time, or how long ago it was.
func timeFlag(c *cli.Context, name string) (time.Time, error) {
	text := c.String(name)
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return time.Time{}, usagef("--%s %q is neither a time like 2026-06-01T12:00:00Z nor a duration like 90m", name, text)
	}
	return time.Now().Add(-d).UTC(), nil
}
