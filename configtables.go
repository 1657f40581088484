package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/sinks/zerobus"
)

func configTablesCommand() *cli.Command {
	return &cli.Command{
		Name:      "tables",
		Usage:     "print the SQL that makes the tables a configuration delivers to",
		ArgsUsage: "FILE",
		Description: "Reads the file and the environment and connects to nothing. Run what it prints in a Databricks SQL editor;\n" +
			"tables that are there already stay as they are.\n\n" +
			"Example:\n   edgehost config tables config/connector.yaml > tables.sql",
		Flags:  []cli.Flag{jsonFlag()},
		Action: configTables,
	}
}

// tableDefinition is how a table must look that edgehost delivers to.
type tableDefinition struct {
	Table string `json:"table"`
	SQL   string `json:"sql,omitempty"`
	// Problem says why there is no SQL.
	Problem string `json:"problem,omitempty"`
}

func configTables(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "one FILE"); err != nil {
		return err
	}
	cfg, err := loadConfig(c.Args().First(), os.LookupEnv)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	plans := cfg.plan()
	tables := []tableDefinition{}
	var unknown []string
	for _, t := range targets(plans) {
		d := tableDefinition{Table: t.String()}
		if schema, err := cfg.tableSchema(t, plans); err != nil {
			d.Problem = err.Error()
			unknown = append(unknown, d.Table)
		} else {
			d.SQL = createTable(schema, cfg.columns(t))
		}
		tables = append(tables, d)
	}
	if err := show(c, tables, func(w io.Writer) {
		for _, d := range tables {
			if d.Problem != "" {
				fmt.Fprintf(w, "-- %s\n\n", d.Problem)
				continue
			}
			fmt.Fprintf(w, "%s;\n\n", d.SQL)
		}
	}); err != nil || len(unknown) == 0 {
		return err
	}
	return &exitError{exitConfig, fmt.Errorf("the columns of %s are not known", strings.Join(unknown, ", "))}
}

// createTable is the statement that makes a table. listed are its columns in the
// configuration, whose types keep their parameters; nil: there are none.
func createTable(s zerobus.Schema, listed []zerobus.ColumnConfig) string {
	parts := strings.Split(s.Table, ".")
	for i, p := range parts {
		parts[i] = "`" + p + "`"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE TABLE IF NOT EXISTS %s (", strings.Join(parts, "."))
	for i, col := range s.Columns {
		if i > 0 {
			b.WriteByte(',')
		}
		typ := string(col.Type)
		if listed != nil {
			typ = strings.ToUpper(listed[i].Type)
		}
		fmt.Fprintf(&b, "\n  `%s` %s", col.Name, typ)
		if !col.Nullable {
			b.WriteString(" NOT NULL")
		}
	}
	b.WriteString("\n)")
	return b.String()
}
