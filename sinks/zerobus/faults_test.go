package zerobus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sinks/sinktest"
	"github.com/edgehost/edgehost/sinks/zerobus"
	"github.com/edgehost/edgehost/sinks/zerobus/zerobustest"
)

// fast is a back-off for tests that do not measure it.
var fast = sinks.ReconnectConfig{InitialDelaySeconds: 0.001, MaxDelaySeconds: 0.02, BackoffMultiplier: 2}

func (b *bench) guarded(t *testing.T, change func(*zerobus.Options)) (*sinks.Guarded, *zerobus.Sink) {
	s := b.sink(t, change)
	return sinks.Guard(s, sinks.DefaultBreakerConfig(), fast, slog.New(slog.NewTextHandler(b.log, nil))), s
}

// delivered fails the test unless the records 1 to n are all in the table, and
// returns how many rows there are twice.
func (b *bench) delivered(t *testing.T, n uint64, without ...uint64) (duplicates int) {
	t.Helper()
	seen := map[string]int{}
	for _, row := range b.rows(t, zerobus.MQTTTable) {
		seen[fmt.Sprint(row["record_id"])]++
	}
	for _, seq := range without {
		id := record(seq).ID.String()
		if seen[id] > 0 {
			t.Errorf("record %d is in the table", seq)
		}
		seen[id] = 1
	}
	for seq := uint64(1); seq <= n; seq++ {
		id := record(seq).ID.String()
		if seen[id] == 0 {
			t.Errorf("record %d is missing", seq)
		}
		duplicates += seen[id] - 1
		delete(seen, id)
	}
	if len(seen) > 0 {
		t.Errorf("%d unexpected rows", len(seen))
	}
	return duplicates
}

// Every stream dies after five requests; all records arrive, and each repeat is
// counted.
func TestStreamsThatDie(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.Aborted, codes.Canceled, codes.Unknown, codes.DataLoss, codes.DeadlineExceeded} {
		t.Run(code.String(), func(t *testing.T) {
			b := newBench(t, zerobustest.Config{})
			b.SetFaults(zerobustest.Faults{Stream: zerobustest.CodeFault{Code: code, Count: 3, After: 5}})
			g, s := b.guarded(t, nil)
			if refused := sinktest.Drain(t, g, records(1, 3000)); len(refused) > 0 {
				t.Errorf("refused: %v", refused)
			}
			duplicates := b.delivered(t, 3000)
			st := s.Stats()
			if st.Streams != 4 || st.Resent < uint64(duplicates) || st.TokenMints != 1 {
				t.Errorf("%d duplicates, stats %+v", duplicates, st)
			}
			if r := g.State().Reconnects; r != 3 {
				t.Errorf("%d reconnects", r)
			}
		})
	}
}

// A planned end is no failure: nothing is sent twice, no breaker, no alarm.
func TestRotation(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	g, s := b.guarded(t, nil)
	st := open(t, g)
	if err := st.Send(t.Context(), records(1, 500)); err != nil {
		t.Fatal(err)
	}
	awaitAck(t, st, 500)
	b.SignalClose(2 * time.Second)
	for range st.Acks() { // ends long before the notice
	}
	if !errors.Is(st.Err(), sinks.ErrRotated) {
		t.Fatalf("Err: %v", st.Err())
	}
	sinktest.Drain(t, g, records(501, 1000))
	if n := b.delivered(t, 1000); n != 0 {
		t.Errorf("%d duplicates", n)
	}
	if state := g.State(); state.Rotations != 1 || state.Failures != 0 || state.LastError != "" {
		t.Errorf("guard: %+v", state)
	}
	if s.Stats().Rotations != 1 || strings.Contains(b.log.String(), "level=WARN") {
		t.Errorf("stats %+v, log %s", s.Stats(), b.log)
	}
}

// The service ends every stream after 50 ms while records flow.
func TestRotationUnderLoad(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	b.SetFaults(zerobustest.Faults{RotateAfterMS: 50, RotateNoticeMS: 5, AckDelayMS: 5})
	g, s := b.guarded(t, func(o *zerobus.Options) { o.BatchRecords = 10; o.WindowBytes = 1 })
	sinktest.Drain(t, g, records(1, 6_000))
	b.delivered(t, 6_000)
	if state := g.State(); state.Trips != 0 || state.Failures != 0 {
		t.Errorf("guard: %+v, sink: %+v", state, s.Stats())
	}
}

// An ack of more than was sent ends the stream at once, and what was sent is sent
// again; acks that are withheld end it after the timeout.
func TestAcksThatLie(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	s := b.sink(t, nil)
	withoutAck := func(s *zerobus.Sink, want string) {
		t.Helper()
		st := open(t, s)
		if err := st.Send(t.Context(), records(1, 10)); err != nil {
			t.Fatal(err)
		}
		for a := range st.Acks() {
			t.Errorf("ack %v", a)
		}
		if err := st.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Err: %v, want %q", err, want)
		}
	}
	b.SetFaults(zerobustest.Faults{OverAck: 5})
	withoutAck(s, "exceeds")
	b.SetFaults(zerobustest.Faults{})
	if refused := sinktest.Drain(t, s, records(1, 10)); len(refused) > 0 {
		t.Errorf("refused: %v", refused)
	}
	if n := s.Stats().Resent; n != 10 {
		t.Errorf("%d re-sent", n)
	}
	b.SetFaults(zerobustest.Faults{WithholdAcks: true})
	withoutAck(b.sink(t, func(o *zerobus.Options) { o.AckTimeout = 200 * time.Millisecond }), "no ack")
}

// poison makes the service refuse record seq.
func poison(seqs ...uint64) zerobustest.Faults {
	var f zerobustest.Faults
	for _, seq := range seqs {
		f.Reject = append(f.Reject, zerobustest.Match{Column: "topic", Value: record(seq).Address})
	}
	return f
}

func TestRefusedRows(t *testing.T) {
	for name, bad := range map[string][]uint64{
		"a bad batch": span(1950, 2010), "one": {1234}, "first": {1}, "last": {3000}, "neighbours": {700, 701, 702}, "spread": {5, 99, 100, 101, 1500, 2999, 3000},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, zerobustest.Config{})
			b.SetFaults(poison(bad...))
			g, s := b.guarded(t, nil)
			refused := sinktest.Drain(t, g, records(1, 3000))
			if len(refused) != len(bad) {
				t.Fatalf("refused: %v", refused)
			}
			for i, r := range refused {
				if r.Seq != bad[i] || r.Reason != sinks.ReasonRejectedPermanent || !strings.Contains(r.Err.Error(), "column topic has a value") {
					t.Errorf("refusal %d: %+v", i, r)
				}
			}
			b.delivered(t, 3000, bad...)
			if state := g.State(); state.Failures != 0 || state.Trips != 0 {
				t.Errorf("guard: %+v", state)
			}
			if st := s.Stats(); st.Bisections == 0 || st.Streams > 200 || st.Refused != uint64(len(bad)) {
				t.Errorf("stats: %+v", st)
			}
		})
	}
}

func span(from, to uint64) (seqs []uint64) {
	for seq := from; seq <= to; seq++ {
		seqs = append(seqs, seq)
	}
	return seqs
}

// When every row is refused the table is at fault: nothing is dead-lettered.
func TestEveryRowRefused(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	b.SetFaults(zerobustest.Faults{Reject: []zerobustest.Match{{Column: "source_name", Value: "plant"}}})
	s := b.sink(t, nil)
	st := open(t, s)
	if err := st.Send(t.Context(), records(1, 300)); err != nil && !errors.Is(err, sinks.ErrSuspect) {
		t.Fatal(err)
	}
	for a := range st.Acks() {
		t.Errorf("ack %v", a)
	}
	if !errors.Is(st.Err(), sinks.ErrSuspect) {
		t.Fatalf("Err: %v", st.Err())
	}
	for range 2 { // also when it is probed again
		st = open(t, s)
		err := st.Send(t.Context(), records(1, 300))
		if !sinks.Held(err) || !strings.Contains(err.Error(), "looks like the table") {
			t.Fatalf("Send: %v", err)
		}
		for a := range st.Acks() {
			t.Errorf("ack %v", a)
		}
	}
	b.SetFaults(zerobustest.Faults{}) // mended
	if refused := sinktest.Drain(t, s, records(1, 300)); len(refused) > 0 {
		t.Errorf("refused: %v", refused)
	}
	b.delivered(t, 300)
}

// A refused row without any neighbour waits for one and is then held, since
// nothing shows whose fault it is; a neighbour decides.
func TestRefusedWithoutNeighbour(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	b.SetFaults(poison(1))
	s := b.sink(t, func(o *zerobus.Options) { o.NeighbourWait = deadline })
	st := open(t, s)
	_ = st.Send(t.Context(), records(1, 1)) // its stream ends before or after
	for range st.Acks() {
	}
	st = open(t, s)
	if err := st.Send(t.Context(), records(1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := st.Send(t.Context(), records(2, 2)); err != nil { // the neighbour
		t.Fatal(err)
	}
	if refused := awaitAck(t, st, 2); len(refused) != 1 || refused[0].Seq != 1 {
		t.Errorf("refused: %v", refused)
	}
	if err := st.Send(t.Context(), records(3, 300)); err != nil { // an ordinary stream again
		t.Fatal(err)
	}
	awaitAck(t, st, 300)
	closing(t, st)
	b.delivered(t, 300, 1)

	b.SetFaults(poison(301))
	s = b.sink(t, func(o *zerobus.Options) { o.NeighbourWait = 100 * time.Millisecond })
	st = open(t, s)
	_ = st.Send(t.Context(), records(301, 301))
	for range st.Acks() {
	}
	st = open(t, s)
	if err := st.Send(t.Context(), records(301, 301)); err != nil {
		t.Fatal(err)
	}
	for a := range st.Acks() { // no neighbour comes
		t.Errorf("ack %v", a)
	}
	if !sinks.Held(st.Err()) {
		t.Errorf("Err: %v", st.Err())
	}
}

// More than a hundred refused rows an hour hold the destination.
func TestTooManyRefused(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	var bad []uint64
	for seq := uint64(2); seq <= 204; seq += 2 {
		bad = append(bad, seq)
	}
	b.SetFaults(poison(bad...)) // 102 of them
	s := b.sink(t, nil)
	refused := 0
	cursor := uint64(1)
	var err error
	for range 10 {
		st := open(t, s)
		_ = st.Send(t.Context(), records(cursor, 300)) // Err says how the stream ended
		for a := range st.Acks() {
			refused += len(a.Refused)
			cursor = a.Seq + 1
		}
		if err = st.Err(); sinks.Held(err) {
			break
		}
	}
	if !sinks.Held(err) || !strings.Contains(err.Error(), "within an hour") {
		t.Errorf("%v", err)
	}
	if refused != 100 {
		t.Errorf("%d refused", refused)
	}
}

func TestOpenErrors(t *testing.T) {
	tests := []struct {
		name   string
		faults zerobustest.Faults
		ok     bool        // opens
		state  sinks.State // of a held error
		slow   bool        // throttled
		mints  uint64
	}{
		{name: "invalid argument", faults: create(codes.InvalidArgument, -1), state: sinks.StateHeld, mints: 1},
		{name: "table not found", faults: create(codes.NotFound, -1), state: sinks.StateHeld, mints: 1},
		{name: "schema does not match", faults: create(codes.FailedPrecondition, -1), state: sinks.StateHeld, mints: 1},
		{name: "token refused once", faults: create(codes.Unauthenticated, 1), ok: true, mints: 2},
		{name: "token refused", faults: create(codes.Unauthenticated, -1), state: sinks.StateAuthFailed, mints: 2},
		{name: "grant missing", faults: create(codes.PermissionDenied, -1), state: sinks.StateAuthFailed, mints: 2},
		{name: "quota", faults: create(codes.ResourceExhausted, -1), slow: true, mints: 1},
		{name: "down", faults: create(codes.Unavailable, -1), mints: 1},
		{name: "token 401 once", faults: token(401, 1), ok: true, mints: 1},
		{name: "token 401", faults: token(401, -1), state: sinks.StateAuthFailed},
		{name: "token 400", faults: token(400, -1), state: sinks.StateAuthFailed},
		{name: "token 429", faults: token(429, -1), slow: true},
		{name: "token 500", faults: token(500, -1)},
		{name: "dead", faults: zerobustest.Faults{Dead: true}, mints: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, zerobustest.Config{})
			tt.faults.Token.Echo = true
			b.SetFaults(tt.faults)
			s := b.sink(t, nil)
			st, err := s.Open(t.Context())
			if err == nil {
				closing(t, st)
			}
			if (err == nil) != tt.ok {
				t.Fatalf("Open: %v", err)
			}
			if after, slow := sinks.IsThrottled(err); slow != tt.slow || slow && tt.faults.Token.Status == 429 && after != 7*time.Second {
				t.Errorf("throttled %v after %v: %v", slow, after, err)
			}
			if sinks.Held(err) != (tt.state != "") {
				t.Errorf("held: %v", err)
			}
			if s.Stats().TokenMints != tt.mints {
				t.Errorf("%d tokens minted, want %d", s.Stats().TokenMints, tt.mints)
			}
			if err != nil {
				noSecret(t, b, err.Error())
				g := sinks.Guard(s, sinks.DefaultBreakerConfig(), fast, slog.New(slog.NewTextHandler(b.log, nil)))
				state := guardsUntil(t, g, func(s sinks.Status) bool {
					return s.LastError != "" && (tt.state == "" || s.State == tt.state) && (!tt.slow || s.State == sinks.StateThrottled)
				})
				noSecret(t, b, fmt.Sprint(state), b.log.String())
			}
		})
	}
}

// guardsUntil lets g try to open a stream, which it cannot, until its state is ok.
func guardsUntil(t *testing.T, g *sinks.Guarded, ok func(sinks.Status) bool) sinks.Status {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := g.Open(ctx)
		ended <- err
	}()
	var state sinks.Status
	until(t, func() bool {
		state = g.State()
		return ok(state)
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("guarded Open: %v", err)
	}
	return state
}

func create(code codes.Code, count int) zerobustest.Faults {
	return zerobustest.Faults{Create: zerobustest.CodeFault{Code: code, Count: count}}
}

func token(status, count int) zerobustest.Faults {
	return zerobustest.Faults{Token: zerobustest.TokenFault{Status: status, Count: count, RetryAfterS: 7}}
}

// noSecret fails the test when the planted secret is in one of texts.
func noSecret(t *testing.T, b *bench, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(text, b.pass) || strings.Contains(text, "emulated-") {
			t.Errorf("a secret appears in %q", text)
		}
	}
}

// Codes that end an open stream: quota slows, a lost grant is tried again with a
// fresh token, a lost table holds.
func TestMidStreamErrors(t *testing.T) {
	for code, check := range map[codes.Code]func(error) bool{
		codes.ResourceExhausted:  func(err error) bool { _, slow := sinks.IsThrottled(err); return slow },
		codes.NotFound:           sinks.Held,
		codes.FailedPrecondition: sinks.Held,
		codes.PermissionDenied:   func(err error) bool { return !sinks.Held(err) },
		codes.Unauthenticated:    func(err error) bool { return !sinks.Held(err) },
	} {
		t.Run(code.String(), func(t *testing.T) {
			b := newBench(t, zerobustest.Config{})
			b.SetFaults(zerobustest.Faults{Stream: zerobustest.CodeFault{Code: code, Count: 1, After: 2}})
			s := b.sink(t, nil)
			st := open(t, s)
			_ = st.Send(t.Context(), records(1, 1000)) // may end before the last request
			for range st.Acks() {
			}
			if err := st.Err(); err == nil || !check(err) {
				t.Errorf("Err: %v", err)
			}
			sinktest.Drain(t, s, records(1, 1000))
			b.delivered(t, 1000)
			if auth := code == codes.PermissionDenied || code == codes.Unauthenticated; auth != (s.Stats().TokenMints == 2) {
				t.Errorf("%d tokens minted", s.Stats().TokenMints)
			}
		})
	}
}

// A new secret is used without a restart.
func TestCredentialsAreRotated(t *testing.T) {
	b := newBench(t, zerobustest.Config{ClientID: "principal", ClientSecret: "canary-second"})
	b.pass = "canary-first"
	g, s := b.guarded(t, nil)
	opened := make(chan sinks.Stream)
	go func() {
		st, _ := g.Open(t.Context()) // nil ends the test below
		opened <- st
	}()
	until(t, func() bool { return g.State().State == sinks.StateAuthFailed })
	noSecret(t, b, g.State().LastError, b.log.String())
	b.mu.Lock()
	b.pass = "canary-second"
	b.mu.Unlock()
	g.Reset() // instead of waiting for the next probe
	st := <-opened
	if st == nil {
		t.Fatal("not opened")
	}
	closing(t, st)
	if s.Stats().TokenMints != 1 {
		t.Errorf("stats: %+v", s.Stats())
	}
}

func TestCredentialsUnreadable(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	s := b.sink(t, func(o *zerobus.Options) {
		o.Credentials = func() (string, string, error) { return "", "", errors.New("the vault is sealed") }
	})
	if _, err := s.Open(t.Context()); !sinks.Held(err) || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("Open: %v", err)
	}
}

func TestSchemaUnknown(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	g, _ := b.guarded(t, func(o *zerobus.Options) {
		o.Schema = func(context.Context) (zerobus.Schema, error) {
			return zerobus.Schema{}, errors.New("the catalog is away")
		}
	})
	if s := guardsUntil(t, g, func(s sinks.Status) bool { return s.State == sinks.StateSchemaUnknown }); !strings.Contains(s.LastError, "catalog is away") {
		t.Errorf("guard: %+v", s)
	}
}

func TestWrongCA(t *testing.T) {
	b, other := newBench(t, zerobustest.Config{}), newBench(t, zerobustest.Config{})
	s := b.sink(t, func(o *zerobus.Options) { o.Config.CACertPath = other.ca })
	if _, err := s.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Open: %v", err)
	}
	if b.Stats().TokensIssued != 0 {
		t.Error("the secret was sent to a peer that was not verified")
	}
}

// TestUnreachable: what cannot be reached is told in plain words, with the key to
// look at and what the network said.
func TestUnreachable(t *testing.T) {
	b, other := newBench(t, zerobustest.Config{}), newBench(t, zerobustest.Config{})
	clear, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer clear.Close()
	go func() {
		for {
			conn, err := clear.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			conn.Close()
		}
	}()
	const nobody = "https://127.0.0.1:1"
	for name, tt := range map[string]struct {
		change func(*zerobus.Options)
		says   []string
	}{
		"endpoint":  {func(o *zerobus.Options) { o.Config.ZerobusEndpoint = nobody }, []string{nobody + ": nothing listens there: check zerobus.zerobus_endpoint", "connection refused)"}},
		"workspace": {func(o *zerobus.Options) { o.Config.WorkspaceHost = nobody }, []string{nobody + ": nothing listens there: check zerobus.workspace_host", "connection refused)"}},
		"authority": {func(o *zerobus.Options) { o.Config.CACertPath = other.ca }, []string{b.Workspace(), "name that authority in zerobus.ca_cert_path"}},
		"clear":     {func(o *zerobus.Options) { o.Config.WorkspaceHost = "https://" + clear.Addr().String() }, []string{"it does not speak TLS: check zerobus.workspace_host"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.sink(t, tt.change).Open(t.Context())
			if err == nil {
				t.Fatal("it opened")
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			for _, noise := range []string{"rpc error", "desc =", "headers provider"} {
				if strings.Contains(err.Error(), noise) {
					t.Errorf("%q is not in plain words", err)
				}
			}
			noSecret(t, b, err.Error())
		})
	}
}

// Large rows: requests stay under the limit, a row that exceeds it is refused.
func TestLargeRows(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	s := b.sink(t, nil)
	recs := records(1, 15)
	for i := range recs {
		recs[i].Value = abi.String(strings.Repeat("x", 1_000_000))
	}
	recs[4].Value = abi.String(strings.Repeat("x", 10_500_000))
	refused := sinktest.Drain(t, s, recs)
	if len(refused) != 1 || refused[0].Seq != 5 || refused[0].Reason != sinks.ReasonTooLarge {
		t.Errorf("refused: %v", refused)
	}
	b.delivered(t, 15, 5)
	if v := b.Stats().Violations; len(v) > 0 {
		t.Errorf("violations: %v", v)
	}
}

// Close gives up with its context and says so; what was not acknowledged is not
// acknowledged.
func TestCloseGivesUp(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	b.SetFaults(zerobustest.Faults{WithholdAcks: true})
	st := open(t, b.sink(t, nil))
	if err := st.Send(t.Context(), records(1, 10)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := st.Close(ctx); err == nil {
		t.Error("Close without acks succeeded")
	}
	for a := range st.Acks() {
		t.Errorf("ack %v", a)
	}
}

// A94: the service is away when the sink starts and goes away again later; the
// guard waits for it and nothing is lost.
func TestServiceAway(t *testing.T) {
	b := newBench(t, zerobustest.Config{})
	b.SetFaults(zerobustest.Faults{Dead: true})
	s := b.sink(t, func(o *zerobus.Options) { o.BatchRecords = 10 })
	g := sinks.Guard(s, sinks.BreakerConfig{Enabled: true, FailureThreshold: 2, TimeoutSeconds: 0.2}, fast, slog.New(slog.NewTextHandler(b.log, nil)))
	done := make(chan []sinks.Refusal)
	go func() { done <- sinktest.Drain(t, g, records(1, 5000)) }()
	until(t, func() bool { return g.State().State == sinks.StateCircuitOpen })
	b.SetFaults(zerobustest.Faults{AckDelayMS: 20})
	until(t, func() bool { return s.Stats().Acked > 0 })
	b.SetFaults(zerobustest.Faults{Dead: true})
	until(t, func() bool { return g.State().State == sinks.StateCircuitOpen })
	b.SetFaults(zerobustest.Faults{})
	if refused := <-done; len(refused) > 0 {
		t.Errorf("refused: %v", refused)
	}
	b.delivered(t, 5000)
	if state := g.State(); state.Trips < 2 || state.Reconnects == 0 {
		t.Errorf("guard: %+v", state)
	}
}

// until polls what has no channel to wait on.
func until(t *testing.T, done func() bool) {
	t.Helper()
	timeout := time.After(deadline)
	for !done() {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-timeout:
			t.Fatal("it did not come to that")
		}
	}
}
