package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/host/control"
)

func breakerCommand() *cli.Command {
	return &cli.Command{
		Name:  "breaker",
		Usage: "act on the circuit breakers of a running host",
		Subcommands: []*cli.Command{{
			Name:      "reset",
			Usage:     "try a destination now instead of at its next probe",
			ArgsUsage: "CATALOG.SCHEMA.TABLE",
			Description: "Closes the breaker of the destination. A destination that is held is probed at once.\n\n" +
				"Example:\n   edgehost breaker reset mqtt.scada_data.mqtt_events_bronze",
			Flags: hostFlags(),
			Action: withHost(func(c *cli.Context, host *control.Client) error {
				if err := wantArgs(c, 1, 1, "one destination"); err != nil {
					return err
				}
				name := c.Args().First()
				if _, ok := parseTarget(name); !ok {
					return usagef("%q is not a destination; write catalog.schema.table (edgehost status lists them)", name)
				}
				if err := host.ResetBreaker(c.Context, name); err != nil {
					return err
				}
				return show(c, map[string]string{"reset": name}, func(w io.Writer) {
					fmt.Fprintf(w, "%s: trying now\n", name)
				})
			}),
		}},
	}
}
