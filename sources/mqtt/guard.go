package mqtt

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
)

// guard is a connection whose inbound packets are looked at before the MQTT
// library sees them. The library allocates whatever length a packet claims (up
// to 256 MiB) and indexes by what a SUBACK claims, both in goroutines whose
// panic would end the process. So packets that a broker does not send, or not
// of this size, end the connection, and a PUBLISH whose payload exceeds the
// limit is cut to one byte more than it: the rest is read and thrown away.
//
// Reading is for one goroutine, as in net.Conn's use by the library.
type guard struct {
	net.Conn
	r          *bufio.Reader
	maxPayload int
	head       []byte // of the current packet, still to be handed on
	body       int    // bytes of the current packet to be handed on
	skip       int    // bytes of the current packet to be thrown away

	mu    sync.Mutex
	sizes []int // true payload sizes of the packets above the limit, in order
	err   error // first error of Read
}

func newGuard(conn net.Conn, maxPayload int) *guard {
	return &guard{Conn: conn, r: bufio.NewReaderSize(conn, 32<<10), maxPayload: maxPayload}
}

// Read hands on the bytes of the current packet.
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.read(p)
	if err != nil {
		g.mu.Lock()
		if g.err == nil {
			g.err = err
		}
		g.mu.Unlock()
	}
	return n, err
}

func (g *guard) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(g.head) == 0 && g.body == 0 {
		if err := g.nextPacket(); err != nil {
			return 0, err
		}
	}
	if len(g.head) > 0 {
		n := copy(p, g.head)
		g.head = g.head[n:]
		return n, nil
	}
	n, err := g.r.Read(p[:min(len(p), g.body)])
	g.body -= n
	return n, err
}

func (g *guard) nextPacket() error {
	if g.skip > 0 {
		n, err := g.r.Discard(g.skip)
		g.skip -= n
		if err != nil {
			return err
		}
	}
	first, err := g.r.ReadByte()
	if err != nil {
		return err
	}
	length, err := readLength(g.r)
	if err != nil {
		return err
	}
	if err := checkPacket(first, length); err != nil {
		return err
	}
	g.body = length
	if first>>4 == typePublish {
		if g.body, err = g.publishLength(first, length); err != nil {
			return err
		}
		g.skip = length - g.body
	}
	g.head = binary.AppendUvarint([]byte{first}, uint64(g.body))
	return nil
}

// publishLength is the length that is handed on of a PUBLISH of this length.
func (g *guard) publishLength(first byte, length int) (int, error) {
	topic, err := g.r.Peek(2)
	if err != nil {
		return 0, err
	}
	header := 2 + int(binary.BigEndian.Uint16(topic))
	if first&0x06 != 0 {
		header += 2
	}
	payload := length - header
	if payload < 0 {
		return 0, fmt.Errorf("broker sent a malformed packet: PUBLISH of %d bytes with a header of %d", length, header)
	}
	if payload <= g.maxPayload {
		return length, nil
	}
	g.mu.Lock()
	g.sizes = append(g.sizes, payload)
	g.mu.Unlock()
	return header + g.maxPayload + 1, nil
}

// trueSize returns the size of the oldest payload above the limit that was not
// asked for yet.
func (g *guard) trueSize() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.sizes) == 0 {
		return g.maxPayload + 1
	}
	size := g.sizes[0]
	g.sizes = g.sizes[1:]
	return size
}

// readErr is the first error of Read: the library reports it without its cause.
func (g *guard) readErr() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Packet types of MQTT 3.1.1, section 2.2.1, that a broker sends.
const (
	typeConnack  = 2
	typePublish  = 3
	typePuback   = 4
	typePubrec   = 5
	typePubrel   = 6
	typePubcomp  = 7
	typeSuback   = 9
	typeUnsuback = 11
	typePingresp = 13
)

// fixedLengths of the packets that have one. SUBACK has, because each
// SUBSCRIBE here names one filter.
var fixedLengths = map[byte]int{
	typeConnack: 2, typePuback: 2, typePubrec: 2, typePubrel: 2, typePubcomp: 2, typeSuback: 3, typeUnsuback: 2, typePingresp: 0,
}

func checkPacket(first byte, length int) error {
	kind := first >> 4
	if kind == typePublish {
		if first&0x06 == 0x06 || length < 2 {
			return fmt.Errorf("broker sent a malformed packet: PUBLISH with flags %#x and length %d", first&0x0f, length)
		}
		return nil
	}
	want, known := fixedLengths[kind]
	if !known || length != want {
		return fmt.Errorf("broker sent a malformed packet: type %d of length %d; is it an MQTT broker?", kind, length)
	}
	return nil
}

// readLength reads the remaining length of a packet: at most four bytes.
func readLength(r *bufio.Reader) (int, error) {
	length := 0
	for shift := 0; shift < 28; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		length |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			return length, nil
		}
	}
	return 0, fmt.Errorf("broker sent a malformed packet: its length has more than four bytes")
}
