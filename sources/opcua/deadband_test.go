package opcua

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
)

// TestRefusedDeadband: items whose dead-band the server refuses come at every
// change, the status says so, and an item that is refused for another reason
// stays refused.
func TestRefusedDeadband(t *testing.T) {
	for _, code := range []ua.StatusCode{ua.StatusBadFilterNotAllowed, ua.StatusBadMonitoredItemFilterUnsupported,
		ua.StatusBadMonitoredItemFilterInvalid, ua.StatusBadDeadbandFilterInvalid} {
		t.Run(statusName(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeServer()
				f.values["ns=1;s=analog"], f.values["ns=1;s=text"], f.values["ns=1;s=locked"] = 1.0, "a", 2.0
				f.noFilter = map[string]ua.StatusCode{"ns=1;s=text": code}
				f.refuse["ns=1;s=locked"] = ua.StatusBadNotReadable
				f.maxItems = 1
				cfg := nodes("ns=1;s=analog", "ns=1;s=text", "ns=1;s=locked")
				cfg.Defaults.Deadband = &DeadbandConfig{Type: "percent", Value: 1}
				src, status := fakeSource(t, f, cfg, nil)
				p := &pipe{}
				// The source stops on purpose; what Run returns then is tested elsewhere.
				_ = play(t, src, p.emit, func() {
					time.Sleep(5 * time.Second)
					f.set("ns=1;s=text", "b")
					time.Sleep(5 * time.Second)
				})
				var texts []string
				for _, r := range p.all() {
					if r.Address == "ns=1;s=text" {
						texts = append(texts, r.Value.Text())
					}
				}
				if strings.Join(texts, "") != "ab" || !delivered(p, "ns=1;s=analog") {
					t.Errorf("texts %q", texts)
				}
				if s := status.Snapshot(); s.State != sources.Degraded || !strings.Contains(s.Detail, "1 of 3 items cannot be read: ns=1;s=locked (BadNotReadable)") {
					t.Errorf("%s: %s", s.State, s.Detail)
				}
				if cfg.Defaults.Deadband.Type != "percent" {
					t.Error("the configuration was changed")
				}
			})
		})
	}
}

func TestUndampedIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=a"] = true
		f.noFilter = map[string]ua.StatusCode{"ns=1;s=a": ua.StatusBadFilterNotAllowed}
		cfg := nodes("ns=1;s=a")
		cfg.Nodes[0].Deadband = &DeadbandConfig{Type: "absolute", Value: 1}
		src, status := fakeSource(t, f, cfg, nil)
		// The source stops on purpose; what Run returns then is tested elsewhere.
		_ = play(t, src, new(pipe).emit, func() { time.Sleep(5 * time.Second) })
		want := "1 of 1 items come at every change, their dead-band cannot be applied: ns=1;s=a"
		if s := status.Snapshot(); s.State != sources.Connected || s.Detail != want {
			t.Errorf("%s: %s", s.State, s.Detail)
		}
	})
}

func TestOutsideDeadband(t *testing.T) {
	for name, c := range map[string]struct {
		band      DeadbandConfig
		span      float64
		last, now abi.Value
		want      bool
	}{
		"none, same":         {DeadbandConfig{Type: "none"}, 0, abi.Int(1), abi.Int(1), false},
		"none, other":        {DeadbandConfig{Type: "none"}, 0, abi.Int(1), abi.Int(2), true},
		"absolute, on it":    {DeadbandConfig{"absolute", 5}, 0, abi.Float(10), abi.Float(15), false},
		"absolute, outside":  {DeadbandConfig{"absolute", 5}, 0, abi.Float(10), abi.Float(15.1), true},
		"absolute, text":     {DeadbandConfig{"absolute", 5}, 0, abi.String("a"), abi.String("b"), true},
		"percent, inside":    {DeadbandConfig{"percent", 10}, 200, abi.Float(100), abi.Float(119), false},
		"percent, outside":   {DeadbandConfig{"percent", 10}, 200, abi.Float(100), abi.Float(121), true},
		"percent, no range":  {DeadbandConfig{"percent", 10}, 0, abi.Float(100), abi.Float(100.1), true},
		"from a number away": {DeadbandConfig{"absolute", 5}, 0, abi.Float(1), abi.Value{}, true},
	} {
		it := &item{cfg: ItemConfig{Deadband: &c.band}, span: c.span, lastValue: c.last}
		if got := it.outsideDeadband(c.now); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
