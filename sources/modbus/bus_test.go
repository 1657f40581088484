package modbus

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

const oneRegister = "registers: [{address: 40001, register_type: holding, count: 2}]\n"

// answerAfter answers every read with numbered after a time.
func answerAfter(d time.Duration) func(request) (data, error) {
	return func(r request) (data, error) { time.Sleep(d); return numbered(r), nil }
}

func TestPollsKeepTheirRateWithoutDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(37 * time.Millisecond)}
		b := newBench(t, line, "modbus+tcp://h", oneRegister+"poll_interval_ms: 100")
		begin := time.Now()
		stop := b.run(t)
		time.Sleep(10 * time.Second)
		stop()
		asked := line.requests()
		for i, r := range asked {
			if want := begin.Add(time.Duration(i) * 100 * time.Millisecond); r.at != want {
				t.Fatalf("poll %d at %v, want %v", i, r.at.Sub(begin), want.Sub(begin))
			}
		}
		if len(asked) < 100 || b.count(MetricOverruns) != 0 {
			t.Errorf("%d polls, %v overruns", len(asked), b.count(MetricOverruns))
		}
	})
}

func TestMissedTicksAreSkippedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(250 * time.Millisecond)}
		b := newBench(t, line, "modbus+tcp://h", oneRegister+"poll_interval_ms: 100")
		stop := b.run(t)
		time.Sleep(10*time.Second - time.Millisecond)
		synctest.Wait()
		polls, overruns := float64(len(line.requests())), b.count(MetricOverruns)
		stop()
		if polls != 40 || overruns < 57 || polls+overruns > 101 {
			t.Errorf("%v polls and %v overruns in 100 ticks that take 2.5 ticks each", polls, overruns)
		}
	})
}

func TestIntervalsAndUnitsShareOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(10 * time.Millisecond)}
		b := newBench(t, line, "modbus+tcp://h", `
pause_between_requests_ms: 5
registers:
  - {address: 40001, register_type: holding, poll_interval_ms: 200}
  - {address: 30001, register_type: input, slave_id: 2, poll_interval_ms: 1000}
  - {address: 10001, register_type: discrete, slave_id: 3}
`)
		stop := b.run(t)
		time.Sleep(10*time.Second - time.Millisecond)
		stop()
		got := map[uint8]int{}
		var last time.Time
		for _, r := range line.requests() {
			got[r.slave]++
			if gap := r.at.Sub(last); gap < 15*time.Millisecond {
				t.Fatalf("%v after the request before, want 10 ms for it and 5 ms of pause", gap)
			}
			last = r.at
		}
		if d := cmp.Diff(map[uint8]int{1: 50, 2: 10, 3: 10}, got); d != "" {
			t.Error(d)
		}
		if len(line.opened()) != 1 {
			t.Errorf("opened %d times", len(line.opened()))
		}
	})
}

func TestTwoSourcesShareOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(10 * time.Millisecond)}
		a := newBench(t, line, "modbus+rtu:///dev/ttyUSB0", oneRegister)
		b := joinBench(t, line, a.buses, "other", "modbusrtu:///dev/ttyUSB0", oneRegister+"slave_id: 2")
		c := joinBench(t, line, a.buses, "third", "modbus+rtu:///dev/ttyUSB0", oneRegister+"slave_id: 3\nserial: {baud_rate: 9600}")
		if err := b.Conflict(a.Source); err != nil {
			t.Errorf("sources with equal settings conflict: %v", err)
		}
		if err := c.Conflict(a.Source); err == nil || !strings.Contains(err.Error(), "modbus.serial") {
			t.Errorf("sources with different baud rates: got %v", err)
		}
		stopA := a.run(t)
		synctest.Wait()
		stopB := b.run(t)
		synctest.Wait()
		stopC := c.run(t)
		time.Sleep(time.Second)
		if len(a.take()) == 0 || len(b.take()) == 0 {
			t.Error("a source got no records")
		}
		s := c.status.Snapshot()
		if s.State != sources.Failed || !strings.Contains(s.Detail, "shared with source plc, which has another modbus.serial") {
			t.Errorf("the source with another baud rate is %s: %s", s.State, s.Detail)
		}
		stopAll(stopA, stopB, stopC)
		if len(line.opened()) != 1 || line.open != 0 {
			t.Errorf("opened %d times, %d left open", len(line.opened()), line.open)
		}
	})
}

// stopAll stops the sources at the same time: each stop waits for the last
// connection.
func stopAll(stops ...func()) {
	done := make(chan struct{})
	for _, stop := range stops {
		go func() { stop(); done <- struct{}{} }()
	}
	for range stops {
		<-done
	}
}

func TestDeadUnitCostsTheOthersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		dead.Store(true)
		line := &fakeLine{}
		line.answer = func(r request) (data, error) {
			if r.slave == 7 && dead.Load() {
				time.Sleep(time.Second)
				return data{}, errSilent
			}
			time.Sleep(5 * time.Millisecond)
			return numbered(r), nil
		}
		var text strings.Builder
		text.WriteString("registers:\n")
		for slave := 1; slave <= 10; slave++ {
			fmt.Fprintf(&text, "  - {address: 40001, register_type: holding, slave_id: %d}\n", slave)
		}
		b := newBench(t, line, "modbus+tcp://h", text.String())
		stop := b.run(t)
		time.Sleep(20*time.Second + 500*time.Millisecond)
		line.forget()
		b.take()
		time.Sleep(100 * time.Second)
		synctest.Wait()
		got := map[uint8]int{}
		for _, r := range line.requests() {
			got[r.slave]++
		}
		for slave := uint8(1); slave <= 10; slave++ {
			if slave == 7 && (got[7] < 8 || got[7] > 10) {
				t.Errorf("the dead unit was asked %d times in 100 s, want once in 10 s", got[7])
			}
			if slave != 7 && got[slave] < 90 {
				t.Errorf("unit %d was asked %d times in 100 s", slave, got[slave])
			}
		}
		for _, r := range b.take() {
			if strings.HasPrefix(r.Address, "7:") {
				t.Errorf("got another record of the dead unit: %+v", r)
			}
		}
		if s := b.status.Snapshot(); s.State != sources.Degraded || !strings.Contains(s.Detail, "1 of 10 points cannot be read: 7:40001: no reply") || b.count(MetricUnitsDown) != 1 {
			t.Errorf("state %s: %s; %v units down", s.State, s.Detail, b.count(MetricUnitsDown))
		}
		dead.Store(false)
		time.Sleep(11 * time.Second)
		stop()
		if v := values(b.take())["7:40001"]; v != "0" || b.count(MetricUnitsDown) != 0 {
			t.Errorf("the unit that is back has %q, %v units down", v, b.count(MetricUnitsDown))
		}
	})
}

func TestBreakerOpensAfterThreeFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: func(request) (data, error) { time.Sleep(time.Second); return data{}, errSilent }}
		b := newBench(t, line, "modbus+tcp://h", "registers: [{address: 40001, register_type: holding, values: 1}, {address: 40100, register_type: holding, values: 1}, {address: 40200, register_type: holding, values: 1}]")
		stop := b.run(t)
		time.Sleep(9 * time.Second)
		if n := len(line.requests()); n != 3 {
			t.Errorf("%d requests before the first retry, want 3", n)
		}
		time.Sleep(5 * time.Second)
		stop()
		if n := len(line.requests()); n != 4 {
			t.Errorf("%d requests after the first retry, want 4", n)
		}
		if s := b.status.Snapshot(); s.Failed["not_stored"] != 0 || b.count(MetricTimeouts) != 4 {
			t.Errorf("got %+v", s)
		}
	})
}

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

func TestExceptionKeepsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: func(request) (data, error) { return data{}, exception(4) }}
		b := newBench(t, line, "modbus+rtu:///dev/ttyX", oneRegister)
		stop := b.run(t)
		time.Sleep(latest + 10*time.Second + 500*time.Millisecond)
		line.forget()
		time.Sleep(30 * time.Second)
		if n := len(line.requests()); n != 30 || b.count(MetricReopens) != 0 {
			t.Errorf("%d requests in 30 polls, %v reopens", n, b.count(MetricReopens))
		}
		stop()
		recs := b.take()
		if len(recs) != 2 || recs[0].Status != statusDeviceFailure {
			t.Fatalf("got %d records, want one bad one for each point: %+v", len(recs), recs)
		}
		if v, _ := recs[0].Attr(abi.AttrReason); v.Text() != "server device failure (Modbus exception 4)" {
			t.Errorf("reason is %q", v.Text())
		}
	})
}

func TestBusyDeviceIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		line := &fakeLine{}
		line.answer = func(r request) (data, error) {
			if n++; n%2 == 1 {
				return data{}, busy
			}
			return numbered(r), nil
		}
		b := newBench(t, line, "modbus+tcp://h", oneRegister)
		stop := b.run(t)
		time.Sleep(3500 * time.Millisecond)
		stop()
		if recs := b.take(); len(recs) != 8 || recs[0].Status != 0 {
			t.Errorf("got %d records", len(recs))
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
// give are all read again soon after an outage of an hour, and looked at it
// together.
func TestGatewayThatIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const outage = time.Hour
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
			t.Errorf("%d looks in an hour by ten sources, want at most %d", looks, most)
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

func TestBackpressureSkipsPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(time.Millisecond)}
		b := newBench(t, line, "modbus+tcp://h", oneRegister)
		b.block = make(chan struct{})
		stop := b.run(t)
		time.Sleep(10*time.Second + 500*time.Millisecond)
		synctest.Wait()
		if n := len(line.requests()); n != 2 {
			t.Errorf("%d requests while the pipeline is blocked, want 2: one blocked, one waiting", n)
		}
		if b.count(MetricOverruns) != 9 || b.count(MetricBackpressure) != 9 {
			t.Errorf("%v overruns, %v of back-pressure; want 9", b.count(MetricOverruns), b.count(MetricBackpressure))
		}
		close(b.block)
		time.Sleep(2 * time.Second)
		stop()
		if n := len(b.take()); n != 8 {
			t.Errorf("%d records after the pipeline went on, want 8", n)
		}
	})
}

func TestBlockedSourceDoesNotHoldUpItsNeighbour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(time.Millisecond)}
		a := newBench(t, line, "modbus+tcp://h", oneRegister)
		a.block = make(chan struct{})
		b := joinBench(t, line, a.buses, "other", "modbus+tcp://h", oneRegister+"slave_id: 2")
		stopA, stopB := a.run(t), b.run(t)
		time.Sleep(10*time.Second + 500*time.Millisecond)
		if n := len(b.take()); n != 22 {
			t.Errorf("the neighbour got %d records in 11 polls, want 22", n)
		}
		stopAll(stopA, stopB)
	})
}

// TestSourceThatLeavesStopsItsPoll ends a source in the middle of a poll of many
// requests that all time out.
func TestSourceThatLeavesStopsItsPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: func(request) (data, error) { time.Sleep(time.Second); return data{}, errSilent }}
		b := newBench(t, line, "modbus+rtutcp://h", "max_gap: 0\nretries: 0\nunit_breaker: {failures: 1000}\naddressing: zero_based\nregisters:\n"+
			strings.Join([]string{"  - {address: 0, register_type: holding}", "  - {address: 10, register_type: holding}", "  - {address: 20, register_type: holding}"}, "\n"))
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		begin := time.Now()
		stop()
		if took := time.Since(begin); took > 2*time.Second || len(line.requests()) != 1 || len(line.opened()) != 1 {
			t.Errorf("took %v, %v requests, opened %d times", took, line.requests(), len(line.opened()))
		}
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

func TestPanicOfAPollIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: func(request) (data, error) { panic("boom") }}
		b := newBench(t, line, "modbus+tcp://h", oneRegister)
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		if s := b.status.Snapshot(); s.State != sources.Reconnecting || s.Detail != "poll panicked: boom" {
			t.Errorf("state %s: %s", s.State, s.Detail)
		}
		line.set(answerAfter(0), nil)
		time.Sleep(time.Second)
		stop()
		if got := values(b.take()); got["1:40001"] != "0" {
			t.Errorf("after the panic: %v", got)
		}
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

// TestMetricsStandFromTheStart holds the names to what the documentation says.
func TestMetricsStandFromTheStart(t *testing.T) {
	b := newBench(t, &fakeLine{}, "modbus+tcp://h", oneRegister)
	want := map[string]float64{}
	for _, name := range []string{"modbus_polls_total", "modbus_requests_total", "modbus_poll_errors_total", "modbus_exceptions_total", "modbus_timeouts_total",
		"modbus_reopens_total", "modbus_poll_overruns_total", "modbus_backpressure_skips_total", "modbus_poll_duration_seconds_total", "modbus_splits_total",
		"modbus_units_down", "scaled_value_clamped_total"} {
		want[name] = 0
	}
	for _, name := range []string{"requests_total", "replies_total", "response_seconds_total", "exceptions_total", "timeouts_total", "up"} {
		want["modbus_unit_"+name+`{unit="1"}`] = 0
	}
	b.status.Declare(Metrics, Reasons)
	if d := cmp.Diff(want, b.status.Snapshot().Counters); d != "" {
		t.Error(d)
	}
}

// TestMetricsCountWhatHappened reads a device that refuses, is silent and answers,
// in turn.
func TestMetricsCountWhatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		line := &fakeLine{}
		line.answer = func(r request) (data, error) {
			time.Sleep(100 * time.Millisecond)
			switch n++; n % 3 {
			case 1:
				return data{}, exception(4)
			case 2:
				return data{}, errSilent
			}
			return numbered(r), nil
		}
		b := newBench(t, line, "modbus+tcp://h", oneRegister+"retries: 0\npoll_interval_ms: 1000")
		stop := b.run(t)
		time.Sleep(9*time.Second - 500*time.Millisecond)
		stop()
		s := b.status.Snapshot()
		got := []float64{b.count(MetricPolls), b.count(MetricRequests), b.count(MetricPollErrors), b.count(MetricExceptions), b.count(MetricTimeouts),
			b.count(MetricReopens), b.count(MetricOverruns), math.Round(10 * b.count(MetricPollSeconds)), float64(s.Records), float64(s.Bytes)}
		// Three polls of each kind: three that are good make 2 records and 4 bytes
		// each, and every run of bad ones makes 2 records.
		if want := []float64{9, 9, 6, 3, 3, 3, 0, 9, 12, 12}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
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
