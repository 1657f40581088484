package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("waited 20 s for: %s", what)
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
	var k sink
	run(t, s, k.emit)
	for range 3 {
		<-p.subscribe
		awaitState(t, st, sources.Connected)
		p.kick()
		eventually(t, "the loss", func() bool { return st.Snapshot().State != sources.Connected })
	}
	eventually(t, "a fourth loss or its words", func() bool {
		snap := st.Snapshot()
		if snap.State == sources.Connected {
			p.kick()
		}
		return strings.Contains(snap.Detail, "another client probably uses client id") && strings.Contains(snap.Detail, s.clientID)
	})
}

// TestNothingIsLostOverKicks breaks the connection every 37 acknowledgements.
func TestNothingIsLostOverKicks(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		t.Run(fmt.Sprintf("qos %d", qos), func(t *testing.T) {
			p := newPeer(t)
			p.kickAt = 37
			p.start()
			s, st := newTestSource(t, p.url(), oneTopic("a", int(qos)))
			var k sink
			run(t, s, k.emit)
			const n = 1000
			for i := range n {
				p.publish("a", fmt.Sprintf("m%04d", i), qos)
				if qos == 2 && i%100 == 99 {
					p.kick()
				}
			}
			eventually(t, "all acknowledged", func() bool { return len(p.ackedPayloads()) == n })
			got := k.texts()
			first := slices.Compact(slices.Sorted(slices.Values(got)))
			if len(first) != n {
				t.Errorf("%d of %d messages arrived", len(first), n)
			}
			redelivered := int(st.Snapshot().Counters[metricRedelivered])
			if len(got)-n > redelivered {
				t.Errorf("%d records more than messages, but only %d redeliveries counted", len(got)-n, redelivered)
			}
			t.Logf("%d records of %d messages over %d connections, %d redelivered", len(got), n, p.connectCount(), redelivered)
		})
	}
}

// TestFullBufferDisconnectsAndResumes blocks the pipeline until a persistent
// session overflows: it goes away without losing anything and comes back.
func TestFullBufferDisconnectsAndResumes(t *testing.T) {
	p := newPeer(t)
	p.window = 1000
	p.start()
	cfg := oneTopic("a", 1)
	cfg.BufferMaxMessages = 100
	s, st := newTestSource(t, p.url(), cfg)
	release := make(chan struct{})
	var k sink
	emit := func(ctx context.Context, b sources.Batch, done func(error)) error {
		select {
		case <-release:
			return k.emit(ctx, b, done)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	run(t, s, emit)
	awaitState(t, st, sources.Connected)
	const n = 500
	for i := range n {
		p.publish("a", fmt.Sprintf("m%04d", i), 1)
	}
	awaitState(t, st, sources.Degraded, "half of the buffer")
	if held, _ := s.buf.counts(); held > 100 {
		t.Errorf("%d messages held, the bound is 100", held)
	}
	if acked := p.ackedPayloads(); len(acked) > 0 {
		t.Errorf("%d acknowledged while the pipeline took nothing", len(acked))
	}
	close(release)
	eventually(t, "all acknowledged", func() bool { return len(p.ackedPayloads()) == n })
	awaitState(t, st, sources.Connected)
	if got := slices.Compact(slices.Sorted(slices.Values(k.texts()))); len(got) != n {
		t.Errorf("%d of %d messages arrived", len(got), n)
	}
	if failed := st.Snapshot().Failed; len(failed) > 0 {
		t.Errorf("failures of a persistent session: %v", failed)
	}
}

// TestFullBufferDropsQoS0 does the same without a session: what does not fit
// is gone and counted, and the connection stays.
func TestFullBufferDropsQoS0(t *testing.T) {
	p := newPeer(t).start()
	cfg := oneTopic("a", 0)
	cfg.BufferMaxMessages = 100
	s, st := newTestSource(t, p.url(), cfg)
	release := make(chan struct{})
	var k sink
	emit := func(ctx context.Context, b sources.Batch, done func(error)) error {
		select {
		case <-release:
			return k.emit(ctx, b, done)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	run(t, s, emit)
	awaitState(t, st, sources.Connected)
	const n = 500
	for i := range n {
		p.publish("a", fmt.Sprintf("m%04d", i), 0)
	}
	eventually(t, "400 drops", func() bool { return st.Snapshot().Failed[reasonBufferFull] == n-100 })
	close(release)
	eventually(t, "the other records", func() bool { return len(k.records()) == 100 })
	p.publish("a", "after", 0)
	eventually(t, "the next record", func() bool { return len(k.records()) == 101 })
	if p.connectCount() != 1 {
		t.Errorf("%d connections, want 1", p.connectCount())
	}
}

// TestCleanStopWaitsForAcks ends a source whose batch is still on its way to
// the disk: the broker hears of it before we go.
func TestCleanStopWaitsForAcks(t *testing.T) {
	p := newPeer(t).start()
	s, st := newTestSource(t, p.url(), oneTopic("a", 1))
	pending := make(chan func(error), 1)
	k := sink{hold: func(done func(error)) { pending <- done }}
	stop := run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	p.publish("a", "1", 1)
	done := <-pending
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	eventually(t, "the source to end", func() bool { return s.buf.inPipeline() == 1 })
	done(nil)
	<-stopped
	eventually(t, "the acknowledgement", func() bool { return len(p.ackedPayloads()) == 1 })
}

func TestFailOver(t *testing.T) {
	p := newPeer(t).start()
	cfg := oneTopic("a", 1)
	cfg.Endpoints = []string{p.url()}
	s, st := newTestSource(t, "mqtt://127.0.0.1:1", cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	p.publish("a", "1", 1)
	eventually(t, "a record by the second endpoint", func() bool { return len(k.records()) == 1 })

	cfg.Endpoints = []string{"mqtt://127.0.0.1:2"}
	s, st = newTestSource(t, "mqtt://127.0.0.1:1", cfg)
	run(t, s, k.emit)
	awaitState(t, st, sources.Reconnecting, "mqtt://127.0.0.1:1", "mqtt://127.0.0.1:2")
}

// TestSilentEndpointGoesLast: an endpoint that takes the connection and says
// nothing costs its time-out once, and not each time that the other is lost.
func TestSilentEndpointGoesLast(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p := newPeer(t).start()
	cfg := oneTopic("a", 1)
	cfg.ConnectTimeoutSeconds = 1
	alone, st := newTestSource(t, "mqtt://"+silent.Addr().String(), cfg)
	stop := run(t, alone, new(sink).emit)
	awaitState(t, st, sources.Reconnecting, "nothing answers")
	stop()
	cfg.Endpoints = []string{p.url()}
	s, st := newTestSource(t, "mqtt://"+silent.Addr().String(), cfg)
	run(t, s, new(sink).emit)
	awaitState(t, st, sources.Connected)
	for n := 2; n <= 5; n++ {
		lost := time.Now()
		p.kick()
		eventually(t, "the next connection", func() bool { return p.connectCount() == n })
		if took := time.Since(lost); took > 900*time.Millisecond {
			t.Errorf("connection %d took %v: the silent endpoint was tried first", n, took)
		}
		awaitState(t, st, sources.Connected)
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
