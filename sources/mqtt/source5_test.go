package mqtt

import (
	"fmt"
	"slices"
	"testing"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

func newPeer5(t *testing.T) *peer {
	p := newPeer(t)
	p.v5 = true
	return p
}

func oneTopic5(topic string, qos int) Config {
	cfg := oneTopic(topic, qos)
	cfg.ProtocolVersion = version5
	return cfg
}

func TestProperties5BecomeAttributes(t *testing.T) {
	p := newPeer5(t)
	p.properties = packets5.Properties{ContentType: "application/json", User: []packets5.User{{Key: "line", Value: "7"}, {Key: "line", Value: "8"}}}
	p.start()
	s, st := newTestSource(t, p.url(), oneTopic5("a/temp", 1))
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	p.publish("a/temp", "21.5", 1)
	eventually(t, "a record", func() bool { return len(k.records()) == 1 })
	checkAttrs(t, k.records()[0], map[string]abi.Value{"industry": abi.String("mining"), "sensor_name": abi.String("temp"), "qos": abi.Int(1),
		"retain": abi.Bool(false), "content_type": abi.String("application/json"), "user.line": abi.String("8")})
}

func TestRefusals5(t *testing.T) {
	cases := []struct {
		code  byte
		state sources.State
		words []string
	}{
		{0x84, sources.Failed, []string{"unsupported protocol version", "mqtt.protocol_version"}},
		{0x85, sources.Failed, []string{"client identifier not valid", "mqtt.client_id"}},
		{0x86, sources.AuthFailed, []string{"bad user name or password", "mqtt.username", "mqtt.password"}},
		{0x87, sources.AuthFailed, []string{"not authorised", "ask the plant"}},
		{0x88, sources.Reconnecting, []string{"server unavailable"}},
		{0x97, sources.Reconnecting, []string{"quota exceeded"}},
		{0xfe, sources.Reconnecting, []string{"unknown reason", "(0xfe)"}},
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%#x", c.code), func(t *testing.T) {
			p := newPeer5(t)
			p.connack, p.reason = c.code, "ask the plant"
			p.start()
			s, st := newTestSource(t, p.url(), oneTopic5("a", 1))
			run(t, s, new(sink).emit)
			awaitState(t, st, c.state, append(c.words, p.url())...)
		})
	}
}

func TestOldBrokerIsNamed5(t *testing.T) {
	p := newPeer(t)
	p.connack = 1
	p.start()
	s, st := newTestSource(t, p.url(), oneTopic5("a", 1))
	run(t, s, new(sink).emit)
	awaitState(t, st, sources.Failed, "does not speak MQTT 5", "mqtt.protocol_version")
}

func TestSubackIsChecked5(t *testing.T) {
	p := newPeer5(t)
	p.suback = func(filter string) byte {
		if filter == "secret/#" {
			return 0x87
		}
		return 1
	}
	p.start()
	s, st := newTestSource(t, p.url(), Config{ProtocolVersion: version5, Topics: []TopicConfig{{Topic: "a", QoS: 1}, {Topic: "secret/#", QoS: 1}}})
	var k sink
	stop := run(t, s, k.emit)
	awaitState(t, st, sources.Degraded, "secret/# [not authorised (0x87)]", "access control list")
	p.publish("a", "1", 1)
	eventually(t, "the granted topic's record", func() bool { return len(k.records()) == 1 })
	stop()
	s, st = newTestSource(t, p.url(), oneTopic5("secret/#", 1))
	run(t, s, k.emit)
	awaitState(t, st, sources.AuthFailed, "secret/#", "every subscription")
}

func TestDisconnectReasons5(t *testing.T) {
	for code, want := range map[byte]struct {
		state sources.State
		words string
	}{
		0x8e: {sources.Reconnecting, "another client uses client id"},
		0x87: {sources.AuthFailed, "not authorised"},
		0x8b: {sources.Reconnecting, "server shutting down"},
	} {
		p := newPeer5(t)
		p.greeting = []byte{0xe0, 2, code, 0}
		p.start()
		s, st := newTestSource(t, p.url(), oneTopic5("a", 1))
		run(t, s, new(sink).emit)
		awaitState(t, st, want.state, want.words)
	}
}

func TestSession5OnTheWire(t *testing.T) {
	p := newPeer5(t).start()
	cfg := oneTopic5("a", 1)
	cfg.Username, cfg.Password = "u", "s3cret"
	s, st := newTestSource(t, p.url(), cfg)
	stop := run(t, s, new(sink).emit)
	awaitState(t, st, sources.Connected)
	stop()
	m := p.connect5(0)
	if m.CleanStart || m.Username != "u" || string(m.Password) != "s3cret" || m.ClientID != s.clientID || m.KeepAlive != 30 ||
		m.Properties.SessionExpiryInterval == nil || *m.Properties.SessionExpiryInterval != forever || *m.Properties.ReceiveMaximum != 1000 {
		t.Errorf("CONNECT: %v", m)
	}
	cfg.SessionExpirySeconds, cfg.ReceiveMaximum = 3600, 20
	s, st = newTestSource(t, p.url(), cfg)
	stop = run(t, s, new(sink).emit)
	awaitState(t, st, sources.Connected)
	stop()
	if m := p.connect5(1); *m.Properties.SessionExpiryInterval != 3600 || *m.Properties.ReceiveMaximum != 20 {
		t.Errorf("CONNECT: %v", m)
	}
	s, st = newTestSource(t, p.url(), oneTopic5("a", 0))
	stop = run(t, s, new(sink).emit)
	awaitState(t, st, sources.Connected)
	stop()
	if m := p.connect5(2); !m.CleanStart || m.Properties.SessionExpiryInterval != nil {
		t.Error("topics of QoS 0 only do not need a session")
	}
}

// TestNothingIsLostOverKicks5 breaks the connection every 37 acknowledgements.
func TestNothingIsLostOverKicks5(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		p := newPeer5(t)
		p.kickAt = 37
		p.start()
		s, _ := newTestSource(t, p.url(), oneTopic5("a", int(qos)))
		var k sink
		stop := run(t, s, k.emit)
		const n = 1000
		for i := range n {
			p.publish("a", fmt.Sprintf("m%04d", i), qos)
			if qos == 2 && i%100 == 99 {
				p.kick()
			}
		}
		eventually(t, "all acknowledged", func() bool { return len(p.ackedPayloads()) == n })
		stop()
		if first := slices.Compact(slices.Sorted(slices.Values(k.texts()))); len(first) != n {
			t.Errorf("qos %d: %d of %d messages arrived", qos, len(first), n)
		}
	}
}
