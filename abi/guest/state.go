package guest

// KVGet is the value of a key in the module's state, which the host keeps for each
// pipeline, module name and source, over revisions too. It is false when there is
// none or the deployment grants no state.
func KVGet(key string) ([]byte, bool) { return hostKVGet(key) }

// KVSet sets a key. The host commits it together with the records of the batch, or
// not at all. ttl is a time.Duration; 0 keeps it for ever. It is false when the key or
// the value is too long (256 bytes, 64 KiB), or there is no state or no batch to
// commit with.
func KVSet[D duration](key string, value []byte, ttl D) bool {
	const millisecond = 1_000_000
	return hostKVSet(key, value, int64(ttl)/millisecond) >= 0
}

// duration is time.Duration, or a constant. To import the package time would add a
// quarter of a megabyte to modules that have no use for it.
type duration interface{ ~int64 | ~int }

// KVDelete removes a key, as KVSet sets one.
func KVDelete(key string) bool { return hostKVDelete(key) >= 0 }

// A Counter is a metric that only grows.
type Counter struct{ id int32 }

// NewCounter makes a counter, or finds it. The name is made of letters, digits
// and _; a module has at most 64 metrics.
func NewCounter(name string) Counter { return Counter{hostMetric(0, name)} }

// Add adds delta, which is not below 0. It counts when the batch succeeds.
func (c Counter) Add(delta float64) { hostMetricAdd(c.id, delta) }

// A Gauge is a metric that goes up and down.
type Gauge struct{ id int32 }

// NewGauge makes a gauge, or finds it, with a name as for NewCounter.
func NewGauge(name string) Gauge { return Gauge{hostMetric(1, name)} }

// Set sets the value. It counts when the batch succeeds.
func (g Gauge) Set(value float64) { hostMetricSet(g.id, value) }
