package sources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
)

func TestSilenceIsReportedOnce(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("a"), good("b"))
		l.seconds(9, "b")
		l.want()
		l.seconds(3, "b")
		l.want("a")
		s := l.status.Snapshot()
		if s.State != Degraded || !strings.HasPrefix(s.Detail, "1 of 2 points silent since 2000-01-01T00:00:00Z: a") || s.Stale != 1 || s.Points != 2 {
			t.Errorf("%s %q, %d of %d", s.State, s.Detail, s.Stale, s.Points)
		}
		l.seconds(100, "b")
		l.want() // once
		l.say(good("a"))
		l.seconds(2, "a", "b")
		l.want()
		if s := l.status.Snapshot(); s.State != Connected || s.Detail != "" || s.Stale != 0 {
			t.Errorf("after a record: %s %q", s.State, s.Detail)
		}
		l.seconds(12, "b")
		l.want("a") // and again when it stops again
	})
}

func TestSilenceIsOffByDefault(t *testing.T) {
	inBubble(t, WatchConfig{}, func(t *testing.T, l *line) {
		l.say(good("a"))
		time.Sleep(1000 * time.Hour)
		l.want()
		if s := l.status.Snapshot(); s.State != Connected || s.Points != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestAllSilent: nothing arrives at all, which connected must never hide. States
// of a source that is not connected keep their name.
func TestAllSilent(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("a"), good("b"))
		l.seconds(12)
		l.want("a", "b")
		if s := l.status.Snapshot(); s.State != Stalled {
			t.Errorf("%s %q", s.State, s.Detail)
		}
		l.status.Set(Reconnecting, "connection refused")
		l.seconds(100) // attempts come and go
		l.status.Set(Connecting, "")
		l.status.Set(Reconnecting, "connection refused")
		l.seconds(100)
		l.want()
		if s := l.status.Snapshot(); s.State != Reconnecting || !strings.HasPrefix(s.Detail, "connection refused; 2 of 2 points silent since") {
			t.Errorf("%s %q", s.State, s.Detail)
		}
		l.status.Set(Degraded, "one item is refused")
		l.say(good("a"))
		l.seconds(1)
		if s := l.status.Snapshot(); s.State != Degraded || !strings.HasPrefix(s.Detail, "one item is refused; 1 of 2 points silent since") {
			t.Errorf("%s %q", s.State, s.Detail)
		}
	})
}

// TestWhatWasIsNoSignOfLife: history and retained messages do not refresh a
// point; one that looks newer than the report has it reported again.
func TestWhatWasIsNoSignOfLife(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("a"), good("b"), good("c", flag(abi.AttrRetain)))
		l.seconds(5)
		old := good("a", flag(abi.AttrBackfilled))
		l.say(old, good("b", flag(abi.AttrRetain)))
		l.seconds(7)
		l.want("a", "b", "c")
		l.say(old) // before the report: the report stays the last word
		l.seconds(2)
		l.want()
		l.say(good("b", flag(abi.AttrRetain))) // after it, and it looks good
		l.seconds(2)
		l.want("b")
		l.say(good("b", abi.Attr{Key: abi.AttrRetain, Value: abi.Bool(false)}))
		l.seconds(2)
		l.want()
	})
}

func TestPoints(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		bad := good("bad")
		NotGood(&bad, StatusBadDecoding, "", "not a number")
		uncertain := good("uncertain")
		NotGood(&uncertain, StatusUncertain, "", "the sensor says so")
		l.say(good("leaf", text(abi.AttrSensorPath, "x")), good("leaf", text(abi.AttrSensorPath, "y")), bad, uncertain, good("event", flag(abi.AttrEvent)))
		l.seconds(6)
		l.say(good("leaf", text(abi.AttrSensorPath, "y")))
		l.seconds(6)
		l.want("leaf", "uncertain")
		l.say(good("bad"))
		l.seconds(12)
		l.want("leaf", "bad")
		if s := l.status.Snapshot(); s.Points != 4 || s.Stale != 4 || !strings.Contains(s.Detail, "leaf x") {
			t.Errorf("%+v", s)
		}
	})
}

// TestStaleRecordsAreOfTheirPoint: tags and place stay, what belongs to a value
// does not.
func TestStaleRecordsAreOfTheirPoint(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("a", text(abi.AttrUnit, "C"), text("line", "1"), abi.Attr{Key: abi.AttrRawValue, Value: abi.Float(7)},
			abi.Attr{Key: abi.AttrSlaveID, Value: abi.Int(3)}, text(abi.AttrStatus, "Good"), abi.Attr{Key: attrClockSkew, Value: abi.Int(1)}))
		l.seconds(12)
		l.mu.Lock()
		got := l.batches[1].Records[0].Attrs
		l.mu.Unlock()
		want := []abi.Attr{text(abi.AttrUnit, "C"), text("line", "1"), {Key: abi.AttrSlaveID, Value: abi.Int(3)}, text(abi.AttrQuality, Bad),
			text(abi.AttrStatus, "BadNoCommunication"), text(abi.AttrReason, "stale: no record for 10s, the last at 2000-01-01T00:00:00Z"), flag(abi.AttrStale)}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b abi.Value) bool { return a == b })); diff != "" {
			t.Errorf("attributes (-want +got):\n%s", diff)
		}
	})
}

func TestStaleRules(t *testing.T) {
	cfg := WatchConfig{StaleAfter: 10 * time.Second, Rules: []StaleRule{{"slow/*", time.Minute}, {"*/never", 0}}}
	inBubble(t, cfg, func(t *testing.T, l *line) {
		l.say(good("slow/never"), good("fast/never"), good("fast"))
		l.seconds(12)
		l.want("fast")
		l.seconds(50)
		l.want("slow/never")
	})
	only := WatchConfig{Rules: []StaleRule{{"a", time.Second}}}
	inBubble(t, only, func(t *testing.T, l *line) {
		l.say(good("a"), good("b"))
		l.seconds(12)
		l.want("a")
	})
}

func TestMemoryIsBounded(t *testing.T) {
	inBubble(t, WatchConfig{StaleAfter: 10 * time.Second, MaxPoints: 2}, func(t *testing.T, l *line) {
		l.say(good("a"), good("b"), good("c"), good("c"))
		l.seconds(12)
		l.want("a", "b")
		if s := l.status.Snapshot(); s.Points != 2 || s.Unwatched != 2 {
			t.Errorf("%d points, %d records unwatched", s.Points, s.Unwatched)
		}
	})
}

// TestBatchesOfStale: many points at once come in batches of the usual size.
func TestBatchesOfStale(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		const n = 2*BatchRecords + 1
		for i := range n {
			l.say(good(fmt.Sprint(i)))
		}
		l.set(func() { l.batches = nil })
		l.seconds(12)
		l.mu.Lock()
		sizes := []int{}
		for _, b := range l.batches {
			sizes = append(sizes, len(b.Records))
		}
		l.mu.Unlock()
		if diff := cmp.Diff([]int{BatchRecords, BatchRecords, 1}, sizes); diff != "" {
			t.Errorf("batches (-want +got):\n%s", diff)
		}
	})
}

// TestStaleIsToldAgainWhenItWasNotStored: a report that the pipeline gave back
// or refused is made again; one that was dropped by policy is not.
func TestStaleIsToldAgainWhenItWasNotStored(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("a"), good("b"))
		l.set(func() { l.outcome = errors.New("disk full") })
		l.seconds(12)
		if got := l.stale(); len(got) < 4 || got[0] != "a" || got[1] != "b" || got[2] != "a" {
			t.Errorf("given back: %v, want a, b again and again", got)
		}
		l.set(func() { l.outcome, l.refuse = nil, errors.New("stopped") })
		l.seconds(5)
		l.want()
		l.set(func() { l.outcome, l.refuse = ErrDropped, nil })
		l.seconds(5)
		l.want("a", "b")
	})
}

// TestBackPressureIsNoSilence: while the pipeline keeps the source waiting,
// nobody can tell who is silent.
func TestBackPressureIsNoSilence(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("a"), good("b"))
		gate := make(chan struct{})
		l.set(func() { l.block = gate })
		sent := make(chan struct{})
		go func() { l.say(good("a")); close(sent) }()
		time.Sleep(time.Minute)
		l.want()
		l.set(func() { l.block = nil })
		close(gate)
		<-sent
		l.seconds(1, "b") // b waited behind a
		l.want()
		l.seconds(12, "b")
		l.want("a")
	})
}

// TestEmitGivesUpItsTurn: a source whose context ends while the Watch emits does
// not wait for ever.
func TestEmitGivesUpItsTurn(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("a"))
		gate := make(chan struct{})
		l.set(func() { l.block = gate })
		l.seconds(12) // the Watch is blocked with its report
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := l.emit(ctx, Batch{Records: []abi.Record{good("a")}}, func(error) { t.Error("done was called") })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Emit returned %v", err)
		}
		close(gate)
	})
}

// TestFailedEmitIsNoSignOfLife: what the pipeline did not take was not heard.
func TestFailedEmitIsNoSignOfLife(t *testing.T) {
	inBubble(t, tenSeconds, func(t *testing.T, l *line) {
		l.say(good("a"))
		l.seconds(8)
		l.set(func() { l.refuse = errors.New("stopped") })
		if err := l.emit(t.Context(), Batch{Records: []abi.Record{good("a")}}, nil); err == nil {
			t.Error("the pipeline's error got lost")
		}
		l.set(func() { l.refuse = nil })
		l.seconds(4)
		l.want("a")
	})
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"*", "", true}, {"*", "a/b", true}, {"a", "a", true}, {"a", "ab", false}, {"a*", "ab", true}, {"a*", "ba", false},
		{"*c", "abc", true}, {"*c", "abcd", false}, {"a*c", "ac", true}, {"a*c", "a", false}, {"a*b*c", "axbxc", true}, {"a*b*c", "axc", false},
		{"*b*", "abc", true}, {"*b*", "ac", false}, {"a*a", "a", false}, {"ns=2;s=*", "ns=2;s=X[1]", true}, {"**", "x", true}, {"", "", true}, {"", "x", false},
		{"*ab", "aab", true}, {"*a*ab", "ab", false},
	} {
		if got := Glob(c.pattern, c.text); got != c.want {
			t.Errorf("Glob(%q, %q) = %v", c.pattern, c.text, got)
		}
	}
}

func TestNotGood(t *testing.T) {
	for _, c := range []struct {
		status           uint32
		name             string
		quality, status2 string
	}{
		{StatusBadDecoding, "", Bad, "BadDecodingError"}, {0x80AB0000, "BadInvalidArgument", Bad, "BadInvalidArgument"},
		{StatusUncertain, "", Uncertain, Uncertain}, {0x80AC0000, "", Bad, Bad}, {0x408F0000, "", Uncertain, Uncertain},
	} {
		r := abi.Record{Attrs: []abi.Attr{text(abi.AttrQuality, Good), text("line", "1")}}
		NotGood(&r, c.status, c.name, "why")
		want := []abi.Attr{text(abi.AttrQuality, c.quality), text("line", "1"), text(abi.AttrStatus, c.status2), text(abi.AttrReason, "why")}
		if diff := cmp.Diff(want, r.Attrs, cmp.Comparer(func(a, b abi.Value) bool { return a == b })); diff != "" || r.Status != c.status {
			t.Errorf("0x%08X (-want +got):\n%s", c.status, diff)
		}
	}
	if Quality(0x480) != Good {
		t.Error("info bits change the quality")
	}
}

// BenchmarkWatch is what the Watch costs a batch of 500 records of known points,
// and what it keeps of each point.
func BenchmarkWatch(b *testing.B) {
	const points = 100_000
	w := NewWatch(WatchConfig{StaleAfter: time.Hour, MaxSkew: time.Minute}, NewStatus("s", "opcua"), slog.New(slog.DiscardHandler))
	emit := w.Emit(func(context.Context, Batch, func(error)) error { return nil })
	attrs := TagAttrs(map[string]string{"industry": "mining", "plc_name": "press1", "sensor_name": "temperature", "unit": "C", "endpoint": "opc.tcp://10.0.0.1:4840"})
	now := Micros(time.Now())
	recs := make([]abi.Record, points)
	for i := range recs {
		recs[i] = abi.Record{EventTime: now, IngestTime: now, Source: "s", Address: fmt.Sprintf("ns=2;s=Plant.Line%d.Sensor%d", i%10, i),
			Protocol: abi.ProtocolOPCUA, Value: abi.Float(1), Attrs: attrs}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := 0; i < points; i += BatchRecords {
		_ = emit(b.Context(), Batch{Records: recs[i : i+BatchRecords]}, nil)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	n := 0
	for b.Loop() {
		_ = emit(b.Context(), Batch{Records: recs[n : n+BatchRecords]}, nil)
		n = (n + BatchRecords) % points
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/points, "B/point")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/BatchRecords, "ns/record")
}
