// Deadband reports by exception: a value goes on when it has moved by more than
// the band since the last one that went on, when its quality has changed, or when
// the address was silent for too long.
package main

import (
	"encoding/binary"
	"math"

	"github.com/edgehost/edgehost/abi/guest"
)

// reported is what went on last for one address. The host keeps it as 20 bytes.
type reported struct {
	Value  float64
	Time   int64 // microseconds
	Status uint32
}

func init() {
	band := guest.ConfigFloat("band", 0)
	silence := int64(guest.ConfigFloat("silence_seconds", 600) * 1e6)
	guest.Filter(func(r *guest.Record) bool {
		v, ok := r.Number()
		if !ok {
			return true // text has no distance
		}
		last, seen := load(r.Address())
		if seen && math.Abs(v-last.Value) <= band && r.Status() == last.Status && r.EventTime()-last.Time < silence {
			return false
		}
		save(r.Address(), reported{v, r.EventTime(), r.Status()})
		return true
	})
}

// The state is kept by the host and committed with the records of the batch:
// after a crash nothing is reported twice and nothing is forgotten.
func load(address string) (last reported, ok bool) {
	b, ok := guest.KVGet(address)
	if ok {
		_, err := binary.Decode(b, binary.LittleEndian, &last)
		ok = err == nil
	}
	return last, ok
}

func save(address string, last reported) {
	b, _ := binary.Append(nil, binary.LittleEndian, last)
	if !guest.KVSet(address, b, 0) {
		guest.Fail("the state of " + address + " cannot be kept")
	}
}

func main() {}
