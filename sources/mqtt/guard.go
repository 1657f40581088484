package mqtt

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// guard is a connection that the MQTT library reads and writes through. It
// takes the messages out of the stream: a PUBLISH goes straight to deliver,
// acknowledgements are written here, as many as there are in one write, and the
// library is left with the session: CONNECT, SUBSCRIBE, pings.
//
// That is what makes a message cheap, and a broker harmless: the library
// allocates whatever length a packet claims (up to 256 MiB) and indexes by what
// a SUBACK claims, both in goroutines whose panic would end the process. So
// packets that a broker does not send, or not of this size, end the connection,
// and a payload that exceeds the limit is read and thrown away.
//
// Reading is for one goroutine, as in net.Conn's use by the library. The lock
// is held by whoever writes a packet in more than one piece, as the library for
// MQTT 5 does, and by send.
type guard struct {
	net.Conn
	sync.Mutex

	r          *bufio.Reader
	v5         bool
	maxPayload int
	deliver    func(*message) // must not wait
	topics     map[string]string
	scratch    []byte
	head       []byte // of the current packet, still to be handed on
	body       int    // bytes of the current packet to be handed on

	queued chan struct{} // something is in queue

	mu    sync.Mutex
	queue []byte // packets to be written by flush
	err   error  // first error of Read
}

func newGuard(conn net.Conn, v5 bool, maxPayload int, deliver func(*message)) *guard {
	return &guard{Conn: conn, r: bufio.NewReaderSize(conn, readBytes), v5: v5, maxPayload: maxPayload, deliver: deliver,
		topics: map[string]string{}, queued: make(chan struct{}, 1)}
}

// Read hands on the bytes of packets that are the library's.
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
	for len(g.head) == 0 && g.body == 0 {
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

// nextPacket reads a packet that is ours, or begins one of the library's.
func (g *guard) nextPacket() error {
	first, err := g.r.ReadByte()
	if err != nil {
		return err
	}
	length, _, err := readLength(g.r)
	if err != nil {
		return err
	}
	if err := checkPacket(g.v5, first, length); err != nil {
		return err
	}
	switch first >> 4 {
	case typePublish:
		m, err := g.readPublish(first, length)
		if err == nil {
			g.deliver(m)
		}
		return err
	case typePubrel:
		return g.readPubrel(length)
	}
	g.body = length
	g.head = binary.AppendUvarint([]byte{first}, uint64(length))
	return nil
}

// readPubrel answers the end of a QoS 2 exchange. What it says was delivered is
// ours since we wrote PUBREC.
func (g *guard) readPubrel(length int) error {
	id, err := g.take(2)
	if err != nil {
		return err
	}
	g.enqueue([]byte{typePubcomp << 4, 2, id[0], id[1]})
	_, err = g.r.Discard(length - 2)
	return err
}

// take reads n bytes, which hold until the next call.
func (g *guard) take(n int) ([]byte, error) {
	if cap(g.scratch) < n {
		g.scratch = make([]byte, n)
	}
	_, err := io.ReadFull(g.r, g.scratch[:n])
	return g.scratch[:n], err
}

// readPublish reads what follows the length of a PUBLISH.
func (g *guard) readPublish(first byte, length int) (*message, error) {
	m := &message{qos: first >> 1 & 3, retained: first&1 != 0, dup: first&8 != 0}
	head, err := g.take(2)
	if err != nil {
		return nil, err
	}
	topic := int(binary.BigEndian.Uint16(head))
	rest := length - 2 - topic
	if m.qos > 0 {
		rest -= 2
	}
	if rest < 0 {
		return nil, fmt.Errorf("broker sent a malformed packet: PUBLISH of %d bytes with a header of %d", length, length-rest)
	}
	if topic == 0 {
		// Only an alias may stand for a topic (MQTT 5), and we allow none.
		return nil, errors.New("broker sent a malformed packet: PUBLISH without a topic")
	}
	name, err := g.take(topic)
	if err != nil {
		return nil, err
	}
	m.topic = g.intern(name)
	if m.qos > 0 {
		id, err := g.take(2)
		if err != nil {
			return nil, err
		}
		m.id = binary.BigEndian.Uint16(id)
	}
	if g.v5 {
		if rest, err = g.readProperties(m, rest); err != nil {
			return nil, err
		}
	}
	if rest > g.maxPayload {
		m.tooLarge = rest
		_, err = g.r.Discard(rest)
		return m, err
	}
	m.payload = make([]byte, rest)
	_, err = io.ReadFull(g.r, m.payload)
	return m, err
}

// intern returns topic as UTF-8, which MQTT and records demand though not every
// broker checks, without a new string for a topic that was seen before.
func (g *guard) intern(topic []byte) string {
	if s, ok := g.topics[string(topic)]; ok {
		return s
	}
	s := strings.ToValidUTF8(string(topic), "\uFFFD")
	if len(topic) > topicCacheLength {
		return s
	}
	if len(g.topics) >= topicCacheSize {
		clear(g.topics)
	}
	g.topics[string(topic)] = s
	return s
}

// readErr is the first error of Read: the library reports it without its cause.
func (g *guard) readErr() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// enqueue takes a packet that send writes later, and signals queued. It never
// waits; what a peer lets pile up beyond reason is its own loss.
func (g *guard) enqueue(packet []byte) {
	g.mu.Lock()
	if len(g.queue) < maxQueue {
		g.queue = append(g.queue, packet...)
	}
	g.mu.Unlock()
	signal(g.queued)
}

// maxQueue bounds what waits to be written: 65535 answers to PUBREL fit.
const maxQueue = 1 << 20

// send writes what is queued and the acknowledgements of msgs in one write.
// Any error means that the connection is useless.
func (g *guard) send(msgs []*message, timeout time.Duration) error {
	g.mu.Lock()
	out := g.queue
	g.queue = nil
	g.mu.Unlock()
	for _, m := range msgs {
		kind := byte(typePuback)
		if m.qos == 2 {
			kind = typePubrec
		}
		out = append(out, kind<<4, 2, byte(m.id>>8), byte(m.id))
	}
	if len(out) == 0 {
		return nil
	}
	g.Lock()
	defer g.Unlock()
	if err := g.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := g.Write(out); err != nil {
		return err
	}
	return g.SetWriteDeadline(time.Time{})
}

// publishPacket is a PUBLISH of QoS 0.
func publishPacket(v5 bool, topic string, payload []byte) []byte {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(topic)))
	body = append(body, topic...)
	if v5 {
		body = append(body, 0) // no properties
	}
	body = append(body, payload...)
	return append(binary.AppendUvarint([]byte{typePublish << 4}, uint64(len(body))), body...)
}

// Packet types of MQTT 3.1.1, section 2.2.1, and MQTT 5, section 2.1.2.
const (
	typeConnack    = 2
	typePublish    = 3
	typePuback     = 4
	typePubrec     = 5
	typePubrel     = 6
	typePubcomp    = 7
	typeSuback     = 9
	typeUnsuback   = 11
	typePingresp   = 13
	typeDisconnect = 14
)

// packetLength bounds the packets that a broker sends us, beside PUBLISH. We
// publish at QoS 0 and use no enhanced authentication, so there are no others.
type packetLength struct{ low, high int }

// lengths3 of SUBACK has one answer because each SUBSCRIBE names one filter.
var lengths3 = map[byte]packetLength{
	typeConnack: {2, 2}, typePubrel: {2, 2}, typeSuback: {3, 3}, typeUnsuback: {2, 2}, typePingresp: {0, 0},
}

var lengths5 = map[byte]packetLength{
	typeConnack: {3, maxControl}, typePubrel: {2, maxControl}, typeSuback: {4, maxControl}, typeUnsuback: {4, maxControl},
	typePingresp: {0, 0}, typeDisconnect: {0, maxControl},
}

// maxControl bounds the packets that carry no message: they may hold a reason
// and user properties.
const maxControl = 64 << 10

// errOldBroker is a CONNACK of MQTT 3.1.1 in answer to a CONNECT of MQTT 5.
var errOldBroker = errors.New("the broker answers in MQTT 3.1.1")

func checkPacket(v5 bool, first byte, length int) error {
	kind := first >> 4
	if kind == typePublish {
		if first&0x06 == 0x06 || length < 2 {
			return fmt.Errorf("broker sent a malformed packet: PUBLISH with flags %#x and length %d", first&0x0f, length)
		}
		return nil
	}
	lengths := lengths3
	if v5 {
		lengths = lengths5
		if kind == typeConnack && length == 2 {
			return errOldBroker
		}
	}
	want, known := lengths[kind]
	if !known || length < want.low || length > want.high {
		return fmt.Errorf("broker sent a malformed packet: type %d of length %d; is it an MQTT broker?", kind, length)
	}
	return nil
}

// readLength reads a variable byte integer: at most four bytes, of which it
// returns the number.
func readLength(r io.ByteReader) (length, size int, err error) {
	for shift := 0; shift < 28; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, 0, err
		}
		length |= int(b&0x7f) << shift
		size++
		if b&0x80 == 0 {
			return length, size, nil
		}
	}
	return 0, 0, errors.New("broker sent a malformed packet: a length has more than four bytes")
}
