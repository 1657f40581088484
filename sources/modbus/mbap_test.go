package modbus

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// The request of these tests, and its reply.
const (
	askUnit  = 7
	askStart = 100
	askCount = 2
)

var askReply = []byte{3, 4, 0x12, 0x34, 0xab, 0xcd} // function 3, four bytes

// mbapBytes is a frame as it goes over the wire; shift is added to the
// transaction of the request.
func mbapBytes(request []byte, shift uint16, unit uint8, pdu ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, binary.BigEndian.Uint16(request)+shift)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(1+len(pdu)))
	return append(append(b, unit), pdu...)
}

// with returns b with one byte changed.
func with(b []byte, at int, v byte) []byte {
	b = slices.Clone(b)
	b[at] = v
	return b
}

// own is the right reply.
func own(request []byte) []byte { return mbapBytes(request, 0, askUnit, askReply...) }

// TestMBAPReplies answers one request in every way that a device, a gateway or
// something that is neither could.
func TestMBAPReplies(t *testing.T) {
	foreign := []byte{3, 4, 9, 9, 9, 9} // what a wrong value would come from
	for name, c := range map[string]struct {
		reply func(request []byte) []byte
		want  error // nil: the registers
	}{
		"reply":                {own, nil},
		"older reply before":   {func(r []byte) []byte { return append(mbapBytes(r, 0xffff, askUnit, foreign...), own(r)...) }, nil},
		"reply to come before": {func(r []byte) []byte { return append(mbapBytes(r, 1, askUnit, foreign...), own(r)...) }, nil},
		"ten older replies before": {func(r []byte) []byte {
			return append(slices.Repeat(mbapBytes(r, 0xfff0, askUnit, foreign...), 10), own(r)...)
		}, nil},
		"longest foreign frame before": {func(r []byte) []byte { return append(mbapBytes(r, 5, askUnit, make([]byte, 253)...), own(r)...) }, nil},
		"another protocol before":      {func(r []byte) []byte { return append(with(mbapBytes(r, 0, askUnit, foreign...), 3, 1), own(r)...) }, nil},
		"another reply after":          {func(r []byte) []byte { return append(own(r), mbapBytes(r, 0, askUnit, foreign...)...) }, nil},
		"another protocol only":        {func(r []byte) []byte { return with(own(r), 2, 1) }, errSilent},
		"another transaction only":     {func(r []byte) []byte { return mbapBytes(r, 1, askUnit, foreign...) }, errSilent},
		"nothing":                      {func([]byte) []byte { return nil }, errSilent},
		"cut header":                   {func(r []byte) []byte { return own(r)[:5] }, errSilent},
		"cut":                          {func(r []byte) []byte { return own(r)[:12] }, errSilent},
		"length too large by one":      {func(r []byte) []byte { return with(own(r), 5, 8) }, errSilent},
		"length too small by one":      {func(r []byte) []byte { return with(own(r), 5, 6) }, errOdd},
		"length 0":                     {func(r []byte) []byte { return with(own(r), 5, 0) }, errTorn},
		"length 1":                     {func(r []byte) []byte { return with(own(r), 5, 1) }, errTorn},
		"length 255":                   {func(r []byte) []byte { return with(own(r), 5, 255) }, errTorn},
		"length 65287":                 {func(r []byte) []byte { return with(own(r), 4, 255) }, errTorn},
		"RTU frame":                    {func([]byte) []byte { return []byte{askUnit, 3, 4, 0x12, 0x34, 0xab, 0xcd, 0x5d, 0x6f} }, errTorn},
		"another unit":                 {func(r []byte) []byte { return mbapBytes(r, 0, askUnit+1, foreign...) }, errOtherUnit},
		"gateway's unit":               {func(r []byte) []byte { return mbapBytes(r, 0, gatewayUnit, foreign...) }, errOtherUnit},
		"another function":             {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, with(foreign, 0, 4)...) }, errOdd},
		"fewer registers":              {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, 3, 2, 9, 9) }, errOdd},
		"more registers":               {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, 3, 6, 9, 9, 9, 9, 9, 9) }, errOdd},
		"wrong number of bytes":        {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, with(foreign, 1, 2)...) }, errOdd},
		"no data":                      {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, 3, 0) }, errOdd},
		"function only":                {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, 3) }, errOdd},
		"exception":                    {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, 0x83, 2) }, illegalAddress},
		"exception of the gateway":     {func(r []byte) []byte { return mbapBytes(r, 0, gatewayUnit, 0x83, 11) }, gatewaySilent},
		"exception nobody knows":       {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, 0x83, 200) }, exception(200)},
		"exception of another unit":    {func(r []byte) []byte { return mbapBytes(r, 0, askUnit+1, 0x83, 2) }, errOtherUnit},
		"exception to another request": {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, 0x84, 2) }, errOdd},
		"exception without a code":     {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, 0x83) }, errOdd},
		"exception with more":          {func(r []byte) []byte { return mbapBytes(r, 0, askUnit, 0x83, 2, 0) }, errOdd},
		"older exception before":       {func(r []byte) []byte { return append(mbapBytes(r, 0xffff, askUnit, 0x83, 2), own(r)...) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for _, piece := range []int{1, 3, 7, 1000} { // bytes that come at a time
				synctest.Test(t, func(t *testing.T) {
					l, peer := pipeLink(t)
					go peer.answer(piece, c.reply)
					begin := time.Now()
					d, err := l.read(askUnit, Holding, askStart, askCount, nil)
					if c.want == nil && (err != nil || string(d) != string(askReply[2:])) {
						t.Errorf("pieces of %d: got % x (%v)", piece, d, err)
					}
					if c.want != nil && (!errors.Is(err, c.want) || d != nil) {
						t.Errorf("pieces of %d: got % x (%v), want %v", piece, d, err, c.want)
					}
					wait := time.Duration(0)
					if errors.Is(c.want, errSilent) {
						wait = l.timeout
					}
					if took := time.Since(begin); took != wait {
						t.Errorf("pieces of %d: took %v, want %v", piece, took, wait)
					}
				})
			}
		})
	}
}

// pipePeer is the other end of a link's connection.
type pipePeer struct{ net.Conn }

func pipeLink(t *testing.T) (*mbap, pipePeer) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return newMBAP(a, time.Second), pipePeer{b}
}

// answer reads one request and sends what reply makes of it, in pieces.
func (p pipePeer) answer(piece int, reply func(request []byte) []byte) {
	var request readRequest
	if _, err := io.ReadFull(p, request[:]); err != nil {
		return
	}
	for b := range slices.Chunk(reply(request[:]), piece) {
		if _, err := p.Write(b); err != nil {
			return
		}
	}
}

// TestMBAPWhatCameBeforeTheRequestIsNoReply lets a device send, twice, the reply
// to a request that was not made yet; of the second, a part comes after it.
func TestMBAPWhatCameBeforeTheRequestIsNoReply(t *testing.T) {
	for cut := range 13 {
		synctest.Test(t, func(t *testing.T) {
			l, peer := pipeLink(t)
			var early []byte
			go func() {
				peer.answer(1000, func(r []byte) []byte {
					early = slices.Repeat(mbapBytes(r, 1, askUnit, 3, 4, 9, 9, 9, 9), 2)
					return append(own(r), early[:len(early)-cut]...)
				})
				peer.answer(1000, func(r []byte) []byte { return append(early[len(early)-cut:], own(r)...) })
			}()
			for range 2 {
				d, err := l.read(askUnit, Holding, askStart, askCount, nil)
				if err != nil || string(d) != string(askReply[2:]) {
					t.Fatalf("%d bytes of the early reply came late: got % x (%v)", cut, d, err)
				}
			}
		})
	}
}

// TestMBAPForeignRepliesDoNotProlongTheWait floods a request with replies to
// others.
func TestMBAPForeignRepliesDoNotProlongTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, peer := pipeLink(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			peer.answer(1000, func(r []byte) []byte { return mbapBytes(r, 2, askUnit, 3, 4, 9, 9, 9, 9) })
			for {
				time.Sleep(100 * time.Millisecond)
				if _, err := peer.Write([]byte{0, 0, 0, 0, 0, 3, askUnit, 0x83, 2}); err != nil {
					return
				}
			}
		}()
		l.transaction = 40_000
		begin := time.Now()
		if _, err := l.read(askUnit, Holding, askStart, askCount, nil); !errors.Is(err, errSilent) || time.Since(begin) != l.timeout {
			t.Errorf("got %v after %v, want a time-out after %v", err, time.Since(begin), l.timeout)
		}
		l.close()
		<-done
	})
}

func TestMBAPConnectionThatEnds(t *testing.T) {
	for name, sent := range map[string]int{"before the reply": 0, "in the header": 4, "in the reply": 11} {
		t.Run(name, func(t *testing.T) {
			l, peer := pipeLink(t)
			go func() {
				peer.answer(1000, func(r []byte) []byte { return own(r)[:sent] })
				peer.Close()
			}()
			_, err := l.read(askUnit, Holding, askStart, askCount, nil)
			var lost lostError
			if !errors.As(err, &lost) || !errors.Is(err, io.EOF) {
				t.Errorf("got %v, want a lost connection", err)
			}
			if _, err := l.read(askUnit, Holding, askStart, askCount, nil); !errors.As(err, &lost) {
				t.Errorf("a second read: got %v, want a lost connection", err)
			}
		})
	}
}

// TestMBAPManyReadsOfAllTables goes through the whole range of transactions, and
// through every length of a reply.
func TestMBAPManyReadsOfAllTables(t *testing.T) {
	l, peer := pipeLink(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var r readRequest
			if _, err := io.ReadFull(peer, r[:]); err != nil {
				return
			}
			count := int(binary.BigEndian.Uint16(r[10:]))
			pdu := []byte{r[7], byte(2 * count)}
			for i := range count {
				pdu = binary.BigEndian.AppendUint16(pdu, binary.BigEndian.Uint16(r[8:])+uint16(i))
			}
			if r[7] < 3 {
				pdu = append([]byte{r[7], byte((count + 7) / 8)}, make([]byte, (count+7)/8)...)
				for i := range count {
					pdu[2+i/8] |= byte((int(r[9])+i)%2) << (i % 8)
				}
			}
			peer.Write(mbapBytes(r[:], 0, r[6], pdu...))
		}
	}()
	var room data // one for all, as in a plan
	l.transaction = 60_000
	for n := range 10_000 { // past the last transaction, to the first
		table := registerTypes[n%4]
		most := map[bool]int{true: 2000, false: 125}[table.bits()]
		if n > 4000 { // short replies for the rest of the transactions
			most = 1
		}
		r := request{slave: uint8(n), table: table, start: uint16(n % 60_000), count: 1 + n/4%most}
		d, err := l.read(r.slave, r.table, r.start, r.count, room)
		if want := numbered(r); err != nil || string(d) != string(want) {
			t.Fatalf("read %d, %v: got % x (%v), want % x", n, r, d, err, want)
		}
		room = d
	}
	l.close()
	<-done
}

func TestMBAPRefusesWhatIsNoReadOfModbus(t *testing.T) {
	l, peer := pipeLink(t)
	go io.Copy(io.Discard, peer)
	for _, r := range []request{{table: Holding, count: 0}, {table: Holding, count: 126}, {table: Coil, count: 2001}, {table: Input, start: 65535, count: 2}, {table: "file", count: 1}} {
		if d, err := l.read(1, r.table, r.start, r.count, nil); err == nil {
			t.Errorf("%v: got %v", r, d)
		}
	}
}

// FuzzMBAP lets a device send any bytes. Whatever they are, and however they are
// cut into pieces, a value comes from the one frame that answers the request.
func FuzzMBAP(f *testing.F) {
	request, _ := newReadRequest(1, askUnit, Holding, askStart, askCount)
	r := request[:]
	for _, b := range [][]byte{
		own(r), append(mbapBytes(r, 1, askUnit, 3, 4, 9, 9, 9, 9), own(r)...), with(own(r), 3, 1), with(own(r), 5, 255), own(r)[:8],
		mbapBytes(r, 0, askUnit, 0x83, 2), mbapBytes(r, 0, 9, askReply...), append(mbapBytes(r, 3, 1, make([]byte, 253)...), own(r)...), nil,
	} {
		f.Add(b, uint8(0), false)
		f.Add(b, uint8(2), true)
	}
	f.Fuzz(func(t *testing.T, stream []byte, table uint8, oneByOne bool) {
		typ := registerTypes[table%4]
		l := newMBAP(&streamConn{stream: stream, oneByOne: oneByOne}, time.Second)
		l.transaction = 0
		d, err := l.read(askUnit, typ, askStart, askCount, nil)
		want := firstReply(stream, typ)
		if want == nil {
			if err == nil {
				t.Fatalf("% x: got %v without a reply", stream, d)
			}
			return
		}
		if err != nil {
			t.Fatalf("% x: got %v, want % x", stream, err, want)
		}
		if typ.bits() {
			want = []byte{want[0] & 1, want[0] >> 1 & 1}
		}
		if string(d) != string(want) {
			t.Fatalf("% x: got % x, want % x", stream, d, want)
		}
	})
}

// firstReply is the data of the first frame that carries transaction 1, or nil
// when that is no good reply: the specification, read once more.
func firstReply(b []byte, t RegisterType) []byte {
	for len(b) >= 8 {
		length := int(b[4])<<8 | int(b[5])
		if length < 2 || length > 254 || len(b) < 6+length {
			return nil
		}
		head, pdu := b[:7], b[7:6+length]
		b = b[6+length:]
		if head[0] != 0 || head[1] != 1 || head[2] != 0 || head[3] != 0 {
			continue
		}
		function := map[RegisterType]byte{Coil: 1, Discrete: 2, Holding: 3, Input: 4}[t]
		size := map[bool]int{true: 1, false: 4}[t.bits()]
		if head[6] != askUnit || pdu[0] != function || len(pdu) != 2+size || int(pdu[1]) != size {
			return nil
		}
		return pdu[2:]
	}
	return nil
}

// streamConn gives its stream to whoever reads, and takes whatever is written.
type streamConn struct {
	net.Conn
	stream   []byte
	oneByOne bool
}

func (c *streamConn) Read(p []byte) (int, error) {
	if len(c.stream) == 0 {
		return 0, io.EOF
	}
	if c.oneByOne {
		p = p[:1]
	}
	n := copy(p, c.stream)
	c.stream = c.stream[n:]
	return n, nil
}

func (*streamConn) Write(p []byte) (int, error) { return len(p), nil }
func (*streamConn) SetDeadline(time.Time) error { return nil }
