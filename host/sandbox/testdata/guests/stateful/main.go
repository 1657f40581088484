// Stateful counts records in the state that the host keeps.
package main

import (
	"strconv"
	"time"

	"github.com/edgehost/edgehost/abi/guest"
)

func init() {
	total, last := guest.NewCounter("records_total"), guest.NewGauge("last")
	guest.Map(func(r *guest.Record) {
		if r.Address() == "panic" {
			panic("as asked")
		}
		if r.Address() == "broken" {
			guest.KVGet("broken")
		}
		v, _ := guest.KVGet("seen")
		n, _ := strconv.Atoi(string(v))
		guest.KVSet("seen", []byte(strconv.Itoa(n+1)), time.Hour)
		guest.KVDelete("old")
		total.Add(1)
		last.Set(float64(r.Index()))
	})
	guest.Tick(func(out *guest.Emitter) {
		v, _ := guest.KVGet("seen")
		r := out.New()
		r.SetAddress("seen")
		r.SetText(string(v))
		out.Emit(r)
	})
}

func main() {}
