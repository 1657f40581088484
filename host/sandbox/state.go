package sandbox

import (
	"fmt"
	"slices"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/tetratelabs/wazero/api"
)

// maxKVWrites bounds the bytes of keys and values that one call may write.
const maxKVWrites = 1 << 20

// kvReadCost is what a look into the store counts in bytes of work: it may reach
// the disk.
const kvReadCost = 16 << 10

// KV is what a module remembers, in the scope that the host chose. Get is
// called by one goroutine, while the module runs; an error of it ends the call and
// is no fault of the module. Writes come back in the Result.
type KV interface {
	Get(key string) (value []byte, ok bool, err error)
}

// KVWrite is one change that a call made. The host commits it with the records of
// the same Result.
type KVWrite struct {
	Key    string
	Value  []byte
	TTL    time.Duration // 0 keeps the value for ever
	Delete bool          // then there is no value
}

// MetricKind is the kind of a module's metric.
type MetricKind uint8

// The kinds of metrics. The numbers are part of the ABI.
const (
	Counter MetricKind = 0 // Value is to be added
	Gauge   MetricKind = 1 // Value replaces the last one
)

// Metric is a change of one of the module's metrics.
type Metric struct {
	Name  string // as the module calls it: letters, digits and _
	Kind  MetricKind
	Value float64
}

// state is what one call changed beside records.
type state struct {
	writes  []KVWrite
	at      map[string]int // of a key in writes
	bytes   int
	changed []bool // by metric id
}

// keptWrites is for how many keys the index is used again.
const keptWrites = 4096

// forget drops the changes of the last call.
func (i *Instance) forget() {
	if len(i.state.writes) > keptWrites {
		i.state.at = nil
	}
	clear(i.state.at)
	i.state.writes, i.state.bytes = nil, 0
	for id := range i.metrics {
		i.metrics[id].Value, i.state.changed[id] = 0, false
	}
}

// hostKVGet is kv_get(key, key_len, buf, buf_len) -> length. It sees what the same
// call wrote.
func hostKVGet(i *Instance, mem api.Memory, stack []uint64) {
	key, bad := i.kvKey(mem, stack)
	if bad != 0 {
		stack[0] = errno(bad)
		return
	}
	value, ok := i.read(key)
	if !ok {
		stack[0] = errno(abi.ErrnoNotFound)
		return
	}
	i.call.charge(len(value))
	stack[0] = give(mem, stack, 2, string(value))
}

// read is the value of a key as this call sees it.
func (i *Instance) read(key string) ([]byte, bool) {
	if k, written := i.state.at[key]; written {
		w := i.state.writes[k]
		return w.Value, !w.Delete
	}
	i.call.charge(kvReadCost)
	if !i.call.commits {
		return nil, false // the module starts or stops: there is no source whose state it could be
	}
	value, ok, err := i.env.KV.Get(key)
	if err != nil {
		panic(fmt.Errorf("%w: read state of the module: %w", errHost, err))
	}
	return value, ok
}

// hostKVSet is kv_set(key, key_len, value, value_len, ttl_ms) -> 0.
func hostKVSet(i *Instance, mem api.Memory, stack []uint64) {
	key, bad := i.kvKey(mem, stack)
	n, ttl := uint32(stack[3]), int64(stack[4])
	value, ok := mem.Read(uint32(stack[2]), n)
	switch {
	case bad != 0:
		stack[0] = errno(bad)
	case n > abi.MaxKVValue:
		stack[0] = errno(abi.ErrnoTooLarge)
	case !ok:
		stack[0] = errno(abi.ErrnoMemory)
	case ttl < 0 || ttl > int64(maxTTL/time.Millisecond):
		stack[0] = errno(abi.ErrnoInvalid)
	default:
		stack[0] = errno(i.write(KVWrite{Key: key, Value: slices.Clone(value), TTL: time.Duration(ttl) * time.Millisecond}))
	}
}

// maxTTL is the longest time to live: a hundred years.
const maxTTL = 100 * 365 * 24 * time.Hour

// hostKVDelete is kv_delete(key, key_len) -> 0.
func hostKVDelete(i *Instance, mem api.Memory, stack []uint64) {
	key, bad := i.kvKey(mem, stack)
	if bad == 0 {
		bad = i.write(KVWrite{Key: key, Delete: true})
	}
	stack[0] = errno(bad)
}

// kvKey reads the key of a kv function.
func (i *Instance) kvKey(mem api.Memory, stack []uint64) (string, int) {
	if i.env.KV == nil {
		return "", abi.ErrnoDenied
	}
	key, bad := name(mem, stack, 0, abi.MaxKey)
	if bad == 0 && key == "" {
		bad = abi.ErrnoInvalid
	}
	return key, bad
}

// write buffers a change until the call has succeeded. Only batches and ticks
// commit, so nothing else may write.
func (i *Instance) write(w KVWrite) int {
	if !i.call.commits {
		return abi.ErrnoDenied
	}
	k, again := i.state.at[w.Key]
	grown := len(w.Key) + len(w.Value)
	if again {
		grown -= len(w.Key) + len(i.state.writes[k].Value)
	}
	if i.state.bytes+grown > maxKVWrites {
		return abi.ErrnoTooLarge
	}
	i.state.bytes += grown
	i.call.charge(len(w.Key) + len(w.Value))
	if again {
		i.state.writes[k] = w
		return 0
	}
	if i.state.at == nil {
		i.state.at = map[string]int{}
	}
	i.state.at[w.Key] = len(i.state.writes)
	i.state.writes = append(i.state.writes, w)
	return 0
}

// hostMetric is metric(kind, name, name_len) -> id.
func hostMetric(i *Instance, mem api.Memory, stack []uint64) {
	kind := MetricKind(min(uint32(stack[0]), 255)) // the upper half of an i32 is undefined
	key, bad := name(mem, stack, 1, abi.MaxKey)
	if bad == 0 && (kind > Gauge || !metricName(key)) {
		bad = abi.ErrnoInvalid
	}
	if bad != 0 {
		stack[0] = errno(bad)
		return
	}
	id := slices.IndexFunc(i.metrics, func(m Metric) bool { return m.Name == key })
	switch {
	case id >= 0 && i.metrics[id].Kind != kind:
		stack[0] = errno(abi.ErrnoInvalid)
		return
	case id < 0 && len(i.metrics) == abi.MaxMetrics:
		stack[0] = errno(abi.ErrnoTooLarge)
		return
	case id < 0:
		id = len(i.metrics)
		i.metrics = append(i.metrics, Metric{Name: key, Kind: kind})
		i.state.changed = append(i.state.changed, false)
	}
	stack[0] = uint64(id)
}

// metricName reports whether s can be part of a Prometheus name.
func metricName(s string) bool {
	for k := range len(s) {
		c := s[k] | 0x20
		if !(c >= 'a' && c <= 'z' || s[k] == '_' || k > 0 && s[k] >= '0' && s[k] <= '9') {
			return false
		}
	}
	return s != ""
}

// hostMetricAdd is metric_add(id, delta) -> 0, for counters.
func hostMetricAdd(i *Instance, _ api.Memory, stack []uint64) {
	delta := api.DecodeF64(stack[1])
	if !(delta >= 0) {
		stack[0] = errno(abi.ErrnoInvalid)
		return
	}
	stack[0] = errno(i.change(stack[0], Counter, func(v float64) float64 { return v + delta }))
}

// hostMetricSet is metric_set(id, value) -> 0, for gauges.
func hostMetricSet(i *Instance, _ api.Memory, stack []uint64) {
	value := api.DecodeF64(stack[1])
	stack[0] = errno(i.change(stack[0], Gauge, func(float64) float64 { return value }))
}

func (i *Instance) change(id uint64, kind MetricKind, to func(float64) float64) int {
	k := uint32(id)
	if uint64(k) >= uint64(len(i.metrics)) {
		return abi.ErrnoNotFound
	}
	if i.metrics[k].Kind != kind {
		return abi.ErrnoInvalid
	}
	i.metrics[k].Value, i.state.changed[k] = to(i.metrics[k].Value), true
	return 0
}

// effects moves what the call changed into the result.
func (i *Instance) effects() {
	i.result.KV, i.result.Metrics = i.state.writes, i.result.Metrics[:0]
	for id, m := range i.metrics {
		if i.state.changed[id] {
			i.result.Metrics = append(i.result.Metrics, m)
		}
	}
}
