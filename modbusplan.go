package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/sources/modbus"
)

func modbusCommand() *cli.Command {
	return &cli.Command{
		Name:  "modbus",
		Usage: "look at what modbus sources read",
		Subcommands: []*cli.Command{{
			Name:      "plan",
			Usage:     "show which registers become which values, and the requests that read them",
			ArgsUsage: "FILE [SOURCE]",
			Description: "Reads the configuration and connects to nothing.\n\n" +
				"Example:\n   edgehost modbus plan config/connector.yaml plc_modbus_tcp",
			Flags:  []cli.Flag{jsonFlag()},
			Action: modbusPlan,
		}},
	}
}

// sourcePlan is what one modbus source reads.
type sourcePlan struct {
	Source   string           `json:"source"`
	Requests []modbus.Request `json:"requests"`
	Points   []modbus.Point   `json:"points"`
}

func modbusPlan(c *cli.Context) error {
	if err := wantArgs(c, 1, 2, "a FILE and perhaps a SOURCE"); err != nil {
		return err
	}
	cfg, err := loadConfig(c.Args().First(), os.LookupEnv)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	only := c.Args().Get(1)
	plans := []sourcePlan{}
	for _, s := range cfg.Sources {
		if s.Modbus == nil || only != "" && s.Name != only {
			continue
		}
		requests, err := modbus.Plan(*s.Modbus)
		points, err2 := modbus.Expand(*s.Modbus)
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("plan %s: %w", s.Name, err)
		}
		plans = append(plans, sourcePlan{s.Name, requests, points})
	}
	if len(plans) == 0 {
		return usagef("%s has no modbus source %s", c.Args().First(), only)
	}
	return show(c, plans, func(w io.Writer) {
		for _, p := range plans {
			fmt.Fprintln(w, p.Source)
			for _, r := range p.Requests {
				fmt.Fprintf(w, "  %v\n", r)
			}
			rows := [][]string{{"  ADDRESS", "TYPE", "DATA", "NAME", "UNIT"}}
			for _, pt := range p.Points {
				rows = append(rows, []string{"  " + pt.Address, string(pt.Type), string(pt.DataType), dash(pt.Name), dash(pt.Unit)})
			}
			table(w, rows)
		}
	})
}
