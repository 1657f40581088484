//go:build conformance

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks/zerobus"
)

var soakFor = flag.Duration("soak.for", 3*time.Minute, "how long TestSoak does what it likes")

// soak is a gateway with all three protocols on which everything happens at random
// moments.
type soak struct {
	*site
	rng *rand.Rand
	did map[string]int
	// samples are of the gateway that lives, one after each disturbance, when all is
	// well again.
	samples []soakSample
}

type soakSample struct {
	goroutines int
	rss, heap  int // bytes
}

// TestSoak has modules swapped, rolled back and broken, sources paused, the sink and
// the process of the OPC UA source killed, and in the first third of the time the
// gateway itself, while all three protocols are read: in the end every MQTT message
// and every OPC UA value is in the tables, every Modbus value is right, the ledger
// balances, and neither memory nor goroutines have grown.
func TestSoak(t *testing.T) {
	opc, freeze := opcuaPeer(t)
	want := []float32{1.5, -2.25, 3e7, 0, 1e-3}
	var nodes strings.Builder
	for i := range 10 {
		fmt.Fprintf(&nodes, "    - {node_id: 'nsu=urn:edgehost:test;s=Counter%d'}\n", i)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := &soak{rng: rand.New(rand.NewPCG(seed, 1)), did: map[string]int{}, site: newSiteWith(t, fmt.Sprintf(`
- name: plc
  protocol: modbus
  endpoint: modbus+tcp://%s
  stale_after_seconds: 60
  modbus:
    poll_interval_seconds: 0.1
    registers: [{address: 40001, count: 10, register_type: holding, data_type: float32}]
- name: line
  protocol: opcua
  endpoint: %s
  opcua:
    security_policy: None
    security_mode: None
    publishing_interval_ms: 200
    defaults: {sampling_interval_ms: 0, queue_size: 10000}
    nodes:
%s`, modbusPeer(t, want), opc, nodes.String()), "pipelines: [{name: line1, sources: [plant, plc, line], modules: [m]}]\n")}
	s.launch()
	s.push("poison")
	s.well()
	published, stop := make(chan int, 1), make(chan struct{})
	go func() { published <- s.publishAt(0, 1<<30, 300, stop) }()
	begin := time.Now()
	for {
		past := time.Since(begin)
		if past > *soakFor {
			break
		}
		s.disturb(past < *soakFor/3)
		s.well()
	}
	close(stop)
	sent := <-published
	s.finish(sent, freeze())
	s.checkRegisters(want)
	s.flat()
	t.Logf("%d messages; %v", sent, s.did)
}

// launch starts the gateway; it connects to nothing while its module is missing.
func (s *soak) launch() {
	s.t.Helper()
	s.gateway = startProcess(s.t, s.log, []string{"E2E_ID=e2e-client", "E2E_SECRET=" + e2eSecret}, s.binary, "serve", "--config", filepath.Join(s.dir, "connector.yaml"))
	s.samples = nil
	waitFor(s.t, "the health endpoint", func() bool { _, err := s.healthNow(); return err == nil })
}

// push puts one of the host's test modules in force. poison and burn leave values
// as they are, loop and broken are of no use.
func (s *soak) push(module string) {
	s.t.Helper()
	s.edgehost("module", "push", filepath.Join("host", "testdata", module+".wasm"), "--name", "m")
}

// disturb does one thing and, when it is one that must be mended, mends it after a
// while.
func (s *soak) disturb(kill bool) {
	s.t.Helper()
	things := []string{"swap", "swap", "bad module", "pause", "sink killed", "child killed"}
	if kill {
		things = append(things, "gateway killed", "gateway killed")
	}
	thing := things[s.rng.IntN(len(things))]
	s.did[thing]++
	switch thing {
	case "swap":
		s.push([]string{"poison", "burn"}[s.rng.IntN(2)])
	case "bad module":
		s.push([]string{"poison", "burn"}[s.rng.IntN(2)])
		s.push([]string{"loop", "broken"}[s.rng.IntN(2)])
		s.while()
		s.edgehost("module", "rollback", "m")
	case "pause":
		source := []string{"plant", "plc"}[s.rng.IntN(2)] // an OPC UA server keeps nothing for a source that is paused
		s.edgehost("source", "pause", source)
		s.while()
		s.edgehost("source", "resume", source)
	case "sink killed":
		s.emulator.signal(syscall.SIGKILL)
		s.while()
		s.startEmulator()
	case "child killed":
		for _, pid := range workers(s.t, s.gateway.cmd.Process.Pid) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				s.t.Logf("kill %d: %v", pid, err)
			}
		}
	case "gateway killed":
		s.gateway.signal(syscall.SIGKILL)
		s.while()
		s.launch()
	}
}

// while lets things be as they are for up to three seconds.
func (s *soak) while() { <-time.After(time.Duration(s.rng.IntN(3000)) * time.Millisecond) }

// well waits until everything flows again, for two seconds at least, and takes a
// sample.
func (s *soak) well() {
	s.t.Helper()
	read := map[string]uint64{}
	waitFor(s.t, "everything to flow", func() bool {
		<-time.After(time.Second)
		st := s.status()
		flows := st.Pipelines[0].State == control.PipelineRunning && st.Ledger.Balanced
		for _, src := range st.Sources {
			flows = flows && src.State == "connected" && src.Records > read[src.Name] && read[src.Name] > 0
			read[src.Name] = src.Records
		}
		for _, d := range st.Destinations {
			flows = flows && d.State == control.DestinationConnected
		}
		return flows || (len(s.did) == 0 && st.Status == control.Healthy)
	})
	s.samples = append(s.samples, s.sample())
}

var (
	goroutinesLine = regexp.MustCompile(`(?m)^go_goroutines (\S+)$`)
	residentLine   = regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)$`)
	heapLine       = regexp.MustCompile(`(?m)^go_memstats_heap_inuse_bytes (\S+)$`)
)

func (s *soak) sample() (out soakSample) {
	s.t.Helper()
	resp, err := http.Get("http://" + s.metrics + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	value := func(line *regexp.Regexp) int {
		m := line.FindSubmatch(body)
		if m == nil {
			s.t.Fatalf("no %s on /metrics", line)
		}
		v, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			s.t.Fatal(err)
		}
		return int(v)
	}
	return soakSample{value(goroutinesLine), value(residentLine), value(heapLine)}
}

// finish waits until everything is delivered, has the dead letters of the bad
// modules transformed again, and compares the tables with what was sent.
func (s *soak) finish(sent, last int) {
	s.t.Helper()
	var st control.Status
	settled := func() bool {
		st = s.status()
		return st.Ledger.Held == 0 && st.Ledger.Waiting == 0 && st.Pipelines[0].Queued.Records == 0
	}
	waitFor(s.t, "everything delivered", func() bool { return settled() && s.judge(bronze).distinct+int(st.Ledger.DeadLettered) >= sent })
	inOrder := s.judge(bronze) // fails the test where order was lost
	letters := st.DeadLetters.Entries
	if letters > 0 {
		s.edgehost("dlq", "replay", "--all")
	}
	counters := map[string]map[int]bool{}
	waitFor(s.t, "every message and every counter's last value", func() bool {
		counters = s.counters()
		full := 0
		for _, seen := range counters {
			if seen[last] {
				full++
			}
		}
		return settled() && len(s.messages()) >= sent && full == 10
	})
	lost := 0
	for _, seen := range counters {
		first := last
		for n := range seen {
			first = min(first, n)
		}
		lost += last - first + 1 - len(seen)
	}
	s.gateway.signal(syscall.SIGTERM)
	s.t.Logf("mqtt: %d of %d, %d rows before the dead letters (%d) came back; opcua: 10 counters up to %d, %d lost; ledger %+v",
		len(s.messages()), sent, inOrder.rows, letters, last, lost, st.Ledger)
	if len(s.messages()) != sent || lost > 0 || !st.Ledger.Balanced {
		s.t.Errorf("%d of %d messages, %d values lost, ledger balanced: %v", len(s.messages()), sent, lost, st.Ledger.Balanced)
	}
}

// messages are the numbers in the MQTT table.
func (s *soak) messages() map[int]bool {
	s.t.Helper()
	out := map[int]bool{}
	rows, _ := s.rows(bronze)
	for _, r := range rows {
		out[int(r.Value)] = true
	}
	return out
}

// counters are the good values in the OPC UA table, by node.
func (s *soak) counters() map[string]map[int]bool {
	s.t.Helper()
	out := map[string]map[int]bool{}
	for _, text := range s.lines(zerobus.OPCUATable) {
		var r struct {
			NodeID   string  `json:"node_id"`
			ValueNum float64 `json:"value_num"`
			Quality  string  `json:"quality"`
		}
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			s.t.Fatal(err)
		}
		if r.Quality != "Good" {
			continue
		}
		if out[r.NodeID] == nil {
			out[r.NodeID] = map[int]bool{}
		}
		out[r.NodeID][int(r.ValueNum)] = true
	}
	return out
}

// flat compares the second and the last third of the samples. In the first one the
// write buffers of the queues fill (4 MiB each, once or twice for each queue).
func (s *soak) flat() {
	s.t.Helper()
	n := len(s.samples) / 3
	if n == 0 {
		s.t.Fatalf("%d samples are too few: give it more time", len(s.samples))
	}
	median := func(of []soakSample, f func(soakSample) int) int {
		var v []int
		for _, x := range of {
			v = append(v, f(x))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	goroutines := func(x soakSample) int { return x.goroutines }
	rss := func(x soakSample) int { return x.rss }
	heap := func(x soakSample) int { return x.heap }
	var all []string
	for _, x := range s.samples {
		all = append(all, fmt.Sprintf("%d/%d", x.rss>>20, x.heap>>20))
	}
	s.t.Logf("MiB resident/heap: %s", strings.Join(all, " "))
	early, late := s.samples[n:2*n], s.samples[2*n:]
	g0, g1, m0, m1 := median(early, goroutines), median(late, goroutines), median(early, rss)>>20, median(late, rss)>>20
	s.t.Logf("%d samples: goroutines %d, then %d; memory %d MiB, then %d MiB; heap in use %d MiB, then %d MiB", len(s.samples), g0, g1, m0, m1,
		median(early, heap)>>20, median(late, heap)>>20)
	if g1 > g0+20 || m1 > m0*5/4+32 {
		s.t.Errorf("grown: goroutines %d to %d, memory %d to %d MiB", g0, g1, m0, m1)
	}
}
