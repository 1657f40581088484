package sources

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgehost/edgehost/abi"
)

func TestClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := Micros(time.Now())
		recs := []abi.Record{good("near"), good("late", text("k", "v")), good("early"), good("history", flag(abi.AttrBackfilled))}
		recs[0].EventTime += 900_000
		recs[1].EventTime -= 2_500_000
		recs[2].EventTime += 3_000_000
		recs[3].EventTime -= 9_000_000_000
		never := good("never set") // the first day of OPC UA's calendar
		never.EventTime = time.Date(1601, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
		recs = append(recs, never)
		before := abi.AppendRecord(nil, &recs[1])

		l := newLine(t, WatchConfig{MaxSkew: time.Second})
		l.say(recs...)
		got := l.batches[0].Records
		want := map[string]int64{"late": -2500, "early": 3000, "never set": (never.EventTime - now) / 1000}
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
