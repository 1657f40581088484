package host

import (
	"slices"
	"strings"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
)

func TestHoldAndMend(t *testing.T) {
	r := newRig(t, "m").start()
	r.push("m", "broken")
	// done(nil) comes all the same: what is held is durable.
	for i := range 5 {
		r.must(r.feed.give(t, recs("a", i*40, 40)...))
	}
	s := r.until("held", func(s control.Status) bool { return s.Pipelines[0].State == control.PipelineHeld })
	if s.Ledger.Held != 200 || !s.Ledger.Balanced || s.Status != control.Degraded {
		t.Fatalf("ledger while held: %+v", s.Ledger)
	}
	r.restart()
	if s := r.status(); s.Ledger.Held != 200 || !s.Ledger.Balanced {
		t.Fatalf("ledger after the restart: %+v", s.Ledger)
	}
	r.push("m", "poison")
	r.must(r.feed.give(t, recs("a", 200, 10)...))
	if got := values(r.main.wait(t, 210)); !slices.Equal(got, numbers(0, 210)) {
		t.Fatal("what was held is not delivered first")
	}
	r.balanced(control.Ledger{Read: 210, Delivered: 210})
}

func TestRollbackMends(t *testing.T) {
	r := newRig(t, "m").start()
	r.push("m", "stamp1")
	r.push("m", "broken")
	r.must(r.feed.give(t, recs("a", 0, 40)...))
	r.until("held", func(s control.Status) bool { return s.Ledger.Held == 40 })
	if _, err := r.host.RollbackModule(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	for _, row := range r.main.wait(t, 40) {
		if row.Value.AsFloat() != 1 {
			t.Fatalf("value %v, the revision before writes 1", row.Value)
		}
	}
	if _, err := r.host.RollbackModule(t.Context(), "m"); control.CodeOf(err) != control.Invalid {
		t.Fatalf("rollback beyond the first revision: %v", err)
	}
}

// TestHeldBatchOfLargeRecords: a batch larger than a frame is held in several.
func TestHeldBatchOfLargeRecords(t *testing.T) {
	r := newRig(t, "m").start()
	r.push("m", "broken")
	batch := recs("a", 0, 24)
	for i := range batch {
		batch[i].Attrs = []abi.Attr{{Key: "x", Value: abi.String(strings.Repeat("y", 200<<10))}}
	}
	r.must(r.feed.give(t, batch...))
	r.until("held", func(s control.Status) bool { return s.Ledger.Held == 24 })
	r.restart()
	r.push("m", "poison")
	if got := values(r.main.wait(t, 24)); !slices.Equal(got, numbers(0, 24)) {
		t.Fatalf("got %v", got)
	}
	r.balanced(control.Ledger{Read: 24, Delivered: 24})
}

// TestProbingDeadLettersNothing: while a pipeline is held, trying its module
// again does not move the input into the dead-letter queue bit by bit.
func TestProbingDeadLettersNothing(t *testing.T) {
	r := newRig(t, "m").start()
	r.push("m", "broken")
	for i := range 20 {
		r.must(r.feed.give(t, recs("a", 2*i, 2)...))
	}
	s := r.until("held", func(s control.Status) bool { return s.Pipelines[0].State == control.PipelineHeld })
	dead, held := s.Ledger.DeadLettered, s.Ledger.Held
	if dead > budgetFaults || dead+held != 40 {
		t.Fatalf("%d dead-lettered, %d held of 40", dead, held)
	}
	for range 3 {
		r.restart() // tries at once
		s = r.until("held again", func(s control.Status) bool { return s.Pipelines[0].State == control.PipelineHeld })
		if s.Ledger.DeadLettered != dead || s.Ledger.Held != held {
			t.Fatalf("after a try: %d dead-lettered, %d held; before %d, %d", s.Ledger.DeadLettered, s.Ledger.Held, dead, held)
		}
	}
	r.push("m", "stamp1")
	r.main.wait(t, int(held))
	r.balanced(control.Ledger{Read: 40, Delivered: held, DeadLettered: dead})
}
