package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/spool"
)

// The exit codes of every command; the last ones are those of sysexits.h. A disk of
// the spool that fails ends the process with spool.ExitDisk.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitUnavailable = 69 // no host runs where the command looked
	exitBusy        = 75 // try again: something else is in the way
	exitConfig      = 78 // the configuration, or the key of the spool, is wrong
)

const exitHelp = `
EXIT CODES:
   0 done   1 it failed   2 wrong usage   69 no running host   74 the disk of the spool failed   75 busy, try again
   78 wrong configuration or key
`

// exitError gives an error its exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// exitCode finds the code of an error.
func exitCode(err error) int {
	var exit *exitError
	var found problems
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &found), errors.Is(err, spool.ErrWrongKey), errors.Is(err, spool.ErrWeakKey), errors.Is(err, errNoSink), errors.Is(err, errNoSource):
		return exitConfig
	case errors.Is(err, spool.ErrLocked):
		return exitBusy
	case errors.Is(err, spool.ErrDisk):
		return spool.ExitDisk
	}
	switch control.CodeOf(err) {
	case control.NotRunning, control.NotAllowed:
		return exitUnavailable
	case control.Busy, control.Stopping:
		return exitBusy
	case control.Invalid:
		return exitUsage
	}
	return exitFailure
}

// run is the program: it returns the exit code. It may be called more than once.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return runWith(ctx, newHost, args, stdin, stdout, stderr)
}

// runWith is run with another host.
func runWith(ctx context.Context, open openHost, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app := newApp(open, stdin, stdout, stderr)
	err := app.RunContext(ctx, permute(app.Commands, args))
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "edgehost: %v\n", err)
	return exitCode(err)
}

func newApp(open openHost, stdin io.Reader, stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:            "edgehost",
		Usage:           "carry values from plant devices, through WASM modules, into tables",
		Version:         version,
		Reader:          stdin,
		Writer:          stdout,
		ErrWriter:       stderr,
		HideHelpCommand: true,
		Suggest:         false,
		// A configuration value of a module may hold a comma.
		DisableSliceFlagSeparator: true,
		Commands: []*cli.Command{
			serveCommand(open), demoCommand(), statusCommand(), moduleCommand(), spoolCommand(), deadLetterCommand(), breakerCommand(),
			configCommand(), sourceCommand(), opcuaCommand(), modbusCommand(), healthcheckCommand(), emulatorCommand(), versionCommand(),
			sourceWorkerCommand(),
		},
		ExitErrHandler:        func(*cli.Context, error) {},
		Action:                groupAction,
		OnUsageError:          onUsageError,
		CustomAppHelpTemplate: cli.AppHelpTemplate + exitHelp,
	}
	prepare(app.Commands)
	return app
}

// prepare gives every command the same manners.
func prepare(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
		if len(c.Subcommands) > 0 {
			c.Action = groupAction
		}
		prepare(c.Subcommands)
	}
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	return usagef("%v; see %s --help", err, commandName(c))
}

func commandName(c *cli.Context) string {
	if c.Command == nil || c.Command.HelpName == "" {
		return "edgehost"
	}
	return c.Command.HelpName
}

// groupAction runs where a command is missing: no argument shows the help, an
// argument is a command that does not exist.
func groupAction(c *cli.Context) error {
	known, help := c.App.Commands, cli.ShowAppHelp
	if c.Command != nil && c.Command.Name != c.App.Name {
		known, help = c.Command.Subcommands, cli.ShowSubcommandHelp
	}
	if c.Args().Present() {
		var names []string
		for _, k := range known {
			names = append(names, k.Name)
		}
		return usagef("no command %q%s", c.Args().First(), meant(nearest(c.Args().First(), names), names))
	}
	if err := help(c); err != nil {
		return fmt.Errorf("show help: %w", err)
	}
	return &exitError{exitUsage, errors.New("name a command")}
}

// permute moves flags in front of arguments, so that "module push FILE --name N"
// works as it is written: the library stops looking for flags at the first
// argument. What follows -- stays as it is.
func permute(commands []*cli.Command, args []string) []string {
	out, rest := args[:min(1, len(args)):min(1, len(args))], args[min(1, len(args)):]
	var command *cli.Command
	for len(rest) > 0 {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(rest[0]) })
		if i < 0 {
			break
		}
		command = commands[i]
		commands, out, rest = command.Subcommands, append(out, rest[0]), rest[1:]
	}
	if command == nil {
		return args
	}
	var positional []string
	for len(rest) > 0 {
		arg := rest[0]
		rest = rest[1:]
		switch {
		case arg == "--":
			positional, rest = append(positional, rest...), nil
		case arg == "-" || !strings.HasPrefix(arg, "-"):
			positional = append(positional, arg)
		default:
			out = append(out, arg)
			if takesValue(command, arg) && len(rest) > 0 {
				out, rest = append(out, rest[0]), rest[1:]
			}
		}
	}
	return append(append(out, "--"), positional...)
}

// takesValue reports whether the word after a flag belongs to it.
func takesValue(command *cli.Command, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range command.Flags {
		if _, isBool := f.(*cli.BoolFlag); !isBool && slices.Contains(f.Names(), name) {
			return true
		}
	}
	return false
}

// wantArgs checks the number of arguments.
func wantArgs(c *cli.Context, low, high int, what string) error {
	if n := c.NArg(); n < low || n > high {
		return usagef("%s takes %s; got %d arguments. See %s --help", commandName(c), what, n, commandName(c))
	}
	return nil
}

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }

// hostFlags say where the running host is.
func hostFlags(more ...cli.Flag) []cli.Flag {
	return append(more, jsonFlag(),
		&cli.StringFlag{Name: "socket", Usage: "control socket of the host `PATH` (else the variable EDGEHOST_SOCKET)"},
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "configuration `FILE` of the host, to find its socket"},
		&cli.StringFlag{Name: "state-dir", Usage: "state `DIR` of the host, to find its socket"})
}

// withHost calls f with a client of the running host.
func withHost(f func(c *cli.Context, host *control.Client) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		socket, err := findSocket(c)
		if err != nil {
			return err
		}
		host := control.NewClient(socket)
		defer host.Close()
		err = f(c, host)
		if control.CodeOf(err) == control.NotRunning {
			return &exitError{exitUnavailable, fmt.Errorf("%w\nStart a host with: edgehost serve --config FILE\n"+
				"or say which one you mean with --socket, --config, --state-dir or the variable EDGEHOST_SOCKET", err)}
		}
		return err
	}
}

// findSocket takes the most explicit word on where the host is.
func findSocket(c *cli.Context) (string, error) {
	switch {
	case c.IsSet("socket"):
		return c.String("socket"), nil
	case c.IsSet("state-dir"):
		return controlSocket(c.String("state-dir")), nil
	case c.IsSet("config"):
		return socketOf(c.String("config"), os.LookupEnv)
	}
	if s := os.Getenv("EDGEHOST_SOCKET"); s != "" {
		return s, nil
	}
	return newConfig().socket(), nil
}

// show prints v as JSON when --json is set, else calls text.
func show(c *cli.Context, v any, text func(w io.Writer)) error {
	if !c.Bool("json") {
		text(c.App.Writer)
		return nil
	}
	e := json.NewEncoder(c.App.Writer)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

// table prints rows in columns; the first row is the head.
func table(w io.Writer, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			row[i] = oneLine(cell)
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t "))
	}
	// The writer below is a terminal or a buffer: its errors have no reader.
	_ = t.Flush()
}

// oneLine makes text from elsewhere safe for a terminal and a table.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// ago says how long ago something was, for people.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return time.Since(t).Round(time.Second).String() + " ago"
}

// stamp is a time for people and scripts.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// size is a number of bytes for people.
func size(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1000, 0
	for f >= 999.95 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	return fmt.Sprintf("%.1f %cB", f, units[i])
}

func short(digest string) string { return digest[:min(12, len(digest))] }

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
