//go:build conformance

package opcua

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

func plain(nodes ...NodeConfig) Config {
	return Config{SecurityPolicy: "None", SecurityMode: "None", PublishingIntervalMS: 200, RequestTimeoutSeconds: 60, Nodes: nodes}
}

// TestOneBadNode: 299 items flow although one of 300 does not exist, on a server
// that takes few operations at once.
func TestOneBadNode(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1, "idle": 299, "limits": map[string]int{"read": 50, "items": 100, "translate": 20, "browse": 5}})
	cfg := plain(NodeConfig{NodeID: "nsu=urn:edgehost:test;s=Missing"})
	for i := range 299 {
		cfg.Nodes = append(cfg.Nodes, NodeConfig{NodeID: fmt.Sprintf("nsu=urn:edgehost:test;s=Idle%d", i)})
	}
	r := run(t, p.url, cfg, &collector{})
	r.awaitState(t, sources.Degraded)
	got := map[string]bool{}
	eventually(t, "299 values", func() bool {
		for _, rec := range r.col.all() {
			if rec.Status == 0 {
				got[rec.Address] = true
			}
		}
		return len(got) == 299
	})
	if d := r.status.Snapshot().Detail; !strings.Contains(d, "1 of 300") || !strings.Contains(d, "Missing") {
		t.Errorf("detail %q", d)
	}
}

// TestTinyLimits: five operations a call, 20 items a subscription.
func TestTinyLimits(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 60, "limits": map[string]int{"read": 5, "items": 5, "translate": 5, "browse": 5, "perSubscription": 20, "continuation": 2}})
	cfg := plain(NodeConfig{BrowsePath: "0:Root/0:Objects/2:Plant", Recursive: true, Include: []string{"Counter*"}})
	r := run(t, p.url, cfg, &collector{})
	r.awaitState(t, sources.Connected)
	eventually(t, "60 counters", func() bool { return len(r.col.numbers()) == 60 })
}

func TestTenThousandItems(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 10, "idle": 9990, "everyMs": 1000})
	r := run(t, p.url, plain(NodeConfig{BrowsePath: "Objects/2:Plant", Recursive: true, MaxNodes: 20000, Include: []string{"Counter*", "Idle*"}}), &collector{})
	r.awaitState(t, sources.Connected)
	got := map[string]bool{}
	eventually(t, "10 000 items", func() bool {
		for _, rec := range r.col.all() {
			got[rec.Address] = true
		}
		return len(got) == 10000
	})
	if s := r.status.Snapshot(); s.Counters[metricItems] != 10000 {
		t.Errorf("%+v", s)
	}
}

// TestBrowseCycle: 2 000 variables in areas that refer back to each other, each
// found once.
func TestBrowseCycle(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 0, "cycle": 2000})
	src, _ := makeSource(t, p.url, plain(NodeConfig{BrowsePath: "Objects/2:Plant/2:Area0", Recursive: true, MaxDepth: 50, Types: []string{"Integer"}}), &collector{})
	got, err := src.ReadOnce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range got.Records {
		if seen[r.Address] {
			t.Errorf("%s twice", r.Address)
		}
		seen[r.Address] = true
		if path, _ := r.Attr(abi.AttrBrowsePath); !strings.HasPrefix(path.Text(), "0:Root/0:Objects/2:Plant/2:Area0/") {
			t.Fatalf("browse path %q", path.Text())
		}
	}
	if len(seen) != 1000 {
		t.Errorf("%d Int32 variables, want 1000 of 2000", len(seen))
	}
	list, truncated, err := src.Browse(t.Context(), BrowseOptions{Start: "Objects/2:Plant", MaxDepth: 50})
	variables := 0
	for _, e := range list {
		if e.Class == "Variable" && strings.Contains(e.NodeID, "s=A") {
			variables++
		}
	}
	if err != nil || truncated || variables != 2000 {
		t.Errorf("Browse found %d variables, %v, %v", variables, truncated, err)
	}
}

// TestTypes compares every type with what asyncua reads from the same server,
// and with the golden file.
func TestTypes(t *testing.T) {
	python := "../../.cache/opcua-venv/bin/python"
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("asyncua is not installed: %s", install)
	}
	p := startPeer(t, map[string]any{"counters": 0, "types": true})
	r := run(t, p.url, plain(NodeConfig{BrowsePath: "Objects/3:Plant/3:Types", Recursive: true}), &collector{})
	r.awaitState(t, sources.Connected)
	read := exec.Command(python, "testdata/read.py", p.url)
	read.Stderr = t.Output()
	out, err := read.Output()
	if err != nil {
		t.Fatalf("asyncua: %v %s", err, out)
	}
	var want map[string]string
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	eventually(t, "all values", func() bool { return len(r.col.all()) >= len(want) })
	got := map[string]string{}
	for _, rec := range r.col.all() {
		_, name, _ := strings.Cut(rec.Address, ";s=")
		got[name] = rec.Value.Kind().String() + " " + plainText(rec.Value)
		if reason, ok := rec.Attr(abi.AttrReason); ok {
			got[name] += " (" + reason.Text() + ")"
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("asyncua (-) and we (+) differ:\n%s", diff)
	}
	src, _ := makeSource(t, p.url, plain(NodeConfig{NodeID: "nsu=urn:edgehost:test;s=Far"}), &collector{})
	if far, err := src.ReadOnce(t.Context()); err != nil || len(far.Records) != 1 || far.Records[0].Value.Text() != `["nsu=urn:far;s=abc"]` {
		t.Errorf("ExpandedNodeId: %v, %+v", err, far.Records)
	}
	b, err := os.ReadFile("testdata/types.golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden map[string]string
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(golden, got); diff != "" {
		t.Errorf("the golden file (-) and we (+) differ:\n%s", diff)
	}
}

// plainText is a value as read.py writes it.
func plainText(v abi.Value) string {
	switch v.Kind() {
	case abi.KindBool:
		return fmt.Sprint(v.AsBool())
	case abi.KindInt:
		return fmt.Sprint(v.AsInt())
	case abi.KindUint:
		return fmt.Sprint(v.AsUint())
	case abi.KindFloat:
		b, err := json.Marshal(v.AsFloat())
		if err != nil {
			return fmt.Sprint(v.AsFloat())
		}
		return string(b)
	case abi.KindBytes:
		return fmt.Sprintf("%x", v.Text())
	default:
		return v.Text()
	}
}

func TestSmokeEvents(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1, "events": true})
	cfg := plain()
	cfg.Events = []EventConfig{{NodeID: "i=2253", MinSeverity: 500, Fields: []string{"SourceNode"}}}
	r := run(t, p.url, cfg, &collector{})
	r.awaitState(t, sources.Connected)
	eventually(t, "three events", func() bool { return len(r.col.all()) >= 3 })
	for _, rec := range r.col.all() {
		var ev struct {
			Message  string
			Severity int
		}
		if err := json.Unmarshal([]byte(rec.Value.Text()), &ev); err != nil || ev.Severity != 700 || !strings.HasPrefix(ev.Message, "event ") {
			t.Errorf("event %s: %v", rec.Value.Text(), err)
		}
	}
}

// TestHistory: what the server's queue could not hold comes from its history.
// TestSmokeAlarms: the alarm that is in force comes at once, marked as repeated, and
// its end when it ends.
func TestSmokeAlarms(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1, "alarms": true})
	p.tell(t, "set Height 90")
	cfg := Config{SecurityPolicy: "None", SecurityMode: "None", PublishingIntervalMS: 200, Events: []EventConfig{{NodeID: "i=2253",
		Fields: []string{"ConditionId", "ConditionName", "ActiveState/Id", "AckedState/Id", "Retain"}}}}
	r := run(t, p.url, cfg, &collector{})
	came := func(wantActive, wantRepeated bool) bool {
		for _, rec := range r.col.all() {
			var f map[string]any
			if err := json.Unmarshal([]byte(rec.Value.Text()), &f); err != nil {
				t.Fatal(err)
			}
			id, _ := f["ConditionId"].(string)
			_, repeated := rec.Attr(attrRefreshed)
			if f["ConditionName"] == "TankAlarm" && strings.Contains(id, "ns=") && f["AckedState/Id"] != nil && f["ActiveState/Id"] == wantActive && repeated == wantRepeated {
				return true
			}
		}
		return false
	}
	eventually(t, "the alarm in force", func() bool { return came(true, true) })
	if came(false, false) {
		t.Error("its end came before it ended")
	}
	p.tell(t, "set Height 0")
	eventually(t, "the end of the alarm", func() bool { return came(false, false) })
}

// TestSmokeAlarmsSelected: type and comparison of fields keep other events and alarms
// out.
func TestSmokeAlarmsSelected(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1, "alarms": true, "events": true})
	cfg := Config{SecurityPolicy: "None", SecurityMode: "None", PublishingIntervalMS: 200}
	where := func(name, op, field string, v any) EventConfig {
		return EventConfig{NodeID: "i=2253", Name: name, EventType: "i=2915", Fields: []string{"ConditionName", "ActiveState/Id"}, Where: []WhereConfig{{Field: field, Op: op, Value: v}}}
	}
	cfg.Events = []EventConfig{where("ours", "eq", "ConditionName", "TankAlarm")}
	r := run(t, p.url, cfg, &collector{})
	cfg.Events = []EventConfig{where("none", "eq", "ConditionName", "Another")}
	other := run(t, p.url, cfg, &collector{})
	r.awaitState(t, sources.Connected)
	other.awaitState(t, sources.Connected)
	for _, height := range []int{90, 0, 120} {
		n := len(r.col.all())
		p.tell(t, "set Height %d", height)
		eventually(t, fmt.Sprintf("the alarm at %d", height), func() bool { return len(r.col.all()) > n })
	}
	for _, rec := range r.col.all() {
		if !strings.Contains(rec.Value.Text(), `"ConditionName":"TankAlarm"`) {
			t.Errorf("event %s", rec.Value.Text())
		}
	}
	if list := other.col.all(); len(list) > 0 {
		t.Errorf("where lets through %s", list[0].Value.Text())
	}
}

// TestNoFreeSession: a server whose sessions are all taken has words of its own, and
// is read as soon as one is free.
func TestNoFreeSession(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1, "sessions": 1})
	polite := counterConfig(1)
	polite.ResumeOnRestart = new(false) // it closes its session at its end
	first := run(t, p.url, polite, &collector{})
	first.awaitState(t, sources.Connected)
	second := run(t, p.url, counterConfig(1), &collector{})
	eventually(t, "no free session", func() bool {
		s := second.status.Snapshot()
		return s.State == sources.Reconnecting && strings.Contains(s.Detail, "no free session")
	})
	if len(second.col.all()) > 0 {
		t.Error("values without a session")
	}
	first.stop()
	second.awaitState(t, sources.Connected)
}

func TestHistory(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 3, "history": true})
	proxy, url := behindProxy(t, p)
	cfg := counterConfig(3)
	cfg.HistoryBackfill = true
	cfg.LifetimeSeconds, cfg.SessionTimeoutSeconds = 10, 10
	r := run(t, url, cfg, &collector{})
	r.awaitState(t, sources.Connected)
	wait(3 * time.Second)
	proxy.refuseAll()
	wait(25 * time.Second) // session and subscription are gone
	proxy.listen(t)
	r.awaitState(t, sources.Connected)
	wait(6 * time.Second)
	last := uint64(p.tell(t, "freeze"))
	eventually(t, "the last value", func() bool { return r.col.numbers()["nsu=urn:edgehost:test;s=Counter0"][last] > 0 })
	back := 0
	for _, rec := range r.col.all() {
		if v, ok := rec.Attr(abi.AttrBackfilled); ok && v.AsBool() {
			back++
		}
	}
	if lost := checkCounters(t, r.col, 3); lost != 0 || back < 300 {
		t.Errorf("%d lost, %d backfilled: %v", lost, back, r.status.Snapshot().Counters)
	}
	if r.status.Snapshot().Counters[metricGaps] == 0 {
		t.Error("the gap was not counted")
	}
}

func TestPollAndDeadband(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1})
	set := "nsu=urn:edgehost:test;s=Set"
	poll := NodeConfig{NodeID: set, ItemConfig: ItemConfig{Mode: new("poll"), SamplingIntervalMS: new(50), Deadband: &DeadbandConfig{Type: "absolute", Value: 5}}}
	sub := NodeConfig{NodeID: "ns=2;s=Set", ItemConfig: ItemConfig{SamplingIntervalMS: new(50), Deadband: &DeadbandConfig{Type: "absolute", Value: 5}}}
	for name, node := range map[string]NodeConfig{"poll": poll, "subscribe": sub} {
		t.Run(name, func(t *testing.T) {
			p.tell(t, "set Set 0")
			r := run(t, p.url, plain(node), &collector{})
			r.awaitState(t, sources.Connected)
			eventually(t, "the first value", func() bool { return len(r.col.all()) == 1 })
			for _, v := range []float64{1, 4, 10, 12, 20} {
				p.tell(t, "set Set %v", v)
				if v < 10 || v == 12 { // within the dead-band: time to come if it were not
					wait(500 * time.Millisecond)
					continue
				}
				eventually(t, fmt.Sprint(v), func() bool { list := r.col.all(); return list[len(list)-1].Value.AsFloat() == v })
			}
			var got []float64
			for _, rec := range r.col.all() {
				got = append(got, rec.Value.AsFloat())
			}
			if fmt.Sprint(got) != "[0 10 20]" {
				t.Errorf("values %v, want 0, 10 and 20", got)
			}
			r.stop()
		})
	}
}

// TestRebrowse: a variable that appears below a browsed folder is picked up.
func TestRebrowse(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1})
	r := run(t, p.url, plain(NodeConfig{BrowsePath: "Objects/2:Plant", Recursive: true, Exclude: []string{"Gone"}, RebrowseSeconds: 2}), &collector{})
	r.awaitState(t, sources.Connected)
	p.tell(t, "add Late")
	eventually(t, "the new variable", func() bool {
		for _, rec := range r.col.all() {
			if rec.Address == "ns=2;s=Late" {
				return true
			}
		}
		return false
	})
}

// TestRebrowseOnModelChange: the server says that a variable was added, and
// nothing is browsed on a clock.
func TestRebrowseOnModelChange(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1, "versioned": true})
	r := run(t, p.url, plain(NodeConfig{BrowsePath: "Objects/2:Plant", Recursive: true, Exclude: []string{"Gone"}}), &collector{})
	r.awaitState(t, sources.Connected)
	p.tell(t, "add Late")
	eventually(t, "the new variable", func() bool {
		return slices.ContainsFunc(r.col.all(), func(rec abi.Record) bool { return rec.Address == "ns=2;s=Late" })
	})
}

// TestBadStatusIsDelivered: a Bad value is a record with its code.
func TestBadStatusIsDelivered(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1})
	r := run(t, p.url, plain(NodeConfig{NodeID: "nsu=urn:edgehost:test;s=Gone"}), &collector{})
	eventually(t, "the Bad value", func() bool { return len(r.col.all()) > 0 })
	rec := r.col.all()[0]
	quality, _ := rec.Attr(abi.AttrQuality)
	if rec.Status != 0x808B0000 || quality.Text() != "Bad" {
		t.Errorf("record %+v, want BadDeviceFailure", rec)
	}
}

// TestConformanceAddressSpace subscribes to everything of node-opcua's own address space
// for conformance tests: every type, scalar, array and matrix, analog and
// discrete items, and what is refused.
func TestConformanceAddressSpace(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1, "conformance": true})
	cfg := plain(NodeConfig{BrowsePath: "Objects", Recursive: true, MaxNodes: 20000, IncludeProperties: true})
	r := run(t, p.url, cfg, &collector{})
	got := map[string]bool{}
	defer func() { t.Logf("%d variables, %+v", len(got), r.status.Snapshot()) }()
	eventually(t, "all variables", func() bool {
		for _, rec := range r.col.all() {
			got[rec.Address] = true
			if rec.Value.Kind() == abi.KindJSON && !json.Valid([]byte(rec.Value.Text())) {
				t.Fatalf("%s: invalid JSON %q", rec.Address, rec.Value.Text())
			}
		}
		return float64(len(got)) >= r.status.Snapshot().Counters[metricItems]*0.98 && len(got) > 500
	})
	eventually(t, "a state", func() bool {
		s := r.status.Snapshot().State
		return s == sources.Connected || s == sources.Degraded
	})
	unknown := map[string]int{}
	for _, rec := range r.col.all() {
		if reason, ok := rec.Attr(abi.AttrReason); ok && rec.Status>>30 == 0 {
			unknown[reason.Text()]++
		}
	}
	if len(unknown) > 0 {
		t.Errorf("Good values that could not be decoded: %v", unknown)
	}
}

// TestOverflowFlag: a queue of two for a value that changes twenty times between
// two publications loses values, and the record that follows says so.
func TestOverflowFlag(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1})
	cfg := counterConfig(1)
	cfg.PublishingIntervalMS, cfg.Defaults.QueueSize = 2000, new(2)
	r := run(t, p.url, cfg, &collector{})
	r.awaitState(t, sources.Connected)
	flagged := func(rec abi.Record) bool {
		v, ok := rec.Attr(abi.AttrOverflow)
		return ok && v.AsBool()
	}
	eventually(t, "a flagged record", func() bool { return slices.ContainsFunc(r.col.all(), flagged) })
	rec := r.col.all()[slices.IndexFunc(r.col.all(), flagged)]
	if status, _ := rec.Attr(abi.AttrStatus); rec.Status>>30 != 0 || status.Text() != "Good" || rec.Value.Kind() != abi.KindUint {
		t.Errorf("%08X %s, %v", rec.Status, status.Text(), rec.Value)
	}
	if r.status.Snapshot().Counters[metricOverflow] == 0 {
		t.Error("overflow is not counted")
	}
}
