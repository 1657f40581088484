package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/modbus"
	"github.com/edgehost/edgehost/sources/mqtt"
)

func sourceTestCommand() *cli.Command {
	return &cli.Command{
		Name:      "test",
		Usage:     "connect, read once, and say what is wrong",
		ArgsUsage: "NAME",
		Description: "Opens a connection of its own beside that of a running host, and stores nothing. An mqtt source is\n" +
			"tried under another client id and without a session: it shows what is published meanwhile.\n\n" +
			"Example:\n   edgehost source test plc_modbus_tcp --config config/connector.yaml",
		Flags:  sourceFlags(&cli.DurationFlag{Name: "wait", Usage: "how long to wait for the first values", Value: 15 * time.Second}),
		Action: sourceTest,
	}
}

// tried is what a try of a source found.
type tried struct {
	Source   string   `json:"source"`
	State    string   `json:"state"`
	Detail   string   `json:"detail,omitempty"`
	Security string   `json:"security,omitempty"`
	Missing  []string `json:"missing,omitempty"` // what is configured and not there
	Values   []value  `json:"values"`

	good int // values
}

// value is a record as a person wants to see it.
type value struct {
	Address string `json:"address"`
	Value   string `json:"value"`
	Quality string `json:"quality"`
	Time    string `json:"time"`
}

func sourceTest(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "the NAME of a source"); err != nil {
		return err
	}
	if c.Duration("wait") <= 0 {
		return usagef("--wait is a time like 15s")
	}
	cfg, err := configFlag(c)
	if err != nil {
		return err
	}
	s, err := cfg.sourceNamed(c.Args().First(), func(*sourceConfig) bool { return true }, "source")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("wait"))
	defer cancel()
	out := tried{Source: s.Name, Values: []value{}}
	if s.OPCUA != nil {
		err = readOPCUA(ctx, c, cfg, s, &out)
	} else {
		err = readFirst(ctx, s, &out)
	}
	if err != nil {
		return fmt.Errorf("source %s: %w", s.Name, err)
	}
	if err := show(c, out, func(w io.Writer) { printTried(w, out) }); err != nil {
		return err
	}
	switch {
	case out.good > 0:
		return nil
	case len(out.Values) > 0:
		return fmt.Errorf("source %s: not one value is good; the first is %s", s.Name, out.Values[0].Quality)
	case len(out.Missing) > 0:
		return fmt.Errorf("source %s: the server has nothing of what is configured; edgehost opcua browse shows what it has", s.Name)
	}
	return nil
}

func printTried(w io.Writer, out tried) {
	fmt.Fprintf(w, "%s: %s", out.Source, out.State)
	for _, more := range []string{out.Security, out.Detail} {
		if more != "" {
			fmt.Fprintf(w, ", %s", oneLine(more))
		}
	}
	fmt.Fprintln(w)
	for _, m := range out.Missing {
		fmt.Fprintf(w, "missing: %s\n", oneLine(m))
	}
	rows := [][]string{{"ADDRESS", "VALUE", "QUALITY", "TIME"}}
	for _, v := range out.Values {
		rows = append(rows, []string{v.Address, v.Value, v.Quality, v.Time})
	}
	table(w, rows)
}

func (t *tried) add(recs []abi.Record) {
	const most = 80 // characters of a value
	for i := range recs {
		r := &recs[i]
		text := shown(r.Value)
		if runes := []rune(text); len(runes) > most {
			text = string(runes[:most]) + "…"
		}
		if good(*r) {
			t.good++
		}
		quality := "Good"
		switch q, ok := r.Attr(abi.AttrReason); {
		case ok && r.Status != 0:
			quality = "not good: " + q.Text()
		case r.Status != 0:
			quality = fmt.Sprintf("not good: 0x%08X", r.Status)
		}
		t.Values = append(t.Values, value{r.Address, text, quality, stamp(time.UnixMicro(r.EventTime))})
	}
}

// good reports whether a record's value is: the top bits of a StatusCode.
func good(r abi.Record) bool { return r.Status>>30 == 0 }

// shown is a value for a person.
func shown(v abi.Value) string {
	switch v.Kind() {
	case abi.KindNone:
		return "-"
	case abi.KindBool:
		return strconv.FormatBool(v.AsBool())
	case abi.KindInt:
		return strconv.FormatInt(v.AsInt(), 10)
	case abi.KindUint:
		return strconv.FormatUint(v.AsUint(), 10)
	case abi.KindFloat:
		return strconv.FormatFloat(v.AsFloat(), 'g', -1, 64)
	case abi.KindBytes:
		return fmt.Sprintf("%x", v.Text())
	default:
		return v.Text()
	}
}

func readOPCUA(ctx context.Context, c *cli.Context, cfg *config, s *sourceConfig, out *tried) error {
	a, err := cfg.ask(ctx, s, opcuaLook{}, toolLog(c))
	if err != nil {
		return err
	}
	out.State, out.Security, out.Missing = string(sources.Connected), a.Found.Security, a.Found.Missing
	out.add(a.Found.Records)
	return nil
}

// afterBad is how long a source may go on after a first batch without a good
// value: a device that cannot be reached ends it, with words that say more.
const afterBad = time.Second

// readFirst runs a source until its first batch, which is never acknowledged.
func readFirst(ctx context.Context, s *sourceConfig, out *tried) error {
	st, log := sources.NewStatus(s.Name, s.Protocol), slog.New(slog.DiscardHandler)
	var src sources.Source
	var err error
	switch {
	case s.MQTT != nil:
		cfg := *s.MQTT
		cfg.ClientID, cfg.CleanSession = "", true
		id := fmt.Sprintf("test-%d", time.Now().UnixNano())
		src, err = mqtt.New(s.Name, s.Endpoint, s.Tags, cfg, mqtt.Deps{Status: st, Logger: log, HostID: id})
	default:
		src, err = modbus.New(s.Name, s.Endpoint, s.Tags, *s.Modbus, modbus.Deps{Log: log, Status: st, Buses: modbus.NewBuses(log)})
	}
	if err != nil {
		return err
	}
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var first []abi.Record
	err = src.Run(run, func(ctx context.Context, b sources.Batch, _ func(error)) error {
		if first != nil {
			return nil
		}
		if first = b.Records; !slices.ContainsFunc(first, good) {
			time.AfterFunc(afterBad, cancel)
			return nil
		}
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil && run.Err() == nil {
		return err
	}
	out.add(first)
	snap := st.Snapshot()
	switch {
	case first != nil:
		// A source says that it is connected when it has handed over what it read.
		if out.State = string(sources.Connected); out.good == 0 {
			out.State, out.Detail = string(sources.Degraded), snap.Detail
		}
		return nil
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case snap.State == sources.Connected || snap.State == sources.Degraded || snap.State == sources.Stalled:
		return fmt.Errorf("connected, but nothing came within --wait; %s: %s", snap.State, dash(snap.Detail))
	}
	return fmt.Errorf("not connected within --wait; %s: %s", snap.State, dash(snap.Detail))
}
