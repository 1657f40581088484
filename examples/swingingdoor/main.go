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

// curve is where one address stands; the host keeps it as 52 bytes.
type curve struct {
	KeptTime, HeldTime   int64 // microseconds; 0: no point is held
	KeptValue, HeldValue float64
	Upper, Lower         float64 // slopes of the doors
	Status               uint32  // of every point since the one that was kept
}

func init() {
	deviation := notNegative("deviation", 0)
	longest := int64(notNegative("longest_seconds", 3600) * 1e6)
	guest.FlatMap(func(r *guest.Record, out *guest.Emitter) {
		v, ok := r.Number()
		if !ok || math.IsNaN(v) || math.IsInf(v, 0) {
			out.Emit(r) // no point of a curve
			return
		}
		at, address := r.EventTime(), r.Address()
		c, known := load(address)
		switch {
		case !known:
			out.Emit(r)
			c = begin(at, v, r.Status())
		case at <= c.HeldTime || at <= c.KeptTime:
			r.Reject("the record is not newer than the one before it")
			return
		case r.Status() != c.Status: // another quality is another curve
			c.emitHeld(r, out)
			out.Emit(r)
			c = begin(at, v, r.Status())
		default:
			if opened := c.swing(at, v, deviation); c.HeldTime != 0 && (opened || at-c.KeptTime > longest) {
				c.emitHeld(r, out)
				c = begin(c.HeldTime, c.HeldValue, c.Status)
				c.swing(at, v, deviation)
			}
			c.HeldTime, c.HeldValue = at, v
		}
		save(address, c)
	})
}

func notNegative(key string, fallback float64) float64 {
	v := guest.ConfigFloat(key, fallback)
	if v < 0 {
		guest.Refuse("config key " + key + ": " + guest.Config(key) + " is below 0")
	}
	return v
}

// emitHeld emits the point before r, if one is held. Source and attributes are those
// of r, which is as it was afterwards.
func (c curve) emitHeld(r *guest.Record, out *guest.Emitter) {
	if c.HeldTime == 0 {
		return
	}
	at, v, status := r.EventTime(), r.Value(), r.Status()
	r.SetEventTime(c.HeldTime)
	r.SetFloat(c.HeldValue)
	r.SetStatus(c.Status)
	out.Emit(r)
	r.SetEventTime(at)
	r.SetValue(v)
	r.SetStatus(status)
}

// begin is a curve of which one point is known, with its doors shut.
func begin(at int64, v float64, status uint32) curve {
	return curve{KeptTime: at, KeptValue: v, Upper: math.Inf(-1), Lower: math.Inf(1), Status: status}
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
