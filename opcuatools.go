package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/sources/opcua"
)

// sourceFlags say which source of which configuration is meant.
func sourceFlags(more ...cli.Flag) []cli.Flag {
	return append(more, jsonFlag(),
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "configuration `FILE`"},
		&cli.StringFlag{Name: "state-dir", Usage: "`DIR` for everything that must survive, instead of state_dir"})
}

func opcuaFlags(more ...cli.Flag) []cli.Flag {
	return sourceFlags(append(more, &cli.StringFlag{Name: "source", Usage: "`NAME` of the source; not needed when there is one opcua source"})...)
}

func opcuaCommand() *cli.Command {
	certs := func(name, usage, args, example string, action cli.ActionFunc) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, ArgsUsage: args, Flags: opcuaFlags(), Action: action,
			Description: "Example:\n   edgehost opcua certs " + example + " --config config/connector.yaml"}
	}
	return &cli.Command{
		Name:  "opcua",
		Usage: "look at OPC UA servers, and at the certificates that are trusted",
		Subcommands: []*cli.Command{
			{
				Name:  "browse",
				Usage: "show what a server has, and the configuration that reads it",
				Description: "Connects as the source would, with a session of its own.\n\n" +
					"Example:\n   edgehost opcua browse --config config/connector.yaml --source plant_floor_opcua --path 0:Root/0:Objects/2:ProcessArea",
				Flags: opcuaFlags(
					&cli.StringFlag{Name: "path", Usage: "browse path or node id to start at `PATH`; the Objects folder when left out"},
					&cli.IntFlag{Name: "depth", Usage: "at most `N` levels", Value: 10},
					&cli.IntFlag{Name: "max-nodes", Usage: "at most `N` nodes", Value: 10_000}),
				Action: opcuaBrowse,
			},
			{
				Name:  "certs",
				Usage: "list, trust and reject the certificates of servers",
				Subcommands: []*cli.Command{
					certs("list", "show our own certificate, and those of servers that are trusted or were refused", "", "list", certsList),
					certs("show", "print a certificate in PEM: ours, or that of a server by thumbprint", "[THUMBPRINT]", "show 5F1D", certsShow),
					certs("trust", "trust a certificate that was refused", "THUMBPRINT", "trust 5F1D", certsMove((*opcua.CertStore).Trust, "trusted")),
					certs("reject", "trust a certificate no longer", "THUMBPRINT", "reject 5F1D", certsMove((*opcua.CertStore).Reject, "rejected")),
				},
			},
		},
	}
}

// configFlag loads the configuration that --config names.
func configFlag(c *cli.Context) (*config, error) {
	if !c.IsSet("config") {
		return nil, usagef("--config is missing; name the configuration file of the source")
	}
	cfg, err := loadConfig(c.String("config"), os.LookupEnv)
	if err != nil {
		return nil, &exitError{exitConfig, err}
	}
	if dir := c.String("state-dir"); dir != "" {
		cfg.StateDir = dir
	}
	return cfg, nil
}

// sourceNamed finds a source; where is the command line.
func (c *config) sourceNamed(name string, want func(*sourceConfig) bool, kind string) (*sourceConfig, error) {
	var names []string
	var found *sourceConfig
	for i := range c.Sources {
		s := &c.Sources[i]
		if !want(s) {
			continue
		}
		names = append(names, s.Name)
		if s.Name == name || name == "" {
			found = s
		}
	}
	switch {
	case len(names) == 0:
		return nil, usagef("%s has no %s", c.doc.file, kind)
	case name == "" && len(names) > 1:
		return nil, usagef("%s has more than one %s; name one with --source: %s", c.doc.file, kind, strings.Join(names, ", "))
	case found == nil:
		return nil, usagef("%s has no %s %q%s", c.doc.file, kind, name, meant(nearest(name, names), names))
	}
	return found, nil
}

func opcuaFlag(c *cli.Context) (*config, *sourceConfig, error) {
	cfg, err := configFlag(c)
	if err != nil {
		return nil, nil, err
	}
	s, err := cfg.sourceNamed(c.String("source"), func(s *sourceConfig) bool { return s.OPCUA != nil }, "opcua source")
	return cfg, s, err
}

// toolLog is where commands that look at a server say what they notice.
func toolLog(c *cli.Context) *slog.Logger {
	return slog.New(logHandler("text", c.App.ErrWriter, slog.LevelWarn))
}

func opcuaBrowse(c *cli.Context) error {
	if err := wantArgs(c, 0, 0, "no argument"); err != nil {
		return err
	}
	if c.Int("depth") < 1 || c.Int("max-nodes") < 1 {
		return usagef("--depth and --max-nodes are at least 1")
	}
	cfg, s, err := opcuaFlag(c)
	if err != nil {
		return err
	}
	a, err := cfg.ask(c.Context, s, opcuaLook{Browse: &opcua.BrowseOptions{Start: c.String("path"), MaxDepth: c.Int("depth"), MaxNodes: c.Int("max-nodes")}}, toolLog(c))
	if err != nil {
		return fmt.Errorf("browse %s: %w", s.Endpoint, err)
	}
	return show(c, struct {
		Nodes     []opcua.BrowseEntry `json:"nodes"`
		Truncated bool                `json:"truncated"`
	}{a.Nodes, a.Truncated}, func(w io.Writer) { printTree(w, a.Nodes, a.Truncated) })
}

// printTree prints nodes below their parents, and a configuration that reads the
// variables.
func printTree(w io.Writer, list []opcua.BrowseEntry, truncated bool) {
	below := map[string][]opcua.BrowseEntry{}
	parent := func(path string) string { return path[:max(0, lastSlash(path))] }
	for _, e := range list {
		below[parent(e.BrowsePath)] = append(below[parent(e.BrowsePath)], e)
	}
	var variables []opcua.BrowseEntry
	var print func(path string, depth int)
	print = func(path string, depth int) {
		for _, e := range below[path] {
			fmt.Fprintf(w, "%s%s  %s %s  %s\n", strings.Repeat("  ", depth), oneLine(e.Name), e.Class, oneLine(e.DataType), oneLine(e.NodeID))
			if e.Class == "Variable" {
				variables = append(variables, e)
			}
			print(e.BrowsePath, depth+1)
		}
	}
	if len(list) > 0 {
		print(parent(list[0].BrowsePath), 0)
	}
	if truncated {
		fmt.Fprintln(w, "… there is more: give --path, or a larger --max-nodes")
	}
	if len(variables) == 0 {
		fmt.Fprintln(w, "no variable is there; give another --path, or a larger --depth")
		return
	}
	fmt.Fprintf(w, "\n# %d variables:\nnodes:\n", len(variables))
	for _, e := range variables {
		fmt.Fprintf(w, "- {node_id: %s, name: %s}  # %s\n", quoted(e.NodeID), quoted(e.Name), oneLine(e.BrowsePath))
	}
}

// lastSlash finds the last slash that separates two names: in a name it is
// written &/ (Part 4, A.2).
func lastSlash(path string) int {
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' && path[i-1] != '&' {
			return i
		}
	}
	return -1
}

// quoted writes text so that YAML reads it back: a JSON string is one.
func quoted(text string) string {
	b, err := json.Marshal(text)
	if err != nil { // a string always encodes
		return "''"
	}
	return string(b)
}

func certsList(c *cli.Context) error {
	if err := wantArgs(c, 0, 0, "no argument"); err != nil {
		return err
	}
	cfg, s, err := opcuaFlag(c)
	if err != nil {
		return err
	}
	certs, err := s.OPCUA.CertStore(cfg.certDir()).List()
	if err != nil {
		return err
	}
	return show(c, certs, func(w io.Writer) {
		if len(certs) == 0 {
			fmt.Fprintln(w, "no server has shown a certificate yet; a server that is not trusted is listed here after its first refusal")
			return
		}
		rows := [][]string{{"THUMBPRINT", "STATE", "EXPIRES", "SUBJECT", "APPLICATION"}}
		for _, i := range certs {
			state := "rejected"
			if i.Trusted {
				state = "trusted"
			}
			rows = append(rows, []string{i.Thumbprint, state, i.NotAfter.UTC().Format(time.DateOnly), i.Subject, dash(i.ApplicationURI)})
		}
		table(w, rows)
	})
}

func certsShow(c *cli.Context) error {
	if err := wantArgs(c, 0, 1, "at most one THUMBPRINT"); err != nil {
		return err
	}
	cfg, s, err := opcuaFlag(c)
	if err != nil {
		return err
	}
	if c.NArg() == 1 {
		info, text, err := s.OPCUA.CertStore(cfg.certDir()).Show(c.Args().First())
		if err != nil {
			return err
		}
		return showCert(c, info, text)
	}
	info, err := s.OPCUA.OwnCertificate(cfg.certDir(), toolLog(c))
	if err != nil {
		return fmt.Errorf("our certificate: %w", err)
	}
	return showCert(c, info, "")
}

func showCert(c *cli.Context, info opcua.CertInfo, text string) error {
	return show(c, info, func(w io.Writer) {
		for _, line := range [][2]string{{"thumbprint", info.Thumbprint}, {"subject", info.Subject}, {"issuer", info.Issuer},
			{"sent with it", strings.Join(info.Sent, ", then ")}, {"application", info.ApplicationURI},
			{"names", strings.Join(info.DNSNames, " ")}, {"valid", stamp(info.NotBefore) + " to " + stamp(info.NotAfter)}, {"file", info.Path}} {
			fmt.Fprintf(w, "%-12s %s\n", line[0], oneLine(dash(line[1])))
		}
		fmt.Fprint(w, text)
	})
}

// certsMove is trust and reject.
func certsMove(move func(*opcua.CertStore, string) (opcua.CertInfo, error), word string) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := wantArgs(c, 1, 1, "a THUMBPRINT, or its beginning; certs list shows them"); err != nil {
			return err
		}
		cfg, s, err := opcuaFlag(c)
		if err != nil {
			return err
		}
		info, err := move(s.OPCUA.CertStore(cfg.certDir()), c.Args().First())
		if err != nil {
			return err
		}
		return show(c, info, func(w io.Writer) {
			fmt.Fprintf(w, "%s %s: %s\nA running host obeys at its next connection.\n", word, info.Thumbprint, oneLine(info.Subject))
		})
	}
}

// certDir is where certificates live that the configuration does not name.
func (c *config) certDir() string { return filepath.Join(c.StateDir, "certs", "opcua") }

// opcuaJob is what a source of the configuration is made of.
func (c *config) opcuaJob(s *sourceConfig) opcuaJob {
	return opcuaJob{Name: s.Name, Endpoint: s.Endpoint, Tags: s.Tags, Config: *s.OPCUA, Dir: c.certDir()}
}
