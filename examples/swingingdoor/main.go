// Swingingdoor keeps as few points of a curve as it takes to draw it again with
// an error of at most the deviation: the swinging door of process historians.
//
// From the last point that was kept, two doors open towards each new point, from
// a deviation above it and from one below. While the doors are not parallel, one
// straight line passes near every point in between. When they are, the point
// before the new one is kept, and the doors start there.
package main

import (
	"encoding/binary"
	"math"

	"github.com/edgehost/edgehost/abi/guest"
)

// curve is where one address stands; the host keeps it as 48 bytes.
type curve struct {
	KeptTime, HeldTime   int64 // microseconds
	KeptValue, HeldValue float64
	Upper, Lower         float64 // slopes of the doors
}

func init() {
	deviation := guest.ConfigFloat("deviation", 0)
	longest := int64(guest.ConfigFloat("longest_seconds", 3600) * 1e6)
	guest.FlatMap(func(r *guest.Record, out *guest.Emitter) {
		v, ok := r.Number()
		if !ok {
			out.Emit(r) // text is no curve
			return
		}
		at, address := r.EventTime(), r.Address()
		c, known := load(address)
		switch {
		case !known:
			out.Emit(r)
			c = curve{KeptTime: at, KeptValue: v}.open()
		case at <= c.HeldTime || at <= c.KeptTime:
			r.Reject("the record is older than the one before it")
			return
		default:
			if opened := c.swing(at, v, deviation); c.HeldTime != 0 && (opened || at-c.KeptTime > longest) {
				r.SetEventTime(c.HeldTime)
				r.SetFloat(c.HeldValue)
				out.Emit(r) // the point before this one
				c = curve{KeptTime: c.HeldTime, KeptValue: c.HeldValue}.open()
				c.swing(at, v, deviation)
			}
			c.HeldTime, c.HeldValue = at, v
		}
		save(address, c)
	})
}

func (c curve) open() curve {
	c.Upper, c.Lower = math.Inf(-1), math.Inf(1)
	return c
}

// swing opens the doors towards a point and reports whether they are past
// parallel.
func (c *curve) swing(at int64, v, deviation float64) bool {
	dt := float64(at - c.KeptTime)
	c.Upper = math.Max(c.Upper, (v-c.KeptValue-deviation)/dt)
	c.Lower = math.Min(c.Lower, (v-c.KeptValue+deviation)/dt)
	return c.Upper > c.Lower
}

func load(address string) (c curve, ok bool) {
	b, ok := guest.KVGet(address)
	if ok {
		_, err := binary.Decode(b, binary.LittleEndian, &c)
		ok = err == nil
	}
	return c, ok
}

func save(address string, c curve) {
	b, _ := binary.Append(nil, binary.LittleEndian, c)
	if !guest.KVSet(address, b, 0) {
		guest.Fail("the state of " + address + " cannot be kept")
	}
}

func main() {}
