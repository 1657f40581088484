//go:build conformance

package modbus

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/simonvetter/modbus"
)

// TestThroughput compares the polls a second of a source that is never idle
// with those of the bare library, in turns, against one libmodbus server. The
// gate is on the ratio: the machine is shared.
func TestThroughput(t *testing.T) {
	port := freePort(t)
	spawnTCP(t, port, libmodbusServer(t), numbersImage(t, 200), "tcp", port)
	for _, registers := range []int{10, 125} {
		var ratios []float64
		for range 5 {
			bare := bareRate(t, port, registers)
			ours := sourceRate(t, port, registers)
			ratios = append(ratios, ours/bare)
			t.Logf("%d registers: bare library %.0f polls/s, source %.0f polls/s", registers, bare, ours)
		}
		slices.Sort(ratios)
		t.Logf("%d registers: median ratio %.2f", registers, ratios[2])
		if ratios[2] < 0.6 {
			t.Errorf("%d registers: the source makes %.2f of the bare library's polls", registers, ratios[2])
		}
	}
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

func sourceRate(t *testing.T, port string, registers int) float64 {
	var text strings.Builder
	text.WriteString("addressing: zero_based\npoll_interval_ms: 1\nregisters:\n")
	for unit := 1; unit <= 40; unit++ {
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
