package sandbox_test

import (
	"errors"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// store is a KV in memory.
type mapKV map[string]string

func (m mapKV) Get(key string) ([]byte, bool, error) {
	if key == "broken" {
		return nil, false, errors.New("disk on fire")
	}
	v, ok := m[key]
	return []byte(v), ok, nil
}

func TestHostFunctionsRefuse(t *testing.T) {
	h := newHost(t)
	kvSet := edgehost("kv_set", "iiiiI", "i")
	metric := edgehost("metric", "iii", "i")
	for name, c := range map[string]struct {
		imports func(a *asm)
		call    [][]byte
		want    int64
	}{
		"key too long":          {kvSet, body(i32(64), i32(abi.MaxKey+1), i32(0), i32(0), i64(0)), abi.ErrnoTooLarge},
		"key outside":           {kvSet, body(i32(-1), i32(8), i32(0), i32(0), i64(0)), abi.ErrnoMemory},
		"key is not UTF-8":      {kvSet, body(i32(64), i32(9), i32(0), i32(0), i64(0)), abi.ErrnoInvalid},
		"no key":                {kvSet, body(i32(64), i32(0), i32(0), i32(0), i64(0)), abi.ErrnoInvalid},
		"value too long":        {kvSet, body(i32(64), i32(3), i32(0), i32(abi.MaxKVValue+1), i64(0)), abi.ErrnoTooLarge},
		"value outside":         {kvSet, body(i32(64), i32(3), i32(-1), i32(2), i64(0)), abi.ErrnoMemory},
		"ttl below 0":           {kvSet, body(i32(64), i32(3), i32(0), i32(2), i64(-1)), abi.ErrnoInvalid},
		"metric of kind 2":      {metric, body(i32(2), i32(64), i32(3)), abi.ErrnoInvalid},
		"metric with a space":   {metric, body(i32(0), i32(64), i32(4)), abi.ErrnoInvalid},
		"metric without a name": {metric, body(i32(0), i32(64), i32(0)), abi.ErrnoInvalid},
		"unknown metric":        {edgehost("metric_add", "iF", "i"), body(i32(3), f64zero), abi.ErrnoNotFound},
		"unknown output":        {edgehost("output", "ii", "i"), body(i32(64), i32(3)), abi.ErrnoNotFound},
		"unknown config":        {edgehost("config_get", "iiii", "i"), body(i32(64), i32(3), i32(0), i32(0)), abi.ErrnoNotFound},
		"log level 4":           {edgehost("log", "iii", "i"), body(i32(4), i32(64), i32(3)), abi.ErrnoInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			g := guest{imports: c.imports, process: append(c.call, callFn(0), i32(c.want), eq, eqz, when(unreachable))}
			i := instantiate(t, compile(t, h, g.bytes()), sandbox.Env{KV: mapKV{}})
			res, err := i.Process(t.Context(), batch(poisoned))
			if err != nil {
				t.Fatal(err)
			}
			if len(res.KV) != 0 || len(res.Metrics) != 0 {
				t.Errorf("%+v", res)
			}
		})
	}
}

// TestStateOfOneCall: a key that is written again takes the room of its last value
// only, and the next call starts with none of it.
func TestStateOfOneCall(t *testing.T) {
	set := func(key, n int64) [][]byte { return body(i32(key), i32(1), i32(0), i32(n), i64(0), callFn(0)) }
	fits := func(call [][]byte) []byte { return cat(cat(call...), i32(0), eq, eqz, when(unreachable)) }
	full := func(call [][]byte) []byte {
		return cat(cat(call...), i32(abi.ErrnoTooLarge), eq, eqz, when(unreachable))
	}
	g := guest{imports: edgehost("kv_set", "iiiiI", "i")}
	var process [][]byte
	for k := range int64(15) { // of 64 KiB each, 1 MiB less the keys is not enough for 16
		process = append(process, fits(set('0'+k, abi.MaxKVValue)))
	}
	process = append(process, full(set('a', abi.MaxKVValue)), fits(set('0', abi.MaxKVValue)), fits(set('0', 1)), fits(set('a', abi.MaxKVValue)))
	g.process = process
	g.functions = func(a *asm) {
		for k := range 128 { // key k is the byte at address k
			a.data(k, string(rune(k)))
		}
	}
	i := instantiate(t, compile(t, newHost(t), g.bytes()), sandbox.Env{KV: mapKV{}})
	for range 2 {
		res, err := i.Process(t.Context(), batch(poisoned))
		if err != nil || len(res.KV) != 16 || len(res.KV[0].Value) != 1 || res.KV[15].Key != "a" {
			t.Fatalf("%d writes, %v", len(res.KV), err)
		}
	}
}
