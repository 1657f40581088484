package opcua

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestNewProcessTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		p := &pipe{}
		first, _ := fakeSource(t, f, nodes("ns=1;s=n"), p.point)
		_ = play(t, first, p.emit, func() {
			for i := range 5 {
				time.Sleep(time.Second)
				f.set("ns=1;s=n", uint32(i+1))
			}
			time.Sleep(time.Second)
		})
		f.set("ns=1;s=n", uint32(6)) // while nobody is there
		second, status := fakeSource(t, f, nodes("ns=1;s=n"), p.point)
		_ = play(t, second, p.emit, func() {
			time.Sleep(2 * time.Second)
			f.set("ns=1;s=n", uint32(7))
			time.Sleep(2 * time.Second)
		})
		seen := map[uint64]int{}
		for _, r := range p.all() {
			seen[r.Value.AsUint()]++
		}
		for n := range uint64(8) {
			if seen[n] == 0 {
				t.Errorf("%d was lost: %v", n, seen)
			}
		}
		if f.count("CreateSubscription") != 1 || f.count("Transfer") != 1 {
			t.Errorf("calls %v, want one subscription, transferred once", f.calls)
		}
		if g := status.Snapshot().Counters[metricGaps]; g != 0 {
			t.Errorf("%v gaps", g)
		}
	})
}

// TestResumePointOfRestartedServer: after a restart of the server the ids in
// the resume point may be somebody else's.
func TestResumePointOfRestartedServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		p := &pipe{}
		first, _ := fakeSource(t, f, nodes("ns=1;s=n"), p.point)
		_ = play(t, first, p.emit, func() { time.Sleep(3 * time.Second) })
		f.started = f.started.Add(time.Hour)
		second, status := fakeSource(t, f, nodes("ns=1;s=n"), p.point)
		_ = play(t, second, p.emit, func() { time.Sleep(3 * time.Second) })
		if f.count("Transfer") != 0 || f.count("CreateSubscription") != 2 {
			t.Errorf("calls %v, want no transfer and a second subscription", f.calls)
		}
		if g := status.Snapshot().Counters[metricGaps]; g != 1 {
			t.Errorf("%v gaps, want 1", g)
		}
	})
}

func TestTooLargeNotificationsShrink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.readable = 4
		cfg := Config{MaxNotificationsPerPublish: 20}
		for i := range 20 {
			id := fmt.Sprintf("ns=1;s=n%d", i)
			f.values[id] = uint32(i)
			cfg.Nodes = append(cfg.Nodes, NodeConfig{NodeID: id})
		}
		src, status := fakeSource(t, f, cfg, nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() { time.Sleep(10 * time.Second) })
		if n := len(p.all()); n != 20 {
			t.Errorf("%d records, want 20: %+v, %d modified", n, status.Snapshot(), f.count("ModifySubscription"))
		}
	})
}

// TestChangedConfiguration: what the old subscription still holds is delivered
// before a new one takes its place.
func TestChangedConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"], f.values["ns=1;s=m"] = uint32(0), uint32(100)
		p := &pipe{}
		first, _ := fakeSource(t, f, nodes("ns=1;s=n"), p.point)
		_ = play(t, first, p.emit, func() { time.Sleep(3 * time.Second) })
		// One notification was sent into the void while we were away.
		f.set("ns=1;s=n", uint32(1))
		f.mu.Lock()
		f.next()
		f.mu.Unlock()
		f.set("ns=1;s=n", uint32(2))
		second, status := fakeSource(t, f, nodes("ns=1;s=n", "ns=1;s=m"), p.point)
		_ = play(t, second, p.emit, func() { time.Sleep(3 * time.Second) })
		seen := map[uint64]int{}
		for _, r := range p.all() {
			seen[r.Value.AsUint()]++
		}
		if seen[1] != 1 || seen[2] == 0 || seen[100] == 0 || len(f.subs) != 1 {
			t.Errorf("values %v, %d subscriptions; want 1 once, 2 and 100, one subscription: %v", seen, len(f.subs), status.Snapshot())
		}
	})
}

func TestResumePointIsBounded(t *testing.T) {
	p := &resumePoint{Version: 1, Endpoint: "opc.tcp://h:4840", Config: "0123456789abcdef"}
	for i := range maxSubsInResume {
		p.Subs = append(p.Subs, resumeSub{ID: 1<<32 - 1, Seq: 1<<32 - 1 - uint32(i)})
	}
	for range maxFailedInResume {
		p.Failed = append(p.Failed, 1<<32-1)
	}
	if n := len(p.encode()); n > 64<<10 {
		t.Errorf("%d bytes, more than a batch may carry", n)
	}
	p.Failed = append(p.Failed, 1)
	if _, ok := decodeResume(p.encode(), p.Endpoint, time.Unix(0, 0), quiet); ok {
		t.Error("a point without all failed items is used")
	}
}
