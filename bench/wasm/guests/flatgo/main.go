// The flat Go guest of the benchmark.
package main

import (
	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/abi/guest"
)

func init() {
	switch guest.Config("op") {
	case "filter":
		guest.Filter(func(r *guest.Record) bool {
			v, ok := r.Float()
			return !ok || v > 50
		})
	case "scale":
		guest.Map(func(r *guest.Record) {
			if v, ok := r.Float(); ok {
				r.SetFloat(v*1.8 + 32)
			}
			r.SetAddress(guest.Concat("site/", r.Address()))
		})
	case "fault": // for the way back from a panic
		guest.Map(func(r *guest.Record) {
			if r.Kind() == abi.KindNone {
				panic("poison")
			}
		})
	default:
		guest.Map(func(*guest.Record) {})
	}
}

func main() {}
