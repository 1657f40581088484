package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/sinks/zerobus/zerobustest"
)

func emulatorCommand() *cli.Command {
	return &cli.Command{
		Name:  "emulator",
		Usage: "stand in for a service, for trials and tests",
		Subcommands: []*cli.Command{{
			Name:  "zerobus",
			Usage: "take rows like the service does and write them to files",
			Description: "Accepts any credentials unless EMULATOR_CLIENT_ID and EMULATOR_CLIENT_SECRET are set. It makes its\n" +
				"own certificate authority at every start: point zerobus.ca_cert_path at the file of --ca-out.\n\n" +
				"Example:\n   edgehost emulator zerobus --listen 127.0.0.1:7443 --token-listen 127.0.0.1:7444 --dir rows --ca-out ca.pem",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "listen", Usage: "`ADDRESS` for rows", Value: "127.0.0.1:7443"},
				&cli.StringFlag{Name: "token-listen", Usage: "`ADDRESS` for tokens (the workspace host)", Value: "127.0.0.1:7444"},
				&cli.StringFlag{Name: "dir", Usage: "`DIR` for the rows, one file a table"},
				&cli.StringFlag{Name: "ca-out", Usage: "`FILE` for the certificate of the authority"},
				jsonFlag(),
			},
			Action: emulateZerobus,
		}},
	}
}

func emulateZerobus(c *cli.Context) (err error) {
	if err := wantArgs(c, 0, 0, "no argument"); err != nil {
		return err
	}
	if c.String("dir") == "" || c.String("ca-out") == "" {
		return usagef("--dir and --ca-out are needed; see %s --help", commandName(c))
	}
	e, err := zerobustest.Start(zerobustest.Config{
		Listen: c.String("listen"), TokenListen: c.String("token-listen"), Dir: c.String("dir"),
		ClientID: os.Getenv("EMULATOR_CLIENT_ID"), ClientSecret: os.Getenv("EMULATOR_CLIENT_SECRET"),
		Log: slog.New(slog.NewTextHandler(c.App.ErrWriter, nil)),
	})
	if err != nil {
		return fmt.Errorf("start emulator: %w", err)
	}
	defer func() {
		if cerr := e.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("stop emulator: %w", cerr)
		}
	}()
	if err := os.WriteFile(c.String("ca-out"), e.CAPEM(), 0o644); err != nil {
		return fmt.Errorf("write certificate authority: %w", err)
	}
	info := struct {
		Endpoint  string `json:"zerobus_endpoint"`
		Workspace string `json:"workspace_host"`
		CA        string `json:"ca_cert_path"`
		Dir       string `json:"dir"`
	}{e.Endpoint(), e.Workspace(), c.String("ca-out"), c.String("dir")}
	if err := show(c, info, func(w io.Writer) {
		fmt.Fprintf(w, "zerobus:\n  zerobus_endpoint: %s\n  workspace_host: %s\n  ca_cert_path: %s\n", info.Endpoint, info.Workspace, info.CA)
	}); err != nil {
		return err
	}
	<-c.Context.Done()
	return nil
}
