package modbus

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestBusThatIsNeverIdle has more to poll than it can: results must reach the
// source, and counts the status, although the bus never sleeps and no group
// meets its own last result in the box.
func TestBusThatIsNeverIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const units, reply = 20, time.Millisecond // a round takes four times gatherTime
		var text strings.Builder
		text.WriteString("poll_interval_ms: 1\nregisters:\n")
		for unit := 1; unit <= units; unit++ {
			fmt.Fprintf(&text, "  - {address: 40001, register_type: holding, slave_id: %d}\n", unit)
		}
		line := &fakeLine{answer: answerAfter(reply)}
		b := newBench(t, line, "modbus+tcp://h", text.String())
		stop := b.run(t)
		time.Sleep(time.Second + reply/2)
		synctest.Wait()
		polls, records, asked := b.count(MetricPolls), len(b.take()), len(line.requests())
		stop()
		behind := float64(2 * gatherTime / reply)
		if asked != 1001 || polls < 1000-behind || b.count(MetricBackpressure) != 0 {
			t.Errorf("%d requests, %v polls counted, %v skipped", asked, polls, b.count(MetricBackpressure))
		}
		if float64(records) < 1000-behind {
			t.Errorf("%d records of 1000 polls have arrived", records)
		}
	})
}

// TestResultDoesNotWaitForTheNextTimeout has a unit that answers and one that
// does not, on one bus.
func TestResultDoesNotWaitForTheNextTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: func(r request) (data, error) {
			if r.slave == 2 {
				time.Sleep(time.Second)
				return data{}, errSilent
			}
			return numbered(r), nil
		}}
		b := newBench(t, line, "modbus+tcp://h", "registers: [{address: 40001, register_type: holding, count: 2}, {address: 40001, register_type: holding, slave_id: 2}]")
		stop := b.run(t)
		time.Sleep(gatherTime + time.Millisecond)
		synctest.Wait()
		if n := len(b.take()); n != 2 {
			t.Errorf("%d records while the other unit is waited for, want 2", n)
		}
		stop()
	})
}
