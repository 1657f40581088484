package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
	"github.com/edgehost/edgehost/modules"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sinks/file"
	"github.com/edgehost/edgehost/sinks/zerobus"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/isolate"
	"github.com/edgehost/edgehost/sources/modbus"
	"github.com/edgehost/edgehost/sources/mqtt"
	"github.com/edgehost/edgehost/sources/opcua"
	"github.com/edgehost/edgehost/spool"
)

// gateway is everything that serve opened, in the order in which it is closed
// again from the end.
type gateway struct {
	*host.Host // nil until it is made

	cfg     *config
	log     *slog.Logger
	spool   *spool.Spool
	sandbox *sandbox.Host
	buses   *modbus.Buses
}

// stopGrace bounds how long a stop waits for acknowledgements of what was sent.
const stopGrace = 5 * time.Second

// newHost makes the host that serve runs.
func newHost(ctx context.Context, cfg *config, log *slog.Logger) (runner, error) {
	g, err := openGateway(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	return g, nil
}

// openGateway opens the state and makes the host of a configuration. Nothing is
// touched when the key of the spool is wrong.
func openGateway(ctx context.Context, cfg *config, log *slog.Logger) (g *gateway, err error) {
	if err := cfg.checkComplete(); err != nil {
		return nil, err
	}
	g = &gateway{cfg: cfg, log: log, buses: modbus.NewBuses(log.With("component", "source"))}
	opened := g // what is returned with an error is nil
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.close(ctx))
		}
	}()
	hc, err := g.open()
	if err != nil {
		return nil, err
	}
	if g.Host, err = host.New(ctx, hc); err != nil {
		return nil, fmt.Errorf("start host: %w", err)
	}
	return g, nil
}

// open opens what the host keeps and runs modules in, and says what the host is
// made of.
func (g *gateway) open() (hc host.Config, err error) {
	cfg := g.cfg
	if err := writable(cfg.StateDir); err != nil {
		return hc, err
	}
	g.spool, err = spool.Open(spool.Options{Dir: filepath.Join(cfg.StateDir, "spool"), Keys: cfg.Spool, Logger: g.log.With("component", "spool"),
		MaxLetterBytes: int64(cfg.Backpressure.DeadLetterQueue.MaxSizeMB) * 1e6})
	if err != nil {
		return hc, err
	}
	if path := g.spool.GeneratedKey(); path != "" {
		g.log.Warn("a key for the spool was made because none is configured: whoever can read it can read the spool; keep a copy, its loss is the loss of what waits",
			"key_file", path, "configure", "spool.key_env, spool.key_file or spool.passphrase_env")
	}
	reg, err := modules.Open(filepath.Join(cfg.StateDir, "modules"))
	if err != nil {
		return hc, fmt.Errorf("open module registry: %w", err)
	}
	cache, err := g.moduleCache()
	if err != nil {
		return hc, err
	}
	if g.sandbox, err = sandbox.New(sandbox.Config{Cache: cache}); err != nil {
		return hc, fmt.Errorf("start sandbox: %w", err)
	}
	return g.hostConfig(reg)
}

// writable makes the directory that everything is kept in, and holds it to taking a
// file: what the packages below would say of it names files that nobody knows.
func writable(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		var probe *os.File
		if probe, err = os.CreateTemp(dir, ".probe-"); err == nil {
			err = errors.Join(probe.Close(), os.Remove(probe.Name()))
		}
	}
	if err != nil {
		return fmt.Errorf("state_dir %s cannot be written to: %w; give it to the user that runs edgehost, or set state_dir to a directory on a disk that can be written", dir, err)
	}
	return nil
}

// moduleCache says where compiled code is kept. A key that lies in state_dir
// proves nothing about a file beside it, and native code is executed: then none is
// kept (docs/adr/0011).
func (g *gateway) moduleCache() (sandbox.CacheConfig, error) {
	beside := g.spool.GeneratedKey()
	if path := g.cfg.Spool.KeyFile; path != "" && liesIn(g.cfg.StateDir, path) {
		beside = path
	}
	if beside != "" {
		g.log.Info("compiled modules are not kept, each start compiles them anew: the key of the spool lies in state_dir and cannot vouch for code there",
			"component", "sandbox", "key_file", beside, "configure", "spool.key_env, spool.key_file or spool.passphrase_env")
		return sandbox.CacheConfig{}, nil
	}
	key, err := g.spool.Key("module cache")
	if err != nil {
		return sandbox.CacheConfig{}, fmt.Errorf("open module cache: %w", err)
	}
	return sandbox.CacheConfig{Dir: filepath.Join(g.cfg.StateDir, "cache"), Key: key, Logger: g.log.With("component", "sandbox")}, nil
}

// liesIn reports whether a file is in a directory or below it, links followed.
func liesIn(dir, path string) bool {
	for _, p := range []*string{&dir, &path} {
		if real, err := filepath.EvalSymlinks(*p); err == nil {
			*p = real
		}
		if abs, err := filepath.Abs(*p); err == nil {
			*p = abs
		}
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// Run runs the host until ctx ends and closes what openGateway opened.
func (g *gateway) Run(ctx context.Context) error {
	err := g.Host.Run(ctx)
	return errors.Join(err, g.close(context.WithoutCancel(ctx)))
}

// close releases what openGateway opened.
func (g *gateway) close(ctx context.Context) error {
	var errs []error
	if g.Host != nil {
		errs = append(errs, g.Host.Close(ctx))
	}
	if g.sandbox != nil {
		errs = append(errs, g.sandbox.Close())
	}
	if g.spool != nil {
		errs = append(errs, g.spool.Close())
	}
	return errors.Join(errs...)
}

// hostConfig turns the configuration file into what the host is made of.
func (g *gateway) hostConfig(reg *modules.Registry) (host.Config, error) {
	c := g.cfg
	b := c.Backpressure
	hc := host.Config{Version: version, Spool: g.spool, Modules: reg, Sandbox: g.sandbox, Logger: g.log,
		MemoryRecords: b.MemoryQueue.MaxSize, LetterCap: uint64(b.DeadLetterQueue.MaxSizeMB) * 1e6, NotInForce: c.NotInForce(), Grace: stopGrace, Workers: pipelineWorkers(c.Performance.Workers.ReaderThreads),
		Spooled: control.SpoolStatus{Dir: filepath.Join(c.StateDir, "spool"), Cap: uint64(b.DiskSpool.MaxSizeMB) * 1e6,
			Encrypted: true, DropPolicy: b.DiskSpool.DropPolicy}}
	hostID, err := hostID(c.StateDir)
	if err != nil {
		return hc, err
	}
	for i := range c.Sources {
		sc, err := g.source(&c.Sources[i], hostID)
		if err != nil {
			return hc, err
		}
		hc.Sources = append(hc.Sources, sc)
	}
	plans := c.plan()
	for _, p := range plans {
		hc.Pipelines = append(hc.Pipelines, hostPipeline(p))
	}
	for _, t := range targets(plans) {
		d, err := g.destination(t, plans)
		if err != nil {
			return hc, err
		}
		hc.Destinations = append(hc.Destinations, d)
	}
	return hc, nil
}

// pipelineWorkers is how many sources of a pipeline are transformed at the same time:
// modules only compute, so more than the cores would only cost memory.
func pipelineWorkers(readerThreads int) int {
	cores := runtime.GOMAXPROCS(0)
	if readerThreads == 0 {
		return cores
	}
	return min(readerThreads, cores)
}

// source makes one source; a disabled one is only listed.
func (g *gateway) source(s *sourceConfig, hostID string) (host.SourceConfig, error) {
	sc := host.SourceConfig{Name: s.Name, Protocol: s.Protocol, Status: sources.NewStatus(s.Name, s.Protocol), Reconnect: g.cfg.reconnect(s),
		Watch: g.cfg.watch(s), Points: s.points()}
	if !s.Enabled {
		return sc, nil
	}
	log := g.log.With("component", "source", "source", s.Name)
	var err error
	switch s.Protocol {
	case "mqtt":
		sc.Status.Declare(mqtt.Metrics, mqtt.Reasons)
		sc.Source, err = mqtt.New(s.Name, s.Endpoint, s.Tags, *s.MQTT, mqtt.Deps{Status: sc.Status, Logger: log, HostID: hostID, StateDir: g.cfg.StateDir})
	case "modbus":
		sc.Status.Declare(modbus.Metrics, modbus.Reasons)
		sc.Source, err = modbus.New(s.Name, s.Endpoint, s.Tags, *s.Modbus, modbus.Deps{Log: log, Status: sc.Status, Buses: g.buses})
	case "opcua":
		sc.Status.Declare(opcua.Metrics, opcua.Reasons)
		sc.Source, err = g.opcuaSource(s, sc.Status, log)
	default:
		err = fmt.Errorf("source %s: protocol %s is not known", s.Name, s.Protocol)
	}
	return sc, err
}

// opcuaSource makes a source in this process or in one of its own.
func (g *gateway) opcuaSource(s *sourceConfig, st *sources.Status, log *slog.Logger) (sources.Source, error) {
	job := g.cfg.opcuaJob(s)
	resume := func() []byte { return g.Resume(s.Name) }
	if !s.isolated() {
		return job.source(log, st, resume)
	}
	payload, err := job.encode()
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", s.Name, err)
	}
	return isolate.New(isolate.Config{Name: s.Name, Payload: payload, Status: st, Resume: resume,
		Peers: opcua.Peers(s.Endpoint), Logger: log}), nil
}

func hostPipeline(p pipelinePlan) host.PipelineConfig {
	out := host.PipelineConfig{Name: p.Name, Sources: p.Sources, Bypass: p.Bypass, Targets: map[string]string{},
		Target: p.Target.String(), Outputs: map[string]string{}}
	for _, m := range p.Modules {
		out.Modules = append(out.Modules, host.ModuleConfig{Name: m.Name, Config: m.Config, OnFault: m.OnFault, Strict: m.Stateless == statelessStrict,
			Tick: secondsOf(m.TickSeconds), Limits: m.Limits.sandbox()})
	}
	for name, t := range p.Targets {
		out.Targets[name] = t.String()
	}
	for name, t := range p.Outputs {
		out.Outputs[name] = t.String()
	}
	return out
}

// sandbox returns the limits in the sandbox's terms; what is 0 stays its default.
func (l limitsConfig) sandbox() sandbox.Limits {
	return sandbox.Limits{MemoryPages: uint32(l.MemoryMB) * 16, Fuel: l.Fuel, FuelPerRow: l.FuelPerRow, LogBytes: l.LogBytesPerSec,
		RowsOutFactor: l.RowsOutPerRowIn, Deadline: time.Duration(l.DeadlineMS) * time.Millisecond,
		InitDeadline: time.Duration(l.InitDeadlineMS) * time.Millisecond}
}

// destination makes the delivery to one table.
func (g *gateway) destination(t zerobus.Target, plans []pipelinePlan) (host.DestinationConfig, error) {
	c := g.cfg
	batch := c.Processing.Batch
	d := host.DestinationConfig{Name: t.String(), Breaker: c.Resilience.CircuitBreaker, Reconnect: sinks.DefaultReconnectConfig(),
		MaxBatch: batch.MaxSize, MaxWait: secondsOf(batch.MaxWaitSeconds),
		Retain: secondsOf(c.Backpressure.DiskSpool.RetentionSeconds)}
	log := g.log.With("component", "sink", "destination", d.Name)
	if c.Zerobus == nil {
		d.Kind = "file"
		if _, err := file.New(*c.Sinks.File, d.Name); err != nil {
			return d, err
		}
		d.NewSink = func() sinks.Sink {
			s, _ := file.New(*c.Sinks.File, d.Name) // checked above
			return s
		}
		return d, nil
	}
	schema, err := c.tableSchema(t, plans)
	d.Kind, d.Reconnect = "zerobus", c.Zerobus.Reconnect
	o := zerobus.Options{Config: c.Zerobus.Config, Credentials: c.Zerobus.Auth.credentials, BatchRecords: batch.MaxSize, Log: log,
		Schema: func(context.Context) (zerobus.Schema, error) { return schema, err }}
	o.Config.Target = t
	if _, err := zerobus.New(o); err != nil {
		return d, err
	}
	d.NewSink = func() sinks.Sink {
		s, _ := zerobus.New(o) // checked above
		return s
	}
	return d, nil
}

// tableSchema returns the columns of a table: those that the configuration
// lists, else those of the bronze table of the one protocol that feeds it.
func (c *config) tableSchema(t zerobus.Target, plans []pipelinePlan) (zerobus.Schema, error) {
	if columns := c.columns(t); columns != nil {
		s, _ := zerobus.SchemaOf(t, "", columns) // checked
		return s, nil
	}
	fed := map[string]bool{}
	for _, p := range plans {
		for _, name := range p.Sources {
			if p.Targets[name] == t || contains(p.Outputs, t) {
				fed[c.source(name).Protocol] = true
			}
		}
	}
	if len(fed) == 1 {
		for _, p := range []abi.Protocol{abi.ProtocolMQTT, abi.ProtocolModbus, abi.ProtocolOPCUA} {
			if fed[p.String()] {
				s, _ := zerobus.BronzeSchema(t.String(), p)
				return s, nil
			}
		}
	}
	return zerobus.Schema{}, fmt.Errorf("the columns of %s are not known: sources of %d protocols feed it, so list its columns under tables: in the configuration, or leave zerobus.target out and each protocol gets its own table", t, len(fed))
}

func contains(m map[string]zerobus.Target, t zerobus.Target) bool {
	for _, v := range m {
		if v == t {
			return true
		}
	}
	return false
}

// hostID returns the identity of this state directory, made at first use: MQTT
// brokers keep sessions for it.
func hostID(stateDir string) (string, error) {
	path := filepath.Join(stateDir, "host_id")
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) >= 16 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read host id: %w", err)
	}
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("make host id: %w", err)
	}
	id := hex.EncodeToString(raw)
	if err := writeDurably(path, []byte(id+"\n")); err != nil {
		return "", fmt.Errorf("write host id: %w", err)
	}
	return id, nil
}

// writeDurably writes a file that is whole after a crash, or not there.
func writeDurably(path string, b []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
