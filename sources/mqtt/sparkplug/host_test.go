package sparkplug

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
)

type clock struct{ at time.Time }

func newTestHost(dir string) (*Host, *clock) {
	c := &clock{time.Unix(1_767_225_600, 0)}
	return NewHost(dir, slog.New(slog.DiscardHandler), func() time.Time { return c.at }), c
}

// tell reads a message and returns its samples as lines, and the topic on
// which a rebirth is asked for.
func tell(t *testing.T, h *Host, topic string, payload []byte) (lines []string, ask string) {
	t.Helper()
	r, err := h.Read(topic, payload, false)
	if err != nil {
		t.Fatalf("%s: %v", topic, err)
	}
	for _, s := range r.Samples {
		v, _ := s.Value.Number()
		lines = append(lines, fmt.Sprintf("%s=%v q%d", s.Address(), v, s.Quality))
	}
	if r.Unnamed > 0 {
		lines = append(lines, fmt.Sprintf("%d unnamed", r.Unnamed))
	}
	return lines, r.Ask
}

func expect(t *testing.T, h *Host, topic string, payload []byte, want string, ask bool) {
	t.Helper()
	lines, asked := tell(t, h, topic, payload)
	if got := strings.Join(lines, ", "); got != want {
		t.Errorf("%s: %s\nwant %s", topic, got, want)
	}
	if (asked != "") != ask {
		t.Errorf("%s: asks for a rebirth on %q, want %v", topic, asked, ask)
	}
	if asked != "" && asked != "spBv1.0/g/NCMD/n" {
		t.Errorf("%s: asks on %q", topic, asked)
	}
}

func value(alias uint64, v uint64) msg { return metric("", alias, 0).varint(10, v) }

func nbirth(bd uint64) []byte {
	return payload(0, metric("bdSeq", 0, UInt64).varint(11, bd), metric("a/b", 1, Int8).varint(10, minus(5)), metric("c", 2, UInt8).varint(10, 6))
}

func death(bd uint64) []byte {
	return msg(nil).bytes(2, string(metric("bdSeq", 0, UInt64).varint(11, bd)))
}

func TestAliasesAndDeaths(t *testing.T) {
	h, _ := newTestHost("")
	expect(t, h, "spBv1.0/g/NBIRTH/n", nbirth(4), "g/n/bdSeq=4 q0, g/n/a/b=-5 q0, g/n/c=6 q0", false)
	expect(t, h, "spBv1.0/g/DBIRTH/n/d", payload(1, metric("t", 3, Int16).varint(10, 7)), "g/n/d/t=7 q0", false)
	expect(t, h, "spBv1.0/g/NDATA/n", payload(2, value(1, minus(9))), "g/n/a/b=-9 q0", false)
	expect(t, h, "spBv1.0/g/DDATA/n/d", payload(3, value(3, 8)), "g/n/d/t=8 q0", false)
	expect(t, h, "spBv1.0/g/DDEATH/n/d", payload(4), "g/n/d/t=0 q2", false)
	expect(t, h, "spBv1.0/g/NDEATH/n", death(3), "", false) // of an earlier session
	expect(t, h, "spBv1.0/g/NDEATH/n", death(4), "g/n/a/b=0 q2, g/n/bdSeq=0 q2, g/n/c=0 q2", false)
	expect(t, h, "spBv1.0/g/NDEATH/n", death(4), "", false) // once is enough
	expect(t, h, "spBv1.0/g/NDATA/n", payload(5, value(1, 1)), "g/n/a/b=1 q1", true)
	expect(t, h, "spBv1.0/g/NBIRTH/n", nbirth(5), "g/n/bdSeq=5 q0, g/n/a/b=-5 q0, g/n/c=6 q0", false)
	expect(t, h, "spBv1.0/g/NDATA/n", payload(1, value(2, 1)), "g/n/c=1 q0", false)
}

func TestGapsAreDoubtedUntilBirth(t *testing.T) {
	h, _ := newTestHost("")
	tell(t, h, "spBv1.0/g/NBIRTH/n", nbirth(1))
	expect(t, h, "spBv1.0/g/NDATA/n", payload(1, value(2, 1)), "g/n/c=1 q0", false)
	expect(t, h, "spBv1.0/g/NDATA/n", payload(3, value(2, 1), metric("full", 0, Int8).varint(10, 2)), "g/n/c=1 q1, g/n/full=2 q0", true)
	r, err := h.Read("spBv1.0/g/NDATA/n", payload(4, value(2, 1)), false)
	if err != nil || !strings.Contains(r.Samples[0].Reason, "sequence number 3 came where 2 was due") {
		t.Errorf("%+v, %v", r, err)
	}
	tell(t, h, "spBv1.0/g/NBIRTH/n", nbirth(1))
	for seq := range uint64(600) {
		expect(t, h, "spBv1.0/g/NDATA/n", payload((seq+1)%256, value(2, 1)), "g/n/c=1 q0", false)
	}
	// What the broker sends again is no gap.
	if r, err := h.Read("spBv1.0/g/NDATA/n", payload(7, value(2, 1)), true); err != nil || r.Ask != "" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestUnknownAliasesAsk(t *testing.T) {
	h, c := newTestHost("")
	expect(t, h, "spBv1.0/g/NDATA/n", payload(9, value(1, 1)), "1 unnamed", true)
	tell(t, h, "spBv1.0/g/NBIRTH/n", nbirth(1))
	c.at = c.at.Add(askEvery)
	expect(t, h, "spBv1.0/g/NDATA/n", payload(1, value(77, 1), value(2, 3)), "g/n/c=3 q0, 1 unnamed", true)
	c.at = c.at.Add(askEvery)
	tell(t, h, "spBv1.0/g/NBIRTH/n", nbirth(1))
	expect(t, h, "spBv1.0/g/DDATA/n/new", payload(1, value(1, 1)), "1 unnamed", true)
	// An alias whose metric has another type now is not the metric of the birth.
	c.at = c.at.Add(askEvery)
	tell(t, h, "spBv1.0/g/NBIRTH/n", nbirth(1))
	expect(t, h, "spBv1.0/g/NDATA/n", payload(1, metric("", 2, String).bytes(15, "x")), "1 unnamed", true)
}

func TestAskingIsLimited(t *testing.T) {
	h, c := newTestHost("")
	asked := 0
	for range 3600 {
		if _, ask := tell(t, h, "spBv1.0/g/NDATA/n", payload(0, value(1, 1))); ask != "" {
			asked++
		}
		c.at = c.at.Add(time.Second)
	}
	if asked < 8 || asked > 14 {
		t.Errorf("asked %d times in an hour without an answer, want a dozen", asked)
	}
	// A node that answers and errs again is asked every askEvery at most.
	asked = 0
	for range 60 {
		tell(t, h, "spBv1.0/g/NBIRTH/n", nbirth(1))
		if _, ask := tell(t, h, "spBv1.0/g/NDATA/n", payload(5, value(1, 1))); ask != "" {
			asked++
		}
		c.at = c.at.Add(time.Second)
	}
	if asked < 5 || asked > 7 {
		t.Errorf("asked %d times in a minute, want every %s", asked, askEvery)
	}
}

func TestTablesSurviveRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tables")
	h, _ := newTestHost(dir)
	tell(t, h, "spBv1.0/g/NBIRTH/n", nbirth(1))
	tell(t, h, "spBv1.0/g/DBIRTH/n/d", payload(1, metric("t", 3, Int16).varint(10, 7)))
	if err := h.Save(); err != nil {
		t.Fatal(err)
	}
	h, _ = newTestHost(dir)
	expect(t, h, "spBv1.0/g/DDATA/n/d", payload(2, value(3, 8)), "g/n/d/t=8 q1", true)
	expect(t, h, "spBv1.0/g/NDEATH/n", death(1), "g/n/a/b=0 q2, g/n/bdSeq=0 q2, g/n/c=0 q2, g/n/d/t=0 q2", false)
	// A table that cannot be read is none: the host starts and asks.
	for _, broken := range []string{"", "{", `{"node":"n"}`, `{"node":"n","devices":{"d":null}}`} {
		paths, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(paths) != 1 {
			t.Fatalf("%v, %v", paths, err)
		}
		if err := os.WriteFile(paths[0], []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		h, _ = newTestHost(dir)
		expect(t, h, "spBv1.0/g/NDATA/n", payload(2, value(2, 8)), "1 unnamed", true)
	}
}

func TestAwayDoubtsEverything(t *testing.T) {
	h, _ := newTestHost("")
	tell(t, h, "spBv1.0/g/NBIRTH/n", nbirth(1))
	h.Away("reconnected")
	expect(t, h, "spBv1.0/g/NDATA/n", payload(1, value(2, 8)), "g/n/c=8 q1", true)
}

func TestSampleDetails(t *testing.T) {
	h, _ := newTestHost("")
	tell(t, h, "spBv1.0/g/NBIRTH/n", nbirth(1))
	r, err := h.Read("spBv1.0/g/NDATA/n", payload(1, metric("", 1, 0).varint(7, 1), metric("", 2, 0).varint(3, 1000).varint(5, 1).varint(10, 4),
		metric("c", 2, 0).bytes(15, "no number")), false)
	if err != nil {
		t.Fatal(err)
	}
	null, late, wrong := r.Samples[0], r.Samples[1], r.Samples[2]
	if null.Quality != Bad || !null.Value.IsNone() || null.Time != 1767225600123_000 || !strings.Contains(null.Reason, "is_null") {
		t.Errorf("%+v", null)
	}
	if !late.Historical || late.Time != 1_000_000 || late.Value != abi.Uint(4) {
		t.Errorf("%+v", late)
	}
	if wrong.Quality != Bad || !strings.Contains(wrong.Reason, "a metric of type UInt8 came with a string value") {
		t.Errorf("%+v", wrong)
	}
}

func TestOtherTopicsMeanNothing(t *testing.T) {
	h, _ := newTestHost("")
	for _, topic := range []string{"spBv1.0/STATE/host", "spBv1.0/g/NCMD/n", "spBv1.0/g/DCMD/n/d", "spBv1.0/g/NDATA/n/d", "spBv1.0/g/DDATA/n", "spBv1.0/g/DDATA/n/",
		"other/g/NDATA/n", "", "spBv1.0/g/NDATA/n/d/e"} {
		if r, err := h.Read(topic, []byte("{"), false); err != nil || len(r.Samples) > 0 || r.Ask != "" {
			t.Errorf("%s: %+v, %v", topic, r, err)
		}
	}
	if _, err := h.Read("spBv1.0/g/NDATA/n", []byte("{"), false); err == nil {
		t.Error("a payload that is none was read")
	}
}

func TestNodesAreBounded(t *testing.T) {
	h, _ := newTestHost("")
	for i := range maxNodes {
		tell(t, h, fmt.Sprintf("spBv1.0/g/NDATA/n%d", i), payload(0))
	}
	if _, err := h.Read("spBv1.0/g/NDATA/more", payload(0), false); err == nil {
		t.Error("there is no end of edge nodes")
	}
	h, _ = newTestHost("")
	h.known = maxKnown
	r, err := h.Read("spBv1.0/g/NBIRTH/n", nbirth(1), false)
	if err == nil || len(r.Samples) != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("spBv1.0/g/NDATA/n", payload(1, value(1, 1)), "spBv1.0/g/NDEATH/n", death(1))
	f.Add("spBv1.0/g/DBIRTH/n/d", nbirth(2), "spBv1.0/g/DDATA/n/d", payload(2, value(2, 3)))
	f.Fuzz(func(t *testing.T, topic1 string, payload1 []byte, topic2 string, payload2 []byte) {
		h, _ := newTestHost("")
		if _, err := h.Read("spBv1.0/g/NBIRTH/n", nbirth(1), false); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, _ = h.Read(topic1, payload1, false)
			_, _ = h.Read(topic2, payload2, false)
		}
		size := 0
		for _, n := range h.nodes {
			size += n.size()
		}
		if size != h.known {
			t.Errorf("%d metrics are kept, %d are counted", size, h.known)
		}
	})
}
