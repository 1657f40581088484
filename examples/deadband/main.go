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
	band := notNegative("band", 0)
	silence := int64(notNegative("silence_seconds", 600) * 1e6)
	guest.Filter(func(r *guest.Record) bool {
		v, ok := r.Number()
		if !ok {
			return true // text has no distance
		}
		last, seen := load(r.Address())
		if seen && near(v, last.Value, band) && r.Status() == last.Status && r.EventTime()-last.Time < silence {
			return false
		}
		save(r.Address(), reported{v, r.EventTime(), r.Status()})
		return true
	})
}

// near reports whether a value is within the band; NaN is near to NaN, so that a
// broken sensor is no flood.
func near(v, last, band float64) bool {
	return v == last || math.Abs(v-last) <= band || (math.IsNaN(v) && math.IsNaN(last))
}

func notNegative(key string, fallback float64) float64 {
	v := guest.ConfigFloat(key, fallback)
	if v < 0 {
		guest.Refuse("config key " + key + ": " + guest.Config(key) + " is below 0")
	}
	return v
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
