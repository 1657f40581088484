package modbus

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
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
