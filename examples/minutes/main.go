// Minutes makes one record of all values of an address in a minute: the average,
// with min, max and count as attributes. A window is closed by the first record of
// a later minute, or by a tick.
package main

import (
	"math"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/abi/guest"
)

const minute = int64(60_000_000) // microseconds

// window is the minute of one address. It rests in the state that the host keeps,
// so a restart in the middle of a minute loses nothing.
type window struct {
	Begin         int64
	Source        string
	Sum, Min, Max float64
	Count         int64 // 0: the window is closed
}

func init() {
	guest.FlatMap(func(r *guest.Record, out *guest.Emitter) {
		v, ok := r.Number()
		if !ok {
			r.Reject("the value is no number")
			return
		}
		address, begin := r.Address(), r.EventTime()/minute*minute
		w, known := load(address)
		switch {
		case known && (begin < w.Begin || (begin == w.Begin && w.Count == 0)):
			r.Reject("the minute of this record is closed")
			return
		case !known || w.Count == 0:
			loadDue().with(address).save()
			w = window{Begin: begin, Source: r.Source(), Min: v, Max: v}
		case begin > w.Begin:
			w.emit(address, out)
			w = window{Begin: begin, Source: r.Source(), Min: v, Max: v}
		}
		w.Sum, w.Min, w.Max, w.Count = w.Sum+v, math.Min(w.Min, v), math.Max(w.Max, v), w.Count+1
		w.save(address)
	})
	guest.Tick(func(out *guest.Emitter) {
		var still due
		loadDue().all(func(address string) {
			w, ok := load(address)
			switch {
			case ok && w.Begin+minute > time.Now().UnixMicro(): // the batch's time
				still = still.with(address)
			case ok:
				w.emit(address, out)
				w.Count = 0
				w.save(address)
			}
		})
		still.save()
	})
}

func (w window) emit(address string, out *guest.Emitter) {
	r := out.New()
	r.SetSource(w.Source)
	r.SetAddress(address)
	r.SetEventTime(w.Begin)
	r.SetFloat(w.Sum / float64(w.Count))
	r.SetAttr("min", abi.Float(w.Min))
	r.SetAttr("max", abi.Float(w.Max))
	r.SetAttr("count", abi.Int(w.Count))
	out.Emit(r)
}

func main() {}
