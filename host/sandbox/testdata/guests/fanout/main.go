// Fanout emits every record twice, the second time under an address of its own.
package main

import (
	"runtime"
	"strconv"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/abi/guest"
)

func init() {
	guest.FlatMap(func(r *guest.Record, out *guest.Emitter) {
		out.Emit(r)
		n := strconv.Itoa(int(r.Index()))
		r.SetAddress(r.Address() + "/" + n)
		r.SetAttr("copy", abi.String("copy "+n))
		out.Emit(r)
		if r.Index()%1000 == 999 {
			runtime.GC()
		}
	})
}

func main() {}
