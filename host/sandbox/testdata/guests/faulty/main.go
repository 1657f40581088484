// Faulty misbehaves as the address of a record says.
package main

import (
	"os"
	"time"

	"github.com/edgehost/edgehost/abi/guest"
)

var hoard [][]byte

func init() {
	guest.Map(func(r *guest.Record) {
		switch r.Address() {
		case "panic":
			var empty []int
			r.SetInt(int64(empty[r.Index()]))
		case "recurse":
			r.SetInt(recurse(1))
		case "loop":
			for {
			}
		case "exit":
			os.Exit(0)
		case "allocate":
			for {
				hoard = append(hoard, make([]byte, 1<<20))
			}
		case "clocks":
			time.Sleep(time.Hour)
			r.SetInt(time.Now().UnixMicro())
		}
	})
}

func recurse(n int64) int64 { return recurse(n+1) + n }

func main() {}
