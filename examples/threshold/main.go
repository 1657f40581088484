// Threshold keeps the records whose value is above a limit and rejects those
// that carry no number.
package main

import "github.com/edgehost/edgehost/abi/guest"

func init() {
	above := guest.ConfigFloat("above", 0)
	guest.Filter(func(r *guest.Record) bool {
		v, ok := r.Number()
		if !ok {
			r.Reject("the value is no number")
		}
		return v > above
	})
}

func main() {}
