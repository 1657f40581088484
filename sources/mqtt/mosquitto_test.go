//go:build conformance

package mqtt

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// broker is where a broker listens, to which the clients of mosquitto publish.
type broker struct {
	t    testing.TB
	port int
}

// mosquitto is a broker of its own process, on a port of its own.
type mosquitto struct {
	broker
	dir    string
	lines  string   // of its configuration, after its listener's
	env    []string // added to the environment
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended and log is whole
	log    *brokerLog
}

// startMosquitto makes a broker with these lines after its listener's. %DIR%
// stands for a directory of the broker's own.
func startMosquitto(t testing.TB, lines ...string) *mosquitto {
	t.Helper()
	m := &mosquitto{broker: broker{t, freePort(t)}, dir: t.TempDir()}
	if err := os.Chmod(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.lines = strings.ReplaceAll(strings.Join(lines, "\n"), "%DIR%", m.dir) + "\n"
	if os.Geteuid() == 0 {
		m.lines += "user root\n"
	}
	t.Cleanup(m.kill)
	return m
}

func (m *mosquitto) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// start runs the broker and returns when it listens. When its port was taken
// before it came, it gets another one.
func (m *mosquitto) start() *mosquitto {
	m.t.Helper()
	for attempt := 1; ; attempt++ {
		m.run()
		select {
		case <-m.log.running:
			return m
		case <-m.exited:
		case <-time.After(20 * time.Second):
		}
		m.kill()
		if attempt == 5 || !strings.Contains(m.log.String(), "Address already in use") {
			m.t.Fatalf("mosquitto does not run: %s", m.log)
		}
		m.port = freePort(m.t)
	}
}

func (m *mosquitto) run() {
	m.t.Helper()
	m.write("mosquitto.conf", fmt.Sprintf("listener %d 127.0.0.1\n%s", m.port, m.lines))
	cmd := exec.Command("mosquitto", "-c", filepath.Join(m.dir, "mosquitto.conf"))
	log, exited := &brokerLog{running: make(chan struct{})}, make(chan struct{})
	cmd.Env = append(os.Environ(), m.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("start mosquitto (conformance/install-mqtt.sh installs it): %v", err)
	}
	go func() { cmd.Wait(); close(exited) }()
	m.cmd, m.log, m.exited = cmd, log, exited
	m.t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
		if strings.Contains(log.String(), "dropped") {
			m.t.Errorf("the broker dropped messages: raise its limits in this test\n%s", log)
		}
	})
}

// kill is kill -9.
func (m *mosquitto) kill() {
	if m.cmd != nil {
		m.cmd.Process.Kill()
		<-m.exited
		m.cmd = nil
	}
}

// brokerLog is what a broker says.
type brokerLog struct {
	running chan struct{} // closed when it says that it is

	mu   sync.Mutex
	text strings.Builder
}

func (l *brokerLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	const running = " running\n"
	before := strings.Contains(l.text.String(), running)
	l.text.Write(p)
	if !before && strings.Contains(l.text.String(), running) {
		close(l.running)
	}
	return len(p), nil
}

func (l *brokerLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
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

func freePort(t testing.TB) int {
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
