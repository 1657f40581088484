package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks/zerobus/zerobustest"
)

// plantModule is examples/plant, built: see the head of plant.c.
//
//go:embed examples/plant/plant.wasm
var plantModule []byte

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "run a simulated plant end to end in a temporary folder",
		Description: `Starts a simulated plant: an MQTT broker with three lines, a Modbus press and an
OPC UA oven. One pipeline reads all three; its module converts and checks the
readings, and an encrypted spool delivers them to three tables of an emulator of
the service. All of it runs in this process and on 127.0.0.1: nothing leaves this
machine. Other shells reach it by its control socket, whose path it prints:

   EDGEHOST_SOCKET=PATH edgehost module push FILE --name plant

   edgehost demo --for 10s --json`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "for", Usage: "stop after this time; 0 runs until interrupted"},
			&cli.IntFlag{Name: "rate", Value: 200, Usage: "MQTT messages a second that the plant sends, 1 to 20000"},
			&cli.BoolFlag{Name: "json", Usage: "print the ledger as JSON at the end, and nothing else"},
		},
		Action: demo,
	}
}

// demoConfig is the configuration of the demo. The words in capitals are filled
// in before it is read like any other.
const demoConfig = `
state_dir: "DIR/state"
health: {listen: "off"}
metrics: {listen: "off"}
zerobus:
  workspace_host: "https://TOKEN"
  zerobus_endpoint: "https://INGEST"
  ca_cert_path: "DIR/ca.pem"
  auth: {client_id: demo, client_secret: "${DEMO_SECRET}"}
sources:
- name: plant
  protocol: mqtt
  endpoint: "mqtt://BROKER"
  tags: {industry: demo}
  mqtt:
    topics:
    - {topic: "plant/#", qos: 1}
- name: press
  protocol: modbus
  endpoint: "modbus+tcp://PRESS"
  tags: {industry: demo, plc_name: press1}
  modbus:` + pressConfig + `
- name: oven
  protocol: opcua
  endpoint: "opc.tcp://OVEN"
  isolation: none # the server is in this process too
  tags: {industry: demo, plc_name: oven1}
  opcua:` + ovenConfig + `
pipelines:
- name: line1
  sources: [plant, press, oven]
  modules: [plant]
processing: {batch: {max_size: 500, max_wait_seconds: 1}}
monitoring: {logging: {level: WARN, format: text}}
`

func demo(c *cli.Context) error {
	if rate := c.Int("rate"); rate < 1 || rate > 20000 {
		return usagef("--rate %d is not between 1 and 20000", rate)
	}
	dir, err := os.MkdirTemp("", "edgehost-demo-")
	if err != nil {
		return fmt.Errorf("make temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s, err := startDemo(c.Context, dir, c.Int("rate"), c.App.ErrWriter)
	if err != nil {
		return err
	}
	ctx := c.Context
	if d := c.Duration("for"); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	screen := io.Discard
	if !c.Bool("json") {
		screen = c.App.Writer
	}
	fmt.Fprintln(screen, s.view.reach)
	s.watch(ctx, screen)
	ledger, err := s.finish()
	if err != nil {
		return err
	}
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		if err := enc.Encode(ledger); err != nil {
			return fmt.Errorf("print ledger: %w", err)
		}
	} else {
		fmt.Fprintf(c.App.Writer, "read %d = delivered %d + waiting %d + filtered %d + dead-lettered %d + dropped %d + held %d, balanced: %v\n",
			ledger.Read, ledger.Delivered, ledger.Waiting, ledger.Filtered, ledger.DeadLettered, ledger.Dropped, ledger.Held, ledger.Balanced)
	}
	if !ledger.Balanced {
		return errors.New("the ledger does not balance")
	}
	return nil
}

// demoSystem is everything that the demo started.
type demoSystem struct {
	dir      string
	plant    *plant
	press    *press
	oven     *oven
	emulator *zerobustest.Emulator
	gateway  *gateway
	stopHost context.CancelFunc
	hostDone chan error
	// endControl ends the control socket; controlDone then has its error.
	endControl  context.CancelFunc
	controlDone chan error
	view        demoView
}

// startDemo starts devices, emulator and gateway, and uploads the module.
func startDemo(ctx context.Context, dir string, rate int, stderr io.Writer) (s *demoSystem, err error) {
	s = &demoSystem{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	s.emulator, err = zerobustest.Start(zerobustest.Config{Dir: filepath.Join(dir, "tables"), ClientID: "demo", ClientSecret: "demo"})
	if err != nil {
		return nil, fmt.Errorf("start emulator: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), s.emulator.CAPEM(), 0o600); err != nil {
		return nil, fmt.Errorf("write certificate authority: %w", err)
	}
	if err := s.startDevices(ctx, rate); err != nil {
		return nil, err
	}
	cfg := parseConfig("demo", s.config(), func(name string) (string, bool) { return "demo", name == "DEMO_SECRET" })
	if len(cfg.doc.found) > 0 {
		return nil, fmt.Errorf("read the demo's own configuration: %w", cfg.doc.found)
	}
	// The one warning of a good start, the key beside the data, is no news here.
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if s.gateway, err = openGateway(ctx, cfg, log); err != nil {
		return nil, err
	}
	hostCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stopHost, s.hostDone = stop, make(chan error, 1)
	go func() { s.hostDone <- s.gateway.Run(hostCtx) }()
	if err := s.control(context.WithoutCancel(ctx), cfg.socket(), log); err != nil {
		return nil, err
	}
	if _, err := s.gateway.PushModule(ctx, control.PushRequest{Name: "plant", Wasm: plantModule, Activate: true}); err != nil {
		return nil, fmt.Errorf("upload module: %w", err)
	}
	s.plant.run()
	return s, nil
}

// control answers on the control socket until endControl is called.
func (s *demoSystem) control(ctx context.Context, path string, log *slog.Logger) error {
	socket, err := control.Listen(path)
	if err != nil {
		return err
	}
	ctx, s.endControl = context.WithCancel(ctx)
	s.controlDone = make(chan error, 1)
	s.view.reach = "other shells reach it with: export EDGEHOST_SOCKET=" + path
	go func() { s.controlDone <- control.Serve(ctx, socket, s.gateway, log) }()
	return nil
}

// startDevices starts what the gateway reads.
func (s *demoSystem) startDevices(ctx context.Context, rate int) (err error) {
	if s.plant, err = startPlant(rate); err != nil {
		return err
	}
	if s.press, err = startPress(); err != nil {
		return err
	}
	s.oven, err = startOven(ctx)
	return err
}

func (s *demoSystem) config() []byte {
	return []byte(replaceWords(demoConfig, map[string]string{"DIR": filepath.ToSlash(s.dir), "TOKEN": s.emulator.TokenAddr(),
		"INGEST": s.emulator.Addr(), "BROKER": s.plant.addr, "PRESS": s.press.addr, "OVEN": s.oven.addr}))
}

// watch shows the system until ctx ends.
func (s *demoSystem) watch(ctx context.Context, w io.Writer) {
	f, ok := w.(*os.File)
	live := ok && term.IsTerminal(int(f.Fd()))
	every := 2 * time.Second
	if live {
		every = 500 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-s.hostDone:
			s.hostDone <- err
			return
		case <-tick.C:
			status, err := s.gateway.Status(ctx)
			if err != nil {
				continue
			}
			s.view.show(w, live, status, lastRows(s.dir, 3))
		}
	}
}

// finish stops the plant, waits until what was read is delivered, and returns
// the ledger.
func (s *demoSystem) finish() (control.Ledger, error) {
	s.plant.halt()
	for _, polled := range []string{"press", "oven"} {
		if err := s.gateway.PauseSource(context.Background(), polled); err != nil {
			return control.Ledger{}, errors.Join(err, s.stop())
		}
	}
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var ledger control.Ledger
	for settled := false; !settled; {
		status, err := s.gateway.Status(context.Background())
		if err != nil {
			return ledger, errors.Join(err, s.stop())
		}
		ledger = status.Ledger
		settled = s.allRead(status) && ledger.Waiting == 0
		select {
		case <-tick.C:
		case <-deadline:
			settled = true
		}
	}
	return ledger, s.stop()
}

// allRead reports whether all that was sent has been read, and all that was read
// is in the ledger.
func (s *demoSystem) allRead(status control.Status) bool {
	var read uint64
	for _, src := range status.Sources {
		read += src.Records
		if src.Name == "plant" && src.Records < s.plant.sent() {
			return false
		}
	}
	return status.Ledger.Read >= read
}

// stop ends everything in the order in which data flows.
func (s *demoSystem) stop() error {
	var errs []error
	if s.stopHost != nil {
		s.stopHost()
		errs = append(errs, <-s.hostDone)
	}
	if s.endControl != nil {
		s.endControl()
		errs = append(errs, <-s.controlDone)
	}
	if s.plant != nil {
		errs = append(errs, s.plant.close())
	}
	if s.press != nil {
		errs = append(errs, s.press.close())
	}
	if s.oven != nil {
		errs = append(errs, s.oven.close())
	}
	if s.emulator != nil {
		errs = append(errs, s.emulator.Close())
	}
	return errors.Join(errs...)
}
