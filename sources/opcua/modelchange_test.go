package opcua

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
)

const serverObject = "i=2253"

// plantServer has a folder with one variable; with offers it tells of changes.
func plantServer(offers bool) *fakeServer {
	f := newFakeServer()
	f.children = map[string][]string{}
	f.grow("ns=1;s=plant", "ns=1;s=first")
	if offers {
		f.values[serverObject] = true
	}
	return f
}

func below(folder string) Config {
	return Config{Nodes: []NodeConfig{{NodeID: folder, Recursive: true}}}
}

func delivered(p *pipe, address string) bool {
	return slices.ContainsFunc(p.all(), func(r abi.Record) bool { return r.Address == address })
}

func TestModelChangeBrowsesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := plantServer(true)
		src, status := fakeSource(t, f, below("ns=1;s=plant"), nil)
		p := &pipe{}
		// The source stops on purpose; what Run returns then is tested elsewhere.
		_ = play(t, src, p.emit, func() {
			time.Sleep(10 * time.Second)
			f.grow("ns=1;s=plant", "ns=1;s=late")
			time.Sleep(time.Minute)
			if n := f.count("Browse"); n != 1 || delivered(p, "ns=1;s=late") {
				t.Fatalf("browsed %d times before the event, want once", n)
			}
			f.raise(serverObject, idGeneralModelChangeEventType)
			time.Sleep(3 * time.Second)
			if !delivered(p, "ns=1;s=late") {
				t.Error("the new variable is not read after the event")
			}
			if s := status.Snapshot(); s.State != sources.Connected || s.Counters[metricItems] != 2 {
				t.Errorf("want 2 items and connected: %+v", s)
			}
		})
		if len(p.all()) != 2 {
			t.Errorf("%d records, want one of each variable and none of the event", len(p.all()))
		}
	})
}

func TestModelChangesAreDebounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := plantServer(true)
		src, _ := fakeSource(t, f, below("ns=1;s=plant"), nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			time.Sleep(10 * time.Second)
			for range 200 {
				f.raise(serverObject, idBaseModelChangeEventType)
				time.Sleep(100 * time.Millisecond)
			}
			f.grow("ns=1;s=plant", "ns=1;s=late")
			f.raise(serverObject, idBaseModelChangeEventType)
			time.Sleep(10 * time.Second)
		})
		// One at the start, at most five in 20 s, one for the last event.
		if n := f.count("Browse"); n < 4 || n > 7 {
			t.Errorf("browsed %d times in 30 s, want one in 5 s", n)
		}
		if !delivered(p, "ns=1;s=late") {
			t.Error("the last event of the storm was not followed")
		}
	})
}

// TestOtherEventsDoNotBrowse: a server that ignores the filter sends all events.
func TestOtherEventsDoNotBrowse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := plantServer(true)
		src, _ := fakeSource(t, f, below("ns=1;s=plant"), nil)
		_ = play(t, src, (&pipe{}).emit, func() {
			time.Sleep(10 * time.Second)
			f.raise(serverObject, idBaseEventType)
			time.Sleep(10 * time.Second)
		})
		if n := f.count("Browse"); n != 1 {
			t.Errorf("browsed %d times, want once", n)
		}
	})
}

// TestModelChangeRefused: a server that does not tell is no fault of the source.
func TestModelChangeRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := plantServer(false)
		src, status := fakeSource(t, f, below("ns=1;s=plant"), nil)
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			time.Sleep(3 * time.Minute)
			if s := status.Snapshot(); s.State != sources.Connected || s.Counters[metricItems] != 1 {
				t.Errorf("want 1 item and connected: %+v", s)
			}
		})
		if len(p.all()) != 1 {
			t.Errorf("%d records, want the first value only", len(p.all()))
		}
	})
}

func TestModelChangeItemOnlyForBrowses(t *testing.T) {
	cfg := below("ns=1;s=plant").withDefaults()
	for name, c := range map[string]struct {
		change func(*Config)
		want   bool
	}{
		"recursive":     {func(*Config) {}, true},
		"not recursive": {func(c *Config) { c.Nodes = []NodeConfig{{NodeID: "ns=1;s=n"}} }, false},
		"only polling":  {func(c *Config) { c.Mode = "poll" }, false},
	} {
		c2 := cfg
		c.change(&c2)
		if got := (&session{cfg: c2}).modelChangeItem() != nil; got != c.want {
			t.Errorf("%s: item made is %v, want %v", name, got, c.want)
		}
	}
	if tellsModelChange(nil) || tellsModelChange([]*ua.Variant{nil}) {
		t.Error("an event without a type is taken for a change")
	}
}
