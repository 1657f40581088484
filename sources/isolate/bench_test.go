package isolate

import (
	"context"
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/edgehost/edgehost/sources"
)

func cpu(b *testing.B, who int) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkValue is the processor time of a value, in batches of 500, from the
// source to emit: in this process, and from a child, whose own time counts too.
func BenchmarkValue(b *testing.B) {
	measure := func(b *testing.B, src func(n int) sources.Source) {
		ctx, cancel := context.WithCancel(b.Context())
		left := (b.N + 499) / 500
		self, children := cpu(b, unix.RUSAGE_SELF), cpu(b, unix.RUSAGE_CHILDREN)
		err := src(b.N).Run(ctx, func(_ context.Context, _ sources.Batch, done func(error)) error {
			done(nil)
			if left--; left == 0 {
				cancel()
			}
			return nil
		})
		if ctx.Err() == nil {
			b.Fatal(err)
		}
		cancel()
		b.ReportMetric((cpu(b, unix.RUSAGE_SELF)-self+cpu(b, unix.RUSAGE_CHILDREN)-children)/float64(b.N), "cpu-ns/value")
	}
	b.Run("here", func(b *testing.B) {
		measure(b, func(n int) sources.Source {
			deps := Deps{Name: "m", Status: sources.NewStatus("m", "opcua"), Logger: slog.New(slog.DiscardHandler)}
			return &model{cfg: modelConfig{Flood: n}, deps: deps}
		})
	})
	b.Run("child", func(b *testing.B) {
		measure(b, func(n int) sources.Source {
			src, _ := newModel(b, modelConfig{Flood: n}, nil, slog.New(slog.DiscardHandler))
			return src
		})
	})
}
