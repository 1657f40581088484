package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gopcua/opcua"
	"github.com/gopcua/opcua/ua"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/isolate"
	ours "github.com/edgehost/edgehost/sources/opcua"
)

// The gates of the opcua source, beside a bare subscription of the Go library
// that it stands on, to the same items of node-opcua.
const (
	leastOfGopcua = 0.95 // values a second into a sink that keeps nothing
	mostOfGopcua  = 1.3  // processor time of a value, in one process
	mostOfCore    = 0.04 // for 10 000 items that change every second
)

const (
	opcuaRounds   = 5
	opcuaWarmUp   = time.Second
	opcuaTurn     = 2 * time.Second
	opcuaLong     = 10 * time.Second
	opcuaPatience = 60 * time.Second
	opcuaItems    = 2000
	opcuaMany     = 10_000
)

func benchOPCUA(ctx context.Context, r *report) error {
	dir, err := os.MkdirTemp("", "edgehost-bench-")
	if err != nil {
		return fmt.Errorf("make temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := raceOPCUA(ctx, r, dir); err != nil {
		return err
	}
	return manyOPCUA(ctx, r, dir)
}

// raceOPCUA lets the library and the source take turns, in this process and in
// one of its own. What a child used is known when it has ended, so that the two
// ways are compared from start to end.
func raceOPCUA(ctx context.Context, r *report, dir string) error {
	url, stop, err := startOPCUAPeer(ctx, dir, opcuaItems, 100)
	if err != nil {
		return err
	}
	defer stop()
	cfg := opcuaConfig(opcuaItems, 200)
	var rates, costs, wholes, theirs, used []float64
	for range opcuaRounds {
		bare, err := subscribeLibrary(ctx, url)
		if err != nil {
			return err
		}
		own, err := subscribeSource(ctx, url, cfg, false, opcuaTurn)
		if err != nil {
			return err
		}
		child, err := subscribeSource(ctx, url, cfg, true, opcuaTurn)
		if err != nil {
			return err
		}
		rates = append(rates, own.rate/bare.rate)
		costs = append(costs, own.cost/bare.cost)
		wholes = append(wholes, child.whole/own.whole)
		theirs, used = append(theirs, bare.rate), append(used, own.cost)
	}
	return errors.Join(
		r.atLeast("opcua_values_of_bare_gopcua", median(rates), "ratio", leastOfGopcua),
		r.atMost("opcua_processor_time_of_bare_gopcua", median(costs), "ratio", mostOfGopcua),
		r.say("opcua_processor_time_with_child_process_of_without", median(wholes), "ratio"),
		r.say("opcua_bare_gopcua", median(theirs), "values/s"),
		r.say("opcua_processor_time", median(used), "us/value"),
	)
}

// manyOPCUA measures the share of a core that many slow items take.
func manyOPCUA(ctx context.Context, r *report, dir string) error {
	url, stop, err := startOPCUAPeer(ctx, dir, opcuaMany, 1000)
	if err != nil {
		return err
	}
	defer stop()
	got, err := subscribeSource(ctx, url, opcuaConfig(opcuaMany, 1000), false, opcuaLong)
	if err != nil {
		return err
	}
	return errors.Join(
		r.atMost("opcua_10000_items_a_second_of_a_core", got.cost*got.rate/1e6, "ratio", mostOfCore),
		r.say("opcua_10000_items_a_second", got.rate, "values/s"),
	)
}

// startOPCUAPeer starts node-opcua with counters that change every so many
// milliseconds.
func startOPCUAPeer(ctx context.Context, dir string, counters, everyMS int) (url string, stop func(), err error) {
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	cmd, err := opcuaPeer(ctx, dir, port, counters, everyMS)
	if err != nil {
		return "", nil, err
	}
	in, err := cmd.StdinPipe() // the server ends when it is closed
	if err != nil {
		return "", nil, fmt.Errorf("open pipe to server: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, fmt.Errorf("open pipe from server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("start server (run conformance/install-opcua.sh, and this from the root of the repository): %w", err)
	}
	stop = func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "ready") {
			go func() { _, _ = io.Copy(io.Discard, out) }() // it must not block on what it prints
			return opcuaURL(port), stop, nil
		}
	}
	stop()
	return "", nil, errors.New("server ended before it was ready: run conformance/install-opcua.sh")
}

func opcuaURL(port string) string { return "opc.tcp://127.0.0.1:" + port + "/UA/Peer" }

// opcuaPeer is the command that serves at port.
func opcuaPeer(ctx context.Context, dir, port string, counters, everyMS int) (*exec.Cmd, error) {
	arg, err := json.Marshal(map[string]any{"dir": dir, "port": json.Number(port), "counters": counters, "everyMs": everyMS})
	if err != nil {
		return nil, fmt.Errorf("encode options of server: %w", err)
	}
	cmd := exec.CommandContext(ctx, "node", "server.js", string(arg))
	cmd.Dir = "sources/opcua/testdata"
	return cmd, nil
}

func opcuaConfig(items, intervalMS int) ours.Config {
	cfg := ours.Config{SecurityPolicy: "None", SecurityMode: "None", PublishingIntervalMS: intervalMS,
		Defaults: ours.ItemConfig{SamplingIntervalMS: new(0), QueueSize: new(1000)}}
	for i := range items {
		cfg.Nodes = append(cfg.Nodes, ours.NodeConfig{NodeID: fmt.Sprintf("ns=2;s=Counter%d", i)})
	}
	return cfg
}

// opcuaTake is one turn: values a second, microseconds of processor time a
// value, and the same from start to end with the processes that ended.
type opcuaTake struct {
	rate, cost, whole float64
}

// measure lets count run, which it reads before and after.
func (t *opcuaTake) measure(turn time.Duration, count func() uint64) error {
	before, used, begin := count(), processorTime(), time.Now()
	time.Sleep(turn)
	n, took := float64(count()-before), time.Since(begin)
	if n == 0 {
		return errors.New("no values came")
	}
	t.rate, t.cost = n/took.Seconds(), float64((processorTime()-used).Nanoseconds())/1e3/n
	return nil
}

// subscribeLibrary is a bare subscription; the values are counted and dropped.
func subscribeLibrary(ctx context.Context, url string) (t opcuaTake, err error) {
	ctx, cancel := context.WithTimeout(ctx, opcuaPatience)
	defer cancel()
	c, err := opcua.NewClient(url, opcua.SecurityMode(ua.MessageSecurityModeNone))
	if err != nil {
		return t, fmt.Errorf("make client: %w", err)
	}
	if err := c.Connect(ctx); err != nil {
		return t, fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = c.Close(ctx) }()
	notes := make(chan *opcua.PublishNotificationData, 100)
	sub, err := c.Subscribe(ctx, &opcua.SubscriptionParameters{Interval: 200 * time.Millisecond, MaxNotificationsPerPublish: 1000}, notes)
	if err != nil {
		return t, fmt.Errorf("subscribe: %w", err)
	}
	var values atomic.Uint64
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case n := <-notes:
				if d, ok := n.Value.(*ua.DataChangeNotification); ok {
					values.Add(uint64(len(d.MonitoredItems)))
				}
			}
		}
	}()
	for i := 0; i < opcuaItems; i += 1000 {
		var reqs []*ua.MonitoredItemCreateRequest
		for k := i; k < min(i+1000, opcuaItems); k++ {
			reqs = append(reqs, &ua.MonitoredItemCreateRequest{MonitoringMode: ua.MonitoringModeReporting,
				ItemToMonitor:       &ua.ReadValueID{NodeID: ua.NewStringNodeID(2, fmt.Sprintf("Counter%d", k)), AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{}},
				RequestedParameters: &ua.MonitoringParameters{ClientHandle: uint32(k + 1), QueueSize: 1000, DiscardOldest: true}})
		}
		if _, err := sub.Monitor(ctx, ua.TimestampsToReturnBoth, reqs...); err != nil {
			return t, fmt.Errorf("create monitored items: %w", err)
		}
	}
	time.Sleep(opcuaWarmUp)
	return t, t.measure(opcuaTurn, values.Load)
}

// subscribeSource runs a source into a sink that keeps nothing, with child in a
// process of its own.
func subscribeSource(ctx context.Context, url string, cfg ours.Config, child bool, turn time.Duration) (t opcuaTake, err error) {
	log := slog.New(slog.DiscardHandler)
	status := sources.NewStatus("plant", "opcua")
	var src sources.Source
	if child {
		payload, err := json.Marshal(opcuaJob{url, cfg})
		if err != nil {
			return t, fmt.Errorf("encode job: %w", err)
		}
		src = isolate.New(isolate.Config{Name: "plant", Payload: payload, Status: status, Logger: log})
	} else if src, err = ours.New("plant", url, nil, cfg, ours.Deps{Logger: log, Status: status}); err != nil {
		return t, fmt.Errorf("make source: %w", err)
	}
	var values atomic.Uint64
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	used := familyTime()
	go func() {
		ended <- src.Run(ctx, func(_ context.Context, b sources.Batch, done func(error)) error {
			values.Add(uint64(len(b.Records)))
			done(nil)
			return nil
		})
	}()
	deadline := time.Now().Add(opcuaPatience)
	for values.Load() < uint64(len(cfg.Nodes)) && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(opcuaWarmUp)
	err = t.measure(turn, values.Load)
	stop()
	if e := <-ended; !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	t.whole = float64((familyTime() - used).Nanoseconds()) / 1e3 / float64(max(values.Load(), 1))
	return t, err
}

// familyTime is what this process and its ended children have used so far.
func familyTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u); err != nil {
		return 0
	}
	return processorTime() + time.Duration(u.Utime.Nano()+u.Stime.Nano())
}

// opcuaJob is what the child makes its source of.
type opcuaJob struct {
	URL    string
	Config ours.Config
}

// serveOPCUA is the child: this program with the hidden command.
func serveOPCUA(ctx context.Context) error {
	signal.Ignore(syscall.SIGINT)
	conn, err := isolate.Inherited()
	if err != nil {
		return fmt.Errorf("find the parent: %w", err)
	}
	return isolate.Serve(ctx, conn, func(payload []byte, deps isolate.Deps) (sources.Source, error) {
		var job opcuaJob
		if err := json.Unmarshal(payload, &job); err != nil {
			return nil, fmt.Errorf("decode job: %w", err)
		}
		return ours.New("plant", job.URL, nil, job.Config, ours.Deps{Logger: deps.Logger, Status: deps.Status, Resume: deps.Resume})
	})
}
