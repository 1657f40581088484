package mqtt

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/mqtt/sparkplug"
)

func varint(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func text(b []byte, num protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), v)
}

// spMetric is an Int32 metric; DATA leaves its name out when it is "".
func spMetric(name string, alias, v uint64) string {
	var b []byte
	if name != "" {
		b = varint(text(b, 1, name), 4, uint64(sparkplug.Int32))
	}
	return string(varint(varint(b, 2, alias), 10, v))
}

func spPayload(seq uint64, metrics ...string) string {
	b := varint(nil, 1, 1767225600123)
	for _, m := range metrics {
		b = text(b, 2, m)
	}
	return string(varint(b, 3, seq))
}

func sparkplugConfig() Config {
	cfg := oneTopic("spBv1.0/#", 1)
	cfg.Payload.Format = formatSparkplug
	return cfg
}

func TestSparkplugRecords(t *testing.T) {
	for _, version := range protocolVersions {
		t.Run(version, func(t *testing.T) {
			p := newPeer(t)
			p.v5 = version == version5
			p.start()
			cfg := sparkplugConfig()
			cfg.ProtocolVersion = version
			s, st := newTestSource(t, p.url(), cfg)
			var k sink
			run(t, s, k.emit)
			awaitState(t, st, sources.Connected)
			p.publish("spBv1.0/g/NCMD/n", "whatever", 1) // no record
			p.publish("spBv1.0/g/NBIRTH/n", spPayload(0, spMetric("a/b", 1, 0xffffffff)), 1)
			p.publish("spBv1.0/g/DBIRTH/n/d", spPayload(1, spMetric("c", 2, 6)), 1)
			p.publish("spBv1.0/g/DDATA/n/d", spPayload(2, spMetric("", 2, 7)), 1)
			p.publish("spBv1.0/g/NDATA/n", spPayload(9, spMetric("", 1, 5), spMetric("", 33, 5)), 1)
			p.publish("spBv1.0/g/NDEATH/n", "", 1)
			eventually(t, "all acknowledged", func() bool { return len(p.ackedPayloads()) == 6 })
			var got []string
			for _, r := range k.records() {
				got = append(got, fmt.Sprintf("%s %d %#x", r.Address, r.Value.AsInt(), r.Status))
			}
			want := []string{"g/n/a/b -1 0x0", "g/n/d/c 6 0x0", "g/n/d/c 7 0x0", "g/n/a/b 5 0x40000000", "spBv1.0/g/NDATA/n 0 0x80070000",
				"g/n/a/b 0 0x80310000", "g/n/d/c 0 0x80310000"}
			if !slices.Equal(got, want) {
				t.Fatalf("%q\nwant %q", got, want)
			}
			recs := k.records()
			checkAttrs(t, recs[2], map[string]abi.Value{"industry": abi.String("mining"), "sensor_name": abi.String("c"), "qos": abi.Int(1), "retain": abi.Bool(false),
				"sparkplug_group": abi.String("g"), "sparkplug_node": abi.String("n"), "sparkplug_device": abi.String("d"), "sparkplug_type": abi.String("Int32"),
				"timestamp_ms": abi.Int(1767225600123)})
			if recs[2].EventTime != 1767225600123_000 {
				t.Errorf("event time %d", recs[2].EventTime)
			}
			if v, _ := recs[3].Attr(abi.AttrReason); !strings.Contains(v.Text(), "sequence number 9 came where 3 was due") {
				t.Errorf("reason: %s", v.Text())
			}
			if v, _ := recs[6].Attr(abi.AttrStale); !v.AsBool() {
				t.Error("a death leaves the metric not stale")
			}
			eventually(t, "the command", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.received) > 0 })
			p.mu.Lock()
			defer p.mu.Unlock()
			command, err := sparkplug.Decode(p.received[0].Payload)
			if len(p.received) != 1 || p.received[0].TopicName != "spBv1.0/g/NCMD/n" || err != nil || command.Metrics[0].Name != "Node Control/Rebirth" {
				t.Errorf("%d commands, %+v, %v", len(p.received), command, err)
			}
		})
	}
}

func TestRebirthCanBeForbidden(t *testing.T) {
	p := newPeer(t).start()
	cfg := sparkplugConfig()
	no := false
	cfg.Payload.Rebirth = &no
	s, st := newTestSource(t, p.url(), cfg)
	var k sink
	stop := run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	p.publish("spBv1.0/g/NDATA/n", spPayload(9, spMetric("", 1, 5)), 1)
	eventually(t, "the record", func() bool { return len(k.records()) == 1 })
	stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.received) != 0 {
		t.Errorf("%d commands were published", len(p.received))
	}
}

// TestSparkplugIsDecodedOnce refuses batches: what comes of a death must not be
// lost because the death was read before.
func TestSparkplugIsDecodedOnce(t *testing.T) {
	p := newPeer(t).start()
	s, st := newTestSource(t, p.url(), sparkplugConfig())
	var mu sync.Mutex
	var got []string
	refused := 0
	k := sink{}
	k.hold = func(done func(error)) {
		mu.Lock()
		defer mu.Unlock()
		recs := k.records()
		if last := recs[len(recs)-1]; last.Status != 0 && refused < 2 {
			refused++
			done(errors.New("not now"))
			return
		}
		got = append(got, recs[len(recs)-1].Address)
		done(nil)
	}
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	p.publish("spBv1.0/g/NBIRTH/n", spPayload(0, spMetric("a", 1, 1)), 1)
	eventually(t, "the birth", func() bool { return len(p.ackedPayloads()) == 1 })
	p.publish("spBv1.0/g/NDEATH/n", "", 1)
	eventually(t, "the death", func() bool { return len(p.ackedPayloads()) == 2 })
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(got, []string{"g/n/a", "g/n/a"}) || refused != 2 {
		t.Errorf("%q after %d refusals", got, refused)
	}
}

// TestAliasesSurviveRestart makes a second source on the state of the first.
func TestAliasesSurviveRestart(t *testing.T) {
	p := newPeer(t).start()
	dir := t.TempDir()
	var k sink
	for i := range 2 {
		st := sources.NewStatus("m", "mqtt")
		s, err := New("m", p.url(), nil, sparkplugConfig(), Deps{Status: st, Logger: slog.New(slog.DiscardHandler), HostID: "h", StateDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s, k.emit)
		awaitState(t, st, sources.Connected)
		if i == 0 {
			p.publish("spBv1.0/g/NBIRTH/n", spPayload(0, spMetric("a", 1, 1)), 1)
		} else {
			p.publish("spBv1.0/g/NDATA/n", spPayload(1, spMetric("", 1, 2)), 1)
		}
		eventually(t, "the record", func() bool { return len(p.ackedPayloads()) == i+1 })
		stop()
	}
	r := k.records()[1]
	if r.Address != "g/n/a" || r.Value != abi.Int(2) || r.Status != sources.StatusUncertain {
		t.Errorf("%+v", r)
	}
}

func TestSparkplugConfig(t *testing.T) {
	cfg := sparkplugConfig()
	cfg.Topics = append(cfg.Topics, TopicConfig{Topic: "other/#"}, TopicConfig{Topic: "spBv1.0/+/NDATA/#", SharedGroup: "g"}, TopicConfig{Topic: "$share/g/spBv1.0/#"})
	var got []string
	for _, e := range cfg.Validate() {
		got = append(got, e.Path)
	}
	if want := []string{"topics[1].topic", "topics[2].shared_group", "topics[3].shared_group"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if w := oneTopic("spBv1.0/#", 1).Warnings("mqtt://h"); len(w) != 1 || !strings.Contains(w[0].Msg, "sparkplug_b") {
		t.Errorf("%v", w)
	}
}
