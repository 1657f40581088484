// Payload takes JSON objects apart: every number, text and boolean in one becomes
// a record of its own, whose address is that of the payload and the path to it.
package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"

	"github.com/edgehost/edgehost/abi/guest"
)

func init() {
	timeKey := guest.Config("time_ms") // the key of the payload's own time, if it has one
	guest.FlatMap(func(r *guest.Record, out *guest.Emitter) {
		text, ok := r.Text()
		var payload map[string]any
		if !ok || json.Unmarshal([]byte(text), &payload) != nil {
			r.Reject("the payload is no JSON object")
			return
		}
		if ms, ok := payload[timeKey].(float64); ok && timeKey != "" {
			r.SetEventTime(int64(ms) * 1000)
			delete(payload, timeKey)
		}
		walk(r, out, r.Address(), payload)
	})
}

func walk(r *guest.Record, out *guest.Emitter, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			walk(r, out, path+"/"+key, v[key])
		}
		return
	case []any:
		for i, item := range v {
			walk(r, out, path+"/"+strconv.Itoa(i), item)
		}
		return
	case float64:
		r.SetFloat(v)
	case string:
		r.SetText(v)
	case bool:
		r.SetBool(v)
	case nil:
		return
	}
	r.SetAddress(path)
	out.Emit(r) // a copy of the record as it is now
}

func main() {}
