//go:build conformance

package mqtt

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// broker is where a broker listens, to which the clients of mosquitto publish.
type broker struct {
	t    *testing.T
	port int
}

// mosquitto is a broker of its own process, on a port of its own.
type mosquitto struct {
	broker
	dir  string
	conf string
	env  []string // added to the environment
	cmd  *exec.Cmd
}

// startMosquitto runs a broker with these lines after its listener's. %DIR%
// stands for a directory of the broker's own.
func startMosquitto(t *testing.T, lines ...string) *mosquitto {
	t.Helper()
	m := &mosquitto{broker: broker{t, freePort(t)}, dir: t.TempDir()}
	if err := os.Chmod(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("listener %d 127.0.0.1\n%s\n", m.port, strings.Join(lines, "\n"))
	if os.Geteuid() == 0 {
		text += "user root\n"
	}
	m.conf = filepath.Join(m.dir, "mosquitto.conf")
	m.write("mosquitto.conf", strings.ReplaceAll(text, "%DIR%", m.dir))
	t.Cleanup(m.kill)
	return m
}

func (m *mosquitto) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mosquitto) start() *mosquitto {
	m.t.Helper()
	m.cmd = exec.Command("mosquitto", "-c", m.conf)
	m.cmd.Env = append(os.Environ(), m.env...)
	var log bytes.Buffer
	m.cmd.Stdout, m.cmd.Stderr = &log, &log
	m.t.Cleanup(func() {
		m.kill()
		if strings.Contains(log.String(), "dropped") {
			m.t.Errorf("the broker dropped messages: raise its limits in this test\n%s", log.String())
		}
	})
	if err := m.cmd.Start(); err != nil {
		m.t.Fatalf("start mosquitto (conformance/install-mqtt.sh installs it): %v", err)
	}
	eventually(m.t, "mosquitto to listen", m.listens)
	return m
}

// kill is kill -9.
func (m *mosquitto) kill() {
	if m.cmd != nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
		m.cmd = nil
	}
}

func (b *broker) addr() string { return "127.0.0.1:" + strconv.Itoa(b.port) }
func (b *broker) url() string  { return "mqtt://" + b.addr() }

func (b *broker) listens() bool {
	conn, err := net.Dial("tcp", b.addr())
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// publish sends the lines as messages with mosquitto_pub, which ends when all
// of them are acknowledged.
func (b *broker) publish(topic string, qos int, lines []string, extra ...string) error {
	args := append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(b.port), "-t", topic, "-q", strconv.Itoa(qos), "-l"}, extra...)
	cmd := exec.Command("mosquitto_pub", args...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mosquitto_pub: %w: %s", err, out)
	}
	return nil
}

func (b *broker) mustPublish(topic string, qos int, lines []string, extra ...string) {
	b.t.Helper()
	if err := b.publish(topic, qos, lines, extra...); err != nil {
		b.t.Fatal(err)
	}
}

// publishOne sends one message of QoS 1.
func (b *broker) publishOne(topic, payload string) {
	b.t.Helper()
	cmd := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", strconv.Itoa(b.port), "-t", topic, "-q", "1", "-s")
	cmd.Stdin = strings.NewReader(payload)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().(*net.TCPAddr).Port
}

// numbers returns prefix0001 to prefix<n>.
func numbers(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%05d", prefix, i+1)
	}
	return out
}

// checkArrived fails unless every line of want is in got, in order and, when
// once is set, no more than once.
func checkArrived(t *testing.T, got, want []string, once bool) {
	t.Helper()
	count := map[string]int{}
	for _, g := range got {
		count[g]++
	}
	missing, doubles := 0, 0
	for _, w := range want {
		switch {
		case count[w] == 0:
			missing++
		case count[w] > 1:
			doubles += count[w] - 1
		}
	}
	if missing > 0 || (once && doubles > 0) {
		t.Errorf("%d of %d missing, %d doubles", missing, len(want), doubles)
	}
	seen, last := map[string]bool{}, ""
	for _, g := range got {
		if !seen[g] && g < last {
			t.Errorf("%s came for the first time after %s", g, last)
			break
		}
		if !seen[g] {
			last = g
		}
		seen[g] = true
	}
	t.Logf("%d published, %d arrived, %d missing, %d doubles", len(want), len(got), missing, doubles)
}

// awaitAll waits until k holds every one of want.
func awaitAll(t *testing.T, k *sink, want []string, patience time.Duration) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		have := map[string]bool{}
		for _, text := range k.texts() {
			have[text] = true
		}
		n := 0
		for _, w := range want {
			if have[w] {
				n++
			}
		}
		if n == len(want) {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%d of %d arrived within %v", n, len(want), patience)
		case <-tick.C:
		}
	}
}
