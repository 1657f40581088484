package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/isolate"
	"github.com/edgehost/edgehost/sources/modbus"
	"github.com/edgehost/edgehost/sources/mqtt"
	"github.com/edgehost/edgehost/sources/opcua"
)

// The gate of reconnecting: from the moment when a killed peer listens again to
// the first good record from it, with the default back-off (1 s, doubled up to
// 300 s).
const mostReconnect = 3 // seconds, of 19 outages in 20

const (
	reconnectRounds   = 20
	shortOutage       = time.Second
	longOutage        = 6 * time.Second
	reconnectPatience = 2 * time.Minute
)

// restartable is a peer that is killed and started again at one port, and a
// source of it.
type restartable struct {
	protocol, port string
	serve          func() (*exec.Cmd, error)
	greet          func(ctx context.Context) error // gives the peer something to say; nil: it has
	source         func(*sources.Status) (sources.Source, error)
}

// benchReconnect measures the protocols side by side.
func benchReconnect(ctx context.Context, r *report) error {
	dir, err := os.MkdirTemp("", "edgehost-bench-")
	if err != nil {
		return fmt.Errorf("make temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var peers []restartable
	for _, make := range []func(context.Context, string) (restartable, error){restartableModbus, restartableMQTT, restartableOPCUA} {
		p, err := make(ctx, dir)
		if err != nil {
			return err
		}
		peers = append(peers, p)
	}
	times, errs := make([][]float64, len(peers)), make([]error, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() { times[i], errs[i] = p.outages(ctx) })
	}
	wg.Wait()
	for i, p := range peers {
		if errs[i] != nil {
			errs[i] = fmt.Errorf("%s: %w", p.protocol, errs[i])
			continue
		}
		slices.Sort(times[i])
		at := int(math.Ceil(0.95*reconnectRounds)) - 1
		errs[i] = errors.Join(
			r.atMost("reconnect_p95_"+p.protocol, times[i][at], "s", mostReconnect),
			r.say("reconnect_median_"+p.protocol, median(times[i]), "s"),
			r.say("reconnect_worst_"+p.protocol, times[i][reconnectRounds-1], "s"))
	}
	return errors.Join(errs...)
}

// outages kills the peer again and again and returns how long the source took
// to deliver after each return of it, in seconds.
func (p restartable) outages(ctx context.Context) (took []float64, err error) {
	log := slog.New(slog.DiscardHandler)
	status := sources.NewStatus(p.protocol, p.protocol)
	src, err := p.source(status)
	if err != nil {
		return nil, fmt.Errorf("make source: %w", err)
	}
	stop, _, err := p.start(ctx)
	defer func() { stop() }()
	if err != nil {
		return nil, err
	}
	good := make(chan time.Time, 1)
	emit := func(_ context.Context, b sources.Batch, done func(error)) error {
		done(nil)
		for _, r := range b.Records {
			if r.Status == sources.StatusGood {
				select {
				case good <- time.UnixMicro(r.IngestTime):
				default:
				}
				break
			}
		}
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	wg.Go(func() { sources.Supervise(ctx, src, emit, status, sources.ReconnectConfig{}, log) })
	if _, err := firstAfter(ctx, good, time.Time{}); err != nil {
		return nil, err
	}
	for len(took) < reconnectRounds {
		stop()
		stop = func() {}
		time.Sleep(shortOutage + rand.N(longOutage-shortOutage))
		begin := time.Now()
		var listens time.Time
		if stop, listens, err = p.start(ctx); err != nil {
			return nil, err
		}
		first, err := firstAfter(ctx, good, begin)
		if err != nil {
			return nil, fmt.Errorf("outage %d: %w (%s)", len(took)+1, err, status.Snapshot().Detail)
		}
		took = append(took, first.Sub(listens).Seconds())
	}
	return took, nil
}

// start returns when the peer has something to say, and since when it listens.
// stop is never nil.
func (p restartable) start(ctx context.Context) (stop func(), listens time.Time, err error) {
	cmd, err := p.serve()
	if err != nil {
		return func() {}, listens, err
	}
	if stop, err = startPeer(cmd, p.port); err != nil {
		return func() {}, listens, fmt.Errorf("start peer: %w", err)
	}
	listens = time.Now()
	if p.greet != nil {
		err = p.greet(ctx)
	}
	return stop, listens, err
}

// firstAfter waits for the first good record that came after begin.
func firstAfter(ctx context.Context, good <-chan time.Time, begin time.Time) (time.Time, error) {
	patience := time.After(reconnectPatience)
	for {
		select {
		case at := <-good:
			if at.After(begin) {
				return at, nil
			}
		case <-patience:
			return time.Time{}, fmt.Errorf("no good record within %v", reconnectPatience)
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
}

func restartableModbus(ctx context.Context, dir string) (restartable, error) {
	p, err := buildModbusPeers(ctx, dir)
	if err != nil {
		return restartable{}, err
	}
	cfg := modbus.Config{PollIntervalMS: 100, Registers: []modbus.Register{{Address: "40001", Count: 10, RegisterType: modbus.Holding}}}
	return restartable{protocol: "modbus", port: p.port,
		serve: func() (*exec.Cmd, error) { return p.serve(), nil },
		source: func(st *sources.Status) (sources.Source, error) {
			log := slog.New(slog.DiscardHandler)
			return modbus.New("modbus", "modbus+tcp://127.0.0.1:"+p.port, nil, cfg, modbus.Deps{Log: log, Status: st, Buses: modbus.NewBuses(log)})
		}}, nil
}

// restartableMQTT has a retained message to send, which a broker without
// persistence gets anew each time.
func restartableMQTT(_ context.Context, dir string) (restartable, error) {
	port, err := freePort()
	if err != nil {
		return restartable{}, err
	}
	return restartable{protocol: "mqtt", port: port,
		serve: func() (*exec.Cmd, error) { return mosquitto(dir, port) },
		greet: func(ctx context.Context) error {
			out, err := exec.CommandContext(ctx, "mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-t", "a", "-m", "1", "-r", "-q", "1").CombinedOutput()
			if err != nil {
				return fmt.Errorf("retain a message: %w: %s", err, out)
			}
			return nil
		},
		source: func(st *sources.Status) (sources.Source, error) {
			return mqtt.New("mqtt", "mqtt://127.0.0.1:"+port, nil, mqtt.Config{Topics: []mqtt.TopicConfig{{Topic: "a", QoS: 1}}},
				mqtt.Deps{Status: st, Logger: slog.New(slog.DiscardHandler), HostID: "bench"})
		}}, nil
}

// restartableOPCUA is read by a process of its own, as by default.
func restartableOPCUA(ctx context.Context, dir string) (restartable, error) {
	port, err := freePort()
	if err != nil {
		return restartable{}, err
	}
	payload, err := json.Marshal(opcuaJob{opcuaURL(port), opcuaConfig(10, 100)})
	if err != nil {
		return restartable{}, fmt.Errorf("encode job: %w", err)
	}
	return restartable{protocol: "opcua", port: port,
		serve: func() (*exec.Cmd, error) {
			cmd, err := opcuaPeer(ctx, filepath.Join(dir, "opcua"), port, 10, 100)
			if err != nil {
				return nil, err
			}
			_, err = cmd.StdinPipe() // the server ends when it is closed
			return cmd, err
		},
		source: func(st *sources.Status) (sources.Source, error) {
			return isolate.New(isolate.Config{Name: "plant", Payload: payload, Status: st, Peers: opcua.Peers(opcuaURL(port)),
				Logger: slog.New(slog.DiscardHandler)}), nil
		}}, nil
}
