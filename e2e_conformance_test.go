//go:build conformance

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/edgehost/edgehost/host/control"
)

// The end-to-end suite runs the built binary between a real mosquitto and the
// emulator in a process of its own, and kills what it likes.

const (
	e2eMessages = 20000
	e2eTopics   = 20
)

// site is one run: a broker, a gateway, an emulator, all on 127.0.0.1.
type site struct {
	t        *testing.T
	dir      string
	binary   string
	broker   string
	ingest   string
	token    string
	health   string
	metrics  string
	log      *bytes.Buffer
	gateway  *process
	emulator *process
}

// process is a child that the suite started; the suite ends it and no other.
type process struct {
	cmd  *exec.Cmd
	done chan error
}

func startProcess(t *testing.T, out io.Writer, env []string, name string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p := &process{cmd, make(chan error, 1)}
	go func() { p.done <- cmd.Wait() }()
	t.Cleanup(func() { p.signal(syscall.SIGKILL) })
	return p
}

// signal ends the process and waits for it.
func (p *process) signal(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig)
	err := <-p.done
	p.done <- err
}

// nextPort is the next port to try. It stays below the range from which the
// system takes the ports of outgoing connections: one of those may be taken again
// before the peer that it is for has bound it.
var nextPort atomic.Int32

func freePort(t *testing.T) string {
	t.Helper()
	for range 10000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+(int(nextPort.Add(1))+os.Getpid()*37)%12000)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue // somebody has it
		}
		_ = l.Close()
		return addr
	}
	t.Fatal("no port is free")
	return ""
}

func port(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }

func newSite(t *testing.T, pipelines string) *site {
	t.Helper()
	return newSiteWith(t, "", pipelines)
}

// newSiteWith is newSite with further sources.
func newSiteWith(t *testing.T, sources, pipelines string) *site {
	t.Helper()
	if _, err := exec.LookPath("mosquitto"); err != nil {
		t.Fatal("mosquitto is missing: conformance/install-e2e.sh installs it")
	}
	binary, err := filepath.Abs("bin/edgehost")
	if err == nil {
		_, err = os.Stat(binary)
	}
	if err != nil {
		t.Fatalf("the binary is missing, make build: %v", err)
	}
	s := &site{t: t, dir: t.TempDir(), binary: binary, log: &bytes.Buffer{},
		broker: freePort(t), ingest: freePort(t), token: freePort(t), health: freePort(t), metrics: freePort(t)}
	s.write("mosquitto.conf", fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 100\n", port(s.broker)))
	s.write("connector.yaml", fmt.Sprintf(`
state_dir: %[1]s/state
health: {listen: %[2]q}
metrics: {listen: %[3]q}
zerobus:
  workspace_host: https://%[4]s
  zerobus_endpoint: https://%[5]s
  ca_cert_path: %[1]s/ca.pem
  auth: {client_id: "${E2E_ID}", client_secret: "${E2E_SECRET}"}
sources:
- name: plant
  protocol: mqtt
  endpoint: mqtt://%[6]s
  mqtt:
    topics: [{topic: "plant/#", qos: 1}]
%[8]sprocessing: {batch: {max_size: 500, max_wait_seconds: 1}}
resilience: {circuit_breaker: {timeout_seconds: 1}, reconnect: {initial_delay_seconds: 0.2, max_delay_seconds: 1}}
%[7]s`, s.dir, s.health, s.metrics, s.token, s.ingest, s.broker, pipelines, strings.ReplaceAll(strings.TrimPrefix(sources, "\n"), "BROKER", s.broker)))
	startProcess(t, io.Discard, nil, "mosquitto", "-c", filepath.Join(s.dir, "mosquitto.conf"))
	waitFor(t, "mosquitto", func() bool { c, err := net.Dial("tcp", s.broker); return err == nil && c.Close() == nil })
	// The certificate authority must exist before the gateway reads it, and
	// survive restarts of the emulator.
	s.startEmulator()
	return s
}

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) startEmulator() {
	s.t.Helper()
	s.emulator = startProcess(s.t, io.Discard, nil, s.binary, "emulator", "zerobus", "--listen", s.ingest, "--token-listen", s.token,
		"--dir", filepath.Join(s.dir, "tables"), "--ca-out", filepath.Join(s.dir, "ca.pem"))
	waitFor(s.t, "the emulator", func() bool {
		c, err := net.Dial("tcp", s.ingest)
		return err == nil && c.Close() == nil
	})
}

func (s *site) startGateway() {
	s.t.Helper()
	s.gateway = startProcess(s.t, s.log, []string{"E2E_ID=e2e-client", "E2E_SECRET=" + e2eSecret}, s.binary, "serve", "--config", filepath.Join(s.dir, "connector.yaml"))
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.gateway.signal(syscall.SIGKILL) // its log is whole then
			s.t.Logf("log of the gateway:\n%s", s.log)
		}
	})
	waitFor(s.t, "the source to connect", func() bool {
		h, err := s.healthNow()
		return err == nil && h.Sources["plant"] == "connected"
	})
}

const e2eSecret = "planted-secret-4f1d0a7c"

type healthAnswer struct {
	Status  string            `json:"status"`
	Sources map[string]string `json:"sources"`
	Zerobus string            `json:"zerobus"`
}

func (s *site) healthNow() (healthAnswer, error) {
	var h healthAnswer
	c := http.Client{Timeout: time.Second}
	resp, err := c.Get("http://" + s.health + "/health")
	if err != nil {
		return h, err
	}
	defer resp.Body.Close()
	return h, json.NewDecoder(resp.Body).Decode(&h)
}

// edgehost runs a command of the binary against the site.
func (s *site) edgehost(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(s.binary, args...)
	cmd.Env = append(os.Environ(), "EDGEHOST_SOCKET="+filepath.Join(s.dir, "state", "control.sock"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("edgehost %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *site) status() control.Status {
	s.t.Helper()
	var st control.Status
	if err := json.Unmarshal([]byte(s.edgehost("status", "--json")), &st); err != nil {
		s.t.Fatal(err)
	}
	return st
}

// waitFor polls what has no event of its own, for at most two minutes.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// publish sends numbered messages at QoS 1 over all topics and returns when the
// broker has acknowledged all.
func (s *site) publish(from, n int) { s.publishAt(from, n, 0, nil) }

// publishAt is publish with at most rate messages a second, 0 for as many as go,
// and an end when stop is closed. It returns how many were sent.
func (s *site) publishAt(from, n, rate int, stop <-chan struct{}) (sent int) {
	c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + s.broker).SetClientID("publisher" + strconv.Itoa(from)).SetProtocolVersion(4))
	if tok := c.Connect(); tok.Wait() && tok.Error() != nil {
		s.t.Errorf("publisher: %v", tok.Error())
		return 0
	}
	defer c.Disconnect(250)
	window := make(chan paho.Token, 500)
	var wg sync.WaitGroup
	wg.Go(func() {
		for tok := range window {
			if tok.Wait(); tok.Error() != nil {
				s.t.Errorf("publish: %v", tok.Error())
			}
		}
	})
	var pace <-chan time.Time
	if rate > 0 {
		t := time.NewTicker(10 * time.Millisecond)
		defer t.Stop()
		pace = t.C
	}
publishing:
	for i := from; i < from+n; i++ {
		if pace != nil && sent%(rate/100) == 0 {
			select {
			case <-pace:
			case <-stop:
				break publishing
			}
		}
		sent++
		window <- c.Publish(fmt.Sprintf("plant/t%02d", i%e2eTopics), 1, false, fmt.Sprintf(`{"value": %d, "unit": "canary-unit-%d"}`, i, i%7))
	}
	close(window)
	wg.Wait()
	return sent
}

// row is a row of the emulator's files.
type row struct {
	Topic    string  `json:"topic"`
	Value    float64 `json:"value"`
	RecordID string  `json:"record_id"`
}

func (s *site) rows(table string) (rows []row, lines []string) {
	s.t.Helper()
	f, err := os.Open(filepath.Join(s.dir, "tables", table+".ndjson"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var r row
		if json.Unmarshal(sc.Bytes(), &r) != nil {
			continue // the last line is being written
		}
		rows, lines = append(rows, r), append(lines, sc.Text())
	}
	return rows, lines
}

const (
	bronze = "mqtt.scada_data.mqtt_events_bronze"
	second = "c.s.second"
)

// arrived counts the rows in the tables.
type arrived struct {
	rows, ids, distinct int
}

// judge checks the rows of some tables together: equal ids on equal rows, and for
// each table the order within each topic.
func (s *site) judge(tables ...string) arrived {
	s.t.Helper()
	var v arrived
	byID := map[string]string{}
	seen := map[int]bool{}
	for _, table := range tables {
		last := map[string]float64{}
		rows, lines := s.rows(table)
		first := map[int]bool{}
		for i, r := range rows {
			v.rows++
			if was, ok := byID[r.RecordID]; ok && was != lines[i] {
				s.t.Fatalf("record_id %s stands on two different rows:\n%s\n%s", r.RecordID, was, lines[i])
			}
			byID[r.RecordID] = lines[i]
			n := int(r.Value)
			if first[n] {
				continue
			}
			first[n], seen[n] = true, true
			if l, ok := last[r.Topic]; ok && r.Value < l {
				s.t.Fatalf("%s: %s: %v came after %v", table, r.Topic, r.Value, l)
			}
			last[r.Topic] = r.Value
		}
	}
	v.ids, v.distinct = len(byID), len(seen)
	return v
}

// killRound publishes, kills the gateway at a random moment, starts it again and
// counts. dead says that there is no sink until all is published.
func killRound(t *testing.T, dead bool, pipelines, module string, tables ...string) {
	s := newSite(t, pipelines)
	s.startGateway()
	if module != "" {
		s.edgehost("module", "push", module, "--name", "route")
	}
	if dead {
		s.emulator.signal(syscall.SIGKILL)
	}
	published := make(chan struct{})
	go func() { s.publish(0, e2eMessages); close(published) }()
	moment := time.Duration(50+rand.IntN(1500)) * time.Millisecond
	select {
	case <-published:
	case <-time.After(moment):
	}
	s.gateway.signal(syscall.SIGKILL)
	s.startGateway()
	<-published
	if dead {
		s.startEmulator()
	}
	waitFor(t, "all messages in the tables", func() bool { return s.judge(tables...).distinct >= e2eMessages })
	var st control.Status
	waitFor(t, "an empty spool", func() bool { st = s.status(); return st.Ledger.Waiting == 0 })
	s.gateway.signal(syscall.SIGTERM)
	v := s.judge(tables...)
	t.Logf("killed after %v: %d of %d distinct, %d rows: %d sent again by the sink with their ids, %d redelivered by the broker; ledger read %d delivered %d balanced %v",
		moment, v.distinct, e2eMessages, v.rows, v.rows-v.ids, v.ids-v.distinct, st.Ledger.Read, st.Ledger.Delivered, st.Ledger.Balanced)
	if v.distinct != e2eMessages || !st.Ledger.Balanced {
		t.Fatalf("%+v, ledger %+v", v, st.Ledger)
	}
}

// buildModule builds one of the examples with Go.
func buildModule(t *testing.T, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name+".wasm")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-buildmode=c-shared", "-ldflags=-s -w", "-o", out, "./examples/"+name)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build module %s: %v\n%s", name, err, b)
	}
	return out
}

const routePipeline = `
pipelines:
- name: line1
  sources: [plant]
  modules: [route]
  outputs: {second: {catalog: c, schema: s, table: second}}
`

func killRounds(t *testing.T, n int) {
	for i := range n {
		t.Run(fmt.Sprintf("one-table-%d", i), func(t *testing.T) { killRound(t, true, "", "", bronze) })
		t.Run(fmt.Sprintf("sink-alive-%d", i), func(t *testing.T) { killRound(t, false, "", "", bronze) })
		t.Run(fmt.Sprintf("two-tables-%d", i), func(t *testing.T) {
			killRound(t, true, routePipeline, buildModule(t, "route"), bronze, second)
		})
	}
}

func TestSmokeKillNine(t *testing.T)     { killRounds(t, 1) }
func TestKillNineTenRounds(t *testing.T) { killRounds(t, 10) }

// TestSmokeHostileModules pushes modules that loop and trap while messages flow:
// /health answers within a second all the while, and when a good module is back,
// nothing is missing.
func TestSmokeHostileModules(t *testing.T) {
	s := newSite(t, "pipelines: [{name: line1, sources: [plant], modules: [m]}]\n")
	s.edgehostNoHost()
	s.gateway = startProcess(t, s.log, []string{"E2E_ID=e2e-client", "E2E_SECRET=" + e2eSecret}, s.binary, "serve", "--config", filepath.Join(s.dir, "connector.yaml"))
	waitFor(t, "the health endpoint", func() bool { _, err := s.healthNow(); return err == nil })
	s.edgehost("module", "push", "examples/plant/plant.wasm", "--name", "m")
	waitFor(t, "the source to connect", func() bool { h, err := s.healthNow(); return err == nil && h.Sources["plant"] == "connected" })

	ctx, cancel := context.WithCancel(t.Context())
	var slowest time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				begin := time.Now()
				if _, err := s.healthNow(); err != nil && ctx.Err() == nil {
					t.Errorf("/health: %v", err)
				}
				slowest = max(slowest, time.Since(begin))
			}
		}
	})
	published, stop := make(chan int, 1), make(chan struct{})
	go func() { published <- s.publishAt(0, 1_000_000, 2000, stop) }()
	for _, bad := range []string{"loop.wasm", "broken.wasm", "loop.wasm"} {
		s.edgehost("module", "push", filepath.Join("host", "testdata", bad), "--name", "m")
		waitFor(t, "the pipeline to be held", func() bool { return s.status().Pipelines[0].State == control.PipelineHeld })
		s.edgehost("module", "push", "examples/plant/plant.wasm", "--name", "m")
		waitFor(t, "the pipeline to run", func() bool { return s.status().Pipelines[0].State == control.PipelineRunning })
	}
	close(stop)
	sent := <-published
	var st control.Status
	waitFor(t, "everything delivered", func() bool {
		st = s.status()
		return st.Ledger.Held == 0 && st.Ledger.Waiting == 0 && s.judge(bronze).distinct+int(st.Ledger.DeadLettered) >= sent
	})
	cancel()
	wg.Wait()
	v := s.judge(bronze)
	t.Logf("%d sent, %d distinct rows, %d dead letters, slowest /health %v, balanced %v", sent, v.distinct, st.Ledger.DeadLettered, slowest, st.Ledger.Balanced)
	if slowest > time.Second || !st.Ledger.Balanced {
		t.Fatalf("slowest /health %v, ledger %+v", slowest, st.Ledger)
	}
}

// edgehostNoHost: a command without a running host says so, with its exit code.
func (s *site) edgehostNoHost() {
	s.t.Helper()
	cmd := exec.Command(s.binary, "status")
	cmd.Env = append(os.Environ(), "EDGEHOST_SOCKET="+filepath.Join(s.dir, "state", "control.sock"))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitUnavailable {
		s.t.Fatalf("status without a host: %v\n%s", err, out)
	}
}

// TestSmokeNothingInTheClear plants a payload and a secret and looks for them
// everywhere.
func TestSmokeNothingInTheClear(t *testing.T) {
	s := newSite(t, "")
	s.startGateway()
	s.publish(0, 2000)
	waitFor(t, "delivery", func() bool { return s.judge(bronze).distinct == 2000 })
	s.emulator.signal(syscall.SIGKILL)
	s.publish(2000, 2000)
	waitFor(t, "the spool to hold them", func() bool { return s.status().Ledger.Read >= 4000 })
	var said bytes.Buffer
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"spool", "status"}, {"dlq", "list"}, {"module", "list"}} {
		said.WriteString(s.edgehost(args...))
	}
	for _, url := range []string{"http://" + s.health + "/health", "http://" + s.metrics + "/metrics"} {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(&said, resp.Body)
		_ = resp.Body.Close()
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.gateway.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	said.Write(cmdline)
	s.gateway.signal(syscall.SIGTERM)
	said.Write(s.log.Bytes())
	if bytes.Contains(said.Bytes(), []byte(e2eSecret)) {
		t.Fatal("the planted secret was said")
	}
	files, hits := 0, []string{}
	err = filepath.WalkDir(filepath.Join(s.dir, "state"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, canary := range []string{"canary-unit", "plant/t0", e2eSecret} {
			if bytes.Contains(b, []byte(canary)) {
				hits = append(hits, path+": "+canary)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files of the state directory, %d hits", files, len(hits))
	if len(hits) > 0 || files < 5 {
		t.Fatal(hits)
	}
}
