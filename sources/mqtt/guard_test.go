package mqtt

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// readerConn is a net.Conn that only reads.
type readerConn struct {
	net.Conn
	io.Reader
}

func (c readerConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

func publishBytes(t testing.TB, topic, payload string, qos byte) []byte {
	t.Helper()
	pub := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	pub.TopicName, pub.Payload, pub.Qos, pub.MessageID = topic, []byte(payload), qos, 7
	var out bytes.Buffer
	if err := pub.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestGuardPassesAndCuts(t *testing.T) {
	const limit = 100
	var wire []byte
	sizes := []int{0, 1, limit, limit + 1, 5000, 3, 300_000, limit}
	for i, size := range sizes {
		wire = append(wire, publishBytes(t, "a/b", fill(size), byte(i%3))...)
	}
	wire = append(wire, 0xd0, 0) // PINGRESP
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(wire), "byte by byte": iotest.OneByteReader(bytes.NewReader(wire))} {
		g := newGuard(readerConn{Reader: r}, limit)
		for i, size := range sizes {
			packet, err := packets.ReadPacket(g)
			if err != nil {
				t.Fatalf("%s: packet %d: %v", name, i, err)
			}
			pub := packet.(*packets.PublishPacket)
			if got := min(size, limit+1); len(pub.Payload) != got || pub.TopicName != "a/b" {
				t.Errorf("%s: packet %d has %d bytes, want %d", name, i, len(pub.Payload), got)
			}
			if size > limit && g.trueSize() != size {
				t.Errorf("%s: packet %d: its true size is lost", name, i)
			}
		}
		if packet, err := packets.ReadPacket(g); err != nil || packet.(*packets.PingrespPacket) == nil {
			t.Errorf("%s: after the last PUBLISH: %v, %v", name, packet, err)
		}
		if _, err := packets.ReadPacket(g); err != io.EOF || g.readErr() != io.EOF {
			t.Errorf("%s: at the end: %v, %v", name, err, g.readErr())
		}
	}
}

func TestGuardRefuses(t *testing.T) {
	for name, wire := range map[string][]byte{
		"SUBACK with two codes":       {0x90, 4, 0, 1, 0, 0},
		"CONNACK of three bytes":      {0x20, 3, 0, 0, 0},
		"a client's packet":           {0x10, 2, 0, 0},
		"reserved type":               {0xf0, 0},
		"PUBLISH of QoS 3":            {0x36, 5, 0, 1, 'a', 0, 1},
		"PUBLISH without topic":       {0x30, 0},
		"topic longer than PUBLISH":   {0x30, 4, 0xff, 0xff, 'a', 'b'},
		"no room for the packet id":   {0x32, 4, 0, 2, 'a', 'b'},
		"length of five bytes":        {0x30, 0xff, 0xff, 0xff, 0xff, 0x01},
		"PINGRESP with a body":        {0xd0, 1, 0},
		"an HTTP server":              []byte("HTTP/1.1 400 Bad Request\r\n"),
		"256 MiB that are no PUBLISH": {0x90, 0xff, 0xff, 0xff, 0x7f},
	} {
		g := newGuard(readerConn{Reader: bytes.NewReader(wire)}, 100)
		_, err := packets.ReadPacket(g)
		if err == nil || !strings.Contains(err.Error(), "malformed") {
			t.Errorf("%s: %v, want it called malformed", name, err)
		}
	}
}

// FuzzGuard: the library neither panics nor allocates beyond the limit on
// whatever a broker sends through the guard.
func FuzzGuard(f *testing.F) {
	f.Add(publishBytes(f, "a/b", fill(200), 1))
	f.Add([]byte{0x90, 3, 0, 1, 0x80, 0xd0, 0})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, 'a'})
	f.Fuzz(func(t *testing.T, wire []byte) {
		g := newGuard(readerConn{Reader: bytes.NewReader(wire)}, 100)
		for {
			packet, err := packets.ReadPacket(g)
			if err != nil {
				return
			}
			if pub, ok := packet.(*packets.PublishPacket); ok && len(pub.Payload) > 101 {
				t.Errorf("a payload of %d bytes came through", len(pub.Payload))
			}
			if ack, ok := packet.(*packets.SubackPacket); ok && len(ack.ReturnCodes) > 1 {
				t.Errorf("a SUBACK of %d codes came through", len(ack.ReturnCodes))
			}
		}
	})
}
