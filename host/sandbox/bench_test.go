package sandbox_test

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/edgehost/edgehost/host/sandbox"
)

// BenchmarkProcess runs the example scale, a Go guest, over batches.
func BenchmarkProcess(b *testing.B) {
	m := compile(b, newHost(b), example(b, "scale"))
	for _, c := range []struct {
		name   string
		config map[string]string
	}{{"scale", map[string]string{"factor": "2"}}, {"scale+unit", map[string]string{"factor": "2", "unit": "K"}}} {
		for _, n := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("%s/%d", c.name, n), func(b *testing.B) {
				i := instantiate(b, m, sandbox.Env{Name: "scale", Config: c.config})
				in := batch(n)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := i.Process(b.Context(), in); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
			})
		}
	}
}

func BenchmarkInstantiate(b *testing.B) {
	m := compile(b, newHost(b), example(b, "scale"))
	for b.Loop() {
		i, err := m.Instantiate(b.Context(), sandbox.Env{Name: "scale", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		i.Close(b.Context())
	}
}

// BenchmarkFault is a Go panic and the way back to a usable instance.
func BenchmarkFault(b *testing.B) {
	m := compile(b, newHost(b), build(b, "./testdata/guests/faulty"))
	i := instantiate(b, m, sandbox.Env{Name: "faulty"})
	in := batch(10)
	in.Records[5].Address = "panic"
	for b.Loop() {
		if _, err := i.Process(b.Context(), in); err == nil {
			b.Fatal("no fault")
		}
	}
}
