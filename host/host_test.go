package host

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/spool"
)

func TestDeliverWithoutModules(t *testing.T) {
	r := newRig(t).start()
	for i := range 20 {
		r.must(r.feed.give(t, recs("a", i*50, 50)...))
	}
	if got := values(r.main.wait(t, 1000)); !slices.Equal(got, numbers(0, 1000)) {
		t.Fatalf("delivered out of order or not all: %d values", len(got))
	}
	r.balanced(control.Ledger{Read: 1000, Delivered: 1000})
	r.restart()
	r.must(r.feed.give(t, recs("a", 1000, 1)...))
	r.main.wait(t, 1001)
	r.balanced(control.Ledger{Read: 1001, Delivered: 1001})
}

func TestDoneBeforeDelivery(t *testing.T) {
	r := newRig(t)
	r.main.setDown(true)
	r.start()
	r.must(r.feed.give(t, recs("a", 0, 500)...))
	s := r.status()
	if s.Ledger.Waiting != 500 || s.Ledger.Delivered != 0 || !s.Ledger.Balanced {
		t.Fatalf("ledger with the table down: %+v", s.Ledger)
	}
	r.restart()
	if s := r.status(); s.Ledger.Waiting != 500 || !s.Ledger.Balanced {
		t.Fatalf("ledger after the restart: %+v", s.Ledger)
	}
	r.main.setDown(false)
	if got := values(r.main.wait(t, 500)); !slices.Equal(got, numbers(0, 500)) {
		t.Fatal("order lost over the restart")
	}
	r.balanced(control.Ledger{Read: 500, Delivered: 500})
}

func TestLedgerShowsBrokenCounter(t *testing.T) {
	for _, breakIt := range []func(*Host){
		func(h *Host) { h.pipelines[0].commit.book.Counts.Filtered++ },
		func(h *Host) { h.pipelines[0].commit.book.Counts.Emitted++ },
		func(h *Host) { h.pipelines[0].commit.book.Appended[mainTable]-- },
	} {
		r := newRig(t).start()
		r.must(r.feed.give(t, recs("a", 0, 10)...))
		r.main.wait(t, 10)
		r.balanced(control.Ledger{Read: 10, Delivered: 10})
		r.host.books.Lock()
		breakIt(r.host)
		r.host.books.Unlock()
		if s := r.status(); s.Ledger.Balanced || s.Status != control.Unhealthy {
			t.Fatalf("a broken counter goes unnoticed: %+v", s.Ledger)
		}
		r.stop()
	}
}

func TestRejectFilterAndPoison(t *testing.T) {
	r := newRig(t, "poison").start()
	r.push("poison", "poison")
	batch := recs("a", 0, 100)
	batch[10].Address, batch[20].Address, batch[30].Address = "x/reject", "x/drop", "x/trap"
	r.must(r.feed.give(t, batch...))
	want := slices.DeleteFunc(numbers(0, 100), func(v string) bool { return v == "10" || v == "20" || v == "30" })
	if got := values(r.main.wait(t, 97)); !slices.Equal(got, want) {
		t.Fatalf("got %v", got)
	}
	r.balanced(control.Ledger{Read: 100, Delivered: 97, Filtered: 1, DeadLettered: 2})
	letters, err := r.host.DeadLetters(t.Context(), control.DeadLetterFilter{})
	r.must(err)
	reasons := map[string]string{}
	for _, l := range letters {
		reasons[l.Address] = l.Reason + ": " + l.Error
	}
	for _, l := range letters {
		if l.Module != "poison" || len(l.Revision) != 64 {
			t.Errorf("dead letter %s names module %q, revision %q", l.ID, l.Module, l.Revision)
		}
	}
	if len(letters) != 2 || reasons["x/reject"] != "rejected: not wanted here" || !strings.HasPrefix(reasons["x/trap"], "module_trap: ") {
		t.Fatalf("dead letters: %v", reasons)
	}
	if s := r.status(); s.Pipelines[0].State != control.PipelineRunning {
		t.Fatalf("one poison record holds the pipeline: %+v", s.Pipelines[0])
	}
}

func TestLoopIsStoppedAndTheRestFlows(t *testing.T) {
	r := newRig(t, "poison").start()
	r.push("poison", "poison")
	batch := recs("a", 0, 8)
	batch[5].Address = "x/loop"
	r.must(r.feed.give(t, batch...))
	if got := values(r.main.wait(t, 7)); !slices.Equal(got, []string{"0", "1", "2", "3", "4", "6", "7"}) {
		t.Fatalf("got %v", got)
	}
	r.balanced(control.Ledger{Read: 8, Delivered: 7, DeadLettered: 1})
}

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

func TestWaitForMissingModule(t *testing.T) {
	r := newRig(t, "scale").start()
	r.until("waiting", func(s control.Status) bool {
		return s.Pipelines[0].State == control.PipelineWaiting && strings.Contains(s.Pipelines[0].Detail, "edgehost module push FILE --name scale")
	})
	r.feed.send(t, recs("a", 0, 10)...)
	select {
	case d := <-r.feed.done:
		t.Fatalf("settled without the module: %v", d.err)
	default:
	}
	r.push("scale", "stamp2")
	r.must(r.feed.settled(t))
	if rows := r.main.wait(t, 10); rows[0].Value.AsFloat() != 2 {
		t.Fatalf("not transformed: %v", rows[0].Value)
	}
}

func TestBypassMissingModule(t *testing.T) {
	r := newRig(t, "scale")
	r.cfg.Bypass = true
	r.start()
	r.must(r.feed.give(t, recs("a", 7, 1)...))
	if rows := r.main.wait(t, 1); rows[0].Value.AsInt() != 7 {
		t.Fatalf("value %v", rows[0].Value)
	}
}

func TestRefusedUploadChangesNothing(t *testing.T) {
	r := newRig(t, "m").start()
	r.push("m", "stamp1")
	for _, bad := range [][]byte{nil, []byte("not wasm"), []byte("\x00asm\x01\x00\x00\x00")} {
		if _, err := r.host.PushModule(t.Context(), control.PushRequest{Name: "m", Wasm: bad, Activate: true}); control.CodeOf(err) != control.Refused {
			t.Fatalf("upload of %q: %v", bad, err)
		}
	}
	if _, err := r.host.PushModule(t.Context(), control.PushRequest{Name: "../m", Wasm: wasm(t, "stamp2"), Activate: true}); control.CodeOf(err) != control.Invalid {
		t.Fatalf("bad name: %v", err)
	}
	r.must(r.feed.give(t, recs("a", 0, 1)...))
	if rows := r.main.wait(t, 1); rows[0].Value.AsFloat() != 1 {
		t.Fatalf("value %v", rows[0].Value)
	}
	ms, err := r.host.Modules(t.Context())
	r.must(err)
	if len(ms) != 1 || len(ms[0].Revisions) != 1 || ms[0].Pipelines[0] != "line1" {
		t.Fatalf("modules %+v", ms)
	}
}

func TestRoute(t *testing.T) {
	r := newRig(t, "route").start()
	r.push("route", "route")
	r.must(r.feed.give(t, recs("a", 0, 100)...))
	if got := values(r.other.wait(t, 10)); !slices.Equal(got, []string{"0", "10", "20", "30", "40", "50", "60", "70", "80", "90"}) {
		t.Fatalf("second table: %v", got)
	}
	r.main.wait(t, 90)
	r.balanced(control.Ledger{Read: 100, Delivered: 100})
}

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

func TestResumePoint(t *testing.T) {
	r := newRig(t).start()
	b := batchOf(recs("a", 0, 1))
	b.Resume = []byte("here")
	r.feed.in <- b
	r.must(r.feed.settled(t))
	if got := string(r.host.Resume("s1")); got != "here" {
		t.Fatalf("resume point %q", got)
	}
	r.restart()
	if got := string(r.host.Resume("s1")); got != "here" {
		t.Fatalf("resume point after the restart %q", got)
	}
}

func TestBackPressure(t *testing.T) {
	r := newRig(t, "never uploaded").start()
	emit := r.host.pipelines[0].emit("s1")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var err error
	for i := 0; err == nil; i++ {
		if i > 10000 {
			t.Fatal("a pipeline that waits takes batches without end")
		}
		err = emit(ctx, batchOf(recs("a", 0, 100)), func(error) {})
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("emit: %v", err)
	}
	if s := r.status(); s.Pipelines[0].Queued.Records != 10000 {
		t.Fatalf("queued %d", s.Pipelines[0].Queued.Records)
	}
}

// TestRenamedPipeline: what a pipeline of the past appended is still accounted
// for and delivered, and its held input is reported.
func TestRenamedPipeline(t *testing.T) {
	r := newRig(t, "m")
	r.main.setDown(true)
	r.start()
	r.push("m", "poison")
	r.must(r.feed.give(t, recs("a", 0, 3)...))
	r.push("m", "broken")
	r.must(r.feed.give(t, recs("a", 3, 40)...))
	r.until("held", func(s control.Status) bool { return s.Ledger.Held == 40 })
	r.stop()
	r.cfg.Name = "line2"
	r.start()
	s := r.status()
	if !s.Ledger.Balanced || s.Ledger.Waiting != 3 {
		t.Fatalf("ledger after the pipeline was renamed: %+v", s.Ledger)
	}
	if !slices.ContainsFunc(s.Reasons, func(reason string) bool { return strings.Contains(reason, "held/line1") }) {
		t.Fatalf("the held input of line1 goes unnoticed: %v", s.Reasons)
	}
	r.main.setDown(false)
	r.main.wait(t, 3)
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

func TestTimeToFull(t *testing.T) {
	var f filling
	at := time.Unix(1000, 0)
	for i, step := range []struct {
		after       time.Duration
		used, limit uint64
		want        float64
	}{
		{0, 100, 1000, 0},                 // the first look
		{time.Second, 500, 1000, 0},       // too early to say
		{20 * time.Second, 300, 1000, 70}, // 10 a second, 700 left
		{25 * time.Second, 990, 1000, 70}, // too early for another
		{40 * time.Second, 300, 1000, 0},  // does not grow
		{60 * time.Second, 400, 0, 0},     // no cap
	} {
		if got := f.estimate(at.Add(step.after), step.used, step.limit); got != step.want {
			t.Errorf("step %d: %v seconds, want %v", i, got, step.want)
		}
	}
}

func TestConfigurationThatCannotWork(t *testing.T) {
	for _, cfg := range []Config{
		{Sources: []SourceConfig{{Name: "s"}}},
		{Pipelines: []PipelineConfig{{Name: "p", Sources: []string{"s"}}, {Name: "q", Sources: []string{"s"}}}},
		{Pipelines: []PipelineConfig{{Name: "p", Target: "c.s.t"}}},
	} {
		if err := cfg.checkMembers(); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
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

// TestFullSpool: at its cap the spool takes nothing more and loses nothing; the
// source waits, the status says why, and it goes on when records are delivered.
func TestFullSpool(t *testing.T) {
	r := newRig(t)
	r.cap = 3 << 20
	r.main.setDown(true)
	r.start()
	n := 0
	for full := false; !full; n++ {
		batch := recs("a", n*20, 20)
		for i := range batch {
			noise := make([]byte, 8<<10)
			if _, err := rand.Read(noise); err != nil {
				t.Fatal(err)
			}
			batch[i].Attrs = []abi.Attr{{Key: "x", Value: abi.Bytes(noise)}}
		}
		r.feed.send(t, batch...)
		select {
		case d := <-r.feed.done:
			r.must(d.err)
		case <-time.After(300 * time.Millisecond):
			full = true
		}
		if n > 100 {
			t.Fatal("the cap is not obeyed")
		}
	}
	s := r.until("unhealthy", func(s control.Status) bool { return s.Status == control.Unhealthy })
	if !strings.Contains(s.Spool.Error, "the spool is full") || !s.Ledger.Balanced {
		t.Fatalf("status %v, ledger %+v", s.Reasons, s.Ledger)
	}
	r.stop() // the last batch is given back, as a device would see it
	if err := r.feed.settled(t); err == nil {
		t.Fatal("done(nil) for what was not kept")
	}
	r.main.setDown(false)
	r.cap = 64 << 20
	r.start()
	r.main.wait(t, (n-1)*20)
	r.must(r.feed.give(t, recs("a", (n-1)*20, 20)...))
	if got := values(r.main.wait(t, n*20)); !slices.Equal(got, numbers(0, n*20)) {
		t.Fatal("records are missing or out of order")
	}
	r.balanced(control.Ledger{Read: uint64(n * 20), Delivered: uint64(n * 20)})
}

// TestDamagedFrame: a frame that does not open any more is dead-lettered in its
// turn, what is behind it flows, and a replay says what it could not send.
func TestDamagedFrame(t *testing.T) {
	r := newRig(t)
	r.main.setDown(true)
	r.start()
	r.must(r.feed.give(t, recs("a", 0, 5)...))
	q := r.host.destinations[mainTable].queue
	owner := spool.Owner{ID: r.host.pipelines[0].commit.id, Seq: 1}
	appended := make(chan error, 1)
	q.Append(spool.Frame{Owner: owner, Count: 3, Payload: []byte("no frame at all")}, func(_ uint64, err error) { appended <- err })
	r.must(<-appended)
	q.Commit(owner.ID, owner.Seq)
	r.must(r.feed.give(t, recs("a", 5, 5)...))
	r.main.setDown(false)
	if got := values(r.main.wait(t, 10)); !slices.Equal(got, numbers(0, 10)) {
		t.Fatalf("got %v", got)
	}
	r.until("settled", func(s control.Status) bool { return s.Ledger.Waiting == 0 && s.Ledger.DeadLettered == 3 })
	letters, err := r.host.DeadLetters(t.Context(), control.DeadLetterFilter{Reason: "tamper_or_corrupt"})
	r.must(err)
	if len(letters) != 1 || letters[0].Destination != mainTable {
		t.Fatalf("dead letters %+v", letters)
	}
	if _, err := r.host.ReplayDeadLetters(t.Context(), control.DeadLetterFilter{IDs: []string{letters[0].ID}}); control.CodeOf(err) != control.Invalid {
		t.Fatalf("a letter without a record was replayed: %v", err)
	}
	res, err := r.host.Replay(t.Context(), control.ReplayRequest{Destination: mainTable, Rate: 1_000_000})
	if err == nil || !strings.Contains(err.Error(), "3 kept records are damaged") || res.Records != 10 {
		t.Fatalf("replay %+v: %v", res, err)
	}
}
