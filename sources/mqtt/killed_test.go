//go:build conformance

package mqtt

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// TestBrokerKilled kills the broker twice while messages flow. What is
// published to the restarted broker all arrives; what the dead one had
// acknowledged to its publisher, it may have lost with its last second, so
// those rounds are judged by their order and reported.
func TestBrokerKilled(t *testing.T) {
	for _, version := range protocolVersions {
		t.Run(version, func(t *testing.T) { brokerKilled(t, version) })
	}
}

func brokerKilled(t *testing.T, version string) {
	m := startMosquitto(t, "allow_anonymous true", "persistence true", "persistence_location %DIR%/", "autosave_interval 1", "max_queued_messages 0").start()
	cfg := oneTopic("a", 1)
	cfg.ProtocolVersion = version
	s, st := newTestSource(t, m.url(), cfg)
	var k sink
	run(t, s, k.emit)
	for round := range 2 {
		awaitState(t, st, sources.Connected)
		before := len(k.records())
		ended := make(chan error, 1)
		lines := numbers(fmt.Sprintf("r%d-", round), 20000)
		go func() { ended <- m.publish("a", 1, lines) }()
		eventually(t, "messages to flow", func() bool { return len(k.records()) > before+2000 })
		m.kill()
		select {
		case err := <-ended:
			t.Fatalf("the publisher ended before the broker did: %v", err)
		default:
		}
		awaitState(t, st, sources.Reconnecting)
		m.start()
		// The publisher connects again and goes on.
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	awaitState(t, st, sources.Connected)
	want := numbers("r2-", 3000)
	m.mustPublish("a", 1, want)
	awaitAll(t, &k, want, 30*time.Second)
	checkArrived(t, k.texts(), want, false)
	t.Logf("%v redelivered over two kills, %d records", st.Snapshot().Counters[metricRedelivered], len(k.records()))
}

// TestBackAfterLongOutage lets the default back-off grow to 32 s: the attempts
// come 0, 1, 3, 7, 15 and 31 s after the broker's death and the next one after
// 63 s. The broker is back before, and so are we. How soon is measured by
// bench/sources.
func TestBackAfterLongOutage(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true").start()
	s, st := newTestSource(t, m.url(), oneTopic("a", 1))
	var k sink
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	wg.Go(func() {
		sources.Supervise(ctx, s, k.emit, st, sources.ReconnectConfig{}, slog.New(slog.DiscardHandler))
	})
	awaitState(t, st, sources.Connected)
	m.kill()
	<-time.After(40 * time.Second)
	m.start()
	back := time.Now()
	m.mustPublish("a", 1, []string{"first"}, "-r")
	eventually(t, "the first record", func() bool { return len(k.records()) > 0 })
	took := time.Since(back)
	if took > 10*time.Second {
		t.Errorf("the first record came %v after the broker was back: nobody looked whether it is", took)
	}
	t.Logf("%v after the broker was back, %v attempts", took, st.Snapshot().Counters[sources.MetricReconnects])
}

// TestBlockedConsumer blocks the pipeline for longer than a broker's patience
// with a client that does not answer pings (1.5 times the keep-alive).
func TestBlockedConsumer(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_queued_messages 0", "max_inflight_messages 0").start()
	cfg := oneTopic("a", 1)
	cfg.KeepAliveSeconds = 10
	s, st := newTestSource(t, m.url(), cfg)
	blocked := time.After(25 * time.Second)
	release := make(chan struct{})
	go func() { <-blocked; close(release) }()
	var k sink
	run(t, s, func(ctx context.Context, b sources.Batch, done func(error)) error {
		select {
		case <-release:
			return k.emit(ctx, b, done)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	awaitState(t, st, sources.Connected)
	want := numbers("m", 1000)
	m.mustPublish("a", 1, want)
	<-release
	awaitAll(t, &k, want, 30*time.Second)
	checkArrived(t, k.texts(), want, true)
	if n := st.Snapshot().Counters[sources.MetricReconnects]; n != 0 {
		t.Errorf("%v reconnects while the pipeline was blocked, want none", n)
	}
}

const childVariable = "EDGEHOST_MQTT_CHILD"

// kills is how often TestWeAreKilled kills the subscriber in each of its cases.
const kills = 10

// TestWeAreKilled kills the subscriber's process again and again while messages
// flow at full rate: everything that was published is in its file in the end,
// since it is acknowledged after the fsync only. What is there twice came again
// because the broker had not read its acknowledgement, and bears the mark that
// the protocol demands.
func TestWeAreKilled(t *testing.T) {
	if target := os.Getenv(childVariable); target != "" {
		runChild(t, target)
		return
	}
	for _, version := range protocolVersions {
		for _, qos := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s qos %d", version, qos), func(t *testing.T) {
				weAreKilled(t, version, qos, func(m *mosquitto, want []string) error { return m.publish("a", qos, want) })
			})
		}
	}
}

// TestWeAreKilledAtPlantRate is the same at 2000 messages a second, which leaves
// the broker time to read what we acknowledge: its window bounds the doubles.
func TestWeAreKilledAtPlantRate(t *testing.T) {
	for _, version := range protocolVersions {
		t.Run(version, func(t *testing.T) {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			doubles := weAreKilled(t, version, 1, func(m *mosquitto, want []string) error {
				publishEach(t, &m.broker, len(want), func(i int) (string, []byte) {
					if i%10 == 0 {
						<-tick.C
					}
					return "a", []byte(want[i])
				})
				return nil
			})
			if most := kills * inFlight; doubles > most {
				t.Errorf("%d doubles after %d kills, want at most the %d that the broker may have in flight", doubles, kills, most)
			}
		})
	}
}

// inFlight is the broker's window in the tests that kill us.
const inFlight = 100

// weAreKilled lets publish send messages to the topic a and returns how many are
// there more than once.
func weAreKilled(t *testing.T, version string, qos int, publish func(m *mosquitto, want []string) error) (doubles int) {
	m := startMosquitto(t, "allow_anonymous true", "max_queued_messages 0", fmt.Sprint("max_inflight_messages ", inFlight)).start()
	file := filepath.Join(t.TempDir(), "out")
	target := fmt.Sprintf("%s %s %s %d", m.url(), file, version, qos)
	child := startChild(t, target)
	eventually(t, "the child to connect", func() bool { data, err := os.ReadFile(file); return err == nil && len(data) > 0 })
	want := numbers("m", 30000)
	published := make(chan error, 1)
	go func() { published <- publish(m, want) }()
	for i := range kills {
		eventually(t, "progress", func() bool {
			info, err := os.Stat(file)
			return err == nil && info.Size() > int64(i+1)*210_000/(kills+1)
		})
		child.Process.Kill()
		child.Wait()
		child = startChild(t, target)
	}
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	var lines []string
	eventually(t, "the last message", func() bool {
		data, err := os.ReadFile(file)
		lines = strings.Split(string(data), "\n")
		return err == nil && strings.Contains(string(data), want[len(want)-1])
	})
	var got []string
	known, seen, marked := map[string]bool{}, map[string]bool{}, 0
	for _, w := range want {
		known[w] = true
	}
	for _, line := range lines {
		text, dup := strings.CutPrefix(line, attrDup+" ")
		if !known[text] {
			continue // the end of a write that the kill cut short, before its fsync
		}
		if seen[text] {
			doubles++
		}
		if dup {
			marked++
		}
		if seen[text] && !dup {
			t.Errorf("%s came a second time without the mark of a redelivery", text)
		}
		seen[text] = true
		got = append(got, text)
	}
	checkArrived(t, got, want, false)
	t.Logf("%d kills, %d redelivered, %d of them doubles", kills, marked, doubles)
	return doubles
}

func startChild(t *testing.T, target string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestWeAreKilled$")
	cmd.Env = append(os.Environ(), childVariable+"="+target)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// runChild is the process that is killed: a source whose pipeline appends to a
// file and syncs it before it says that a batch is durable.
func runChild(t *testing.T, target string) {
	var url, file, version string
	var qos int
	if _, err := fmt.Sscan(target, &url, &file, &version, &qos); err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cfg := oneTopic("a", qos)
	cfg.ClientID, cfg.ProtocolVersion = "killed", version
	s, st := newTestSource(t, url, cfg)
	run(t, s, func(_ context.Context, b sources.Batch, done func(error)) error {
		var text strings.Builder
		for _, r := range b.Records {
			if dup, ok := r.Attr(attrDup); ok && dup.AsBool() {
				text.WriteString(attrDup + " ")
			}
			text.WriteString(r.Value.Text() + "\n")
		}
		if _, err := out.WriteString(text.String()); err != nil {
			return err
		}
		done(out.Sync())
		return nil
	})
	awaitState(t, st, sources.Connected)
	if _, err := out.WriteString("\nconnected\n"); err != nil {
		t.Fatal(err)
	}
	<-time.After(5 * time.Minute)
}
