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
	rtu    bool
	script func(n int, r wireRequest, s *slave)
	ln     net.Listener

	turn sync.Mutex // held while script runs
	n    int        // requests so far; under turn

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
	s := &slave{rtu: rtu, script: script, ln: ln}
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
		r.unit, r.fc, r.start, r.count = pdu[0], pdu[1], binary.BigEndian.Uint16(pdu[2:]), binary.BigEndian.Uint16(pdu[4:])
		s.turn.Lock()
		s.script(s.n, r, s)
		s.n++
		s.turn.Unlock()
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

// real is a source on the real library.
func real(t *testing.T, endpoint, text string) *bench {
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
// of them, on four lines. Every value that comes through must be its own.
func TestSmokeLateRTURepliesNeverShiftValues(t *testing.T) {
	for line := range 4 {
		t.Run(fmt.Sprint(line), func(t *testing.T) {
			t.Parallel()
			lateReplies(t, 250)
		})
	}
}

func lateReplies(t *testing.T, most int64) {
	var late atomic.Int64
	waiting := [][]byte{}
	s := newSlave(t, true, func(n int, r wireRequest, s *slave) {
		reply := s.numbers(r)
		if n%3 == 2 && late.Load() < most {
			late.Add(1)
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
	})
	b := real(t, s.endpoint(), fourBlocks+"timeout_ms: 8\n")
	stop := b.run(t)
	eventually(t, "late replies", func() bool { checkNumbers(t, b); return late.Load() >= most })
	right := 0
	eventually(t, "good values after them", func() bool { right += checkNumbers(t, b); return right > 100 })
	stop()
	checkNumbers(t, b)
	if b.count(MetricReopens) < float64(most)/2 {
		t.Errorf("only %v reopens after %d late replies", b.count(MetricReopens), most)
	}
}
