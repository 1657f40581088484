package zerobus_test

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sinks/sinktest"
	"github.com/edgehost/edgehost/sinks/zerobus"
	"github.com/edgehost/edgehost/sinks/zerobus/zerobustest"
)

func TestContract(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Destination {
		b := newBench(t, zerobustest.Config{})
		b.SetFaults(zerobustest.Faults{Reject: []zerobustest.Match{{Column: "topic", Value: "poison"}}})
		return sinktest.Destination{
			Sink:   b.sink(t, nil),
			Rows:   func() []string { return b.ids(t) },
			Fail:   b.KillConnections,
			Poison: func(r *sinks.Record) { r.Address = "poison" },
			Stall: func(stop bool) {
				b.SetFaults(zerobustest.Faults{WithholdAcks: stop})
			},
			Window: 32 << 20,
		}
	})
}

// ids are the record ids in the table.
func (b *bench) ids(t *testing.T) []string {
	var out []string
	for _, row := range b.rows(t, zerobus.MQTTTable) {
		id, _ := row["record_id"].(string)
		out = append(out, id)
	}
	return out
}

// A record that cannot be converted is refused in its place.
func TestContractConversion(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Destination {
		b := newBench(t, zerobustest.Config{})
		return sinktest.Destination{
			Sink:   b.sink(t, nil),
			Rows:   func() []string { return b.ids(t) },
			Fail:   func() { b.KillConnections() },
			Poison: func(r *sinks.Record) { r.Attrs = []abi.Attr{{Key: abi.AttrQoS, Value: abi.String("two")}} },
		}
	})
}

// A guarded sink obeys the same contract.
func TestContractGuarded(t *testing.T) {
	fast := sinks.ReconnectConfig{InitialDelaySeconds: 0.001, MaxDelaySeconds: 0.01, BackoffMultiplier: 2}
	sinktest.Run(t, func(t *testing.T) sinktest.Destination {
		b := newBench(t, zerobustest.Config{})
		b.SetFaults(zerobustest.Faults{
			Create: zerobustest.CodeFault{Code: codes.Unavailable, Count: 3},
		})
		g := sinks.Guard(b.sink(t, nil), sinks.DefaultBreakerConfig(), fast, b.options().Log)
		return sinktest.Destination{Sink: g, Rows: func() []string { return b.ids(t) }}
	})
}
