package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/simonvetter/modbus"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	ours "github.com/edgehost/edgehost/sources/modbus"
)

// The gates of the modbus source. A poll is one request and its reply.
const (
	leastOfLibrary   = 0.95 // polls a second, of the bare Go library simonvetter/modbus
	leastOfLibmodbus = 0.6  // polls a second, of a bare libmodbus client
	mostRequests     = 3    // for 200 scattered fields, with default settings
)

const (
	modbusRounds = 51
	modbusTurn   = 100 * time.Millisecond // short: what else runs on the machine hits all contenders alike
	modbusUnits  = 60                     // so that a source with an interval of 1 ms is never idle
)

// modbusPeers is the C programs, what the server serves, and where.
type modbusPeers struct {
	client, server, image, port string
}

// serve is the server. Its registers move: when a unit is polled again, one of the
// registers that are read has changed, another one every time.
func (p modbusPeers) serve() *exec.Cmd {
	const never = "0" // is a reply late
	return exec.Command(p.server, p.image, "tcp", p.port, "1", never, "0", strconv.Itoa(modbusUnits))
}

func benchModbus(ctx context.Context, r *report) error {
	if err := planModbus(r); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "edgehost-bench-")
	if err != nil {
		return fmt.Errorf("make temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	p, err := buildModbusPeers(ctx, dir)
	if err != nil {
		return err
	}
	stop, err := startPeer(p.serve(), p.port)
	if err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	defer stop()
	for _, registers := range []int{10, 125} {
		if err := raceModbus(ctx, r, p, registers); err != nil {
			return err
		}
	}
	return nil
}

// planModbus counts the requests for 200 fields that are strewn over 370
// registers.
func planModbus(r *report) error {
	var cfg ours.Config
	for _, at := range rand.New(rand.NewPCG(1, 2)).Perm(370)[:200] {
		cfg.Registers = append(cfg.Registers, ours.Register{Address: ours.Address(strconv.Itoa(40001 + at)), RegisterType: ours.Holding})
	}
	plan, err := ours.Plan(cfg)
	if err != nil {
		return fmt.Errorf("plan 200 fields: %w", err)
	}
	return r.atMost("modbus_requests_for_200_scattered_fields", float64(len(plan)), "requests", mostRequests)
}

// buildModbusPeers compiles the C programs.
func buildModbusPeers(ctx context.Context, dir string) (p modbusPeers, err error) {
	p = modbusPeers{client: filepath.Join(dir, "client"), server: filepath.Join(dir, "server"), image: filepath.Join(dir, "image")}
	for out, source := range map[string]string{p.server: "sources/modbus/testdata/libmodbus_server.c", p.client: "bench/sources/testdata/libmodbus_client.c"} {
		cc := exec.CommandContext(ctx, "gcc", "-O2", "-Wall", "-I/usr/include/modbus", "-o", out, source, "-lmodbus")
		if said, err := cc.CombinedOutput(); err != nil {
			return p, fmt.Errorf("compile %s (run conformance/install-modbus.sh, and this from the root of the repository): %w: %s", source, err, said)
		}
	}
	words := make([]byte, 400)
	for i := range 200 {
		words[2*i+1] = byte(i)
	}
	if err := os.WriteFile(p.image, []byte("holding "+hex.EncodeToString(words)+"\n"), 0o600); err != nil {
		return p, fmt.Errorf("write image: %w", err)
	}
	p.port, err = freePort()
	return p, err
}

// contender polls for one turn and returns its rate; cost is the processor time
// of a poll in microseconds, 0 when it is another process.
type contender func(ctx context.Context, p modbusPeers, registers int) (rate, cost float64, err error)

// raceModbus lets the contenders take turns. No reply is like the one before: a
// source that reports changes compares every value and makes a record of one. A
// bare library throws away what it reads; a source that makes a record of every
// value is compared, without a gate, with that and with a loop over the library
// that makes the same records.
func raceModbus(ctx context.Context, r *report, p modbusPeers, registers int) error {
	const library, changes, libmodbus, libraryRecords, allRecords = 0, 1, 2, 3, 4
	contenders := []contender{
		library: func(_ context.Context, p modbusPeers, n int) (float64, float64, error) {
			return pollLibrary(p, n, func([]uint16) {})
		},
		changes: func(ctx context.Context, p modbusPeers, n int) (float64, float64, error) {
			return pollSource(ctx, p, n, ours.OnChange)
		},
		libmodbus: pollLibmodbus,
		libraryRecords: func(_ context.Context, p modbusPeers, n int) (float64, float64, error) {
			return pollLibrary(p, n, newRecorder(n).record)
		},
		allRecords: func(ctx context.Context, p modbusPeers, n int) (float64, float64, error) {
			return pollSource(ctx, p, n, ours.Always)
		},
	}
	rates, costs := make([][]float64, len(contenders)), make([][]float64, len(contenders))
	for range modbusRounds {
		for i, poll := range contenders {
			rate, cost, err := poll(ctx, p, registers)
			if err != nil {
				return err
			}
			rates[i], costs[i] = append(rates[i], rate), append(costs[i], cost)
		}
	}
	ratio := func(of [][]float64, a, b int) float64 {
		var all []float64
		for i := range of[a] {
			all = append(all, of[a][i]/of[b][i])
		}
		return median(all)
	}
	prefix := fmt.Sprintf("modbus_%d_registers_", registers)
	return errors.Join(
		r.atLeast(prefix+"polls_of_bare_simonvetter", ratio(rates, changes, library), "ratio", leastOfLibrary),
		r.atLeast(prefix+"polls_of_bare_libmodbus", ratio(rates, changes, libmodbus), "ratio", leastOfLibmodbus),
		r.say(prefix+"all_records_polls_of_simonvetter_with_records", ratio(rates, allRecords, libraryRecords), "ratio"),
		r.say(prefix+"all_records_polls_of_bare_simonvetter", ratio(rates, allRecords, library), "ratio"),
		r.say(prefix+"processor_time_of_bare_simonvetter", ratio(costs, changes, library), "ratio"),
		r.say(prefix+"all_records_processor_time_of_simonvetter_with_records", ratio(costs, allRecords, libraryRecords), "ratio"),
		r.say(prefix+"bare_simonvetter", median(rates[library]), "polls/s"),
		r.say(prefix+"source", median(rates[changes]), "polls/s"),
		r.say(prefix+"bare_libmodbus", median(rates[libmodbus]), "polls/s"),
		r.say(prefix+"source_all_records", median(rates[allRecords])*float64(registers), "records/s"),
	)
}

// recorder makes the records that a source makes, by hand.
type recorder struct {
	addresses []string
	fixed     [][]abi.Attr
	batch     []abi.Record
}

func newRecorder(registers int) *recorder {
	r := &recorder{}
	for i := range registers {
		r.addresses = append(r.addresses, fmt.Sprintf("1:holding:%d", i))
		r.fixed = append(r.fixed, []abi.Attr{
			{Key: abi.AttrSlaveID, Value: abi.Int(1)}, {Key: abi.AttrRegisterAddress, Value: abi.Int(int64(i))},
			{Key: abi.AttrRegisterType, Value: abi.String("holding")}, {Key: abi.AttrScaleFactor, Value: abi.Int(1)}})
	}
	return r
}

func (r *recorder) record(words []uint16) {
	now := sources.Micros(time.Now())
	for i, word := range words {
		attrs := make([]abi.Attr, 0, len(r.fixed[i])+2)
		attrs = append(append(attrs, r.fixed[i]...), abi.Attr{Key: abi.AttrRawValue, Value: abi.Float(float64(word))},
			abi.Attr{Key: abi.AttrScaledValue, Value: abi.Int(int64(word))})
		r.batch = append(r.batch, abi.Record{EventTime: now, IngestTime: now, Source: "plc", Address: r.addresses[i],
			Protocol: abi.ProtocolModbus, Value: abi.Uint(uint64(word)), Attrs: attrs})
		if len(r.batch) == sources.BatchRecords {
			r.batch = make([]abi.Record, 0, sources.BatchRecords) // whoever got the batch keeps it
		}
	}
}

// pollLibrary gives each reply to use.
func pollLibrary(p modbusPeers, registers int, use func([]uint16)) (rate, cost float64, err error) {
	c, err := modbus.NewClient(&modbus.ClientConfiguration{URL: "tcp://127.0.0.1:" + p.port, Timeout: time.Second})
	if err != nil {
		return 0, 0, fmt.Errorf("make client: %w", err)
	}
	if err := c.Open(); err != nil {
		return 0, 0, fmt.Errorf("open connection: %w", err)
	}
	defer func() { _ = c.Close() }()
	polls := 0
	runtime.GC()
	used, begin := processorTime(), time.Now()
	for time.Since(begin) < modbusTurn {
		words, err := c.ReadRegisters(0, uint16(registers), modbus.HOLDING_REGISTER)
		if err != nil {
			return 0, 0, fmt.Errorf("read registers: %w", err)
		}
		use(words)
		polls++
	}
	return perPoll(polls, begin, used)
}

func perPoll(polls int, begin time.Time, used time.Duration) (rate, cost float64, err error) {
	took, spent := time.Since(begin), processorTime()-used
	if polls == 0 {
		return 0, 0, errors.New("nothing was polled")
	}
	return float64(polls) / took.Seconds(), float64(spent.Nanoseconds()) / 1e3 / float64(polls), nil
}

// pollSource runs a source that always has something to poll, into a sink that
// keeps nothing.
func pollSource(ctx context.Context, p modbusPeers, registers int, report ours.Report) (rate, cost float64, err error) {
	cfg := ours.Config{Addressing: ours.ZeroBased, Report: report, PollIntervalMS: 1}
	for unit := 1; unit <= modbusUnits; unit++ {
		cfg.Registers = append(cfg.Registers, ours.Register{Address: "0", Count: registers, RegisterType: ours.Holding, SlaveID: &unit})
	}
	log := slog.New(slog.DiscardHandler)
	status, buses := sources.NewStatus("plc", "modbus"), ours.NewBuses(log)
	src, err := ours.New("plc", "modbus+tcp://127.0.0.1:"+p.port, nil, cfg, ours.Deps{Log: log, Status: status, Buses: buses})
	if err != nil {
		return 0, 0, fmt.Errorf("make source: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- src.Run(ctx, func(_ context.Context, _ sources.Batch, done func(error)) error { done(nil); return nil })
	}()
	for first := uint64(modbusUnits * registers); status.Snapshot().Records < first; time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			break
		}
	}
	runtime.GC() // what was thrown away to begin is no part of the race
	polls := func() int { return int(status.Snapshot().Counters[ours.MetricRequests]) }
	before, used, begin := polls(), processorTime(), time.Now()
	time.Sleep(modbusTurn)
	rate, cost, err = perPoll(polls()-before, begin, used)
	stop()
	err = errors.Join(err, <-ended)
	buses.Wait()
	return rate, cost, err
}

func pollLibmodbus(ctx context.Context, p modbusPeers, registers int) (rate, cost float64, err error) {
	out, err := exec.CommandContext(ctx, p.client, p.port, strconv.Itoa(registers), fmt.Sprint(modbusTurn.Seconds())).Output()
	if err != nil {
		return 0, 0, fmt.Errorf("run bare libmodbus client: %w", err)
	}
	rate, err = strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		return 0, 0, fmt.Errorf("read rate of bare libmodbus client: %w", err)
	}
	return rate, 0, nil
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
