//go:build conformance

package opcua

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

const install = "run conformance/install-opcua.sh first"

// peer is a node-opcua server in a process of its own.
type peer struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	url   string
	opts  map[string]any
}

// sharedDir holds the key and certificate of all servers of one test run: making
// them takes longer than most tests.
var sharedDir = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "opcua-peer")
	if err != nil {
		panic(err)
	}
	return dir
})

func TestMain(m *testing.M) {
	code := m.Run()
	if err := os.RemoveAll(sharedDir()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// startPeer starts testdata/server.js and waits until it listens. The port is
// chosen once, so that restart finds it again.
func startPeer(t *testing.T, opts map[string]any) *peer {
	t.Helper()
	if _, err := os.Stat("testdata/node_modules/node-opcua"); err != nil {
		t.Fatalf("node-opcua is not installed: %s", install)
	}
	if opts["dir"] == nil {
		opts["dir"] = sharedDir()
	}
	if opts["port"] == nil {
		opts["port"] = freePort(t)
	}
	p := &peer{opts: opts, url: fmt.Sprintf("opc.tcp://127.0.0.1:%d/UA/Peer", opts["port"])}
	p.start(t)
	t.Cleanup(func() { p.kill() })
	return p
}

func (p *peer) start(t *testing.T) {
	t.Helper()
	arg, err := json.Marshal(p.opts)
	if err != nil {
		t.Fatal(err)
	}
	p.launch(t, "node", "server.js", string(arg))
}

// launch starts a server in testdata and waits until it listens.
func (p *peer) launch(t *testing.T, name string, args ...string) {
	t.Helper()
	var err error
	p.cmd = exec.Command(name, args...)
	p.cmd.Dir = "testdata"
	var log strings.Builder
	p.cmd.Stderr = &log
	t.Cleanup(func() {
		if text := log.String(); t.Failed() && strings.Contains(text, "rror") {
			t.Logf("peer: …%s", text[max(0, len(text)-2000):])
		}
	})
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v; %s", name, err, install)
	}
	lines := make(chan string, 1000)
	p.lines = lines
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			if strings.HasPrefix(s.Text(), "ready") || strings.HasPrefix(s.Text(), "done") {
				lines <- s.Text()
			}
		}
	}()
	p.await(t, "ready")
}

func (p *peer) await(t *testing.T, prefix string) string {
	t.Helper()
	deadline := time.After(3 * time.Minute) // on a busy machine node alone takes one to start
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("peer ended before %q", prefix)
			}
			if strings.HasPrefix(line, prefix) {
				return line
			}
		case <-deadline:
			t.Fatalf("peer did not say %q", prefix)
		}
	}
}

// tell sends a command and returns the counter's value after it.
func (p *peer) tell(t *testing.T, format string, args ...any) int {
	t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimPrefix(p.await(t, "done"), "done "))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// kill is kill -9.
func (p *peer) kill() {
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// faultProxy stands between source and server.
type faultProxy struct {
	target string
	l      net.Listener
	addr   string
	mu     sync.Mutex
	conns  map[net.Conn]bool
	stall  atomic.Bool
}

func startProxy(t *testing.T, target string) *faultProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &faultProxy{target: target, l: l, addr: l.Addr().String(), conns: map[net.Conn]bool{}}
	go p.accept(l)
	t.Cleanup(func() { p.refuseAll(); p.stall.Store(false) })
	return p
}

func (p *faultProxy) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", p.target)
		if err != nil {
			c.Close()
			continue
		}
		p.mu.Lock()
		p.conns[c], p.conns[s] = true, true
		p.mu.Unlock()
		go p.pump(c, s)
		go p.pump(s, c)
	}
}

func (p *faultProxy) pump(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := src.Read(b)
		if err != nil {
			return
		}
		for p.stall.Load() {
			<-time.After(20 * time.Millisecond)
		}
		if _, err := dst.Write(b[:n]); err != nil {
			return
		}
	}
}

// cut closes every connection; with reset it does so by RST.
func (p *faultProxy) cut(reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok && reset {
			_ = tcp.SetLinger(0)
		}
		c.Close()
	}
	clear(p.conns)
}

// refuseAll closes the listener, so that connections are refused.
func (p *faultProxy) refuseAll() {
	p.l.Close()
	p.cut(false)
}

func (p *faultProxy) listen(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	p.l = l
	go p.accept(l)
}

// collector is the pipeline: it keeps what was emitted, and the last committed
// resume point.
type collector struct {
	mu      sync.Mutex
	records []abi.Record
	resume  []byte
	hold    chan struct{} // not nil: emit blocks until it is closed
}

func (c *collector) emit(ctx context.Context, b sources.Batch, done func(error)) error {
	c.mu.Lock()
	hold := c.hold
	c.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	c.records = append(c.records, b.Records...)
	if b.Resume != nil {
		c.resume = b.Resume
	}
	c.mu.Unlock()
	done(nil)
	return nil
}

func (c *collector) point() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resume
}

func (c *collector) all() []abi.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]abi.Record(nil), c.records...)
}

// numbers returns the counter values that arrived, by address.
func (c *collector) numbers() map[string]map[uint64]int {
	out := map[string]map[uint64]int{}
	for _, r := range c.all() {
		if r.Value.Kind() != abi.KindUint {
			continue
		}
		if out[r.Address] == nil {
			out[r.Address] = map[uint64]int{}
		}
		out[r.Address][r.Value.AsUint()]++
	}
	return out
}

// rig is a source that runs under the supervisor.
type rig struct {
	src    *Source
	status *sources.Status
	col    *collector
	stop   func()
}

func testLog(t *testing.T) *slog.Logger {
	if os.Getenv("OPCUA_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func makeSource(t *testing.T, url string, cfg Config, col *collector) (*Source, *sources.Status) {
	t.Helper()
	status := sources.NewStatus("plant", protocol)
	src, err := New("plant", url, map[string]string{"industry": "test"}, cfg, Deps{Logger: testLog(t), Status: status, Dir: filepath.Join(t.TempDir(), "certs"), Resume: col.point})
	if err != nil {
		t.Fatal(err)
	}
	return src, status
}

func run(t *testing.T, url string, cfg Config, col *collector) *rig {
	t.Helper()
	src, status := makeSource(t, url, cfg, col)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		sources.Supervise(ctx, src, col.emit, status, sources.ReconnectConfig{InitialDelaySeconds: 0.2, MaxDelaySeconds: 1}, testLog(t))
	}()
	r := &rig{src: src, status: status, col: col, stop: sync.OnceFunc(func() { cancel(); <-ended })}
	t.Cleanup(r.stop)
	return r
}

// patience is how long a busy machine may take for anything. What waits goes on as
// soon as it can.
const patience = 4 * time.Minute

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	clock := time.NewTicker(20 * time.Millisecond)
	defer clock.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("waited %s for: %s", patience, what)
		case <-clock.C:
		}
	}
}

func (r *rig) awaitState(t *testing.T, want sources.State) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("status: %+v", r.status.Snapshot())
		}
	}()
	eventually(t, "state "+string(want), func() bool { return r.status.Snapshot().State == want })
}

// checkCounters fails for every number between the first and the last that did
// not arrive.
func checkCounters(t *testing.T, col *collector, counters int) (lost int) {
	t.Helper()
	seen := col.numbers()
	if len(seen) != counters {
		t.Errorf("%d counters delivered, want %d", len(seen), counters)
	}
	for address, nums := range seen {
		var first, last uint64 = 1 << 60, 0
		for n := range nums {
			first, last = min(first, n), max(last, n)
		}
		if last-first < 20 {
			t.Errorf("%s: only %d..%d arrived", address, first, last)
		}
		for n := first; n <= last; n++ {
			if nums[n] == 0 {
				lost++
				t.Logf("%s: %d of %d..%d is missing", address, n, first, last)
			}
		}
	}
	return lost
}

func counterConfig(n int) Config {
	cfg := Config{SecurityPolicy: "None", SecurityMode: "None", PublishingIntervalMS: 200, KeepaliveCount: 5, SessionTimeoutSeconds: 60,
		Defaults: ItemConfig{SamplingIntervalMS: new(0), QueueSize: new(1000)}}
	for i := range n {
		cfg.Nodes = append(cfg.Nodes, NodeConfig{NodeID: fmt.Sprintf("nsu=urn:edgehost:test;s=Counter%d", i)})
	}
	return cfg
}
