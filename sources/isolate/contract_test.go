package isolate

import (
	"log/slog"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources/sourcetest"
)

// TestContract runs the contract of sources through the two halves.
func TestContract(t *testing.T) {
	sourcetest.Run(t, sourcetest.Harness{New: func(t *testing.T) sourcetest.Rig {
		p := newPeer(t)
		src, st := newModel(t, modelConfig{Endpoint: p.lis.Addr().String()}, nil, slog.New(slog.DiscardHandler))
		return sourcetest.Rig{Source: src, Status: st, Publish: p.publish, Acked: p.ackedNumbers,
			Number: func(r abi.Record) (int, bool) { return int(r.Value.AsInt()), true }}
	}})
}
