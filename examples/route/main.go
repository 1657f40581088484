// Route sends some records to the output "second": every tenth one, or those whose
// address begins with a prefix.
package main

import (
	"strings"

	"github.com/edgehost/edgehost/abi/guest"
)

func init() {
	second := guest.Handle("second")
	prefix, every := guest.Config("prefix"), uint64(guest.ConfigFloat("every", 10))
	guest.Map(func(r *guest.Record) {
		seq, ok := r.Attr("seq")
		n, _ := seq.Number()
		numbered := ok && every > 0 && uint64(n)%every == 0
		if numbered || (prefix != "" && strings.HasPrefix(r.Address(), prefix)) {
			r.SetOutput(second)
		}
	})
}

func main() {}
