//go:build conformance

package modbus

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/simonvetter/modbus"
)

// TestThroughput compares a source that is never idle with the bare library, in
// turns, against one libmodbus server. The machine is shared, so the gate is on
// the processor time of a poll. No reply is like the one before; the source
// reports on change, so that polls are measured more than the making of records,
// which the bare library does not do.
func TestThroughput(t *testing.T) {
	port := freePort(t)
	spawnTCP(t, port, libmodbusServer(t), numbersImage(t, 200), "tcp", port, "1", "0", "0", "120")
	for _, registers := range []int{10, 125} {
		var rates, costs []float64
		for range 5 {
			bare, bareCost := measure(func() float64 { return bareRate(t, port, registers) })
			ours, ourCost := measure(func() float64 { return sourceRate(t, port, registers, OnChange) })
			always, _ := measure(func() float64 { return sourceRate(t, port, registers, Always) })
			rates, costs = append(rates, ours/bare), append(costs, ourCost/bareCost)
			t.Logf("%d registers: bare library %.0f polls/s at %.1f us, source %.0f polls/s at %.1f us, with all records %.0f records/s",
				registers, bare, bareCost, ours, ourCost, always*float64(registers))
		}
		slices.Sort(rates)
		slices.Sort(costs)
		t.Logf("%d registers, medians: %.2f of the bare library's polls, %.2f of its processor time for a poll", registers, rates[2], costs[2])
		if costs[2] > 2 {
			t.Errorf("%d registers: a poll costs %.2f times the bare library's processor time", registers, costs[2])
		}
	}
}

// measure returns the rate that run returns, and the processor time of one poll
// in microseconds.
func measure(run func() float64) (rate, cost float64) {
	before := processorTime()
	begin := time.Now()
	rate = run()
	return rate, float64((processorTime() - before).Microseconds()) / (rate * time.Since(begin).Seconds())
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const turn = time.Second

func bareRate(t *testing.T, port string, registers int) float64 {
	c, err := modbus.NewClient(&modbus.ClientConfiguration{URL: "tcp://127.0.0.1:" + port, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n := 0
	begin := time.Now()
	for time.Since(begin) < turn {
		if _, err := c.ReadRegisters(0, uint16(registers), modbus.HOLDING_REGISTER); err != nil {
			t.Fatal(err)
		}
		n++
	}
	return float64(n) / time.Since(begin).Seconds()
}

func sourceRate(t *testing.T, port string, registers int, report Report) float64 {
	var text strings.Builder
	fmt.Fprintf(&text, "addressing: zero_based\nreport: %s\npoll_interval_ms: 1\nregisters:\n", report)
	for unit := 1; unit <= 120; unit++ {
		fmt.Fprintf(&text, "  - {address: 0, count: %d, register_type: holding, slave_id: %d}\n", registers, unit)
	}
	b := joinBench(t, nil, NewBuses(slog.New(slog.DiscardHandler)), "plc", "modbus+tcp://127.0.0.1:"+port, text.String())
	stop := b.run(t)
	eventually(t, "the first poll", func() bool { return b.count(MetricPolls) > 0 })
	before, begin := b.count(MetricRequests), time.Now()
	for time.Since(begin) < turn {
		<-time.After(turn / 20)
		b.take()
	}
	n, took := b.count(MetricRequests)-before, time.Since(begin)
	stop()
	return n / took.Seconds()
}
