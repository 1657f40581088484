// Command sources measures the sources against bare libraries, on one machine
// and in the same minutes. It prints one JSON line for each figure and exits
// with 1 when a gate fails. Rates of a shared machine say little, so that gates
// are on ratios: the contenders take short turns, and the median of the rounds'
// ratios counts.
//
// One file for each protocol; main lists them.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"time"

	"github.com/edgehost/edgehost/sources/isolate"
)

// bench is the measurements of one protocol. Its error means that they could not
// be made.
type bench struct {
	protocol string
	run      func(ctx context.Context, r *report) error
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == isolate.Command {
		if err := serveOPCUA(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	benches := []bench{
		{"modbus", benchModbus},
		{"mqtt", benchMQTT},
		{"opcua", benchOPCUA},
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	r := report{out: os.Stdout}
	for _, b := range benches {
		if len(os.Args) > 1 && !slices.Contains(os.Args[1:], b.protocol) {
			continue
		}
		if err := b.run(ctx, &r); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", b.protocol, err)
			r.failed = true
		}
	}
	if r.failed {
		os.Exit(1)
	}
}

// figure is one line of the report.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Gate  string  `json:"gate"` // "": none
	Pass  bool    `json:"pass"`
}

// report prints figures and remembers whether a gate failed.
type report struct {
	out    io.Writer
	failed bool
}

// say prints a figure without a gate.
func (r *report) say(name string, value float64, unit string) error {
	return r.print(figure{name, value, unit, "", true})
}

// atLeast prints a figure that must be low or more.
func (r *report) atLeast(name string, value float64, unit string, low float64) error {
	return r.print(figure{name, value, unit, fmt.Sprintf(">= %v", low), value >= low})
}

// atMost prints a figure that must be high or less.
func (r *report) atMost(name string, value float64, unit string, high float64) error {
	return r.print(figure{name, value, unit, fmt.Sprintf("<= %v", high), value <= high})
}

func (r *report) print(f figure) error {
	r.failed = r.failed || !f.Pass
	enc := json.NewEncoder(r.out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(f); err != nil {
		return fmt.Errorf("print figure: %w", err)
	}
	return nil
}

// median returns the middle of values, which it sorts.
func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// freePort finds a port of the loopback address.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	if err := l.Close(); err != nil {
		return "", fmt.Errorf("free the port: %w", err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// startPeer starts a server and waits until it listens on port. stop ends it.
func startPeer(cmd *exec.Cmd, port string) (stop func(), err error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			return stop, c.Close()
		}
		if time.Now().After(deadline) {
			stop()
			return nil, fmt.Errorf("wait for it: %w", err)
		}
	}
}
