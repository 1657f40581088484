package main

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// tagFormat is how the tags of one protocol stand in a CSV file and in a
// configuration.
type tagFormat struct {
	protocol string
	endpoint string   // where it is not said
	list     string   // key of the list below the protocol's block
	columns  []string // keys of an entry, in the order in which they are written
	numbers  []string // those of them that are numbers
	need     []string // a row has one of them
}

var tagFormats = []tagFormat{
	{
		protocol: "modbus", endpoint: "modbus+tcp://127.0.0.1:502", list: "registers", need: []string{"address"},
		columns: []string{"address", "register_type", "data_type", "count", "values", "length", "bit", "byte_order", "slave_id", "name",
			"scale", "offset", "scale_factor", "unit", "poll_interval_ms", "report", "deadband", "heartbeat_seconds"},
		numbers: []string{"count", "values", "length", "bit", "slave_id", "scale", "offset", "scale_factor", "poll_interval_ms", "deadband", "heartbeat_seconds"},
	},
	{
		protocol: "opcua", endpoint: "opc.tcp://127.0.0.1:4840", list: "nodes", need: []string{"node_id", "browse_path"},
		columns: []string{"node_id", "browse_path", "name", "unit", "mode", "sampling_interval_ms", "queue_size", "trigger", "heartbeat_seconds"},
		numbers: []string{"sampling_interval_ms", "queue_size", "heartbeat_seconds"},
	},
}

// tagColumn begins the name of a column whose values are attributes of the
// records: tag.line gives the attribute line.
const tagColumn = "tag."

func sourceImportCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "make the configuration of a source from a CSV file of tags",
		ArgsUsage: "FILE.csv",
		Description: "The first line names the columns, in any order; commas or semicolons part them, # begins a comment\n" +
			"line, an empty cell takes the default. The columns are the keys of the configuration:\n\n" + importColumns() +
			"\nand tag.KEY for an attribute KEY of the records. Every row is checked as config check would; when one\n" +
			"is wrong nothing is written. It connects to nothing. examples/tags has a file for each protocol.\n\n" +
			"Examples:\n   edgehost source import tags.csv --protocol modbus --name press1 --endpoint modbus+tcp://10.0.0.7:502\n" +
			"   edgehost source import tags.csv --protocol opcua --out press1.yaml",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "protocol", Usage: "`PROTOCOL` of the tags: modbus or opcua"},
			&cli.StringFlag{Name: "name", Value: "imported", Usage: "`NAME` of the source"},
			&cli.StringFlag{Name: "endpoint", Usage: "`URL` of the device; without it, one of this machine"},
			&cli.StringFlag{Name: "out", Usage: "write to `FILE`, which must not exist, instead of the standard output"},
		},
		Action: sourceImport,
	}
}

func importColumns() string {
	var b strings.Builder
	for _, f := range tagFormats {
		fmt.Fprintf(&b, "   %s: %s\n", f.protocol, strings.Join(f.columns, " "))
	}
	return b.String()
}

func sourceImport(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "one FILE.csv"); err != nil {
		return err
	}
	i := slices.IndexFunc(tagFormats, func(f tagFormat) bool { return f.protocol == c.String("protocol") })
	if i < 0 {
		return usagef("--protocol %q is not modbus or opcua", c.String("protocol"))
	}
	f := tagFormats[i]
	if c.IsSet("endpoint") {
		f.endpoint = c.String("endpoint")
	}
	src, err := os.ReadFile(c.Args().First())
	if err != nil {
		return fmt.Errorf("read tags: %w", err)
	}
	text, err := f.config(c.Args().First(), src, c.String("name"))
	if err != nil {
		return &exitError{exitConfig, err}
	}
	if c.String("out") == "" {
		_, err = c.App.Writer.Write(text)
		return err
	}
	return writeNew(c.String("out"), text)
}

// writeNew writes a file that is not there yet.
func writeNew(path string, text []byte) error {
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	_, err = w.Write(text)
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// config turns tags into the configuration of a source. Each row becomes one
// line, so that what the configuration's own check finds can be told by the line
// of the CSV file.
func (f tagFormat) config(file string, src []byte, name string) ([]byte, error) {
	rows, found := f.rows(file, src)
	if len(found) > 0 {
		return nil, found
	}
	if len(rows) == 0 {
		return nil, problems{{file: file, line: 1, col: 1, msg: "no tags: there is nothing below the names of the columns"}}
	}
	head := fmt.Sprintf("# %d tags of %s\nsources:\n- name: %s\n  protocol: %s\n  endpoint: %s\n  %s:\n    %s:\n", len(rows), strconv.Quote(file),
		yamlText(name), f.protocol, yamlText(f.endpoint), f.protocol, f.list)
	var b bytes.Buffer
	b.WriteString(head)
	for _, r := range rows {
		b.WriteString("    - {" + r.entry + "}\n")
	}
	first := strings.Count(head, "\n") + 1 // line of the first entry
	checked := parseConfig(file, b.Bytes(), func(string) (string, bool) { return "", false })
	for _, p := range checked.doc.found {
		if at := p.line - first; at >= 0 && at < len(rows) {
			if _, key, ok := strings.Cut(p.path, f.list+"["); ok {
				_, p.path, _ = strings.Cut(key, "].")
			}
			p.line, p.col = rows[at].line, rows[at].columnOf(p.path)
		} else {
			p.file, p.line = "source "+name, 0
		}
		found = append(found, p)
	}
	if len(found) > 0 {
		return nil, found
	}
	return b.Bytes(), nil
}

// tagRow is one tag as an entry of the configuration.
type tagRow struct {
	line  int
	cells map[string]int // where the cell of each column begins, from 1
	entry string
}

// columnOf is where the value of a key of the configuration stands; the row's
// beginning when it stands in no cell.
func (r tagRow) columnOf(key string) int {
	if tag, ok := strings.CutPrefix(key, "tags."); ok {
		key = tagColumn + tag
	}
	return max(1, r.cells[key])
}

// rows reads the file; it does not stop at the first problem.
func (f tagFormat) rows(file string, src []byte) (rows []tagRow, found problems) {
	fail := func(line, col int, format string, args ...any) {
		found = append(found, problem{file: file, line: line, col: col, msg: fmt.Sprintf(format, args...)})
	}
	src = bytes.TrimPrefix(src, []byte("\ufeff"))
	r := csv.NewReader(bytes.NewReader(src))
	r.Comment, r.TrimLeadingSpace, r.FieldsPerRecord = '#', true, -1
	r.Comma = separator(src)
	var columns []string
	for {
		cells, err := r.Read()
		if errors.Is(err, io.EOF) {
			return rows, found
		}
		var parse *csv.ParseError
		if errors.As(err, &parse) {
			fail(parse.Line, parse.Column, "%v", parse.Err)
			return nil, found
		} else if err != nil {
			fail(1, 1, "%v", err)
			return nil, found
		}
		line, _ := r.FieldPos(0)
		if columns == nil {
			if columns = f.header(cells, func(i int, msg string) { fail(line, column(r, i), "%s", msg) }); len(found) > 0 {
				return nil, found
			}
			continue
		}
		if len(cells) > len(columns) {
			fail(line, column(r, len(columns)), "%d cells, but there are %d columns; quote a cell that holds the separator", len(cells), len(columns))
			continue
		}
		if entry := f.entry(columns, cells, func(i int, msg string) { fail(line, column(r, i), "%s", msg) }); entry != "" {
			at := map[string]int{}
			for i := range cells {
				at[columns[i]] = column(r, i)
			}
			rows = append(rows, tagRow{line, at, entry})
		}
	}
}

func column(r *csv.Reader, i int) int {
	_, col := r.FieldPos(i)
	return col
}

// separator is the semicolon when the first line with columns has one.
func separator(src []byte) rune {
	for line := range bytes.Lines(src) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			if bytes.ContainsRune(line, ';') {
				return ';'
			}
			break
		}
	}
	return ','
}

// header checks the names of columns.
func (f tagFormat) header(cells []string, fail func(i int, msg string)) []string {
	columns := make([]string, len(cells))
	needed := false
	for i, cell := range cells {
		name := strings.TrimSpace(cell)
		if !strings.HasPrefix(name, tagColumn) {
			name = strings.ToLower(name)
		}
		switch {
		case slices.Contains(columns[:i], name):
			fail(i, fmt.Sprintf("column %q stands there twice", name))
		case strings.HasPrefix(name, tagColumn) && len(name) > len(tagColumn), slices.Contains(f.columns, name):
			columns[i] = name
			needed = needed || slices.Contains(f.need, name)
		default:
			fail(i, fmt.Sprintf("no column %q%s; an attribute is called %sKEY", name, meant(nearest(name, f.columns), f.columns), tagColumn))
		}
	}
	if !needed {
		fail(0, fmt.Sprintf("no column %s: the first line must name the columns", strings.Join(f.need, " or ")))
	}
	return columns
}

// entry writes one row as a flow mapping without its braces, "" when it is
// wrong.
func (f tagFormat) entry(columns, cells []string, fail func(i int, msg string)) string {
	values := map[string]string{}
	bad := false
	for i, cell := range cells {
		cell = strings.TrimSpace(cell)
		if cell == "" {
			continue
		}
		if slices.Contains(f.numbers, columns[i]) {
			if _, err := strconv.ParseFloat(cell, 64); err != nil {
				fail(i, fmt.Sprintf("%s: %q is not a number", columns[i], cell))
				bad = true
			}
			values[columns[i]] = cell
			continue
		}
		values[columns[i]] = yamlText(cell)
		if columns[i] == "address" && strings.Trim(cell, "0123456789") == "" {
			values[columns[i]] = cell // as people write it; its zeros are kept
		}
	}
	if !slices.ContainsFunc(f.need, func(c string) bool { return values[c] != "" }) {
		fail(0, fmt.Sprintf("%s is empty", strings.Join(f.need, " or ")))
		return ""
	}
	if bad {
		return ""
	}
	return f.mapping(columns, values)
}

func (f tagFormat) mapping(columns []string, values map[string]string) string {
	var parts, tags []string
	for _, c := range f.columns {
		if v := values[c]; v != "" {
			parts = append(parts, c+": "+v)
		}
	}
	for _, c := range columns {
		if key, ok := strings.CutPrefix(c, tagColumn); ok && values[c] != "" {
			tags = append(tags, yamlText(key)+": "+values[c])
		}
	}
	if len(tags) > 0 {
		parts = append(parts, "tags: {"+strings.Join(tags, ", ")+"}")
	}
	return strings.Join(parts, ", ")
}

// yamlText writes text so that it is read as just that: plain where it is a word
// that YAML cannot take for anything else, else quoted.
func yamlText(s string) string {
	plain := s != "" && s[0] >= 'A' && s[0] <= 'z'
	for _, r := range s {
		plain = plain && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_')
	}
	if plain && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}, strings.ToLower(s)) {
		return s
	}
	return strconv.Quote(strings.ReplaceAll(s, "$", "$$"))
}
