// Route sends every tenth record, and those whose address begins with a prefix, to
// the output "second".
package main

import (
	"strings"

	"github.com/edgehost/edgehost/abi/guest"
)

func init() {
	second, every := guest.Handle("second"), int64(guest.ConfigFloat("every", 10))
	prefix := guest.Config("prefix")
	guest.Map(func(r *guest.Record) {
		numbered := every > 0 && sequence(r)%every == 0
		if numbered || (prefix != "" && strings.HasPrefix(r.Address(), prefix)) {
			r.SetOutput(second)
		}
	})
}

// sequence is the attribute seq of a record or else its value, and -1 when
// neither is a number.
func sequence(r *guest.Record) int64 {
	if seq, ok := r.Attr("seq"); ok {
		if n, ok := seq.Number(); ok {
			return int64(n)
		}
	}
	if n, ok := r.Number(); ok {
		return int64(n)
	}
	return -1
}

func main() {}
