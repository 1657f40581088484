package modbus

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestProbesAreLikeNothingOutstanding draws reads that got no reply, and checks
// that the next probe cannot be answered by any of their replies.
func TestProbesAreLikeNothingOutstanding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d doubt
		table := rapid.SampledFrom(registerTypes).Draw(t, "table")
		most := maxRegisters
		if table.bits() {
			most *= bitsPerWord
		}
		start := rapid.Uint16Range(0, 40000).Draw(t, "start")
		for range rapid.IntRange(0, 100).Draw(t, "failures") {
			n, ok := d.probe(table, start)
			if rapid.Bool().Draw(t, "other") {
				n, ok = rapid.IntRange(1, most).Draw(t, "count"), true
			}
			if ok {
				d.add(table, start, n)
			}
		}
		n, ok := d.probe(table, start)
		if !ok {
			t.Fatalf("no probe left after %d shapes", len(d))
		}
		if _, taken := d[shapeOf(table, n)]; taken || n > most {
			t.Fatalf("a probe of %d could be answered by an older reply", n)
		}
	})
}

func TestDoubtExpires(t *testing.T) {
	var d doubt
	d.add(Holding, 0, 10)
	d.expire(time.Now())
	if len(d) != 1 {
		t.Error("a doubt was forgotten at once")
	}
	d.expire(time.Now().Add(latest + time.Second))
	if len(d) != 0 {
		t.Error("a doubt outlived the latest reply")
	}
}

// TestReplyToTheProcessBeforeIsNotTaken starts a source on a line on which a
// reply to an earlier request is still under way.
func TestReplyToTheProcessBeforeIsNotTaken(t *testing.T) {
	s := newSlave(t, true, func(n int, r wireRequest, s *slave) {
		if n == 0 {
			older := r
			older.start, older.count = 100, 3
			s.send(s.numbers(older))
		}
		s.send(s.numbers(r))
	})
	b := onWire(t, s.endpoint(), fourBlocks+"timeout_ms: 50\n")
	stop := b.run(t)
	right := 0
	eventually(t, "good values", func() bool { right += checkNumbers(t, b); return right > 100 })
	stop()
	if b.count(MetricReopens) == 0 {
		t.Error("the older reply was not noticed")
	}
}
