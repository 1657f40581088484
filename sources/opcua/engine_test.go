package opcua

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopcua/opcua/ua"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/sourcetest"
)

func nodes(ids ...string) Config {
	var c Config
	for _, id := range ids {
		c.Nodes = append(c.Nodes, NodeConfig{NodeID: id})
	}
	return c
}

func TestContract(t *testing.T) {
	sourcetest.Run(t, sourcetest.Harness{Spoils: true, New: func(t *testing.T) sourcetest.Rig {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		cfg := nodes("ns=1;s=n")
		cfg.PublishingIntervalMS = 100
		src, status := fakeSource(t, f, cfg, nil)
		return sourcetest.Rig{Source: src, Status: status,
			Publish: func(first, last int) {
				for n := first; n <= last; n++ {
					f.set("ns=1;s=n", uint32(n))
				}
			},
			Spoil: func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				delete(f.values, "ns=1;s=n")
				for _, s := range f.subs {
					for h := range s.items {
						s.queue = append(s.queue, &ua.MonitoredItemNotification{ClientHandle: h, Value: f.value("ns=1;s=n")})
					}
				}
				f.changed()
			},
			Number: func(r abi.Record) (int, bool) { n := int(r.Value.AsUint()); return n, n > 0 },
			Acked:  f.ackedNumbers,
		}
	}})
}

// ackedNumbers are the values in notifications that were acknowledged: those
// that were sent and are not kept.
func (f *fakeServer) ackedNumbers() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	held := map[int]bool{}
	top := 0
	for _, s := range f.subs {
		add := func(v *ua.MonitoredItemNotification) {
			if n, ok := v.Value.Value.Value().(uint32); ok {
				held[int(n)] = true
			}
		}
		for _, v := range s.queue {
			add(v)
		}
		for _, m := range s.kept {
			for _, v := range m.NotificationData[0].Value.(*ua.DataChangeNotification).MonitoredItems {
				add(v)
			}
		}
	}
	if n, ok := f.values["ns=1;s=n"].(uint32); ok {
		top = int(n)
	}
	var out []int
	for n := 1; n <= top; n++ {
		if !held[n] {
			out = append(out, n)
		}
	}
	return out
}

// play runs src in a bubble until f returns.
func play(t *testing.T, src *Source, emit sources.Emit, f func()) (err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- src.Run(ctx, emit) }()
	f()
	cancel()
	return <-ended
}

func TestHoleIsRepublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		f.hold[2] = true // kept by the server, but its response got lost
		src, status := fakeSource(t, f, nodes("ns=1;s=n"), nil)
		p := &pipe{}
		err := play(t, src, p.emit, func() {
			time.Sleep(time.Second)
			f.set("ns=1;s=n", uint32(1))
			time.Sleep(time.Second)
			f.set("ns=1;s=n", uint32(2))
			time.Sleep(5 * time.Second)
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Run: %v", err)
		}
		var got []uint64
		for _, r := range p.all() {
			got = append(got, r.Value.AsUint())
		}
		if fmt.Sprint(got) != "[0 1 2]" {
			t.Errorf("values %v, want 0 1 2 in order", got)
		}
		s := status.Snapshot()
		if s.Counters[metricRepublished] != 1 || s.Counters[metricGaps] != 0 {
			t.Errorf("counters %v, want one republished and no gap", s.Counters)
		}
	})
}

func TestKeepaliveRevealsLostLastMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		f.hold[2] = true
		src, _ := fakeSource(t, f, nodes("ns=1;s=n"), nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			time.Sleep(time.Second)
			f.set("ns=1;s=n", uint32(1)) // and nothing after it
			time.Sleep(30 * time.Second)
		})
		if n := len(p.all()); n != 2 {
			t.Errorf("%d records, want 2: the keep-alive told that one is missing", n)
		}
	})
}

func TestLostMessageIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		f.hold[2] = true
		src, status := fakeSource(t, f, nodes("ns=1;s=n"), nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			time.Sleep(time.Second)
			f.set("ns=1;s=n", uint32(1))
			synctest.Wait()
			f.mu.Lock()
			for _, s := range f.subs {
				delete(s.kept, 2)
			}
			f.mu.Unlock()
			f.set("ns=1;s=n", uint32(2))
			time.Sleep(5 * time.Second)
		})
		if g := status.Snapshot().Counters[metricGaps]; g != 1 {
			t.Errorf("%v gaps, want 1", g)
		}
	})
}

func TestSilentServerIsStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		src, status := fakeSource(t, f, nodes("ns=1;s=n"), nil)
		p := &pipe{}
		ended := make(chan error, 1)
		go func() { ended <- src.Run(t.Context(), p.emit) }()
		time.Sleep(5 * time.Second)
		if s := status.Snapshot(); s.State != sources.Connected {
			t.Errorf("state %s, want connected", s.State)
		}
		f.mu.Lock()
		f.mute = true
		f.mu.Unlock()
		start := time.Now()
		err := <-ended
		// 1.5 keep-alives of 10 s and 2 s.
		if took := time.Since(start); !errors.Is(err, errStalled) || took > 30*time.Second {
			t.Errorf("Run ended after %s with %v, want errStalled within 30 s", took, err)
		}
		if s := status.Snapshot(); s.State != sources.Stalled {
			t.Errorf("state %s, want stalled", s.State)
		}
	})
}

// TestItemWithoutDataIsNotConnected: keep-alives flow, but an item whose value
// changes on the server never delivers. The probe notices and creates it again.
func TestItemWithoutDataIsNotConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		f.values["ns=1;s=m"] = uint32(0)
		src, status := fakeSource(t, f, nodes("ns=1;s=n", "ns=1;s=m"), nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			time.Sleep(5 * time.Second)
			f.mu.Lock()
			for _, s := range f.subs {
				for h, n := range s.items {
					if n == "ns=1;s=n" {
						delete(s.items, h) // the server forgot it
					}
				}
			}
			f.mu.Unlock()
			for i := range 100 {
				f.set("ns=1;s=n", uint32(i+1))
				f.set("ns=1;s=m", uint32(i+1))
				time.Sleep(time.Second)
			}
			if s := status.Snapshot().State; s != sources.Degraded && s != sources.Connected {
				t.Errorf("state %s", s)
			}
			time.Sleep(30 * time.Second)
		})
		last := uint64(0)
		for _, r := range p.all() {
			if r.Address == "ns=1;s=n" {
				last = r.Value.AsUint()
			}
		}
		if last != 100 {
			t.Errorf("last value %d, want 100: the item was not created again", last)
		}
	})
}

func TestNothingReadableIsStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		src, status := fakeSource(t, f, nodes("ns=1;s=missing"), nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			time.Sleep(3 * time.Second)
			if s := status.Snapshot(); s.State != sources.Stalled || !strings.Contains(s.Detail, "BadNodeIdUnknown") {
				t.Errorf("%s %q, want stalled with the reason", s.State, s.Detail)
			}
			f.set("ns=1;s=missing", uint32(7)) // the node appears
			time.Sleep(70 * time.Second)
			if s := status.Snapshot(); s.State != sources.Connected {
				t.Errorf("%s %q, want connected after the retry", s.State, s.Detail)
			}
		})
		recs := p.all()
		if len(recs) != 2 || recs[0].Status != uint32(ua.StatusBadNodeIDUnknown) || recs[1].Value.AsUint() != 7 {
			t.Errorf("records %+v, want one Bad and then 7", recs)
		}
	})
}

func TestLimitsAreHalved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.maxItems, f.maxRead = 7, 3
		var ids []string
		for i := range 60 {
			id := fmt.Sprintf("ns=1;s=n%d", i)
			f.values[id] = uint32(i)
			ids = append(ids, id)
		}
		ids = append(ids, "ns=1;s=bad")
		src, status := fakeSource(t, f, nodes(ids...), nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			time.Sleep(5 * time.Second)
			if s := status.Snapshot(); s.State != sources.Degraded {
				t.Errorf("%s %q, want degraded: one of 61 is bad", s.State, s.Detail)
			}
		})
		if n := len(p.all()); n != 61 {
			t.Errorf("%d records, want 61", n)
		}
	})
}

func TestServerWithoutSubscriptionsIsPolled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.noSubs = true
		f.values["ns=1;s=n"] = uint32(0)
		src, status := fakeSource(t, f, nodes("ns=1;s=n"), nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			for i := range 5 {
				time.Sleep(2 * time.Second)
				f.set("ns=1;s=n", uint32(i+1))
			}
			time.Sleep(2 * time.Second)
			if s := status.Snapshot(); s.State != sources.Connected {
				t.Errorf("%s %q", s.State, s.Detail)
			}
		})
		if n := len(p.all()); n != 6 {
			t.Errorf("%d records, want 6", n)
		}
	})
}

func TestFullPipelineKeepsSubscriptionAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		src, _ := fakeSource(t, f, nodes("ns=1;s=n"), nil)
		p := &pipe{}
		release := make(chan struct{})
		emit := func(ctx context.Context, b sources.Batch, done func(error)) error {
			select {
			case <-release:
			case <-ctx.Done():
				return ctx.Err()
			}
			return p.emit(ctx, b, done)
		}
		err := play(t, src, emit, func() {
			time.Sleep(time.Second)
			for i := range 300 {
				f.set("ns=1;s=n", uint32(i+1))
				time.Sleep(time.Second)
			}
			if f.count("SetPublishingMode") < 5 {
				t.Errorf("%d calls kept the subscription alive in 300 s", f.count("SetPublishingMode"))
			}
			close(release)
			time.Sleep(30 * time.Second)
		})
		if n := len(p.all()); n != 301 {
			t.Errorf("%d records, want 301; Run: %v", n, err)
		}
	})
}

func TestSequenceNumbersWrap(t *testing.T) {
	if nextSeq(1<<32-1) != 1 || nextSeq(1) != 2 || !after(1, 1<<32-1) || after(5, 5) || after(4, 5) {
		t.Error("sequence numbers do not wrap as Part 4, 7.26 says")
	}
	s := &subscription{id: 1, available: []uint32{3, 4, 5}}
	if s.acks() != nil {
		t.Error("acknowledged before anything was durable")
	}
	s.durable.Store(4)
	if got := s.acks(); len(got) != 2 || got[1].SequenceNumber != 4 {
		t.Errorf("acks %v, want 3 and 4", got)
	}
	if s.acks() != nil {
		t.Error("acknowledged twice")
	}
}

func TestHeartbeatAndSkipFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=beat"], f.values["ns=1;s=skip"] = uint32(1), uint32(2)
		cfg := nodes("ns=1;s=beat", "ns=1;s=skip")
		cfg.Nodes[0].HeartbeatSeconds, cfg.Nodes[1].SkipFirst = new(10), new(true)
		src, _ := fakeSource(t, f, cfg, nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() { time.Sleep(35 * time.Second) })
		beats := 0
		for _, r := range p.all() {
			if r.Address == "ns=1;s=skip" {
				t.Errorf("first value delivered: %+v", r)
			}
			if v, ok := r.Attr(attrHeartbeat); ok && v.AsBool() {
				beats++
			}
		}
		if beats != 3 {
			t.Errorf("%d heartbeats in 35 s, want 3", beats)
		}
	})
}

// TestNoHeartbeatOfWhatIsBad: an item that the server refuses is bad, whatever its
// last value was.
func TestNoHeartbeatOfWhatIsBad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=beat"] = uint32(1)
		cfg := nodes("ns=1;s=beat")
		cfg.Nodes[0].HeartbeatSeconds = new(3)
		src, _ := fakeSource(t, f, cfg, nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			time.Sleep(10 * time.Second)
			f.mu.Lock()
			f.refuse["ns=1;s=beat"] = ua.StatusBadNodeIDUnknown
			clear(f.subs)
			f.mu.Unlock()
			f.cut()
			synctest.Wait()
		})
		_ = play(t, src, p.emit, func() { time.Sleep(50 * time.Second) })
		recs := p.all()
		if last := recs[len(recs)-1]; len(recs) < 4 || last.Status != uint32(ua.StatusBadNodeIDUnknown) {
			t.Errorf("%d records, the last %+v, want heartbeats and then one bad record", len(recs), last)
		}
	})
}

// TestNoHeartbeatBeforeNewerValues: what changed during an outage comes before the
// next heartbeat.
func TestNoHeartbeatBeforeNewerValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=beat"] = uint32(1)
		cfg := nodes("ns=1;s=beat")
		cfg.PublishingIntervalMS = 5000
		cfg.Nodes[0].HeartbeatSeconds = new(2)
		src, _ := fakeSource(t, f, cfg, nil)
		p := &pipe{}
		at := 0
		_ = play(t, src, p.emit, func() {
			time.Sleep(20500 * time.Millisecond)
			at = len(p.all())
			f.cut()
			f.mu.Lock()
			f.mute = true // its answer takes a while
			f.mu.Unlock()
			f.set("ns=1;s=beat", uint32(2))
			synctest.Wait()
		})
		_ = play(t, src, p.emit, func() {
			time.Sleep(6 * time.Second)
			f.mu.Lock()
			f.mute = false
			f.changed()
			f.mu.Unlock()
			time.Sleep(30 * time.Second)
		})
		recs := p.all()
		if at < 5 || len(recs) < at+5 {
			t.Fatalf("%d records before the outage and %d in all", at, len(recs))
		}
		for _, r := range recs[at:] {
			if r.Value.AsUint() != 2 {
				t.Errorf("%+v came after the outage, in which the value became 2", r)
			}
		}
	})
}

// TestUndecodableValue: one value that the library cannot decode costs its own
// notification, counted, and neither the connection nor the other values.
func TestUndecodableValue(t *testing.T) {
	for _, mode := range []string{"subscribe", "poll"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeServer()
				f.weird = map[string]bool{"ns=1;s=weird": true}
				cfg := nodes("ns=1;s=weird")
				cfg.Mode = mode
				f.values["ns=1;s=weird"] = uint32(0)
				for i := range 9 {
					id := fmt.Sprintf("ns=1;s=n%d", i)
					f.values[id] = uint32(i)
					cfg.Nodes = append(cfg.Nodes, NodeConfig{NodeID: id})
				}
				src, status := fakeSource(t, f, cfg, nil)
				p := &pipe{}
				err := play(t, src, p.emit, func() {
					for n := range 20 {
						time.Sleep(2 * time.Second)
						for i := range 9 {
							f.set(fmt.Sprintf("ns=1;s=n%d", i), uint32(100+n))
						}
					}
					time.Sleep(2 * time.Second)
				})
				good := 0
				for _, r := range p.all() {
					if r.Status == 0 {
						good++
					}
				}
				if !errors.Is(err, context.Canceled) || good < 9*20 {
					t.Errorf("%d good records, Run: %v; want 180 and no reconnect", good, err)
				}
				if g := status.Snapshot().Counters[metricGaps]; mode == "subscribe" && g != 1 {
					t.Errorf("%v gaps, want 1", g)
				}
			})
		})
	}
}

// TestBytesAreCounted: what came over a connection is counted once, also what
// came last.
func TestBytesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=a"] = 1.0
		src, status := fakeSource(t, f, nodes("ns=1;s=a"), nil)
		var total uint64
		inner := src.connect
		src.connect = func(ctx context.Context) (*link, error) {
			l, err := inner(ctx)
			l.arrived = func() uint64 { total += 100; return total }
			return l, err
		}
		// The source stops on purpose; what Run returns then is tested elsewhere.
		_ = play(t, src, new(pipe).emit, func() { time.Sleep(5 * time.Second) })
		if got := status.Snapshot().Bytes; got < 500 || got != total {
			t.Errorf("%d bytes, want %d", got, total)
		}
	})
}
