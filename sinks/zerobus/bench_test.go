package zerobus_test

import (
	"slices"
	"testing"

	"github.com/edgehost/edgehost/sinks/zerobus"
	"github.com/edgehost/edgehost/sinks/zerobus/zerobustest"
)

// BenchmarkDeliver delivers 100,000 records to the emulator, which decodes them
// and fsyncs them as JSON in the same process.
func BenchmarkDeliver(b *testing.B) {
	bench := newBench(b, zerobustest.Config{})
	s := bench.sink(b, func(o *zerobus.Options) { o.BatchRecords = 500 })
	recs := records(1, 100_000)
	for b.Loop() {
		st, err := s.Open(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for chunk := range slices.Chunk(recs, 500) {
			if err := st.Send(b.Context(), chunk); err != nil {
				b.Fatal(err)
			}
		}
		if err := st.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*100_000/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(0, "ns/op")
}
