package opcua

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopcua/opcua/ua"
)

// TestConditionsAreRefreshed: the alarms in force are asked for when events are
// subscribed, when some were lost and when the server says so; what frames them
// makes no records, and what they repeat is marked.
func TestConditionsAreRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["i=2253"] = uint32(0) // the Server object
		cfg := Config{Events: []EventConfig{{NodeID: "i=2253"}}}
		src, _ := fakeSource(t, f, cfg, nil)
		event := func(eventType uint32, message string) {
			f.raiseFields("i=2253", ua.MustVariant(f.clock()), ua.MustVariant(ns0(eventType)), ua.MustVariant("tank"), ua.MustVariant(ua.NewLocalizedText(message)))
			time.Sleep(2 * time.Second)
		}
		want := func(n int, when string) {
			t.Helper()
			if got := f.count("ConditionRefresh"); got != n {
				t.Errorf("%s: refreshed %d times, want %d", when, got, n)
			}
		}
		p := &pipe{}
		_ = play(t, src, p.emit, func() {
			time.Sleep(3 * time.Second)
			want(1, "subscribed")
			event(idRefreshStartEventType, "")
			event(2915, "repeated") // AlarmConditionType
			event(idRefreshEndEventType, "")
			event(2915, "live")
			want(1, "refreshed")
			event(idRefreshRequiredEventType, "")
			want(2, "asked by the server")
			f.mu.Lock()
			for _, s := range f.subs {
				s.seq++ // lost for good
			}
			f.mu.Unlock()
			event(2915, "after a loss")
			time.Sleep(2 * time.Second)
			want(3, "after a loss")
		})
		var got []string
		for _, r := range p.all() {
			if _, repeated := r.Attr(attrRefreshed); repeated {
				got = append(got, "repeated")
			} else {
				got = append(got, "live")
			}
		}
		if len(got) != 3 || got[0] != "repeated" || got[1] != "live" || got[2] != "live" {
			t.Errorf("records %v", got)
		}
	})
}

// TestNoConditionsToRefresh: a source without events does not ask, and a server
// without conditions is left at peace.
func TestNoConditionsToRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"] = uint32(0)
		src, _ := fakeSource(t, f, nodes("ns=1;s=n"), nil)
		_ = play(t, src, (&pipe{}).emit, func() { time.Sleep(5 * time.Second) })
		if n := f.count("ConditionRefresh"); n != 0 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestConditionID(t *testing.T) {
	f, err := makeEventFilter(EventConfig{NodeID: "i=2253", Fields: []string{"ConditionId", "ActiveState/Id"}}, []string{"http://opcfoundation.org/UA/"})
	if err != nil {
		t.Fatal(err)
	}
	got := f.filter.SelectClauses[len(baseEventFields)]
	if got.AttributeID != ua.AttributeIDNodeID || got.TypeDefinitionID.IntID() != idConditionType || len(got.BrowsePath) != 0 {
		t.Errorf("ConditionId is asked for as %+v", got)
	}
	if state := f.filter.SelectClauses[len(baseEventFields)+1]; len(state.BrowsePath) != 2 || state.AttributeID != ua.AttributeIDValue {
		t.Errorf("ActiveState/Id is asked for as %+v", state)
	}
}
