package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

func healthcheckCommand() *cli.Command {
	return &cli.Command{
		Name:  "healthcheck",
		Usage: "ask /health of a running host; for container health checks",
		Description: "Exits with 0 unless the host is unhealthy or does not answer, else with 1.\n\n" +
			"Examples:\n   edgehost healthcheck --config config/connector.yaml\n   HEALTHCHECK --interval=30s CMD [\"edgehost\", \"healthcheck\"]",
		Flags: []cli.Flag{jsonFlag(),
			&cli.StringFlag{Name: "url", Usage: "address of the health endpoint `URL`"},
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "configuration `FILE` of the host, to find health.listen"},
			&cli.DurationFlag{Name: "timeout", Usage: "how long to wait", Value: 5 * time.Second}},
		Action: healthcheck,
	}
}

func healthcheck(c *cli.Context) error {
	if err := wantArgs(c, 0, 0, "no argument"); err != nil {
		return err
	}
	url, err := healthURL(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
	defer cancel()
	body, err := getHealth(ctx, url)
	if err != nil {
		return err
	}
	if err := show(c, body, func(w io.Writer) { fmt.Fprintln(w, body.Status) }); err != nil {
		return err
	}
	if body.Status != "healthy" && body.Status != "degraded" {
		return fmt.Errorf("the host is %s: %s", body.Status, strings.Join(body.Reasons, "; "))
	}
	return nil
}

func getHealth(ctx context.Context, url string) (body healthBody, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return body, usagef("--url: %v", err)
	}
	// Never through a proxy: the host is on this machine.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return body, fmt.Errorf("ask for health: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // read to the end, or given up
	if err := json.NewDecoder(io.LimitReader(resp.Body, 8<<20)).Decode(&body); err != nil {
		return body, fmt.Errorf("whatever answers on %s is no edgehost: HTTP %s", url, resp.Status)
	}
	return body, nil
}

func healthURL(c *cli.Context) (string, error) {
	if c.IsSet("url") {
		return c.String("url"), nil
	}
	addr := newConfig().Health.Listen
	if c.IsSet("config") {
		var err error
		if addr, err = healthAddrOf(c.String("config"), os.LookupEnv); err != nil {
			return "", err
		}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", usagef("health.listen is %q: there is nothing to ask", addr)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port) + "/health", nil
}
