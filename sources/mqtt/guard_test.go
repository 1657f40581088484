package mqtt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/edgehost/edgehost/abi"
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

// publishBytes5 is a PUBLISH of MQTT 5 with these properties.
func publishBytes5(topic, payload string, qos byte, properties string) []byte {
	body := append([]byte{0, byte(len(topic))}, topic...)
	if qos > 0 {
		body = append(body, 0, 7)
	}
	body = binary.AppendUvarint(body, uint64(len(properties)))
	body = append(append(body, properties...), payload...)
	return append(binary.AppendUvarint([]byte{0x30 | qos<<1}, uint64(len(body))), body...)
}

func TestGuardTakesMessages(t *testing.T) {
	const limit = 100
	sizes := []int{0, 1, limit, limit + 1, 5000, 3, 300_000, limit}
	for _, v5 := range []bool{false, true} {
		var wire []byte
		for i, size := range sizes {
			if v5 {
				wire = append(wire, publishBytes5("a/b", fill(size), byte(i%3), "\x03\x00\x01t")...)
			} else {
				wire = append(wire, publishBytes(t, "a/b", fill(size), byte(i%3))...)
			}
		}
		wire = append(wire, 0xd0, 0) // PINGRESP
		for name, r := range map[string]io.Reader{"whole": bytes.NewReader(wire), "byte by byte": iotest.OneByteReader(bytes.NewReader(wire))} {
			var got []*message
			g := newGuard(readerConn{Reader: r}, v5, limit, func(m *message) { got = append(got, m) })
			if packet, err := packets.ReadPacket(g); err != nil || packet.(*packets.PingrespPacket) == nil {
				t.Errorf("%s: after the last PUBLISH: %v, %v", name, packet, err)
			}
			if len(got) != len(sizes) {
				t.Fatalf("%s: %d messages, want %d", name, len(got), len(sizes))
			}
			for i, size := range sizes {
				m := got[i]
				tooLarge, kept := 0, size
				if size > limit {
					tooLarge, kept = size, 0
				}
				if m.tooLarge != tooLarge || len(m.payload) != kept || m.topic != "a/b" || m.qos != byte(i%3) || (m.id == 7) != (m.qos > 0) || (len(m.attrs) > 0) != v5 {
					t.Errorf("%s: message %d of %d bytes: %+v", name, i, size, m)
				}
			}
			if _, err := packets.ReadPacket(g); !errors.Is(err, io.EOF) || !errors.Is(g.readErr(), io.EOF) {
				t.Errorf("%s: at the end: %v, %v", name, err, g.readErr())
			}
		}
	}
}

// pipeConn writes into a buffer, each write noted.
type pipeConn struct {
	readerConn
	writes [][]byte
}

func (c *pipeConn) Write(p []byte) (int, error) {
	c.writes = append(c.writes, bytes.Clone(p))
	return len(p), nil
}

func (c *pipeConn) SetWriteDeadline(time.Time) error { return nil }

func TestGuardAcksInOneWrite(t *testing.T) {
	conn := &pipeConn{readerConn: readerConn{Reader: bytes.NewReader([]byte{0x62, 2, 0, 9, 0xd0, 0})}}
	g := newGuard(conn, false, 100, nil)
	if _, err := packets.ReadPacket(g); err != nil {
		t.Fatal(err)
	}
	select {
	case <-g.queued:
	default:
		t.Error("PUBREL is not answered")
	}
	g.enqueue(publishPacket(false, "t", []byte("p")))
	if err := g.send([]*message{{qos: 1, id: 258}, {qos: 2, id: 3}}, time.Second); err != nil {
		t.Fatal(err)
	}
	want := []byte{0x70, 2, 0, 9, 0x30, 4, 0, 1, 't', 'p', 0x40, 2, 1, 2, 0x50, 2, 0, 3}
	if len(conn.writes) != 1 || !bytes.Equal(conn.writes[0], want) {
		t.Errorf("%x, want one write of %x", conn.writes, want)
	}
	if err := g.send(nil, time.Second); err != nil || len(conn.writes) != 1 {
		t.Errorf("nothing to write made a write: %v", err)
	}
}

func TestPropertyAttrs(t *testing.T) {
	all := "\x01\x01" + "\x02\x00\x00\x00\x09" + "\x03\x00\x02ct" + "\x08\x00\x01r" + "\x09\x00\x01\xff" + "\x0b\x80\x01" + "\x23\x00\x01" +
		"\x26\x00\x01k\x00\x01v" + "\x26\x00\x01k\x00\x01w" + "\x26\x00\x00\x00\x01\xff"
	attrs, err := propertyAttrs([]byte(all))
	want := []abi.Attr{{Key: "content_type", Value: abi.String("ct")}, {Key: "user.k", Value: abi.String("w")}, {Key: "user.", Value: abi.String("\uFFFD")}}
	if err != nil || !slices.Equal(attrs, want) {
		t.Errorf("%v, %v", attrs, err)
	}
	for _, torn := range []string{"\x01", "\x02\x00", "\x03\x00\x02c", "\x03\x00", "\x0b\x80", "\x0b\xff\xff\xff\xff\x01", "\x26\x00\x01k", "\x26\x00\x01k\x00\x02v", "\x77\x00"} {
		if attrs, err := propertyAttrs([]byte(torn)); err == nil {
			t.Errorf("%q is read as %v", torn, attrs)
		}
	}
	if attrs, err := propertyAttrs([]byte(strings.Repeat("\x26\x00\x01k\x00\x01v", 1000))); err != nil || len(attrs) != 1 {
		t.Errorf("%v, %v", attrs, err)
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
		"PUBLISH with an empty topic": {0x30, 3, 0, 0, 'a'},
		"topic longer than PUBLISH":   {0x30, 4, 0xff, 0xff, 'a', 'b'},
		"no room for the packet id":   {0x32, 4, 0, 2, 'a', 'b'},
		"length of five bytes":        {0x30, 0xff, 0xff, 0xff, 0xff, 0x01},
		"PINGRESP with a body":        {0xd0, 1, 0},
		"an HTTP server":              []byte("HTTP/1.1 400 Bad Request\r\n"),
		"256 MiB that are no PUBLISH": {0x90, 0xff, 0xff, 0xff, 0x7f},
	} {
		g := newGuard(readerConn{Reader: bytes.NewReader(wire)}, false, 100, func(*message) {})
		_, err := packets.ReadPacket(g)
		if err == nil || !strings.Contains(err.Error(), "malformed") {
			t.Errorf("%s: %v, want it called malformed", name, err)
		}
	}
	for name, wire := range map[string][]byte{
		"AUTH":                       {0xf0, 2, 0x18, 0},
		"PUBACK":                     {0x40, 2, 0, 1},
		"an alias for a topic":       {0x30, 6, 0, 0, 3, 0x23, 0, 1},
		"CONNACK of 3.1.1":           {0x20, 2, 0, 1},
		"SUBACK without properties":  {0x90, 3, 0, 1, 0},
		"properties longer than all": {0x30, 5, 0, 1, 'a', 2, 1},
		"properties that are none":   {0x30, 6, 0, 1, 'a', 2, 0x77, 1},
		"no properties":              {0x30, 3, 0, 1, 'a', 0xd0, 0},
	} {
		g := newGuard(readerConn{Reader: bytes.NewReader(wire)}, true, 100, func(*message) {})
		_, err := packets5.ReadPacket(g)
		if err == nil || !strings.Contains(err.Error(), "malformed") && !errors.Is(err, errOldBroker) {
			t.Errorf("%s: %v, want it called malformed", name, err)
		}
	}
}

// FuzzGuard: the libraries neither panic nor get more than they can bear,
// whatever a broker sends through the guard.
func FuzzGuard(f *testing.F) {
	f.Add(publishBytes(f, "a/b", fill(200), 1), false)
	f.Add([]byte{0x90, 3, 0, 1, 0x80, 0xd0, 0}, false)
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, 'a'}, false)
	f.Add(publishBytes5("a/b", fill(20), 1, "\x03\x00\x02ct\x26\x00\x01k\x00\x01v"), true)
	f.Add([]byte{0x20, 9, 0, 0x87, 6, 0x1f, 0, 3, 'a', 'b', 'c', 0x90, 4, 0, 1, 0, 0x87, 0xe0, 2, 0x8e, 0, 0xb0, 4, 0, 1, 0, 0}, true)
	f.Fuzz(func(t *testing.T, wire []byte, v5 bool) {
		g := newGuard(readerConn{Reader: bytes.NewReader(wire)}, v5, 100, func(m *message) {
			if len(m.payload) > 100 || len(m.attrs) > maxUser+1 {
				t.Errorf("a message of %d bytes with %d attributes came through", len(m.payload), len(m.attrs))
			}
		})
		for v5 {
			if _, err := packets5.ReadPacket(g); err != nil {
				return
			}
		}
		for {
			packet, err := packets.ReadPacket(g)
			if err != nil {
				return
			}
			if ack, ok := packet.(*packets.SubackPacket); ok && len(ack.ReturnCodes) > 1 {
				t.Errorf("a SUBACK of %d codes came through", len(ack.ReturnCodes))
			}
		}
	})
}
