package sources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
)

// line is a pipeline that keeps what it gets, and a Watch in front of it.
type line struct {
	t      *testing.T
	w      *Watch
	status *Status
	emit   Emit // the source's

	mu      sync.Mutex
	batches []Batch
	outcome error         // what done receives
	refuse  error         // what Emit returns
	block   chan struct{} // Emit waits for it; nil: it does not
}

func newLine(t *testing.T, cfg WatchConfig) *line {
	t.Helper()
	l := &line{t: t, status: NewStatus("s", "mqtt")}
	l.w = NewWatch(cfg, l.status, slog.New(slog.DiscardHandler))
	l.emit = l.w.Emit(l.pipeline)
	l.status.Set(Connected, "")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.w.Run(ctx, l.pipeline) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l
}

func (l *line) pipeline(ctx context.Context, b Batch, done func(error)) error {
	l.mu.Lock()
	block, refuse, outcome := l.block, l.refuse, l.outcome
	l.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if refuse != nil {
		return refuse
	}
	l.mu.Lock()
	l.batches = append(l.batches, b)
	l.mu.Unlock()
	done(outcome)
	return nil
}

func (l *line) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func (l *line) say(recs ...abi.Record) {
	l.t.Helper()
	if err := l.emit(l.t.Context(), Batch{Time: Micros(time.Now()), Records: recs}, func(error) {}); err != nil {
		l.t.Error(err)
	}
}

// stale returns the addresses of stale records since the last call, after
// checking what they hold.
func (l *line) stale() []string {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []string{}
	for _, b := range l.batches {
		for _, r := range b.Records {
			if v, ok := r.Attr(abi.AttrStale); !ok || !v.AsBool() {
				continue
			}
			out = append(out, r.Address)
			quality, _ := r.Attr(abi.AttrQuality)
			reason, _ := r.Attr(abi.AttrReason)
			name, _ := r.Attr(abi.AttrStatus)
			if r.Source != "s" || r.Status != StatusBadNoCommunication || quality.Text() != Bad || name.Text() != "BadNoCommunication" ||
				!strings.HasPrefix(reason.Text(), "stale: ") || !r.Value.IsNone() || r.Protocol != abi.ProtocolMQTT || b.Time != r.EventTime || b.Resume != nil {
				l.t.Errorf("stale record %+v", r)
			}
		}
	}
	l.batches = nil
	return out
}

// want checks which points were reported as silent since the last call.
func (l *line) want(addresses ...string) {
	l.t.Helper()
	if diff := cmp.Diff(append([]string{}, addresses...), l.stale()); diff != "" {
		l.t.Errorf("%v: stale points (-want +got):\n%s", time.Now().Format(time.TimeOnly), diff)
	}
}

func good(address string, attrs ...abi.Attr) abi.Record {
	now := Micros(time.Now())
	return abi.Record{EventTime: now, IngestTime: now, Source: "s", Address: address, Protocol: abi.ProtocolMQTT, Value: abi.Float(1), Attrs: attrs}
}

func flag(key string) abi.Attr { return abi.Attr{Key: key, Value: abi.Bool(true)} }

func text(key, v string) abi.Attr { return abi.Attr{Key: key, Value: abi.String(v)} }

// seconds lets time pass while the points named go on speaking.
func (l *line) seconds(n int, speaking ...string) {
	l.t.Helper()
	for range n {
		time.Sleep(time.Second)
		for _, address := range speaking {
			l.say(good(address))
		}
	}
	synctest.Wait()
}

// inBubble runs f in a bubble of time with a Watch that waits ten seconds.
func inBubble(t *testing.T, cfg WatchConfig, f func(t *testing.T, l *line)) {
	synctest.Test(t, func(t *testing.T) { f(t, newLine(t, cfg)) })
}

var tenSeconds = WatchConfig{StaleAfter: 10 * time.Second}

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

func TestClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := Micros(time.Now())
		recs := []abi.Record{good("near"), good("late", text("k", "v")), good("early"), good("history", flag(abi.AttrBackfilled)), good("year 1")}
		recs[0].EventTime += 900_000
		recs[1].EventTime -= 2_500_000
		recs[2].EventTime += 3_000_000
		recs[3].EventTime -= 9_000_000_000
		const year1 = -62135596800_000000
		recs[4].EventTime = year1
		before := abi.AppendRecord(nil, &recs[1])

		l := newLine(t, WatchConfig{MaxSkew: time.Second})
		l.say(recs...)
		got := l.batches[0].Records
		want := map[string]int64{"late": -2500, "early": 3000, "year 1": (year1 - now) / 1000}
		for i, r := range got {
			skew, marked := r.Attr(attrClockSkew)
			if ms, ok := want[r.Address]; ok != marked || skew.AsInt() != ms || r.EventTime != recs[i].EventTime {
				t.Errorf("%s: marked %v with %d ms, event time moved by %d", r.Address, marked, skew.AsInt(), r.EventTime-recs[i].EventTime)
			}
		}
		if string(before) != string(abi.AppendRecord(nil, &recs[1])) {
			t.Error("the source's own record was changed")
		}
		if n := l.status.Snapshot().Counters[MetricSkewed]; n != 3 {
			t.Errorf("%s = %v, want 3", MetricSkewed, n)
		}

		l = newLine(t, WatchConfig{MaxSkew: time.Second, Ingest: true})
		l.say(recs...)
		for _, r := range l.batches[0].Records {
			if r.EventTime != now || r.EventTime != r.IngestTime {
				t.Errorf("%s: event time %d, want that of ingest", r.Address, r.EventTime)
			}
		}

		l = newLine(t, WatchConfig{})
		l.say(recs...)
		if &l.batches[0].Records[0] != &recs[0] {
			t.Error("records were copied for nothing")
		}
	})
}

func TestLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, WatchConfig{})
		if l.status.Snapshot().Lag != nil {
			t.Error("a lag before the first record")
		}
		r := good("a")
		time.Sleep(1500 * time.Millisecond)
		old := good("a", flag(abi.AttrBackfilled))
		old.EventTime = 0
		l.say(r)
		l.say(old)
		if lag := l.status.Snapshot().Lag; lag == nil || *lag != 1.5 {
			t.Errorf("lag %v, want 1.5", lag)
		}
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
