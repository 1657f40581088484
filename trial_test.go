package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

func TestBatchesAndTicks(t *testing.T) {
	const period = int64(60)
	at := func(times ...int64) (recs []abi.Record) {
		for _, t := range times {
			recs = append(recs, abi.Record{EventTime: -5, IngestTime: t})
		}
		return recs
	}
	two := at(1, 2, 3, 4)
	two[1].Source, two[2].Source = "other", "other"
	type step struct {
		n     int
		now   int64
		ticks []int64
	}
	for name, c := range map[string]struct {
		recs   []abi.Record
		most   int
		period int64
		want   []step
	}{
		"no ticks":                 {at(1, 70, 500), 2, 0, []step{{2, 70, nil}, {1, 500, nil}}},
		"a tick ends a batch":      {at(1, 59, 60, 61), 9, period, []step{{2, 59, []int64{60}}, {2, 61, []int64{120}}}},
		"batches in a period":      {at(1, 2, 3), 2, period, []step{{2, 2, nil}, {1, 3, []int64{60}}}},
		"a gap has two ticks":      {at(1, 605), 9, period, []step{{1, 1, []int64{60, 600}}, {1, 605, []int64{660}}}},
		"time goes back":           {at(70, 10, 71), 9, period, []step{{3, 71, []int64{120}}}},
		"a batch is of one source": {two, 9, period, []step{{1, 1, nil}, {2, 3, nil}, {1, 4, []int64{60}}}},
		"before the epoch":         {at(-61, -1), 9, period, []step{{1, -61, []int64{-60}}, {1, -1, []int64{0}}}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []step
			for recs := c.recs; len(recs) > 0; {
				n, now := batchOf(recs, c.most, c.period)
				recs = recs[n:]
				got = append(got, step{n, now, ticksBetween(now, recs, c.period)})
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(step{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestTrialStateExpires(t *testing.T) {
	s := trialState{values: map[string]map[string]trialValue{}, now: 1000, source: "a"}
	s.commit([]sandbox.KVWrite{{Key: "short", Value: []byte("a"), TTL: time.Millisecond}, {Key: "long", Value: []byte("b")}, {Key: "gone", Value: []byte("c")}})
	s.commit([]sandbox.KVWrite{{Key: "gone", Delete: true}})
	s.source = "b"
	if v, ok, _ := s.Get("long"); ok {
		t.Errorf("another source reads %q", v)
	}
	s.commit([]sandbox.KVWrite{{Key: "long", Value: []byte("d")}})
	if diff := cmp.Diff(map[string]map[string]string{"a": {"short": "a", "long": "b"}, "b": {"long": "d"}}, s.all()); diff != "" {
		t.Errorf("at once: -want +got:\n%s", diff)
	}
	s.now = 2000
	if diff := cmp.Diff(map[string]map[string]string{"a": {"long": "b"}, "b": {"long": "d"}}, s.all()); diff != "" {
		t.Errorf("later: -want +got:\n%s", diff)
	}
}

func TestDiffOutcomes(t *testing.T) {
	list := func(text string) (out []outcome) {
		for _, address := range strings.Fields(text) {
			out = append(out, outcome{Record: abi.Record{Address: address}})
		}
		return out
	}
	for _, c := range []struct {
		want, got string
		diff      []string // want line/got address
	}{
		{"", "", nil},
		{"a b c", "a b c", nil},
		{"a b c", "a c", []string{"2/-"}},
		{"a c", "a b c", []string{"-/b"}},
		{"a b c d", "a x c y", []string{"2/x", "4/y"}},
		{"a b", "b a", []string{"1/-", "-/a"}},
		{"", "a", []string{"-/a"}},
	} {
		var got []string
		for _, d := range diffOutcomes(list(c.want), list(c.got)) {
			line, address := "-", "-"
			if d.Line > 0 {
				line = string(rune('0' + d.Line))
			}
			if d.Got != nil {
				o, err := parseOutcome(d.Got)
				if err != nil {
					t.Fatal(err)
				}
				address = o.Address
			}
			got = append(got, line+"/"+address)
		}
		if diff := cmp.Diff(c.diff, got); diff != "" {
			t.Errorf("%q and %q: -want +got:\n%s", c.want, c.got, diff)
		}
	}
}

func FuzzParseOutcome(f *testing.F) {
	f.Add([]byte(`{"output":"alarms","event_time":5,"source":"p","address":"a","kind":"json","value":"{}","attrs":[{"key":"k","kind":"bytes","value":"AAE="}]}`))
	f.Add([]byte(`{"rejected":"no \u0000 <b>","address":"ä","kind":"float64","value":"NaN"}`))
	f.Add([]byte(`{"output":5}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, line []byte) {
		o, err := parseOutcome(line)
		if err != nil {
			return
		}
		text := o.appendJSON(nil)
		again, err := parseOutcome(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if diff := cmp.Diff(string(text), string(again.appendJSON(nil))); diff != "" {
			t.Error(diff)
		}
	})
}
