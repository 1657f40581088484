package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/modules"
)

func moduleCommand() *cli.Command {
	return &cli.Command{
		Name:  "module",
		Usage: "make, test and inspect modules; upload, list and roll back those of a running host",
		Subcommands: []*cli.Command{
			moduleNewCommand(), moduleTestCommand(), moduleBenchCommand(), moduleInspectCommand(),
			{
				Name:      "push",
				Usage:     "upload a module and put it in force",
				ArgsUsage: "FILE",
				Description: "The host checks and starts the module before it takes the place of the revision that runs;\n" +
					"when that fails, the running one runs on. FILE - is standard input.\n\n" +
					"Example:\n   edgehost module push scale.wasm --name scale",
				Flags: hostFlags(
					&cli.StringFlag{Name: "name", Usage: "`NAME` under which pipelines know the module"},
					&cli.BoolFlag{Name: "inactive", Usage: "keep the revision, but leave the running one in force"}),
				Action: withHost(modulePush),
			},
			{
				Name:        "list",
				Usage:       "show the modules, their revisions and who uses them",
				Description: "Example:\n   edgehost module list --json",
				Flags:       hostFlags(),
				Action:      withHost(moduleList),
			},
			{
				Name:        "rollback",
				Usage:       "put the revision that was in force before back in force",
				ArgsUsage:   "NAME",
				Description: "Example:\n   edgehost module rollback scale",
				Flags:       hostFlags(),
				Action:      withHost(moduleRollback),
			},
		},
	}
}

func modulePush(c *cli.Context, host *control.Client) error {
	if err := wantArgs(c, 1, 1, "one FILE"); err != nil {
		return err
	}
	name := c.String("name")
	if name == "" {
		return usagef("--name is missing; it says which module of the pipelines this is")
	}
	if err := modules.CheckName(name); err != nil {
		return &exitError{exitUsage, err}
	}
	wasm, err := readModule(c, c.Args().First())
	if err != nil {
		return err
	}
	m, err := host.PushModule(c.Context, control.PushRequest{Name: name, Wasm: wasm, Activate: !c.Bool("inactive")})
	if control.CodeOf(err) == control.Refused {
		return pushError(c, wasm, err)
	}
	if err != nil {
		return err
	}
	return show(c, m, func(w io.Writer) {
		digest := m.Active
		if len(m.Revisions) > 0 {
			digest = m.Revisions[0].Digest
		}
		switch {
		case c.Bool("inactive"):
			fmt.Fprintf(w, "%s: kept a revision; %s stays in force\n", m.Name, dash(short(m.Active)))
		case digest != m.Active:
			fmt.Fprintf(w, "%s: %s is in force again\n", m.Name, short(m.Active))
		default:
			fmt.Fprintf(w, "%s: %s is in force\n", m.Name, short(m.Active))
		}
		if len(m.Pipelines) == 0 {
			fmt.Fprintf(w, "no pipeline uses %s yet: add it to modules: of one in the configuration\n", m.Name)
		}
	})
}

// pushError adds to the words of a host that refused a module what its author can
// do.
func pushError(c *cli.Context, wasm []byte, refused error) error {
	advice, err := adviceOn(c.Context, wasm)
	if err != nil || advice == "" {
		return errors.Join(refused, err)
	}
	return fmt.Errorf("%w\nWhat to do: %s", refused, advice)
}

// readModule reads a file or standard input and refuses what cannot be a module
// before it is sent.
func readModule(c *cli.Context, path string) ([]byte, error) {
	wasm, err := readWasm(c, path)
	switch {
	case err != nil:
		return nil, err
	case len(wasm) > control.MaxModule:
		return nil, fmt.Errorf("%s is larger than %d MiB; build it without debug information", path, control.MaxModule>>20)
	case !isWasm(wasm):
		return nil, notModule(path, wasm)
	}
	return wasm, nil
}

func isWasm(file []byte) bool { return strings.HasPrefix(string(file), "\x00asm") }

func notModule(path string, file []byte) error {
	return fmt.Errorf("%s is not a WebAssembly module: %s", path, notWasm(file))
}

// readWasm reads a file or standard input, as far as one byte beyond the largest
// module.
func readWasm(c *cli.Context, path string) ([]byte, error) {
	in := c.App.Reader
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read module: %w", err)
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	wasm, err := io.ReadAll(io.LimitReader(in, control.MaxModule+1))
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	return wasm, nil
}

func moduleList(c *cli.Context, host *control.Client) error {
	if err := wantArgs(c, 0, 0, "no argument"); err != nil {
		return err
	}
	list, err := host.Modules(c.Context)
	if err != nil {
		return err
	}
	return show(c, list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(w, "no modules; upload one with: edgehost module push FILE --name NAME")
			return
		}
		rows := [][]string{{"NAME", "REVISION", "", "SIZE", "SINCE", "BY", "PIPELINES"}}
		for _, m := range list {
			for i, r := range m.Revisions {
				name, active, pipelines := "", "", ""
				if i == 0 {
					name, pipelines = m.Name, strings.Join(m.Pipelines, ",")
				}
				if r.Digest == m.Active {
					active = "active"
				}
				rows = append(rows, []string{name, short(r.Digest), active, size(uint64(max(0, r.Size))), stamp(r.At), dash(r.By), pipelines})
			}
			if len(m.Revisions) == 0 {
				rows = append(rows, []string{m.Name, "-", "", strconv.Itoa(0), "-", "-", strings.Join(m.Pipelines, ",")})
			}
		}
		table(w, rows)
	})
}

func moduleRollback(c *cli.Context, host *control.Client) error {
	if err := wantArgs(c, 1, 1, "one NAME"); err != nil {
		return err
	}
	name := c.Args().First()
	if err := modules.CheckName(name); err != nil {
		return &exitError{exitUsage, err}
	}
	m, err := host.RollbackModule(c.Context, name)
	if err != nil {
		return err
	}
	return show(c, m, func(w io.Writer) { fmt.Fprintf(w, "%s: %s is in force again\n", m.Name, short(m.Active)) })
}
