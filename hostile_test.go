package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sources"
)

// hostileRelay stands in front of an OPC UA server. While it is hostile, it
// sends something else in place of one of the server's frames.
type hostileRelay struct {
	addr   string
	target string
	attack attack
	// hostile is the kind of frame that is replaced, as kindOf says; "" is none.
	hostile atomic.Pointer[string]
	struck  atomic.Int64 // how often it was hostile

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// attack is what a hostile server sends, and what the status of the source says
// then.
type attack struct {
	// first is the kind of frame that is replaced while the source connects; then
	// those that answer a Read are, in a session at work.
	first string
	// secured says that it is only for channels that sign.
	secured bool
	// forge makes what goes on the wire in place of a frame of the server. Large
	// bodies are shared by all that it makes: the memory of the host is measured.
	forge func(frame []byte) net.Buffers
	// opening and working are regular expressions for the two; "" says that the
	// source connects, or goes on.
	opening, working string
}

func startHostileRelay(t *testing.T, target string, a attack) *hostileRelay {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &hostileRelay{addr: lis.Addr().String(), target: target, attack: a, conns: map[net.Conn]bool{}}
	r.behave()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.relay(t.Context(), conn) })
		}
	})
	t.Cleanup(func() { lis.Close(); wg.Wait() })
	return r
}

func (r *hostileRelay) behave()            { r.strike("") }
func (r *hostileRelay) strike(kind string) { r.hostile.Store(&kind) }

// cut closes every connection.
func (r *hostileRelay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
	clear(r.conns)
}

func (r *hostileRelay) relay(ctx context.Context, client net.Conn) {
	defer client.Close()
	defer context.AfterFunc(ctx, func() { client.Close() })()
	r.mu.Lock()
	r.conns[client] = true
	r.mu.Unlock()
	server, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer server.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer server.Close()
		for secured := false; ; {
			frame, err := readFrame(client)
			if err != nil {
				return
			}
			// The library's server answers to its own address only.
			if secured = secured || signs(frame); !secured && len(r.addr) == len(r.target) {
				frame = bytes.ReplaceAll(frame, []byte(r.addr), []byte(r.target))
			}
			if _, err := server.Write(frame); err != nil {
				return
			}
		}
	})
	secured := false
	for {
		frame, err := readFrame(server)
		if err != nil {
			client.Close()
			return
		}
		if string(frame[:3]) == "ACK" { // as large messages as the client takes, in as many chunks
			binary.LittleEndian.PutUint32(frame[20:], 64<<20)
			binary.LittleEndian.PutUint32(frame[24:], 4096)
		}
		secured = secured || signs(frame)
		out := net.Buffers{frame}
		if kindOf(frame) == *r.hostile.Load() && (secured || !r.attack.secured) {
			out = r.attack.forge(frame)
			r.struck.Add(1)
		}
		if _, err := out.WriteTo(client); err != nil {
			return
		}
	}
}

// signs reports whether frame opens a channel that signs.
func signs(frame []byte) bool {
	return string(frame[:3]) == "OPN" && !bytes.Contains(frame, []byte("SecurityPolicy#None"))
}

// kindOf tells frames of a server apart: ACK, OPN (before anybody authenticated
// anything), READ (the answer to a Read, unsecured), MSG.
func kindOf(frame []byte) string {
	if len(frame) > 28 && string(frame[:3]) == "MSG" && bytes.Equal(frame[24:28], []byte{1, 0, readResponse & 0xff, readResponse >> 8}) {
		return "READ"
	}
	return string(frame[:3])
}

// readFrame reads one frame of the wire (Part 6, 7.1.2).
func readFrame(r io.Reader) ([]byte, error) {
	frame := make([]byte, 8)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, err
	}
	frame = append(frame, make([]byte, max(8, binary.LittleEndian.Uint32(frame[4:]))-8)...)
	_, err := io.ReadFull(r, frame[8:])
	return frame, err
}

var u32 = binary.LittleEndian.AppendUint32

// message replaces the answer that an unsecured frame carries, in as many chunks
// as it takes; service 0 keeps its type. The channel, its token and the number of
// the request stay (Part 6, 6.7.2).
func message(service uint16, rest ...[]byte) func(frame []byte) net.Buffers {
	body := slices.Concat(rest...)
	return func(frame []byte) (out net.Buffers) {
		head, typed := 12, uint16(readResponse)
		if string(frame[:3]) == "OPN" {
			typed = openResponse
			for range 3 { // policy, certificate, thumbprint
				if n := int32(binary.LittleEndian.Uint32(frame[head:])); n > 0 {
					head += int(n)
				}
				head += 4
			}
		} else {
			head += 4 // token
		}
		head += 8 // sequence number and request
		if service != 0 {
			typed = service
		}
		begin, left := answer(typed), body
		for sequence := binary.LittleEndian.Uint32(frame[head-8:]); ; sequence++ {
			part := left[:min(len(left), 60000)]
			left = left[len(part):]
			chunk := slices.Concat(frame[:head], begin)
			begin, chunk[3] = nil, 'C'
			if len(left) == 0 {
				chunk[3] = 'F'
			}
			binary.LittleEndian.PutUint32(chunk[4:], uint32(len(chunk)+len(part)))
			binary.LittleEndian.PutUint32(chunk[head-8:], sequence)
			if out = append(out, chunk, part); len(left) == 0 {
				return out
			}
		}
	}
}

// answer begins a service: the id of its type, and a ResponseHeader as far as its
// diagnostics (timestamp, handle, result).
func answer(id uint16) []byte {
	return append([]byte{1, 0, byte(id), byte(id >> 8)}, make([]byte, 8+4+4)...)
}

var (
	noTable  = u32([]byte{0}, 0xffffffff) // no diagnostics, no string table
	noHeader = []byte{0, 0, 0}            // no additional header
)

// operand is an additional header that is a LiteralOperand with a Variant.
func operand(variant []byte) []byte {
	return slices.Concat([]byte{1, 0, 0x55, 0x02, 1}, u32(nil, uint32(len(variant))), variant)
}

// buffers is an acknowledgement whose receive buffer, which the library takes for
// its own, has size bytes.
func buffers(size uint32) func(frame []byte) net.Buffers {
	return func(frame []byte) net.Buffers {
		binary.LittleEndian.PutUint32(frame[12:], size)
		return net.Buffers{frame}
	}
}

const (
	readResponse = 634
	openResponse = 449
	deep         = 8 << 20
)

// What a process ends of. The race detector asks for memory of its own, so that
// with it a stack may hit the other limit first.
const (
	outOfMemory = "out of memory"
	usedUp      = "stack is used up|" + outOfMemory
)

// attacks are the replies that end a process which decodes them, or would, were
// they decoded. They are made when they are first used: this binary is also every
// command that a script runs.
var attacks = sync.OnceValue(func() map[string]attack {
	return map[string]attack{
		// 2^31-1 strings, 32 GiB.
		"huge-table": {first: "OPN", forge: message(0, []byte{0}, u32(nil, 1<<31-1)), opening: outOfMemory, working: outOfMemory},
		// 200 million results, 1.5 GB, as answer to whatever was asked.
		"many-results": {first: "OPN", forge: message(readResponse, noTable, noHeader, u32(nil, 200_000_000)),
			opening: "answers with service i=634", working: outOfMemory},
		"negative-array":     {first: "OPN", forge: message(0, noTable, operand(u32([]byte{0x86}, 0xfffffffe))), opening: "cannot be decoded"},
		"nested-variants":    {first: "OPN", forge: message(0, noTable, operand(bytes.Repeat([]byte{0x18}, deep))), opening: usedUp, working: usedUp},
		"nested-diagnostics": {first: "OPN", forge: message(0, bytes.Repeat([]byte{0x40}, deep)), opening: usedUp, working: usedUp},
		"no-buffer":          {first: "ACK", forge: buffers(0), opening: "chunks of 0 bytes", working: "chunks of 0 bytes"},
		"huge-buffer":        {first: "ACK", forge: buffers(0xffffffff)},
	}
})

// memoryOf is the most memory that process pid had resident, in MiB.
func memoryOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM in\n%s", b)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kb >> 10
}

// hostileSite is a host with two good sources, oven (OPC UA, a process of its
// own) and press (Modbus), and one source for each attack.
type hostileSite struct {
	t      *testing.T
	dir    string
	relays map[string]*hostileRelay
	status func() map[string]control.SourceStatus
}

func startHostileSite(t *testing.T) *hostileSite {
	t.Helper()
	s := &hostileSite{t: t, dir: t.TempDir(), relays: map[string]*hostileRelay{}}
	o, err := startOven(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.close() })
	p, err := startPress()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close() })
	// The press has time enough to answer on a machine that is busy.
	list := fmt.Sprintf("- name: oven\n  protocol: opcua\n  endpoint: opc.tcp://%s\n  opcua:%s\n- name: press\n  protocol: modbus\n  endpoint: modbus+tcp://%s\n  modbus:\n    timeout_ms: 30000%s\n",
		o.addr, ovenConfig, p.addr, pressConfig)
	for name, a := range attacks() {
		r := startHostileRelay(t, o.addr, a)
		r.strike(a.first)
		s.relays[name] = r
		list += fmt.Sprintf("- name: %s\n  protocol: opcua\n  endpoint: opc.tcp://%s\n  opcua:%s\n", name, r.addr, ovenConfig)
	}
	cfg := load(t, "state_dir: "+filepath.Join(s.dir, "state")+"\nresilience: {reconnect: {initial_delay_seconds: 0.1, max_delay_seconds: 1}}\n"+
		"sinks: {file: {dir: "+filepath.Join(s.dir, "rows")+"}}\nsources:\n"+list)
	cfg.Spool.KeyEnv = ""
	ctx, cancel := context.WithCancel(t.Context())
	h, err := newHost(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the host ended with %v", err)
		}
	})
	s.status = func() map[string]control.SourceStatus {
		st, err := h.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]control.SourceStatus{}
		for _, src := range st.Sources {
			out[src.Name] = src
		}
		return out
	}
	return s
}

// await waits until ok has held for the source of every attack.
func (s *hostileSite) await(what string, ok func(name string, now control.SourceStatus) bool) {
	s.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for done := map[string]bool{}; ; {
		now := s.status()
		for name := range s.relays {
			if ok(name, now[name]) {
				done[name] = true
			}
		}
		if len(done) == len(s.relays) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			for name := range s.relays {
				if !done[name] {
					s.t.Errorf("%s: %s %q, %v", name, now[name].State, now[name].Detail, now[name].Counters)
				}
			}
			s.t.Fatalf("waited for %s", what)
		}
	}
}

// TestHostileServer runs the host against servers that end the process which
// decodes their replies, before anybody authenticated anything and in a session
// at work: it is a process of its own, the status says what happened, neither
// host nor neighbours notice, and when the server behaves again its values flow.
func TestHostileServer(t *testing.T) {
	began := time.Now()
	s := startHostileSite(t)
	s.calm(30)
	before := memoryOf(t, os.Getpid())
	records := map[string]uint64{}
	flows := func(name string, now control.SourceStatus) bool {
		return now.State == string(sources.Connected) && now.Records > records[name]+10
	}
	told := func(words func(attack) string) func(name string, now control.SourceStatus) bool {
		return func(name string, now control.SourceStatus) bool {
			if want := words(attacks()[name]); want != "" {
				return regexp.MustCompile(want).MatchString(now.Detail) && now.Counters[sources.MetricReconnects] > 1
			}
			return s.relays[name].struck.Load() > 0
		}
	}
	s.await("what happens to be told", told(func(a attack) string { return a.opening }))
	for name, r := range s.relays {
		if n, most := r.struck.Load(), int64(time.Since(began)/(70*time.Millisecond))+2; attacks()[name].opening != "" && (n < 2 || n > most) {
			t.Errorf("%s: %d attempts in %v; at least 2, and at most %d with the back-off", name, n, time.Since(began), most)
		}
		r.behave()
	}
	s.await("values once the server behaves", flows)
	for _, r := range s.relays {
		r.struck.Store(0)
		if r.attack.first == "ACK" { // there is none in a session at work
			r.strike("ACK")
			r.cut()
		} else {
			r.strike("READ")
		}
	}
	s.await("what happens in a session at work to be told", told(func(a attack) string { return a.working }))
	for name, r := range s.relays {
		records[name] = s.status()[name].Records
		r.behave()
	}
	s.await("values once the server behaves again", flows)
	s.calm(30)
	if grown := memoryOf(t, os.Getpid()) - before; grown > 256 {
		t.Errorf("the host grew by %d MiB", grown)
	} else {
		t.Logf("%d attacks twice each in %v; the host grew by %d MiB", len(attacks()), time.Since(began), grown)
	}
	s.neighbours()
}

// calm waits until the good sources have delivered n more records each.
func (s *hostileSite) calm(n uint64) {
	s.t.Helper()
	from := s.status()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		now := s.status()
		if now["oven"].Records >= from["oven"].Records+n && now["press"].Records >= from["press"].Records+n {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("the good sources do not deliver: %+v, %+v", now["oven"], now["press"])
		}
	}
}

// neighbours holds the good sources to one connection and to values without a
// gap. They are polled five times a second; the bound leaves room for a machine
// that is busy.
func (s *hostileSite) neighbours() {
	s.t.Helper()
	for _, name := range []string{"oven", "press"} {
		if now := s.status()[name]; now.State != string(sources.Connected) || now.Counters[sources.MetricReconnects] != 0 {
			s.t.Errorf("%s is %s %q, %v reconnects", name, now.State, now.Detail, now.Counters[sources.MetricReconnects])
		}
	}
	files, err := filepath.Glob(filepath.Join(s.dir, "rows", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	at := map[string][]int64{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			s.t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			var r struct {
				Source string `json:"source_name"`
				Ingest int64  `json:"ingest_time"`
			}
			if strings.HasSuffix(line, "\n") && json.Unmarshal([]byte(line), &r) == nil {
				at[r.Source] = append(at[r.Source], r.Ingest)
			}
		}
	}
	for _, name := range []string{"oven", "press"} {
		slices.Sort(at[name])
		var longest time.Duration
		for i, us := range at[name][1:] {
			longest = max(longest, time.Duration(us-at[name][i])*time.Microsecond)
		}
		s.t.Logf("%s: %d records, at most %v apart", name, len(at[name]), longest)
		if longest > 5*time.Second || len(at[name]) < 60 {
			s.t.Errorf("%s has a gap of %v in %d records", name, longest, len(at[name]))
		}
	}
}
