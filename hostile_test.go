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
	// hostile is the kind of frame that is replaced: ACK, OPN (before anybody
	// authenticated anything), MSG (a session at work); "" is none.
	hostile atomic.Pointer[string]
	struck  atomic.Int64 // how often it was hostile
}

// attack is what a hostile server sends.
type attack struct {
	// at is the first kind of frame that is replaced, and then again as an MSG in
	// a session at work.
	at string
	// secured says that it is only for channels that sign.
	secured bool
	// forge makes the bytes on the wire of a frame of the server.
	forge func(frame []byte) []byte
	// says is what the status of the source must say.
	says string
}

func startHostileRelay(t *testing.T, target string, a attack) *hostileRelay {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &hostileRelay{addr: lis.Addr().String(), target: target, attack: a}
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

func (r *hostileRelay) relay(ctx context.Context, client net.Conn) {
	defer client.Close()
	defer context.AfterFunc(ctx, func() { client.Close() })()
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
		if string(frame[:3]) == *r.hostile.Load() && (secured || !r.attack.secured) {
			frame = r.attack.forge(frame)
			r.struck.Add(1)
		}
		if _, err := client.Write(frame); err != nil {
			return
		}
	}
}

// signs reports whether frame opens a channel that signs.
func signs(frame []byte) bool {
	return string(frame[:3]) == "OPN" && !bytes.Contains(frame, []byte("SecurityPolicy#None"))
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

// message replaces the service that an unsecured frame carries, in as many chunks
// as it takes; the channel, its token and the number of the request stay (Part 6,
// 6.7.2).
func message(service []byte) func(frame []byte) []byte {
	return func(frame []byte) (out []byte) {
		head := 12
		if string(frame[:3]) == "OPN" {
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
		sequence := binary.LittleEndian.Uint32(frame[head-8:])
		for rest := service; ; sequence++ {
			part := rest[:min(len(rest), 60000)]
			rest = rest[len(part):]
			chunk := slices.Concat(frame[:head], part)
			chunk[3] = 'C'
			if len(rest) == 0 {
				chunk[3] = 'F'
			}
			binary.LittleEndian.PutUint32(chunk[4:], uint32(len(chunk)))
			binary.LittleEndian.PutUint32(chunk[head-8:], sequence)
			if out = append(out, chunk...); len(rest) == 0 {
				return out
			}
		}
	}
}

// answer begins a service: the id of its type, and a ResponseHeader as far as its
// diagnostics (timestamp, handle, result).
func answer(id uint16, rest ...[]byte) []byte {
	head := append([]byte{1, 0, byte(id), byte(id >> 8)}, make([]byte, 8+4+4)...)
	return append(head, slices.Concat(rest...)...)
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
func buffers(size uint32) func(frame []byte) []byte {
	return func(frame []byte) []byte {
		binary.LittleEndian.PutUint32(frame[12:], size)
		return frame
	}
}

const (
	readResponse = 634
	openResponse = 449
	deep         = 8 << 20
)

// attacks are the replies that end a process which decodes them, or make it
// allocate what is not there.
var attacks = map[string]attack{
	"huge-table": {at: "OPN", forge: message(answer(openResponse, []byte{0}, u32(nil, 1<<31-1))),
		says: "out of memory|address space collisions for -race"},
	"many-results": {at: "OPN", forge: message(answer(readResponse, noTable, noHeader, u32(nil, 200_000_000))),
		says: "out of memory|address space collisions for -race"},
	"negative-array": {at: "OPN", forge: message(answer(openResponse, noTable, operand(u32([]byte{0x86}, 0xfffffffe)))),
		says: "fault in decoding.*panic: "},
	"nested-variants": {at: "OPN", forge: message(answer(openResponse, noTable, operand(bytes.Repeat([]byte{0x18}, deep)))),
		says: "stack is used up"},
	"nested-diagnostics": {at: "OPN", forge: message(answer(openResponse, bytes.Repeat([]byte{0x40}, deep))),
		says: "stack is used up"},
	"no-buffer":   {at: "ACK", forge: buffers(0), says: "library fault|fault in decoding"},
	"huge-buffer": {at: "ACK", forge: buffers(0xffffffff), says: "out of memory|address space collisions for -race"},
}

// peakMemory is the most memory that this process had resident, in bytes.
func peakMemory(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
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
	return kb << 10
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
	list := fmt.Sprintf("- name: oven\n  protocol: opcua\n  endpoint: opc.tcp://%s\n  opcua:%s\n- name: press\n  protocol: modbus\n  endpoint: modbus+tcp://%s\n  modbus:%s\n",
		o.addr, ovenConfig, p.addr, pressConfig)
	for name, a := range attacks {
		r := startHostileRelay(t, o.addr, a)
		r.strike(a.at)
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
	deadline := time.After(60 * time.Second)
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
			s.t.Fatalf("waited 60 s for %s", what)
		}
	}
}

// TestHostileServer runs the host against servers that end the process which
// decodes their replies, before and after authentication: it is a process of its
// own, the status says what happened, neither host nor neighbours notice, and
// when the server behaves again its values flow.
func TestHostileServer(t *testing.T) {
	s := startHostileSite(t)
	s.calm(30)
	before := peakMemory(t)
	told := func(name string, now control.SourceStatus) bool {
		return regexp.MustCompile(attacks[name].says).MatchString(now.Detail) && now.Counters[sources.MetricReconnects] > 1
	}
	records := map[string]uint64{}
	flows := func(name string, now control.SourceStatus) bool {
		return now.State == string(sources.Connected) && now.Records > records[name]+10
	}
	began := time.Now()
	s.await("every death to be told", told)
	for name, r := range s.relays {
		if n, most := r.struck.Load(), int64(time.Since(began)/(70*time.Millisecond))+2; n < 2 || n > most {
			t.Errorf("%s: %d attempts in %v; at least 2, and at most %d with the back-off", name, n, time.Since(began), most)
		}
		r.behave()
	}
	s.await("values once the server behaves", flows)
	for name, r := range s.relays {
		if attacks[name].at != "ACK" {
			r.strike("MSG")
		}
	}
	s.await("every death in a session at work to be told", func(name string, now control.SourceStatus) bool {
		return attacks[name].at == "ACK" || told(name, now)
	})
	for name, r := range s.relays {
		records[name] = s.status()[name].Records
		r.behave()
	}
	s.await("values once the server behaves again", flows)
	s.calm(30)
	if grown := peakMemory(t) - before; grown > 256<<20 {
		t.Errorf("the host grew by %d MiB", grown>>20)
	} else {
		t.Logf("%d attacks twice each in %v; the host grew by %d MiB", len(attacks), time.Since(began), grown>>20)
	}
	s.neighbours()
}

// calm waits until the good sources have delivered n more records each.
func (s *hostileSite) calm(n uint64) {
	s.t.Helper()
	from := s.status()
	deadline := time.After(30 * time.Second)
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
		if longest > 3*time.Second || len(at[name]) < 60 {
			s.t.Errorf("%s has a gap of %v in %d records", name, longest, len(at[name]))
		}
	}
}
