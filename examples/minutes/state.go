package main

import (
	"encoding/json"
	"time"

	"github.com/edgehost/edgehost/abi/guest"
)

// Keys of the state: "w/" and the address for its window, "open" for the list of
// addresses whose window a tick must close.

func load(address string) (w window, ok bool) {
	ok = get("w/"+address, &w)
	return w, ok
}

// save keeps a window for a day after its last record: that is how long a record
// of a closed minute is known to be late.
func (w window) save(address string) { set("w/"+address, w, 24*time.Hour) }

func open() (addresses []string) {
	get("open", &addresses)
	return addresses
}

func saveOpen(addresses []string) { set("open", addresses, 0) }

func get(key string, v any) bool {
	b, ok := guest.KVGet(key)
	return ok && json.Unmarshal(b, v) == nil
}

func set(key string, v any, ttl time.Duration) {
	b, _ := json.Marshal(v)
	if !guest.KVSet(key, b, ttl) {
		guest.Fail("the state " + key + " cannot be kept: too many addresses for one source?")
	}
}
