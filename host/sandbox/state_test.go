package sandbox_test

import (
	"errors"
	"strings"
	"testing"
	"time"

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

// The Go guest counts records in KV, deletes, counts in metrics and ticks.
func TestStateAndTicks(t *testing.T) {
	m := compile(t, newHost(t), build(t, "./testdata/guests/stateful"))
	if !m.Ticks() {
		t.Error("the module has no tick")
	}
	kv := mapKV{"seen": "40", "old": "x"}
	i := instantiate(t, m, sandbox.Env{Name: "stateful", KV: kv})
	for k := range 2 { // nothing is committed, so both see the same state
		res, err := i.Process(t.Context(), batch(3))
		if err != nil {
			t.Fatal(err)
		}
		if len(res.KV) != 2 || res.KV[0].Key != "seen" || string(res.KV[0].Value) != "43" || res.KV[0].TTL != time.Hour || !res.KV[1].Delete || res.KV[1].Key != "old" {
			t.Errorf("round %d: writes %+v", k, res.KV)
		}
		if len(res.Metrics) != 2 || res.Metrics[0] != (sandbox.Metric{Name: "records_total", Value: 3}) || res.Metrics[1] != (sandbox.Metric{Name: "last", Kind: sandbox.Gauge, Value: 2}) {
			t.Errorf("round %d: metrics %+v", k, res.Metrics)
		}
	}
	res, err := i.Tick(t.Context(), &abi.Batch{Seq: 9, Time: 1000})
	if err != nil || len(res.Out) != 1 || res.Out[0].Index != -1 || res.Out[0].Address != "seen" || res.Out[0].Value != abi.String("40") || res.Out[0].EventTime != 1000 {
		t.Errorf("tick: %+v, %v", res, err)
	}
	if len(res.Metrics) != 0 {
		t.Errorf("tick: metrics %+v", res.Metrics)
	}
	// A fault discards what the batch wrote.
	in := batch(2)
	in.Records[1].Address = "panic"
	if _, err := i.Process(t.Context(), in); err == nil {
		t.Error("no fault")
	}
	if res, err := i.Process(t.Context(), batch(1)); err != nil || string(res.KV[0].Value) != "41" || res.Metrics[0].Value != 1 {
		t.Errorf("after the fault: %+v, %v", res, err)
	}
	// A state that cannot be read is no fault of the module.
	in.Records[1].Address = "broken"
	_, err = i.Process(t.Context(), in)
	var f *sandbox.Fault
	if errors.As(err, &f) || err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("error %v", err)
	}
}

func TestStateIsNotGranted(t *testing.T) {
	m := compile(t, newHost(t), build(t, "./testdata/guests/stateful"))
	i := instantiate(t, m, sandbox.Env{Name: "stateful"})
	res, err := i.Process(t.Context(), batch(1))
	if err != nil || len(res.KV) != 0 {
		t.Errorf("%+v, %v", res, err)
	}
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
	full := func(call [][]byte) []byte { return cat(cat(call...), i32(abi.ErrnoTooLarge), eq, eqz, when(unreachable)) }
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
