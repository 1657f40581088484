//go:build conformance

package opcua

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// TestPercentDeadband: node-opcua applies 10 % of an EURange of 200 to an
// analog item, we apply it to the same item when it is polled, and a node
// without EURange beside it comes at every change.
func TestPercentDeadband(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 1})
	for _, mode := range []string{"subscribe", "poll"} {
		t.Run(mode, func(t *testing.T) {
			p.tell(t, "set Level 100")
			p.tell(t, "set Set 0")
			cfg := plain(NodeConfig{NodeID: "nsu=urn:edgehost:test;s=Level"}, NodeConfig{NodeID: "nsu=urn:edgehost:test;s=Set"})
			cfg.Mode = mode
			cfg.Defaults = ItemConfig{SamplingIntervalMS: new(50), Deadband: &DeadbandConfig{Type: "percent", Value: 10}}
			r := run(t, p.url, cfg, &collector{})
			r.awaitState(t, sources.Connected)
			eventually(t, "both values", func() bool { return len(r.col.all()) == 2 })
			raiseLevel(t, p, r)
			got := floats(r.col)
			if s := fmt.Sprint(got["nsu=urn:edgehost:test;s=Level"]); s != "[100 125 160]" {
				t.Errorf("analog item %s, want 100, 125 and 160", s)
			}
			if s := fmt.Sprint(got["nsu=urn:edgehost:test;s=Set"]); s != "[0 1 2 3 4 5]" {
				t.Errorf("item without EURange %s, want every change", s)
			}
			if s := r.status.Snapshot(); s.State != sources.Connected || !strings.Contains(s.Detail, "1 of 2 items come at every change") {
				t.Errorf("%s: %s", s.State, s.Detail)
			}
			r.stop()
		})
	}
}

// raiseLevel sets Level to values of which 125 and 160 are outside a dead-band of 20
// around the one before, and Set to as many, which must all come.
func raiseLevel(t *testing.T, p *peer, r *rig) {
	t.Helper()
	for i, level := range []float64{115, 125, 140, 160, 165} {
		p.tell(t, "set Level %v", level)
		p.tell(t, "set Set %d", i+1)
		eventually(t, fmt.Sprintf("change %d", i+1), func() bool {
			got := floats(r.col)
			levels := got["nsu=urn:edgehost:test;s=Level"]
			return slices.Contains(got["nsu=urn:edgehost:test;s=Set"], float64(i+1)) && (level != 125 && level != 160 || slices.Contains(levels, level))
		})
		wait(300 * time.Millisecond) // for what must not come
	}
}

// floats returns the values that arrived, by address.
func floats(c *collector) map[string][]float64 {
	out := map[string][]float64{}
	for _, r := range c.all() {
		if r.Value.Kind() == abi.KindFloat {
			out[r.Address] = append(out[r.Address], r.Value.AsFloat())
		}
	}
	return out
}
