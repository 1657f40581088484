package sandbox

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/tetratelabs/wazero/api"
)

// StateHash is the SHA-256 of the linear memory, its size and the mutable globals,
// fuel and depth not among them; zero when there is no instance.
func (i *Instance) StateHash() (sum [sha256.Size]byte) {
	if i.mod == nil {
		return sum
	}
	h := sha256.New()
	h.Write(i.memory.bytes()) // a hash returns no errors
	for _, name := range i.module.meter.Globals {
		h.Write(binary.LittleEndian.AppendUint64(nil, i.mod.ExportedGlobal(name).(api.MutableGlobal).Get()))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// HoldCompilers takes the turns of n engines until they are freed.
func (h *Host) HoldCompilers(n int) (free func()) {
	for _, e := range h.engines[:n] {
		e.turn <- struct{}{}
	}
	return func() {
		for _, e := range h.engines[:n] {
			<-e.turn
		}
	}
}
