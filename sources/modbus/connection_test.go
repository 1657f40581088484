package modbus

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/sources"
)

func TestRTULineIsLeftAloneAfterAFailure(t *testing.T) {
	for _, failure := range []error{errSilent, errGarbled, errOdd, errUnplugged} {
		synctest.Test(t, func(t *testing.T) {
			var failed time.Time
			line := &fakeLine{}
			n := 0
			line.answer = func(r request) (data, error) {
				if n++; n == 2 {
					failed = time.Now()
					return data{}, failure
				}
				return numbered(r), nil
			}
			b := newBench(t, line, "modbus+rtutcp://h", oneRegister+"timeout_ms: 700")
			stop := b.run(t)
			time.Sleep(5 * time.Second)
			stop()
			if len(line.opened()) != 2 || line.opened()[1].Sub(failed) != 700*time.Millisecond {
				t.Errorf("%v: opened at %v, failed at %v", failure, line.opened(), failed)
			}
			for _, r := range b.take() {
				if r.Status != 0 {
					t.Errorf("%v: got a bad record although the retry went well", failure)
				}
			}
		})
	}
}

func TestTCPIsReopenedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{}
		n := 0
		line.answer = func(r request) (data, error) {
			if n++; n == 2 {
				return data{}, errUnplugged
			}
			return numbered(r), nil
		}
		b := newBench(t, line, "modbus+tcp://h", oneRegister+"retries: 0\npause_after_connect_ms: 20")
		begin := time.Now()
		stop := b.run(t)
		time.Sleep(1500 * time.Millisecond)
		stop()
		var at []time.Duration
		for _, r := range line.requests() {
			at = append(at, r.at.Sub(begin))
		}
		want := []time.Duration{20 * time.Millisecond, time.Second, 1020 * time.Millisecond}
		if d := cmp.Diff(want, at); d != "" {
			t.Errorf("an idle connection that the peer closed is tried once more, without a retry: %s", d)
		}
		if got := b.take(); len(got) != 4 || b.count(MetricReopens) != 1 {
			t.Errorf("got %d records, %v reopens", len(got), b.count(MetricReopens))
		}
	})
}

func TestConnectionThatCannotBeOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(time.Millisecond), refuse: errors.New("connection refused")}
		b := newBench(t, line, "modbus+tcp://h", oneRegister)
		begin := time.Now()
		stop := b.run(t)
		time.Sleep(10 * time.Second)
		recs := b.take()
		if len(recs) != 2 || recs[0].Status != statusNotConnected {
			t.Errorf("got %+v, want one bad record for each point", recs)
		}
		if s := b.status.Snapshot(); s.State != sources.Reconnecting || !strings.HasPrefix(s.Detail, "connect to tcp://h:502: connection refused: check the endpoint") {
			t.Errorf("state %s: %s", s.State, s.Detail)
		}
		var at []time.Duration
		for _, o := range line.opened() {
			at = append(at, o.Sub(begin).Round(time.Second))
		}
		if !slices.Equal(at, []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}) {
			t.Errorf("tried at %v, want the back-off of the supervisor", at)
		}
		line.set(answerAfter(time.Millisecond), nil)
		time.Sleep(6 * time.Second)
		stop()
		if got := values(b.take()); got["1:40001"] != "0" || got["1:40002"] != "1" {
			t.Errorf("after it came back: %v", got)
		}
	})
}

// TestGatewayThatIsBack: ten sources behind a gateway with one connection to
// give are all read again soon after a long outage, and looked at it
// together.
func TestGatewayThatIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const outage = 10 * time.Minute
		line := &fakeLine{answer: answerAfter(time.Millisecond), refuse: errors.New("connection refused")}
		all := []*bench{newBench(t, line, "modbus+tcp://h", oneRegister)}
		for i := range 9 {
			all = append(all, joinBench(t, line, all[0].buses, fmt.Sprint("plc", i), "modbus+tcp://h", oneRegister))
		}
		var stops []func()
		for _, b := range all {
			stops = append(stops, b.run(t))
		}
		time.Sleep(outage)
		line.mu.Lock()
		looks := line.looks
		line.mu.Unlock()
		if most := int(outage/lookFresh) + 10; looks > most {
			t.Errorf("%d looks in the outage by ten sources, want at most %d", looks, most)
		}
		line.set(answerAfter(time.Millisecond), nil)
		for _, b := range all {
			b.take()
		}
		time.Sleep(3 * time.Second)
		for i, b := range all {
			if got := values(b.take()); got["1:40001"] != "0" {
				t.Errorf("source %d, 3 s after the gateway is back: %v", i, got)
			}
		}
		stopAll(stops...)
	})
}

func TestRefusedCertificateShowsAsSuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: func(request) (data, error) {
			return data{}, classifyStream(&net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")})
		}}
		b := newBench(t, line, "modbus+tls://h", oneRegister)
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		if s := b.status.Snapshot(); s.State != sources.AuthFailed || !strings.Contains(s.Detail, "certificate required") {
			t.Errorf("state %s: %s", s.State, s.Detail)
		}
		stop()
	})
}

// TestWhatWasReadBeforeTheConnectionBrokeIsDelivered lets the second of two
// requests of a poll find the device gone.
func TestWhatWasReadBeforeTheConnectionBrokeIsDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{}
		line.answer = func(r request) (data, error) {
			if r.start == 0 {
				return numbered(r), nil
			}
			line.set(line.answer, errors.New("connection refused"))
			return data{}, errUnplugged
		}
		b := newBench(t, line, "modbus+tcp://h", "max_gap: 0\naddressing: zero_based\nregisters: [{address: 0, register_type: holding}, {address: 9, register_type: holding}]")
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		stop()
		var got []string
		for _, r := range b.take() {
			got = append(got, r.Address+" "+show(&r))
		}
		want := []string{"1:holding:0 0", "1:holding:0 BadNotConnected", "1:holding:9 BadNotConnected"}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

func TestWordsOfAConnectionThatCannotBeOpened(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	ln.Close()
	for _, c := range []struct {
		s    settings
		want string
	}{
		{settings{transport: "tcp", address: closed}, "nothing listens there: check the endpoint"},
		{settings{transport: "tcp+tls", address: closed}, "nothing listens there: check the endpoint"},
		{settings{transport: "rtuovertcp", address: closed}, "nothing listens there: check the endpoint"},
		{settings{transport: "rtu", address: "/nowhere/ttyUSB0", serial: SerialConfig{BaudRate: 9600, DataBits: 8, StopBits: 1, Parity: "N"}}, "plug the adapter in"},
		{settings{transport: "tcp+tls", address: closed, tls: sources.TLSConfig{CACertPath: "/nowhere"}}, "read tls.ca_cert_path"},
	} {
		c.s.timeout = time.Second
		_, err := dial(c.s, slog.New(slog.DiscardHandler))
		if err == nil {
			t.Fatalf("%s was opened", c.s.key())
		}
		if got := openError(c.s, err).Error(); !strings.Contains(got, c.want) || !strings.Contains(got, c.s.key()) {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if got := openError(settings{transport: "rtu"}, fs.ErrPermission).Error(); !strings.Contains(got, "dialout") {
		t.Errorf("got %q", got)
	}
}
