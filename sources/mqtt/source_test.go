package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a pipeline that keeps what it gets. hold, when set, decides when and
// how a batch is settled.
type sink struct {
	mu   sync.Mutex
	recs []abi.Record
	hold func(done func(error))
}

func (k *sink) emit(_ context.Context, b sources.Batch, done func(error)) error {
	k.mu.Lock()
	k.recs = append(k.recs, b.Records...)
	k.mu.Unlock()
	if k.hold != nil {
		k.hold(done)
		return nil
	}
	done(nil)
	return nil
}

// after takes nothing before release is closed.
func (k *sink) after(release <-chan struct{}) sources.Emit {
	return func(ctx context.Context, b sources.Batch, done func(error)) error {
		select {
		case <-release:
			return k.emit(ctx, b, done)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (k *sink) records() []abi.Record {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.recs)
}

func (k *sink) texts() []string {
	var out []string
	for _, r := range k.records() {
		out = append(out, r.Value.Text())
	}
	return out
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("waited 60 s for: %s", what)
		case <-tick.C:
		}
	}
}

// run supervises s until the test ends, or until the returned function is
// called.
func run(t *testing.T, s *Source, emit sources.Emit) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		sources.Supervise(ctx, s, emit, s.status, sources.ReconnectConfig{InitialDelaySeconds: 0.01, MaxDelaySeconds: 0.02}, slog.New(slog.DiscardHandler))
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

func awaitState(t *testing.T, st *sources.Status, want sources.State, words ...string) sources.Snapshot {
	t.Helper()
	var got sources.Snapshot
	defer func() {
		if t.Failed() {
			t.Logf("the last state was %s: %s", got.State, got.Detail)
		}
	}()
	eventually(t, fmt.Sprintf("state %s with %q", want, words), func() bool {
		got = st.Snapshot()
		return got.State == want && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(got.Detail, w) })
	})
	return got
}

func oneTopic(topic string, qos int) Config {
	return Config{Topics: []TopicConfig{{Topic: topic, QoS: qos}}}
}

func TestRecordsAreComplete(t *testing.T) {
	p := newPeer(t).start()
	cfg := Config{Topics: []TopicConfig{{Topic: "plant/#", QoS: 1, TopicTemplate: "plant/{line}/{sensor_name}", Tags: map[string]string{"plc_name": "P1"}}}}
	s, st := newTestSource(t, p.url(), cfg)
	at := time.UnixMicro(1_800_000_000_123_456)
	s.now = func() time.Time { return at }
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	p.publish("plant/7/temp", `{"value": 21.5, "ts": 1767225600123, "unit": "C"}`, 1)
	p.publish("plant/odd", "\xff\x01", 0)
	eventually(t, "two records", func() bool { return len(k.records()) == 2 })
	r := k.records()[0]
	if r.Source != "m" || r.Address != "plant/7/temp" || r.Protocol != abi.ProtocolMQTT || r.Status != 0 ||
		r.EventTime != 1767225600_123000 || r.IngestTime != at.UnixMicro() || r.Value != abi.Float(21.5) {
		t.Errorf("%+v", r)
	}
	checkAttrs(t, r, map[string]abi.Value{
		"industry": abi.String("mining"), "plc_name": abi.String("P1"), "line": abi.String("7"), "sensor_name": abi.String("temp"),
		"unit": abi.String("C"), "qos": abi.Int(1), "retain": abi.Bool(false), "timestamp_ms": abi.Int(1767225600123),
	})
	r = k.records()[1]
	if r.EventTime != at.UnixMicro() || r.Value != abi.Bytes([]byte("\xff\x01")) {
		t.Errorf("%+v", r)
	}
	checkAttrs(t, r, map[string]abi.Value{
		"industry": abi.String("mining"), "plc_name": abi.String("P1"), "sensor_name": abi.String("odd"),
		"qos": abi.Int(0), "retain": abi.Bool(false), "raw": abi.Bytes([]byte("\xff\x01")),
	})
	if snap := st.Snapshot(); snap.Records != 2 || snap.Bytes == 0 || snap.Counters[metricMessages] != 2 {
		t.Errorf("%+v", snap)
	}
}

// TestTopicsAreBounded: a publisher that invents topics, short and long, valid
// and not, fills no memory.
func TestTopicsAreBounded(t *testing.T) {
	s, _ := newTestSource(t, "mqtt://127.0.0.1:1", oneTopic("#", 0))
	g := newGuard(nil, false, 1, nil)
	for i := range 100_000 {
		for _, topic := range []string{fmt.Sprintf("t/%d", i), fmt.Sprintf("t/\xff%d", i), fmt.Sprintf("%s/%d", fill(topicCacheLength), i)} {
			if i >= 1000 && len(topic) > topicCacheLength {
				continue
			}
			name := g.intern([]byte(topic))
			if want := strings.ToValidUTF8(topic, "\uFFFD"); name != want {
				t.Fatalf("topic %q became %q", topic, name)
			}
			if recs, ok := s.mapper.records(&message{topic: name, payload: []byte("1")}); !ok || len(recs) != 1 || recs[0].Address != name {
				t.Fatalf("topic %q became %+v", topic, recs)
			}
		}
		if len(g.topics) > topicCacheSize || len(s.mapper.cache) > topicCacheSize {
			t.Fatalf("%d and %d topics are remembered", len(g.topics), len(s.mapper.cache))
		}
	}
	for topic := range g.topics {
		if len(topic) > topicCacheLength {
			t.Fatalf("a topic of %d bytes is remembered", len(topic))
		}
	}
}

func checkAttrs(t *testing.T, r abi.Record, want map[string]abi.Value) {
	t.Helper()
	for key, v := range want {
		if got, ok := r.Attr(key); !ok || got != v {
			t.Errorf("%s: attribute %s is %v (%v), want %v", r.Address, key, got, ok, v)
		}
	}
	if len(r.Attrs) != len(want) {
		t.Errorf("%s: %d attributes, want %d: %v", r.Address, len(r.Attrs), len(want), r.Attrs)
	}
}

func TestUnreadablePayloadsBecomeBadRecords(t *testing.T) {
	p := newPeer(t).start()
	cfg := oneTopic("n", 1)
	cfg.Payload.Format, cfg.MaxPayloadBytes = "number", 100
	s, st := newTestSource(t, p.url(), cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	for _, payload := range []string{"warm", fill(5000), "1"} {
		p.publish("n", payload, 1)
	}
	eventually(t, "all acknowledged", func() bool { return len(p.ackedPayloads()) == 3 })
	recs := k.records()
	if len(recs) != 3 {
		t.Fatalf("%d records, want 3", len(recs))
	}
	for i, want := range []map[string]abi.Value{
		{"reason": abi.String("payload is not a number: invalid syntax"), "raw": abi.Bytes([]byte("warm")), "quality": abi.String("Bad"), "status": abi.String("BadDecodingError")},
		{"reason": abi.String("payload too large (5000 bytes)"), "quality": abi.String("Bad"), "status": abi.String("BadEncodingLimitsExceeded")},
	} {
		want["industry"], want["sensor_name"], want["qos"], want["retain"] = abi.String("mining"), abi.String("n"), abi.Int(1), abi.Bool(false)
		checkAttrs(t, recs[i], want)
		if recs[i].Status>>30 != 2 || !recs[i].Value.IsNone() {
			t.Errorf("record %d has status %#x and value %v", i, recs[i].Status, recs[i].Value)
		}
	}
	if recs[2].Value != abi.Int(1) || recs[2].Status != 0 {
		t.Errorf("the message after the bad ones: %+v", recs[2])
	}
	if snap := st.Snapshot(); snap.Failed["decode_error"] != 1 || snap.Failed["too_large"] != 1 {
		t.Errorf("failures: %v", snap.Failed)
	}
}

func TestRefusals(t *testing.T) {
	cases := []struct {
		code  byte
		state sources.State
		words []string
	}{
		{1, sources.Failed, []string{"MQTT 3.1.1"}},
		{2, sources.Failed, []string{"client id", "mqtt.client_id"}},
		{3, sources.Reconnecting, []string{"unavailable"}},
		{4, sources.AuthFailed, []string{"mqtt.username", "mqtt.password"}},
		{5, sources.AuthFailed, []string{"authorise", "mqtt.username"}},
	}
	for _, c := range cases {
		t.Run(fmt.Sprint(c.code), func(t *testing.T) {
			p := newPeer(t)
			p.connack = c.code
			p.start()
			s, st := newTestSource(t, p.url(), oneTopic("a", 1))
			stop := run(t, s, new(sink).emit)
			awaitState(t, st, c.state, append(c.words, p.url())...)
			stop()
			for _, m := range p.connects {
				if m.ProtocolVersion != 4 {
					t.Errorf("tried with protocol version %d", m.ProtocolVersion)
				}
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	lis.Close()
	s, st := newTestSource(t, "mqtt://"+addr, oneTopic("a", 1))
	run(t, s, new(sink).emit)
	awaitState(t, st, sources.Reconnecting, "mqtt://"+addr, "connection refused", "endpoint", "firewall", "host networking")
}

// TestNoWebsocketIsNamed: a broker without WebSocket, and a web server without MQTT.
func TestNoWebsocketIsNamed(t *testing.T) {
	p := newPeer(t).start()
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	for _, addr := range []string{p.lis.Addr().String(), web.Listener.Addr().String()} {
		s, st := newTestSource(t, "ws://"+addr, oneTopic("a", 1))
		stop := run(t, s, new(sink).emit)
		awaitState(t, st, sources.Reconnecting, "no WebSocket there", "/mqtt")
		stop()
	}
}

func TestSubackIsChecked(t *testing.T) {
	p := newPeer(t)
	p.suback = func(filter string) byte {
		if filter == "secret/#" {
			return 0x80
		}
		return 1
	}
	p.start()
	s, st := newTestSource(t, p.url(), Config{Topics: []TopicConfig{{Topic: "a", QoS: 1}, {Topic: "secret/#", QoS: 1}}})
	var k sink
	stop := run(t, s, k.emit)
	awaitState(t, st, sources.Degraded, "secret/#", "access control list")
	p.publish("a", "1", 1)
	eventually(t, "the granted topic's record", func() bool { return len(k.records()) == 1 })
	stop()

	s, st = newTestSource(t, p.url(), oneTopic("secret/#", 1))
	run(t, s, k.emit)
	awaitState(t, st, sources.AuthFailed, "secret/#", "every subscription")
}

// TestLowerQoSIsTold: a broker that grants QoS 0 only keeps nothing for us; one
// that grants 1 in place of 2 does.
func TestLowerQoSIsTold(t *testing.T) {
	for _, version := range protocolVersions {
		p := newPeer(t)
		p.v5 = version == version5
		p.suback = func(filter string) byte { return filter[0] - '0' }
		p.start()
		cfg := Config{ProtocolVersion: version, Topics: []TopicConfig{{Topic: "0/a", QoS: 1}, {Topic: "1/b", QoS: 2}, {Topic: "0/c", QoS: 0}}}
		s, st := newTestSource(t, p.url(), cfg)
		stop := run(t, s, new(sink).emit)
		awaitState(t, st, sources.Degraded, "grants only QoS 0 to 0/a:", "lost")
		stop()
		cfg.Topics = cfg.Topics[1:]
		s, st = newTestSource(t, p.url(), cfg)
		run(t, s, new(sink).emit)
		awaitState(t, st, sources.Connected)
	}
}

// TestLostSessionIsTold: a broker that forgot us has lost what it kept for us,
// within the life of a source and over a restart of it.
func TestLostSessionIsTold(t *testing.T) {
	p := newPeer(t).start()
	dir := t.TempDir()
	started := func() (*sources.Status, func()) {
		st := sources.NewStatus("m", "mqtt")
		s, err := New("m", p.url(), nil, oneTopic("a", 1), Deps{Status: st, Logger: slog.New(slog.DiscardHandler), HostID: "h", StateDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s, new(sink).emit)
		awaitState(t, st, sources.Connected)
		return st, stop
	}
	lost := func(st *sources.Status) float64 { return st.Snapshot().Counters[metricSessionsLost] }
	forget := func(yes bool) { p.mu.Lock(); defer p.mu.Unlock(); p.forget = yes }
	st, stop := started()
	for i, forgets := range []bool{false, true} {
		forget(forgets)
		p.kick()
		eventually(t, "the next connection", func() bool { return p.connectCount() == i+2 })
		awaitState(t, st, sources.Connected)
		if want := float64(i); lost(st) != want {
			t.Errorf("%v sessions lost after connection %d, want %v", lost(st), i+2, want)
		}
	}
	stop()
	st, stop = started()
	if lost(st) != 1 {
		t.Errorf("%v sessions lost over a restart, want 1", lost(st))
	}
	stop()
	forget(false)
	if st, _ = started(); lost(st) != 0 {
		t.Errorf("%v sessions lost that the broker kept", lost(st))
	}
}

func TestSilenceIsReported(t *testing.T) {
	p := newPeer(t).start()
	cfg := Config{StaleAfterSeconds: 0.5, Topics: []TopicConfig{{Topic: "a"}, {Topic: "b"}}}
	s, st := newTestSource(t, p.url(), cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Stalled, "a, b", "granted")
	// The watch looks once a second: publish until it has seen a alone alive.
	eventually(t, "degraded, b silent", func() bool {
		p.publish("a", "1", 0)
		snap := st.Snapshot()
		return snap.State == sources.Degraded && strings.Contains(snap.Detail, "on b although")
	})
	eventually(t, "connected", func() bool {
		p.publish("a", "1", 0)
		p.publish("b", "1", 0)
		return st.Snapshot().State == sources.Connected
	})
}

func TestTakeOverIsNamed(t *testing.T) {
	p := newPeer(t).start()
	s, st := newTestSource(t, p.url(), oneTopic("a", 1))
	stop := run(t, s, new(sink).emit)
	eventually(t, "the words after some losses", func() bool {
		snap := st.Snapshot()
		if snap.State == sources.Connected {
			p.kick()
		}
		return strings.Contains(snap.Detail, "another client probably uses client id") && strings.Contains(snap.Detail, s.clientID)
	})
	if n := p.connectCount(); n < 3 {
		t.Errorf("a take-over is suspected after %d connections, want 3", n)
	}
	// A broker that goes away is something else.
	p.lis.Close()
	p.kick()
	awaitState(t, st, sources.Reconnecting, "connection refused")
	stop()
	if s.flaps != 0 {
		t.Errorf("%d losses count although the broker was away", s.flaps)
	}
}

func TestSessionAndCredentialsOnTheWire(t *testing.T) {
	p := newPeer(t).start()
	cfg := Config{Username: "u", Password: "s3cret", Topics: []TopicConfig{{Topic: "a", QoS: 1}, {Topic: "a", QoS: 1, SharedGroup: "g"}, {Topic: "$share/h/b"}}}
	s, st := newTestSource(t, p.url(), cfg)
	stop := run(t, s, new(sink).emit)
	awaitState(t, st, sources.Connected)
	stop()
	m := p.connects[0]
	if m.CleanSession || m.Username != "u" || string(m.Password) != "s3cret" || m.ClientIdentifier != s.clientID || m.Keepalive != 30 {
		t.Errorf("CONNECT: %v", m)
	}
	if want := []string{"a", "$share/g/a", "$share/h/b"}; !slices.Equal(p.filters, want) {
		t.Errorf("SUBSCRIBE %q, want %q", p.filters, want)
	}

	s, st = newTestSource(t, p.url(), oneTopic("a", 0))
	stop = run(t, s, new(sink).emit)
	awaitState(t, st, sources.Connected)
	stop()
	if !p.connects[1].CleanSession {
		t.Error("topics of QoS 0 only do not need a session")
	}
}

func TestOldSubscriptionsLeaveTheSession(t *testing.T) {
	p := newPeer(t).start()
	dir := t.TempDir()
	for _, topics := range [][]string{{"a", "b"}, {"b", "c"}} {
		cfg := Config{}
		for _, topic := range topics {
			cfg.Topics = append(cfg.Topics, TopicConfig{Topic: topic, QoS: 1})
		}
		st := sources.NewStatus("m", "mqtt")
		s, err := New("m", p.url(), nil, cfg, Deps{Status: st, Logger: slog.New(slog.DiscardHandler), HostID: "h", StateDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s, new(sink).emit)
		awaitState(t, st, sources.Connected)
		stop()
	}
	if !slices.Equal(p.gone, []string{"a"}) {
		t.Errorf("unsubscribed from %q, want a alone", p.gone)
	}
}

func TestMalformedBrokerEndsTheConnectionOnly(t *testing.T) {
	p := newPeer(t)
	p.greeting = []byte{0x90, 4, 0, 1, 0, 0} // SUBACK with two codes for a subscription of one
	p.start()
	s, st := newTestSource(t, p.url(), oneTopic("a", 1))
	run(t, s, new(sink).emit)
	awaitState(t, st, sources.Reconnecting, "malformed packet")
}

func TestPipelineErrorIsTheReason(t *testing.T) {
	p := newPeer(t).start()
	s, st := newTestSource(t, p.url(), oneTopic("a", 1))
	k := sink{hold: func(done func(error)) { done(errors.New("disk is full")) }}
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	p.publish("a", "1", 1)
	eventually(t, "the reason", func() bool { return strings.Contains(st.Snapshot().Detail, "disk is full") })
	if acked := p.ackedPayloads(); len(acked) > 0 {
		t.Errorf("acknowledged: %q", acked)
	}
}
