package modbus

import (
	"encoding/binary"
	"sync/atomic"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources/sourcetest"
)

// spoilt is the number that the peer fails to give (exception 4).
const spoilt = 1 << 31

// TestContract runs the contract of sources: the peer holds a number that it
// counts up, and the source samples it.
func TestContract(t *testing.T) {
	sourcetest.Run(t, sourcetest.Harness{Polled: true, Spoils: true, New: func(t *testing.T) sourcetest.Rig {
		var now atomic.Uint32
		s := newSlave(t, false, func(_ int, r wireRequest, s *slave) {
			if now.Load() == spoilt {
				s.send(s.frame(r, []byte{r.unit, r.fc | 0x80, 4}))
				return
			}
			s.send(s.frame(r, binary.BigEndian.AppendUint32([]byte{r.unit, r.fc, 4}, now.Load())))
		})
		b := onWire(t, s.endpoint(), "poll_interval_ms: 1\nreport: on_change\nregisters: [{address: 40001, register_type: holding, data_type: uint32}]")
		t.Cleanup(b.buses.Wait)
		return sourcetest.Rig{
			Source: b.Source, Status: b.status,
			Publish: func(first, last int) {
				for n := first; n <= last; n++ {
					now.Store(uint32(n))
				}
			},
			Spoil:  func() { now.Store(spoilt) },
			Number: func(r abi.Record) (int, bool) { return int(r.Value.AsUint()), r.Status == 0 && r.Value.AsUint() > 0 },
		}
	}})
}
