package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/edgehost/edgehost/sources"
	ours "github.com/edgehost/edgehost/sources/mqtt"
)

// The gates of the mqtt source, beside a bare client that acknowledges on
// receipt and mosquitto_sub, all at the rate at which two publishers and the
// broker saturate the machine.
const (
	leastOfPaho = 0.95 // messages a second
	leastOfSub  = 0.9  // messages a second
	mostDurable = 1.2  // processor time of a message of QoS 1, synced to a file
	mqttPayload = `{"value": 21.5, "ts": 1767225600123, "unit": "C"}` + "\n"
	mqttRounds  = 7
	// mqttMessages of a turn are so many that the 50 ms for which the last batch
	// of a source may wait, and which are no rate, count little.
	mqttMessages = 60_000
	mqttPatience = 60 * time.Second
)

// mqttPeers is a broker, and what its publishers send.
type mqttPeers struct {
	dir, port string
	lines     string // a file with half of a turn's messages
	topic     string // of one turn: nobody's session gets the messages of another
}

func benchMQTT(ctx context.Context, r *report) error {
	dir, err := os.MkdirTemp("", "edgehost-bench-")
	if err != nil {
		return fmt.Errorf("make temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	p, stop, err := startMQTTPeers(dir)
	if err != nil {
		return err
	}
	defer stop()
	for _, qos := range []int{0, 1} {
		if err := raceMQTT(ctx, r, p, qos); err != nil {
			return err
		}
	}
	return nil
}

func startMQTTPeers(dir string) (p mqttPeers, stop func(), err error) {
	p = mqttPeers{dir: dir, lines: filepath.Join(dir, "lines")}
	if err := os.WriteFile(p.lines, []byte(strings.Repeat(mqttPayload, mqttMessages/2)), 0o600); err != nil {
		return p, nil, fmt.Errorf("write messages: %w", err)
	}
	if p.port, err = freePort(); err != nil {
		return p, nil, err
	}
	cmd, err := mosquitto(dir, p.port)
	if err != nil {
		return p, nil, err
	}
	if stop, err = startPeer(cmd, p.port); err != nil {
		return p, nil, fmt.Errorf("start mosquitto (run conformance/install-mqtt.sh): %w", err)
	}
	return p, stop, nil
}

// mosquitto is the command of a broker that listens at port.
func mosquitto(dir, port string) (*exec.Cmd, error) {
	conf := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(conf, []byte("listener "+port+" 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n"), 0o600); err != nil {
		return nil, fmt.Errorf("write configuration of the broker: %w", err)
	}
	if os.Geteuid() == 0 {
		// It drops its rights otherwise, and cannot read its configuration again.
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, fmt.Errorf("open the folder to the broker: %w", err)
		}
	}
	return exec.Command("mosquitto", "-c", conf), nil
}

// subscriber receives the messages of one turn: start returns when it is
// subscribed, received counts, and stop ends it.
type subscriber func(ctx context.Context, p mqttPeers, qos int, received *atomic.Int64) (stop func() error, err error)

// raceMQTT lets the subscribers take turns.
func raceMQTT(ctx context.Context, r *report, p mqttPeers, qos int) error {
	const bare, null, sub, durable, five = 0, 1, 2, 3, 4
	contenders := []subscriber{bare: barePaho, null: mqttSource("3.1.1", false), sub: mosquittoSub, durable: mqttSource("3.1.1", true), five: mqttSource("5", false)}
	rates, costs := make([][]float64, len(contenders)), make([][]float64, len(contenders))
	for round := range mqttRounds {
		for i, contender := range contenders {
			p.topic = fmt.Sprintf("bench/%d/%d/%d", qos, round, i)
			rate, cost, err := turnMQTT(ctx, p, qos, contender)
			if err != nil {
				return fmt.Errorf("contender %d: %w", i, err)
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
	prefix := fmt.Sprintf("mqtt_qos%d_", qos)
	errs := []error{
		r.atLeast(prefix+"messages_of_bare_paho", ratio(rates, null, bare), "ratio", leastOfPaho),
		r.atLeast(prefix+"messages_of_mosquitto_sub", ratio(rates, null, sub), "ratio", leastOfSub),
		r.say(prefix+"processor_time_of_bare_paho", ratio(costs, null, bare), "ratio"),
		r.say(prefix+"mqtt5_messages_of_bare_paho", ratio(rates, five, bare), "ratio"),
		r.say(prefix+"mqtt5_processor_time_of_bare_paho", ratio(costs, five, bare), "ratio"),
	}
	if qos == 1 {
		errs = append(errs,
			r.atMost(prefix+"durable_processor_time_of_bare_paho", ratio(costs, durable, bare), "ratio", mostDurable),
			r.say(prefix+"durable_messages_of_bare_paho", ratio(rates, durable, bare), "ratio"),
			r.say(prefix+"durable", median(costs[durable]), "us/message"))
	}
	return errors.Join(append(errs,
		r.say(prefix+"bare_paho", median(rates[bare]), "messages/s"),
		r.say(prefix+"source", median(rates[null]), "messages/s"),
		r.say(prefix+"mosquitto_sub", median(rates[sub]), "messages/s"),
		r.say(prefix+"bare_paho_processor_time", median(costs[bare]), "us/message"),
		r.say(prefix+"source_processor_time", median(costs[null]), "us/message"))...)
}

// turnMQTT publishes the messages of one turn to one subscriber and returns how
// many arrived a second, and the processor time of this process for each in
// microseconds.
func turnMQTT(ctx context.Context, p mqttPeers, qos int, subscribe subscriber) (rate, cost float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, mqttPatience)
	defer cancel()
	var received atomic.Int64
	stop, err := subscribe(ctx, p, qos, &received)
	if err != nil {
		return 0, 0, err
	}
	runtime.GC() // or a turn pays for the garbage of the one before
	used, begin := processorTime(), time.Now()
	publishers := make(chan error, 2)
	for range cap(publishers) {
		go func() { publishers <- publishMQTT(ctx, p, qos) }()
	}
	for received.Load() < mqttMessages && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	took, spent := time.Since(begin), processorTime()-used
	err = errors.Join(<-publishers, <-publishers, stop())
	if n := received.Load(); err == nil && n < mqttMessages {
		err = fmt.Errorf("%d of %d messages arrived within %s", n, mqttMessages, mqttPatience)
	}
	return mqttMessages / took.Seconds(), float64(spent.Nanoseconds()) / 1e3 / mqttMessages, err
}

func publishMQTT(ctx context.Context, p mqttPeers, qos int) error {
	lines, err := os.Open(p.lines)
	if err != nil {
		return fmt.Errorf("open messages: %w", err)
	}
	defer func() { _ = lines.Close() }()
	cmd := exec.CommandContext(ctx, "mosquitto_pub", "-h", "127.0.0.1", "-p", p.port, "-t", p.topic, "-q", fmt.Sprint(qos), "-l")
	cmd.Stdin = lines
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run mosquitto_pub: %w: %s", err, out)
	}
	return nil
}

func barePaho(_ context.Context, p mqttPeers, qos int, received *atomic.Int64) (func() error, error) {
	client := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://127.0.0.1:" + p.port).SetClientID("bare").SetOrderMatters(true))
	if token := client.Connect(); token.Wait() && token.Error() != nil {
		return nil, fmt.Errorf("connect bare client: %w", token.Error())
	}
	token := client.Subscribe(p.topic, byte(qos), func(paho.Client, paho.Message) { received.Add(1) })
	if token.Wait() && token.Error() != nil {
		return nil, fmt.Errorf("subscribe bare client: %w", token.Error())
	}
	return func() error { client.Disconnect(100); return nil }, nil
}

// mqttSource is a source into a sink that keeps nothing, or one that syncs the
// values of each batch to a file before it is done.
func mqttSource(version string, durable bool) subscriber {
	return func(ctx context.Context, p mqttPeers, qos int, received *atomic.Int64) (func() error, error) {
		log := slog.New(slog.DiscardHandler)
		status := sources.NewStatus("m", "mqtt")
		cfg := ours.Config{ProtocolVersion: version, Topics: []ours.TopicConfig{{Topic: p.topic, QoS: qos}}}
		src, err := ours.New("m", "mqtt://127.0.0.1:"+p.port, nil, cfg, ours.Deps{Status: status, Logger: log, HostID: p.topic})
		if err != nil {
			return nil, fmt.Errorf("make source: %w", err)
		}
		file, err := os.OpenFile(filepath.Join(p.dir, "durable"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open durable sink: %w", err)
		}
		emit := func(_ context.Context, b sources.Batch, done func(error)) error {
			if durable {
				done(syncValues(file, b))
			} else {
				done(nil)
			}
			received.Add(int64(len(b.Records)))
			return nil
		}
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- src.Run(ctx, emit) }()
		for status.Snapshot().State != sources.Connected {
			select {
			case err := <-ended:
				cancel()
				return nil, fmt.Errorf("run source: %w", err)
			case <-time.After(time.Millisecond):
			}
		}
		return func() error {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				return errors.Join(err, file.Close())
			}
			return file.Close()
		}, nil
	}
}

func syncValues(file *os.File, b sources.Batch) error {
	var out []byte
	for _, r := range b.Records {
		out = fmt.Appendf(out, "%s %v\n", r.Address, r.Value.AsFloat())
	}
	if _, err := file.Write(out); err != nil {
		return fmt.Errorf("write batch: %w", err)
	}
	return file.Sync()
}

// mosquittoSub learns that it is subscribed from a retained message.
func mosquittoSub(ctx context.Context, p mqttPeers, qos int, received *atomic.Int64) (func() error, error) {
	const ready = "bench/ready"
	if out, err := exec.CommandContext(ctx, "mosquitto_pub", "-h", "127.0.0.1", "-p", p.port, "-t", ready, "-m", "ready", "-r", "-q", "1").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("retain a message: %w: %s", err, out)
	}
	cmd := exec.CommandContext(ctx, "mosquitto_sub", "-h", "127.0.0.1", "-p", p.port, "-t", p.topic, "-t", ready, "-q", fmt.Sprint(qos))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start mosquitto_sub: %w", err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		return nil, errors.New("mosquitto_sub did not subscribe")
	}
	go func() {
		for lines.Scan() {
			received.Add(1)
		}
	}()
	return func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
		return nil
	}, nil
}
