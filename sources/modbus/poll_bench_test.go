//go:build conformance

package modbus

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/edgehost/edgehost/sources"
)

const benchUnits = 60

// movingLink answers at once; one register of every reply differs from the last.
type movingLink struct {
	n    int
	most int           // reads
	end  chan struct{} // closed by the last of them
	now  [256][2 * maxRegisters]byte
}

func (l *movingLink) close() {}

func (l *movingLink) read(unit uint8, _ RegisterType, _ uint16, count int, room data) (data, error) {
	if l.n++; l.n == l.most {
		close(l.end)
	}
	l.now[unit][2*(l.n/benchUnits%count)+1]++
	return append(room[:0], l.now[unit][:2*count]...), nil
}

// BenchmarkPoll is what a poll costs beside the wire: cpu-ns/op. The time is that
// of a source that polls 60 units every millisecond.
func BenchmarkPoll(b *testing.B) {
	for _, report := range []Report{OnChange, Always} {
		for _, registers := range []int{10, 125} {
			b.Run(fmt.Sprintf("%s/%d", report, registers), func(b *testing.B) {
				benchmarkPoll(b, report, registers)
			})
		}
	}
}

func benchmarkPoll(b *testing.B, report Report, registers int) {
	var text strings.Builder
	fmt.Fprintf(&text, "addressing: zero_based\nreport: %s\npoll_interval_ms: 1\nregisters:\n", report)
	for unit := 1; unit <= benchUnits; unit++ {
		fmt.Fprintf(&text, "  - {address: 0, count: %d, register_type: holding, slave_id: %d}\n", registers, unit)
	}
	log := slog.New(slog.DiscardHandler)
	buses := NewBuses(log)
	l := &movingLink{most: b.N, end: make(chan struct{})}
	buses.dial = func(settings, *slog.Logger) (link, error) { return l, nil }
	s, err := New("plc", "modbus+tcp://127.0.0.1:1", nil, read(b, text.String()), Deps{log, sources.NewStatus("plc", "modbus"), buses})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	b.ReportAllocs()
	before := processorTime()
	b.ResetTimer()
	go func() {
		ended <- s.Run(ctx, func(_ context.Context, _ sources.Batch, done func(error)) error { done(nil); return nil })
	}()
	<-l.end
	spent := processorTime() - before
	b.StopTimer()
	b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "cpu-ns/op")
	stop()
	<-ended
	buses.Wait()
}
