package isolate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// TestMain makes the test binary the child too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM)
		conn, err := Inherited()
		if err == nil {
			err = Serve(context.Background(), conn, buildModel)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// modelConfig is the payload of the model source.
type modelConfig struct {
	Endpoint string
	Secret   string
	Refuse   string // build refuses with this text
	Flood    int    // no peer: emit so many values, 500 a batch
}

// model is a source that lives in the child. It reads numbers from a peer and
// acknowledges them; the resume point is the highest number of a batch.
type model struct {
	cfg    modelConfig
	deps   Deps
	resume int
	asked  bool
}

func buildModel(payload []byte, deps Deps) (sources.Source, error) {
	var c modelConfig
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, err
	}
	if c.Refuse != "" {
		return nil, errors.New(c.Refuse)
	}
	return &model{cfg: c, deps: deps}, nil
}

func (m *model) Run(ctx context.Context, emit sources.Emit) error {
	if m.cfg.Flood > 0 {
		return m.flood(ctx, emit)
	}
	if !m.asked {
		m.asked = true
		m.resume, _ = strconv.Atoi(string(m.deps.Resume()))
	}
	conn, err := net.Dial("tcp", m.cfg.Endpoint)
	if err != nil {
		return sources.DialError(m.cfg.Endpoint, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	fmt.Fprintf(conn, "pid %d %d\n", os.Getpid(), m.resume+1)
	m.deps.Status.Report(m.deps.Logger, sources.Connected, "")
	m.deps.Logger.Info("model connected", "endpoint", m.cfg.Endpoint)
	lines := bufio.NewScanner(conn)
	var numbers []int
	for lines.Scan() {
		text := lines.Text()
		n, err := strconv.Atoi(text)
		if err != nil {
			if err := m.obey(ctx, text); err != nil {
				return err
			}
			continue
		}
		if numbers = append(numbers, n); len(numbers) < 10 && n%10 != 0 {
			continue
		}
		b := numbered(m.deps.Name, numbers)
		m.resume = n
		m.deps.Status.Read(len(numbers), 10)
		m.deps.Status.Add("model_total", float64(len(numbers)))
		m.deps.Status.Gauge("model_last", float64(n))
		acks := numbers
		numbers = nil
		err = emit(ctx, b, func(err error) {
			if err != nil && !errors.Is(err, sources.ErrDropped) {
				panic("the child learned of " + err.Error())
			}
			for _, n := range acks {
				fmt.Fprintf(conn, "ack %d\n", n)
			}
		})
		if err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.New("the peer closed the connection")
}

var sink []byte // what is in it is really allocated

// obey does what a hostile peer makes a library do.
func (m *model) obey(ctx context.Context, command string) error {
	switch command {
	case "panic":
		go func() { panic("decoder: index out of range") }()
	case "allocate":
		sink = make([]byte, 16<<30)
	case "overflow":
		overflow([64]int{})
	case "exit":
		fmt.Fprintln(os.Stderr, "last\nwords")
		os.Exit(3)
	case "refuse":
		return sources.AuthError(errors.New("wrong password"))
	case "hang":
		select {} // ignores its context
	}
	<-ctx.Done()
	return ctx.Err()
}

//nolint:staticcheck // endless recursion is what it is for
func overflow(a [64]int) int { a[0]++; return overflow(a) + a[1] }

func (m *model) flood(ctx context.Context, emit sources.Emit) error {
	m.deps.Status.Report(m.deps.Logger, sources.Connected, "")
	for n := 0; n < m.cfg.Flood; n += 500 {
		if err := emit(ctx, floodBatch(m.deps.Name), func(error) {}); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// floodBatch is 500 values as an OPC UA source makes them.
func floodBatch(name string) sources.Batch {
	b := sources.Batch{Time: 1, Records: make([]abi.Record, 500)}
	for i := range b.Records {
		b.Records[i] = abi.Record{EventTime: 1700000000000000, IngestTime: 1700000000001000, Source: name, Address: "nsu=urn:plant;s=Line1.Temperature",
			Protocol: abi.ProtocolOPCUA, Value: abi.Float(float64(i)), Attrs: []abi.Attr{
				{Key: abi.AttrEndpoint, Value: abi.String("opc.tcp://10.0.0.1:4840")}, {Key: abi.AttrNamespace, Value: abi.Int(2)},
				{Key: abi.AttrQuality, Value: abi.String("Good")}}}
	}
	return b
}

func numbered(name string, numbers []int) sources.Batch {
	b := sources.Batch{Time: 1, Resume: []byte(strconv.Itoa(numbers[len(numbers)-1]))}
	for _, n := range numbers {
		b.Records = append(b.Records, abi.Record{EventTime: 1, IngestTime: 1, Source: name, Address: "a", Protocol: abi.ProtocolOPCUA, Value: abi.Int(int64(n))})
	}
	return b
}

// peer keeps numbers, and sends to each connection those from the number that it
// asks for.
type peer struct {
	lis net.Listener
	wg  sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{}
	last    int
	acked   []int
	pids    []int
	command string
	conn    net.Conn
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{lis: lis, changed: make(chan struct{})}
	p.wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.talk(conn) })
		}
	})
	t.Cleanup(func() {
		lis.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *peer) talk(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewScanner(conn)
	if !in.Scan() {
		return
	}
	var pid, next int
	if _, err := fmt.Sscanf(in.Text(), "pid %d %d", &pid, &next); err != nil {
		return
	}
	p.mu.Lock()
	p.pids = append(p.pids, pid)
	p.conn = conn
	p.mu.Unlock()
	gone := make(chan struct{})
	p.wg.Go(func() {
		defer close(gone)
		for in.Scan() {
			n, err := strconv.Atoi(strings.TrimPrefix(in.Text(), "ack "))
			if err != nil {
				return
			}
			p.mu.Lock()
			p.acked = append(p.acked, n)
			p.mu.Unlock()
		}
	})
	for {
		p.mu.Lock()
		last, command, changed := p.last, p.command, p.changed
		p.command = ""
		p.mu.Unlock()
		for ; next <= last; next++ {
			fmt.Fprintf(conn, "%d\n", next)
		}
		if command != "" {
			fmt.Fprintln(conn, command)
		}
		select {
		case <-changed:
		case <-gone:
			return
		}
	}
}

// change does f and wakes the connections.
func (p *peer) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *peer) publish(_, last int) { p.change(func() { p.last = last }) }
func (p *peer) order(text string)   { p.change(func() { p.command = text }) }
func (p *peer) processes() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.pids)
}

func (p *peer) ackedNumbers() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.acked)
}

func (p *peer) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
	}
}

// safeBuffer is a log that several goroutines write.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newModel makes the model source of p in a child.
func newModel(t testing.TB, c modelConfig, resume func() []byte, log *slog.Logger) (*Source, *sources.Status) {
	t.Helper()
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	st := sources.NewStatus("m", "opcua")
	return New(Config{Name: "m", Payload: payload, Status: st, Resume: resume, Logger: log}), st
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("waited 60 s for: %s", what)
		case <-tick.C:
		}
	}
}
