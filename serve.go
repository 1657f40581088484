package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/edgehost/edgehost/host/control"
)

// runner is a host as serve needs it: Run reads, transforms and delivers until ctx
// ends, then drains and closes what it opened.
type runner interface {
	control.Backend
	Run(ctx context.Context) error
}

// openHost makes the host of a configuration. It has opened its state when it
// returns: a spool that another process holds or whose key is wrong is an error
// here.
type openHost func(ctx context.Context, cfg *config, log *slog.Logger) (runner, error)

func serveCommand(open openHost) *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "run: read the sources, transform, deliver",
		Description: "Runs until it is interrupted (SIGINT, SIGTERM); then it stops reading, makes what it has durable and\n" +
			"ends. A second signal ends it at once; nothing that was acknowledged to a device is lost either way.\n\n" +
			"Example:\n   edgehost serve --config config/connector.yaml",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "configuration `FILE`"},
			&cli.StringFlag{Name: "state-dir", Usage: "`DIR` for everything that must survive, instead of state_dir"},
			jsonFlag(),
		},
		Action: func(c *cli.Context) error { return serveAction(c, open) },
	}
}

func serveAction(c *cli.Context, open openHost) (err error) {
	if err := wantArgs(c, 0, 0, "no argument"); err != nil {
		return err
	}
	if !c.IsSet("config") {
		return usagef("--config is missing; name the configuration file (examples/connector.yaml shows every key)")
	}
	cfg, err := loadConfig(c.String("config"), os.LookupEnv)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	if dir := c.String("state-dir"); dir != "" {
		cfg.StateDir = dir
	}
	if err := cfg.checkComplete(); err != nil {
		return err
	}
	if c.Bool("json") {
		cfg.Monitoring.Logging.Format = "json"
	}
	var level slog.LevelVar
	log, logFile, err := newLogger(cfg.Monitoring.Logging, c.App.ErrWriter, &level)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	defer func() { err = errors.Join(err, logFile.Close()) }()
	harden(cfg, log)
	log.Info("starting", "component", "serve", "version", version, "config", c.String("config"), "state_dir", cfg.StateDir,
		"socket", cfg.socket(), "sources", len(cfg.Sources), "pipelines", len(cfg.plan()))
	if keys := cfg.NotInForce(); len(keys) > 0 {
		log.Warn("some keys of the configuration have no effect", "component", "serve", "not_in_force", keys)
	}
	h, err := open(c.Context, cfg, log)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	err = serve(c.Context, cfg, h, log)
	log.Info("stopped", "component", "serve")
	return err
}

// harden sets the limits of the process.
func harden(cfg *config, log *slog.Logger) {
	if mb := cfg.Performance.Memory.MaxHeapMB; mb > 0 {
		debug.SetMemoryLimit(int64(mb) << 20)
	}
	// A core dump would hold keys and secrets.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		log.Warn("core dumps cannot be disabled", "component", "serve", "error", err)
	}
	if os.Geteuid() == 0 {
		log.Warn("running as root is not needed; use a user of its own", "component", "serve")
	}
}

// serve runs h with everything around it: control socket, health and metrics.
// They are open before h reads anything, and answer until h has ended, so that a
// slow stop can be watched.
func serve(ctx context.Context, cfg *config, h runner, log *slog.Logger) error {
	socket, http, err := listenAll(cfg)
	if err != nil {
		// The host owns state that only Run gives back.
		ended, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(err, h.Run(ended))
	}
	log.Info("listening", "component", "serve", "health", address(http.health), "metrics", address(http.metrics), "socket", cfg.socket())
	work, stop := context.WithCancel(ctx)
	defer stop()
	around, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var g errgroup.Group
	g.Go(func() error {
		defer stop()
		return control.Serve(around, socket, h, log.With("component", "control"))
	})
	g.Go(func() error {
		defer stop()
		return http.serve(around, h, log.With("component", "http"))
	})
	g.Go(func() error {
		defer end()
		return h.Run(work)
	})
	return g.Wait()
}

// listenAll opens everything at which a running host is asked, or nothing.
func listenAll(cfg *config) (socket net.Listener, http web, err error) {
	if socket, err = control.Listen(cfg.socket()); err != nil {
		return nil, http, err
	}
	if http, err = listenHTTP(cfg); err != nil {
		return nil, http, errors.Join(err, socket.Close())
	}
	return socket, http, nil
}
