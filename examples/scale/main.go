// Scale multiplies every number by a factor and adds an offset.
package main

import "github.com/edgehost/edgehost/abi/guest"

func init() {
	factor, offset := guest.ConfigFloat("factor", 1), guest.ConfigFloat("offset", 0)
	unit, prefix := guest.Config("unit"), guest.Config("prefix")
	guest.Map(func(r *guest.Record) {
		if v, ok := r.Number(); ok {
			r.SetFloat(v*factor + offset)
			if unit != "" {
				r.SetUnit(unit)
			}
		}
		if prefix != "" {
			r.SetAddress(guest.Concat(prefix, r.Address()))
		}
	})
}

func main() {}
