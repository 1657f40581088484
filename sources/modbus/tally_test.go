package modbus

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestMetricsTellUnitsApart polls a gateway with a slow unit, one that refuses,
// one that is absent, and two that are well, until its connection goes.
func TestMetricsTellUnitsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: func(r request) (data, error) {
			switch r.slave {
			case 2:
				time.Sleep(200 * time.Millisecond)
			case 3:
				return nil, exception(4)
			case 4:
				time.Sleep(time.Second)
				return nil, errSilent
			}
			time.Sleep(10 * time.Millisecond)
			return numbered(r), nil
		}}
		text := "poll_interval_ms: 5000\nunit_breaker: {failures: 2, retry_seconds: 3600}\nregisters:\n"
		for unit := 1; unit <= 5; unit++ {
			text += fmt.Sprintf("  - {address: 40001, register_type: holding, slave_id: %d}\n", unit)
		}
		b := newBench(t, line, "modbus+tcp://h", text)
		if n, known := b.status.Snapshot().Counters[ofUnit(MetricUnitUp, 4)]; n != 0 || !known {
			t.Errorf("before the first poll: %v, shown %v", n, known)
		}
		stop := b.run(t)
		time.Sleep(29 * time.Second) // six polls
		for unit, want := range map[uint8]string{
			1: "6 requests, 6 replies, 0 exceptions, 0 timeouts, up 1, 0.01 s",
			2: "6 requests, 6 replies, 0 exceptions, 0 timeouts, up 1, 0.21 s",
			3: "6 requests, 6 replies, 6 exceptions, 0 timeouts, up 1, 0.00 s",
			4: "2 requests, 0 replies, 0 exceptions, 2 timeouts, up 0, NaN s",
			5: "6 requests, 6 replies, 0 exceptions, 0 timeouts, up 1, 0.01 s",
		} {
			if got := unitCounts(b, unit); got != want {
				t.Errorf("unit %d: %s, want %s", unit, got, want)
			}
		}
		line.set(func(request) (data, error) { return nil, errUnplugged }, errUnplugged)
		time.Sleep(5 * time.Second)
		for unit := range uint8(5) {
			if up := b.count(ofUnit(MetricUnitUp, 1+unit)); up != 0 {
				t.Errorf("unit %d is up (%v) without a connection", 1+unit, up)
			}
		}
		stop()
		for name := range b.status.Snapshot().Counters {
			if strings.Contains(name, "{") && !strings.HasPrefix(name, "modbus_unit_") {
				t.Errorf("a metric of all units has a label: %s", name)
			}
		}
	})
}

func unitCounts(b *bench, unit uint8) string {
	of := func(metric string) float64 { return b.count(ofUnit(metric, unit)) }
	return fmt.Sprintf("%v requests, %v replies, %v exceptions, %v timeouts, up %v, %.2f s", of(MetricUnitRequests), of(MetricUnitReplies),
		of(MetricUnitExceptions), of(MetricUnitTimeouts), of(MetricUnitUp), of(MetricUnitSeconds)/of(MetricUnitReplies))
}

// TestUnitCountsOfABusThatIsNeverIdle: they come in time there as well, and none
// is lost with the source.
func TestUnitCountsOfABusThatIsNeverIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(time.Millisecond)}
		b := newBench(t, line, "modbus+tcp://h", "poll_interval_ms: 1\nregisters: [{address: 40001, register_type: holding}, {address: 40001, register_type: holding, slave_id: 2}]")
		stop := b.run(t)
		time.Sleep(time.Second)
		sum := func() float64 { return b.count(ofUnit(MetricUnitRequests, 1)) + b.count(ofUnit(MetricUnitRequests, 2)) }
		if n := sum(); n < 700 {
			t.Errorf("%v of 1000 requests are counted after a second", n)
		}
		stop()
		if asked := len(line.requests()); sum() != float64(asked) {
			t.Errorf("%v of %d requests are counted in the end", sum(), asked)
		}
	})
}
