package modbus

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// slave is a device behind a gateway, for the real library. script decides what
// goes over the wire for each request. Replies that come late go to whichever
// connection is open then, as on a serial line.
type slave struct {
	t      *testing.T
	rtu    bool
	script func(n int, r wireRequest, s *slave)
	ln     net.Listener
	taken  atomic.Bool // another master has the only connection

	turn sync.Mutex // held while script runs
	n    int        // requests so far; under turn
	once bool       // a connection carries one request; under turn

	mu   sync.Mutex
	conn net.Conn
	wg   sync.WaitGroup
}

// wireRequest is a request as it came over the wire.
type wireRequest struct {
	transaction  uint16 // MBAP
	unit, fc     byte
	start, count uint16
}

func newSlave(t *testing.T, rtu bool, script func(n int, r wireRequest, s *slave)) *slave {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &slave{t: t, rtu: rtu, script: script, ln: ln}
	s.wg.Go(s.accept)
	t.Cleanup(func() {
		ln.Close()
		s.hangUp()
		s.wg.Wait()
	})
	return s
}

func (s *slave) endpoint() string {
	if s.rtu {
		return "modbus+rtutcp://" + s.ln.Addr().String()
	}
	return "modbus+tcp://" + s.ln.Addr().String()
}

func (s *slave) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		if s.taken.Load() {
			c.Close()
			continue
		}
		s.mu.Lock()
		if s.conn != nil {
			s.conn.Close()
		}
		s.conn = c
		s.mu.Unlock()
		s.wg.Go(func() { s.serve(c) })
	}
}

func (s *slave) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
	}
}

func (s *slave) serve(c net.Conn) {
	defer c.Close()
	frame := make([]byte, 12)
	if s.rtu {
		frame = frame[:8]
	}
	for {
		if _, err := io.ReadFull(c, frame); err != nil {
			return
		}
		pdu := frame
		var r wireRequest
		if !s.rtu {
			r.transaction = binary.BigEndian.Uint16(frame)
			pdu = frame[6:]
		}
		if pdu[1] < 1 || pdu[1] > 4 {
			s.t.Errorf("function %d reached a device", pdu[1])
		}
		r.unit, r.fc, r.start, r.count = pdu[0], pdu[1], binary.BigEndian.Uint16(pdu[2:]), binary.BigEndian.Uint16(pdu[4:])
		s.turn.Lock()
		s.script(s.n, r, s)
		s.n++
		once := s.once
		s.turn.Unlock()
		if once {
			return
		}
	}
}

// send writes to the connection that is open now.
func (s *slave) send(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Write(b)
	}
}

// sendCut sends the reply without its last bytes.
func (s *slave) sendCut(r wireRequest, bytes int) {
	b := s.numbers(r)
	s.send(b[:len(b)-bytes])
}

// numbers is the reply that holds the registers' own offsets.
func (s *slave) numbers(r wireRequest) []byte {
	pdu := []byte{r.unit, r.fc, byte(2 * r.count)}
	for i := range r.count {
		pdu = binary.BigEndian.AppendUint16(pdu, r.start+i)
	}
	return s.frame(r, pdu)
}

func (s *slave) refusal(r wireRequest, code byte) []byte {
	return s.frame(r, []byte{r.unit, r.fc | 0x80, code})
}

func (s *slave) frame(r wireRequest, pdu []byte) []byte {
	if s.rtu {
		return binary.LittleEndian.AppendUint16(pdu, crc16(pdu))
	}
	head := binary.BigEndian.AppendUint16(nil, r.transaction)
	head = append(head, 0, 0)
	head = binary.BigEndian.AppendUint16(head, uint16(len(pdu)))
	return append(head, pdu...)
}

// crc16 is the check of RTU frames (Modbus over serial line 1.02, section 6.2.2).
func crc16(b []byte) uint16 {
	crc := uint16(0xffff)
	for _, c := range b {
		crc ^= uint16(c)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xa001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}

// onWire is a source on the real library.
func onWire(t *testing.T, endpoint, text string) *bench {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	buses := NewBuses(log)
	return joinBench(t, nil, buses, "plc", endpoint, text)
}

// eventually polls until ok, for as long as a slow machine may take.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("%s did not happen within 60 s", what)
		case <-tick.C:
		}
	}
}

// checkNumbers fails for every good record whose value is not its own offset,
// and returns how many were right.
func checkNumbers(t *testing.T, b *bench) (right int) {
	t.Helper()
	for _, r := range b.take() {
		if r.Status != 0 {
			continue
		}
		var offset uint64
		if _, err := fmt.Sscanf(r.Address[strings.LastIndexByte(r.Address, ':')+1:], "%d", &offset); err != nil {
			t.Fatal(err)
		}
		if r.Value.AsUint() != offset {
			t.Fatalf("wrong value: %s holds %d", r.Address, r.Value.AsUint())
		}
		right++
	}
	return right
}

// fourBlocks reads four blocks of one shape in turn, the worst case for replies
// without numbers.
const fourBlocks = `
addressing: zero_based
max_gap: 0
poll_interval_ms: 1
unit_breaker: {failures: 1000, retry_seconds: 0.001}
registers:
  - {address: 0, count: 3, register_type: holding}
  - {address: 100, count: 3, register_type: holding}
  - {address: 200, count: 3, register_type: holding}
  - {address: 300, count: 3, register_type: holding}
`

// TestSmokeLateRTURepliesNeverShiftValues makes every third reply late, by
// anything from just too late to several requests later, until there were 1,000
// of them, on eight lines. Every value that comes through must be its own.
func TestSmokeLateRTURepliesNeverShiftValues(t *testing.T) {
	const most, lines = 1000, 8
	var late atomic.Int64
	benches := make([]*bench, lines)
	stops := make([]func(), lines)
	for i := range benches {
		s := newSlave(t, true, lateScript(&late, most))
		benches[i] = onWire(t, s.endpoint(), fourBlocks+"timeout_ms: 8\n")
		stops[i] = benches[i].run(t)
	}
	eventually(t, "late replies", func() bool {
		for _, b := range benches {
			checkNumbers(t, b)
		}
		return late.Load() >= most
	})
	for _, b := range benches {
		right := 0
		eventually(t, "good values after them", func() bool { right += checkNumbers(t, b); return right > 100 })
	}
	stopAll(stops...)
	reopens := 0.0
	for _, b := range benches {
		checkNumbers(t, b)
		reopens += b.count(MetricReopens)
	}
	if reopens < most/2 {
		t.Errorf("only %v reopens after %d late replies", reopens, most)
	}
}

func lateScript(late *atomic.Int64, most int64) func(n int, r wireRequest, s *slave) {
	var waiting [][]byte
	return func(n int, r wireRequest, s *slave) {
		reply := s.numbers(r)
		if n%3 == 2 && late.Add(1) <= most {
			if n%2 == 0 { // comes just before the reply to the next request
				waiting = append(waiting, reply)
				return
			}
			<-time.After(time.Duration(9+n%9) * time.Millisecond)
		}
		for _, old := range waiting {
			s.send(old)
		}
		waiting = waiting[:0]
		s.send(reply)
	}
}

// oneBlock reads ten registers every 5 ms.
const oneBlock = `
addressing: zero_based
poll_interval_ms: 5
timeout_ms: 2000
unit_breaker: {failures: 1000, retry_seconds: 0.001}
registers: [{address: 20, count: 10, register_type: holding}]
`

// impatient is oneBlock with a short time-out.
var impatient = strings.Replace(oneBlock, "timeout_ms: 2000", "timeout_ms: 20", 1)

// framings runs a test over both framings of the wire.
func framings(t *testing.T, text string, script func(n int, r wireRequest, s *slave), check func(t *testing.T, b *bench, s *slave)) {
	for _, rtu := range []bool{false, true} {
		t.Run(fmt.Sprintf("rtu=%v", rtu), func(t *testing.T) {
			s := newSlave(t, rtu, script)
			b := onWire(t, s.endpoint(), text)
			stop := b.run(t)
			check(t, b, s)
			stop()
		})
	}
}

// damage makes something else than a good reply of every reply but the third.
func damage(harm func(r wireRequest, s *slave)) func(n int, r wireRequest, s *slave) {
	return func(n int, r wireRequest, s *slave) {
		if n%3 == 1 {
			harm(r, s)
			return
		}
		s.send(s.numbers(r))
	}
}

func TestDamagedRepliesGiveNoWrongValue(t *testing.T) {
	for name, harm := range map[string]func(r wireRequest, s *slave){
		"cut": func(r wireRequest, s *slave) { s.sendCut(r, 3) },
		"cut and closed": func(r wireRequest, s *slave) {
			s.sendCut(r, 1)
			s.hangUp()
		},
		"closed":       func(_ wireRequest, s *slave) { s.hangUp() },
		"another unit": func(r wireRequest, s *slave) { r.unit += 3; r.start = 900; s.send(s.numbers(r)) },
		"another function": func(r wireRequest, s *slave) {
			r.fc = 4
			r.start = 900
			s.send(s.numbers(r))
		},
		"fewer registers": func(r wireRequest, s *slave) { r.start, r.count = 900, r.count+1; s.send(s.numbers(r)) },
		"noise":           func(_ wireRequest, s *slave) { s.send([]byte{0xff, 0, 0x55, 0xaa, 1, 2, 3, 4, 5, 6, 7, 8}) },
		"wrong check": func(r wireRequest, s *slave) {
			if !s.rtu { // MBAP has no check; TCP has
				s.send(s.numbers(r))
				return
			}
			b := s.numbers(r)
			b[4] ^= 1
			s.send(b)
		},
	} {
		t.Run(name, func(t *testing.T) {
			framings(t, impatient, damage(harm), func(t *testing.T, b *bench, _ *slave) {
				right := 0
				eventually(t, "good values between damaged replies", func() bool { right += checkNumbers(t, b); return right >= 50 })
			})
		})
	}
}

// TestForeignTransactionsAreDiscarded sends replies to other requests, with
// other values, before every reply: of an older transaction and of one to come.
func TestForeignTransactionsAreDiscarded(t *testing.T) {
	s := newSlave(t, false, func(_ int, r wireRequest, s *slave) {
		for _, shift := range []uint16{0xffff, 1} {
			foreign := r
			foreign.transaction += shift
			foreign.start = 900
			s.send(s.numbers(foreign))
		}
		s.send(s.numbers(r))
	})
	b := onWire(t, s.endpoint(), oneBlock)
	stop := b.run(t)
	right := 0
	eventually(t, "good values between foreign ones", func() bool { right += checkNumbers(t, b); return right >= 200 })
	stop()
	if b.count(MetricReopens) != 0 {
		t.Errorf("%v reopens", b.count(MetricReopens))
	}
}

func TestSmokeExceptionsOverTheWire(t *testing.T) {
	script := func(n int, r wireRequest, s *slave) {
		switch {
		case n < 3:
			s.send(s.refusal(r, 4))
		case n < 6:
			s.send(s.refusal(r, 42))
		case r.start <= 25 && r.start+r.count > 25:
			s.send(s.refusal(r, 2))
		default:
			s.send(s.numbers(r))
		}
	}
	framings(t, oneBlock, script, func(t *testing.T, b *bench, s *slave) {
		seen := map[string]bool{}
		right := 0
		eventually(t, "values around the refused register", func() bool {
			for _, r := range b.take() {
				seen[r.Address+" "+show(&r)] = true
				if r.Status == 0 {
					right++
				}
			}
			return right > 90
		})
		for _, want := range []string{"1:holding:25 BadDeviceFailure", "1:holding:20 20", "1:holding:29 29"} {
			if !seen[want] {
				t.Errorf("no record %q among %v", want, seen)
			}
		}
		if seen["1:holding:25 25"] || b.count(MetricReopens) != 0 {
			t.Errorf("%v reopens; records %v", b.count(MetricReopens), seen)
		}
	})
}

func TestOneAbsentUnitAmongTenOverTheWire(t *testing.T) {
	var asked atomic.Int64
	script := func(_ int, r wireRequest, s *slave) {
		if r.unit == 4 {
			asked.Add(1)
			return
		}
		s.send(s.numbers(r))
	}
	text := "addressing: zero_based\npoll_interval_ms: 20\ntimeout_ms: 60\nunit_breaker: {retry_seconds: 60}\nregisters:\n"
	for unit := 1; unit <= 10; unit++ {
		text += fmt.Sprintf("  - {address: 0, count: 4, register_type: input, slave_id: %d}\n", unit)
	}
	s := newSlave(t, true, script)
	b := onWire(t, s.endpoint(), text)
	stop := b.run(t)
	got := map[string]int{}
	eventually(t, "values of nine units", func() bool {
		for _, r := range b.take() {
			got[r.Address[:strings.IndexByte(r.Address, ':')]+" "+fmt.Sprint(r.Status == 0)]++
		}
		for unit := 1; unit <= 10; unit++ {
			if unit != 4 && got[fmt.Sprint(unit)+" true"] < 100 {
				return false
			}
		}
		return true
	})
	stop()
	if got["4 true"] != 0 || got["4 false"] != 4 || asked.Load() != 3 {
		t.Errorf("absent unit: %v, asked %d times; want four bad records once, and three requests", got, asked.Load())
	}
}

func TestServerThatComesBack(t *testing.T) {
	s := newSlave(t, false, func(_ int, r wireRequest, s *slave) { s.send(s.numbers(r)) })
	b := onWire(t, s.endpoint(), oneBlock)
	stop := b.run(t)
	right := 0
	eventually(t, "values", func() bool { right += checkNumbers(t, b); return right > 20 })
	s.hangUp()
	right = 0
	eventually(t, "values on a new connection", func() bool { right += checkNumbers(t, b); return right > 20 })
	stop()
	for _, r := range b.take() {
		if r.Status != 0 {
			t.Errorf("a connection that the peer closed made a bad record: %+v", r)
		}
	}
}
