//go:build conformance

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// opcuaPeer starts the node-opcua server of the OPC UA suite with ten counters,
// ten changes a second, on open and on secured channels, and returns its endpoint
// and what stops the counters and returns their last value.
func opcuaPeer(t *testing.T) (endpoint string, freeze func() int) {
	t.Helper()
	return opcuaPeerWith(t, `,"secure":true`)
}

// opcuaPeerWith is opcuaPeer with other options of server.js: more members of
// their JSON object.
func opcuaPeerWith(t *testing.T, more string) (endpoint string, freeze func() int) {
	t.Helper()
	const folder = "sources/opcua/testdata"
	if _, err := os.Stat(folder + "/node_modules/node-opcua"); err != nil {
		t.Fatal("node-opcua is not installed: run conformance/install-opcua.sh first")
	}
	port := port(freePort(t))
	cmd := exec.Command("node", "server.js", fmt.Sprintf(`{"dir":%q,"port":%s,"counters":10,"everyMs":100%s}`, t.TempDir(), port, more))
	cmd.Dir = folder
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	lines := bufio.NewScanner(out)
	await := func(word string) string {
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), word+" "); ok {
				return rest
			}
		}
		t.Fatalf("the server ended before it said %q", word)
		return ""
	}
	await("ready")
	return fmt.Sprintf("opc.tcp://127.0.0.1:%s/UA/Peer", port), func() int {
		fmt.Fprintln(in, "freeze")
		n, err := strconv.Atoi(await("done"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// workers lists the processes of sources that the process parent started.
func workers(t *testing.T, parent int) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])) // state, parent, …
		args, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if err != nil || len(fields) < 2 || fields[1] != strconv.Itoa(parent) || !strings.Contains(string(args), "source-worker") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// TestSmokeWorkerKilled kills the process of an OPC UA source again and again:
// the server keeps what was not acknowledged, the next process takes its
// subscription over, and no value is lost.
func TestSmokeWorkerKilled(t *testing.T) {
	endpoint, freeze := opcuaPeer(t)
	dir := t.TempDir()
	var nodes strings.Builder
	for i := range 10 {
		fmt.Fprintf(&nodes, "      - {node_id: 'nsu=urn:edgehost:test;s=Counter%d'}\n", i)
	}
	cfg := load(t, "state_dir: "+filepath.Join(dir, "state")+"\nresilience: {reconnect: {initial_delay_seconds: 0.1, max_delay_seconds: 1}}\n"+
		"sinks: {file: {dir: "+filepath.Join(dir, "rows")+"}}\nsources:\n- name: plant\n  protocol: opcua\n  endpoint: "+endpoint+"\n  opcua:\n"+
		"      security_policy: None\n      security_mode: None\n      publishing_interval_ms: 200\n"+
		"      defaults: {sampling_interval_ms: 0, queue_size: 1000}\n      nodes:\n"+nodes.String())
	ctx, cancel := context.WithCancel(t.Context())
	h, err := newHost(ctx, cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	const kills = 5
	for range kills {
		before := len(countersOf(t, dir)["Counter0"])
		awaitFor(t, "more values", func() bool { return len(countersOf(t, dir)["Counter0"]) > before+10 })
		for _, pid := range workers(t, os.Getpid()) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := len(countersOf(t, dir)["Counter0"])
	awaitFor(t, "more values", func() bool { return len(countersOf(t, dir)["Counter0"]) > before+10 })
	last := freeze()
	lost, twice := 0, 0
	for i := range 10 {
		name := fmt.Sprintf("Counter%d", i)
		awaitFor(t, "the last value of "+name, func() bool { return countersOf(t, dir)[name][last] > 0 })
		seen := countersOf(t, dir)[name]
		first := last
		for n, times := range seen {
			first, twice = min(first, n), twice+times-1
		}
		for n := first; n <= last; n++ {
			if seen[n] == 0 {
				lost++
			}
		}
	}
	t.Logf("values up to %d of ten counters over %d kills: %d lost, %d twice", last, kills, lost, twice)
	if lost > 0 {
		t.Errorf("%d values are lost", lost)
	}
}

// countersOf returns how often each value of each counter stands in the files.
func countersOf(t *testing.T, dir string) map[string]map[int]int {
	t.Helper()
	out := map[string]map[int]int{}
	files, err := filepath.Glob(filepath.Join(dir, "rows", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			var r struct {
				NodeID string `json:"node_id"`
				Value  any    `json:"value"`
			}
			if !strings.HasSuffix(line, "\n") || json.Unmarshal([]byte(line), &r) != nil {
				continue // being written
			}
			_, name, _ := strings.Cut(r.NodeID, "s=")
			n, err := strconv.Atoi(fmt.Sprint(r.Value))
			if err != nil {
				t.Fatalf("value %v: %v", r.Value, err)
			}
			if out[name] == nil {
				out[name] = map[int]int{}
			}
			out[name][n]++
		}
	}
	return out
}

func awaitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("waited 60 s for %s", what)
		case <-tick.C:
		}
	}
}
