package host

import (
	"strings"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
)

func TestRefusedRowIsDeadLetteredAndReplayed(t *testing.T) {
	r := newRig(t)
	r.main.setRefuse(func(a string) bool { return a == "bad" })
	r.start()
	batch := recs("a", 0, 50)
	batch[25].Address = "bad"
	r.must(r.feed.give(t, batch...))
	r.main.wait(t, 49)
	r.balanced(control.Ledger{Read: 50, Delivered: 49, DeadLettered: 1})
	letters, err := r.host.DeadLetters(t.Context(), control.DeadLetterFilter{Destination: mainTable})
	r.must(err)
	if len(letters) != 1 || letters[0].Reason != sinks.ReasonRejectedPermanent || letters[0].Error != "no such column" {
		t.Fatalf("dead letters %+v", letters)
	}
	l, err := r.host.DeadLetter(t.Context(), letters[0].ID)
	r.must(err)
	back, err := abi.ParseJSON(l.Record)
	if err != nil || back.Address != "bad" {
		t.Fatalf("dead letter holds %s: %v", l.Record, err)
	}
	r.main.setRefuse(nil)
	n, err := r.host.ReplayDeadLetters(t.Context(), control.DeadLetterFilter{IDs: []string{letters[0].ID}})
	r.must(err)
	if n != 1 {
		t.Fatalf("replayed %d", n)
	}
	rows := r.main.wait(t, 50)
	if last := rows[len(rows)-1]; last.Address != "bad" || last.ID.Index != 25 {
		t.Fatalf("replayed %+v", last)
	}
	s := r.until("delivered", func(s control.Status) bool { return s.Ledger.Waiting == 0 })
	if !s.Ledger.Balanced || s.DeadLetters.Entries != 0 {
		t.Fatalf("ledger %+v, letters %+v", s.Ledger, s.DeadLetters)
	}
	if _, err := r.host.DeadLetter(t.Context(), letters[0].ID); control.CodeOf(err) != control.NotFound {
		t.Fatalf("letter is still there: %v", err)
	}
}

func TestReplayRejectedThroughMendedModule(t *testing.T) {
	r := newRig(t, "m").start()
	r.push("m", "poison")
	r.must(r.feed.give(t, rec("x/reject", 3), rec("y", 4)))
	r.main.wait(t, 1)
	r.push("m", "stamp2")
	n, err := r.host.ReplayDeadLetters(t.Context(), control.DeadLetterFilter{Pipeline: "line1"})
	r.must(err)
	if n != 1 {
		t.Fatalf("replayed %d", n)
	}
	rows := r.main.wait(t, 2)
	if rows[1].Address != "x/reject" || rows[1].Value.AsFloat() != 2 {
		t.Fatalf("replayed %+v", rows[1])
	}
}

func TestReplayDelivered(t *testing.T) {
	r := newRig(t).start()
	r.must(r.feed.give(t, recs("a", 0, 30)...))
	r.main.wait(t, 30)
	r.balanced(control.Ledger{Read: 30, Delivered: 30})
	dry, err := r.host.Replay(t.Context(), control.ReplayRequest{DryRun: true})
	r.must(err)
	if dry.Records != 30 || len(r.main.all()) != 30 {
		t.Fatalf("dry run %+v", dry)
	}
	res, err := r.host.Replay(t.Context(), control.ReplayRequest{Destination: mainTable, Rate: 1_000_000})
	r.must(err)
	rows := r.main.all()
	if res.Records != 30 || len(rows) != 60 {
		t.Fatalf("replay %+v, rows %d", res, len(rows))
	}
	for i := range 30 {
		if rows[i].ID != rows[30+i].ID {
			t.Fatalf("replayed record %d has another id", i)
		}
	}
	if l := r.status().Ledger; l.Destinations[0].Replayed != 30 || !l.Balanced {
		t.Fatalf("ledger %+v", l)
	}
	if _, err := r.host.Replay(t.Context(), control.ReplayRequest{Destination: "x.y.z"}); control.CodeOf(err) != control.NotFound {
		t.Fatalf("replay of an unknown destination: %v", err)
	}
}

// TestFullDeadLetterQueue: a dead-letter queue never drops. What cannot be
// dead-lettered waits, the status says why, and it goes on when there is room.
func TestFullDeadLetterQueue(t *testing.T) {
	r := newRig(t, "m")
	r.letterBytes = 4096
	r.start()
	r.push("m", "rejectall")
	batch := recs("a", 0, 40)
	for i := range batch {
		batch[i].Attrs = []abi.Attr{{Key: "x", Value: abi.String(strings.Repeat("y", 300))}}
	}
	r.feed.send(t, batch[:20]...)
	s := r.until("unhealthy", func(s control.Status) bool { return s.Status == control.Unhealthy })
	if !strings.Contains(strings.Join(s.Reasons, " "), "dead-letter queue is full") || s.Spool.Error == "" {
		t.Fatalf("reasons %v", s.Reasons)
	}
	select {
	case d := <-r.feed.done:
		t.Fatalf("settled although nothing could be kept: %v", d.err)
	default:
	}
	r.stop()
	if err := r.feed.settled(t); err == nil {
		t.Fatal("done(nil) for what was not kept")
	}
	r.letterBytes = 1 << 20
	r.start()
	r.must(r.feed.give(t, batch...))
	r.balanced(control.Ledger{Read: 40, DeadLettered: 40})
}

// TestFullDeadLetterQueueOfDestination: refused records that cannot be
// dead-lettered hold their destination and go on when there is room.
func TestFullDeadLetterQueueOfDestination(t *testing.T) {
	r := newRig(t)
	r.letterBytes = 8192
	r.main.setRefuse(func(a string) bool { return a == "bad" })
	r.start()
	r.must(r.feed.give(t, recs("bad", 0, 20)...))
	r.until("the first are dead-lettered", func(s control.Status) bool { return s.Ledger.DeadLettered == 20 })
	r.must(r.feed.give(t, recs("bad", 20, 20)...))
	s := r.until("held", func(s control.Status) bool { return s.Destinations[0].State == control.DestinationHeld })
	if l := s.Ledger; !l.Balanced || s.Status != control.Unhealthy || l.DeadLettered != 20 || l.Waiting != 20 {
		t.Fatalf("status %s, ledger %+v", s.Status, l)
	}
	n, err := r.host.PurgeDeadLetters(t.Context(), control.DeadLetterFilter{})
	r.must(err)
	if n != 20 {
		t.Fatalf("purged %d", n)
	}
	r.balanced(control.Ledger{Read: 40, DeadLettered: 40})
	if got := r.status().DeadLetters.Entries; got != 20 {
		t.Fatalf("%d dead letters are left, 20 came after the purge", got)
	}
}
