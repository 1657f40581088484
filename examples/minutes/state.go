package main

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/edgehost/edgehost/abi/guest"
)

// Keys of the state: "window/" and the address for its window, "due" for the list of
// addresses whose window a tick must close.
//
// Both are bytes of our own making: a record costs a fiftieth of what it would with
// encoding/json, which a module with hundreds of addresses could not pay.

// load reads a window: five numbers, then the source.
func load(address string) (w window, ok bool) {
	b, ok := guest.KVGet("window/" + address)
	if !ok || len(b) < 5*8 {
		return w, false
	}
	number := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	return window{
		Begin: int64(number(0)), Count: int64(number(1)),
		Sum: math.Float64frombits(number(2)), Min: math.Float64frombits(number(3)), Max: math.Float64frombits(number(4)),
		Source: string(b[5*8:]),
	}, true
}

// save keeps a window for a day after its last record: that is how long a record
// of a closed minute is known to be late.
func (w window) save(address string) {
	b := make([]byte, 0, 5*8+len(w.Source))
	for _, n := range [...]uint64{uint64(w.Begin), uint64(w.Count), math.Float64bits(w.Sum), math.Float64bits(w.Min), math.Float64bits(w.Max)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	set("window/"+address, append(b, w.Source...), 24*time.Hour)
}

// due is the list of addresses whose window is open: each with its length before it.
type due []byte

func loadDue() due {
	b, _ := guest.KVGet("due")
	return b
}

func (d due) save() { set("due", d, 0) }

func (d due) with(address string) due {
	return append(binary.AppendUvarint(d, uint64(len(address))), address...)
}

// all calls f with each address.
func (d due) all(f func(address string)) {
	for len(d) > 0 {
		n, size := binary.Uvarint(d)
		if size <= 0 || n > uint64(len(d)-size) {
			return // it is not ours
		}
		f(string(d[size : size+int(n)]))
		d = d[size+int(n):]
	}
}

func set(key string, value []byte, ttl time.Duration) {
	if !guest.KVSet(key, value, ttl) {
		guest.Fail("the state " + key + " cannot be kept: too many addresses for one source?")
	}
}
