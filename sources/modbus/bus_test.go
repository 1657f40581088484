package modbus

import (
	"fmt"
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
