// Texts joins texts in every way that the SDK has, and compares with what Go makes of
// them.
package main

import (
	"strings"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/abi/guest"
)

func init() {
	prefix := guest.Config("prefix")
	guest.Map(func(r *guest.Record) {
		text := r.Address()
		if text == "fail" {
			guest.Fail("as asked: " + prefix)
			return
		}
		before := guest.Concat(prefix, text)
		check(before, prefix, text)
		after := guest.Concat(text, prefix)
		check(after, text, prefix)
		both := guest.Concat(before, after)
		check(both, before, after)
		own := strings.Clone(text) // in the module's heap, to be kept until the batch is read
		heap := guest.Concat(prefix, own)
		check(heap, prefix, own)
		r.SetAddress(before)
		r.SetSource(after)
		r.SetText(both)
		r.SetAttr("own", abi.String(own))
		r.SetAttr("heap", abi.String(heap))
		r.SetAttr("same", abi.String(text))
	})
}

func check(got, a, b string) {
	if got != strings.Clone(a)+b {
		panic("Concat of " + a + " and " + b + " is " + got)
	}
}

func main() {}
