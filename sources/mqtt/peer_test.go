package mqtt

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// peer is a small MQTT 3.1.1 broker, or one of MQTT 5, for one client that does exactly what it
// is told: it keeps a session, sends again what was not acknowledged, in
// order, and remembers every acknowledgement.
type peer struct {
	t   *testing.T
	lis net.Listener
	wg  sync.WaitGroup

	v5       bool
	window   int  // messages in flight at most
	connack  byte // answer to CONNECT
	suback   func(filter string) byte
	forget   bool // no session is kept
	kickAt   int  // close connections after this many acknowledgements; 0: never
	greeting []byte
	// taken tells how many messages of QoS 0 the client has taken, so that none is
	// lost with a connection; nil: they are, as QoS 0 has it.
	taken func() int

	reason     string              // of CONNACK, MQTT 5
	properties packets5.Properties // of every PUBLISH, MQTT 5

	mu        sync.Mutex
	conn      net.Conn
	connects  []*packets.ConnectPacket
	filters   []string
	gone      []string
	queue     []*packets.PublishPacket // not sent yet
	inflight  []*packets.PublishPacket // sent, not acknowledged
	acked     []*packets.PublishPacket
	sent0     []*packets.PublishPacket // those of QoS 0
	pubrecs   map[uint16]bool
	nextID    uint16
	subscribe chan string
	connects5 []*packets5.Connect
	received  []*packets.PublishPacket // what the client published
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, lis: lis, window: 20, pubrecs: map[uint16]bool{}, subscribe: make(chan string, 10000),
		suback: func(string) byte { return 1 }}
	t.Cleanup(p.stop)
	return p
}

func (p *peer) start() *peer {
	p.wg.Go(func() {
		for {
			conn, err := p.lis.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(conn) })
		}
	})
	return p
}

func (p *peer) stop() {
	p.lis.Close()
	p.kick()
	p.wg.Wait()
}

func (p *peer) url() string { return "mqtt://" + p.lis.Addr().String() }

// kick closes the client's connection without a word.
func (p *peer) kick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

// publish queues a message of the given quality of service.
func (p *peer) publish(topic, payload string, qos byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pub := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	pub.TopicName, pub.Payload, pub.Qos = topic, []byte(payload), qos
	if qos > 0 {
		p.nextID++
		pub.MessageID = p.nextID
	}
	p.queue = append(p.queue, pub)
	p.pump()
}

// pump sends what the window allows. The caller holds mu.
func (p *peer) pump() {
	for p.conn != nil && len(p.queue) > 0 && (len(p.inflight) < p.window || p.queue[0].Qos == 0) {
		pub := p.queue[0]
		if pub.Qos > 0 {
			p.queue = p.queue[1:]
			p.inflight = append(p.inflight, pub)
		}
		if p.write(p.conn, pub) != nil {
			return
		}
		if pub.Qos == 0 {
			p.queue = p.queue[1:]
			p.sent0 = append(p.sent0, pub)
		}
	}
}

func (p *peer) serve(conn net.Conn) {
	defer conn.Close()
	for {
		packet, err := p.read(conn)
		if err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.conn == conn {
				p.conn = nil // what is published from now on waits for the next one
			}
			return
		}
		if !p.answer(conn, packet) {
			return
		}
	}
}

func (p *peer) answer(conn net.Conn, packet packets.ControlPacket) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, isConnect := packet.(*packets.ConnectPacket)
	if isConnect {
		return p.connect(conn, m)
	}
	if conn != p.conn {
		return false // its client has connected again
	}
	switch m := packet.(type) {
	case *packets.SubscribePacket:
		p.filters = append(p.filters, m.Topics...)
		ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
		ack.MessageID = m.MessageID
		for _, topic := range m.Topics {
			ack.ReturnCodes = append(ack.ReturnCodes, p.suback(topic))
		}
		for _, topic := range m.Topics {
			p.subscribe <- topic
		}
		return p.write(conn, ack) == nil
	case *packets.UnsubscribePacket:
		p.gone = append(p.gone, m.Topics...)
		ack := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
		ack.MessageID = m.MessageID
		return p.write(conn, ack) == nil
	case *packets.PubackPacket:
		p.settle(m.MessageID)
		return p.kickAt == 0 || len(p.acked)%p.kickAt != 0
	case *packets.PubrecPacket:
		p.pubrecs[m.MessageID] = true
		rel := packets.NewControlPacket(packets.Pubrel).(*packets.PubrelPacket)
		rel.MessageID = m.MessageID
		return p.write(conn, rel) == nil
	case *packets.PubcompPacket:
		p.settle(m.MessageID)
	case *packets.PublishPacket:
		p.received = append(p.received, m)
	case *packets.PingreqPacket:
		return p.write(conn, packets.NewControlPacket(packets.Pingresp)) == nil
	case *packets.DisconnectPacket:
		return false
	}
	return true
}

func (p *peer) connect(conn net.Conn, m *packets.ConnectPacket) bool {
	ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	ack.ReturnCode = p.connack
	resumed := len(p.connects) > 0 && !m.CleanSession && !p.forget
	ack.SessionPresent = resumed
	p.connects = append(p.connects, m)
	if p.write(conn, ack) != nil || p.connack != 0 {
		return false
	}
	if p.greeting != nil {
		conn.Write(p.greeting)
	}
	p.conn = conn
	if !resumed {
		p.inflight = nil
	}
	if p.taken != nil {
		n := p.taken()
		p.queue = slices.Concat(p.sent0[n:], p.queue)
		p.sent0 = p.sent0[:n]
	}
	for _, pub := range p.inflight {
		if p.pubrecs[pub.MessageID] {
			rel := packets.NewControlPacket(packets.Pubrel).(*packets.PubrelPacket)
			rel.MessageID = pub.MessageID
			p.write(conn, rel)
			continue
		}
		pub.Dup = true
		p.write(conn, pub)
	}
	p.pump()
	return true
}

func (p *peer) settle(id uint16) {
	at := slices.IndexFunc(p.inflight, func(pub *packets.PublishPacket) bool { return pub.MessageID == id })
	if at < 0 {
		p.t.Errorf("message id %d was acknowledged although it is not in flight", id)
		return
	}
	if at > 0 {
		p.t.Errorf("message id %d was acknowledged before %d, which came earlier", id, p.inflight[0].MessageID)
	}
	p.acked = append(p.acked, p.inflight[at])
	p.inflight = slices.Delete(p.inflight, at, at+1)
	p.pump()
}

// ackedPayloads returns the payloads of the acknowledged messages.
func (p *peer) ackedPayloads() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, pub := range p.acked {
		out = append(out, string(pub.Payload))
	}
	return out
}

func (p *peer) connectCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.connects)
}

// fill is a payload of n bytes.
func fill(n int) string { return strings.Repeat("x", n) }
