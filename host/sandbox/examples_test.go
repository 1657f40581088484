//go:build !race

// Compiling Go modules takes ten seconds each under the race detector, which has
// nothing to find here: one goroutine runs one module.

package sandbox_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// places is how many places of an entry of the cache are damaged, one after the other.
const places = 60

func TestScaleExample(t *testing.T) {
	m := compile(t, newHost(t), example(t, "scale"))
	i := instantiate(t, m, sandbox.Env{Name: "scale", Config: map[string]string{"factor": "1.8", "offset": "32", "unit": "°F", "prefix": "f/"}})
	in := batch(1000)
	for range 3 {
		res, err := i.Process(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Out) != 1000 || len(res.Rejects) != 0 || res.Fuel < 10_000 || res.Fuel > 10_000_000 {
			t.Fatalf("%d out, %d rejects, %d units of fuel", len(res.Out), len(res.Rejects), res.Fuel)
		}
		for k, o := range res.Out {
			unit, _ := o.Attr(abi.AttrUnit)
			qos, _ := o.Attr(abi.AttrQoS)
			want := float64(k)*1.8 + 32
			if o.Index != k || o.Value != abi.Float(want) || unit != abi.String("°F") || qos != abi.Int(1) || o.Address != "f/"+in.Records[k].Address || o.Source != "plant" {
				t.Fatalf("record %d: %+v", k, o)
			}
		}
	}
	if unit, _ := in.Records[5].Attr(abi.AttrUnit); unit != abi.String("°C") {
		t.Error("the input was changed")
	}
}

func TestRouteExample(t *testing.T) {
	m := compile(t, newHost(t), example(t, "route"))
	i := instantiate(t, m, sandbox.Env{Name: "route", Outputs: map[string]uint32{"second": 3}, Config: map[string]string{"prefix": "line1/pump7/"}})
	in := batch(100)
	in.Records[1].Attrs = append(in.Records[1].Attrs, abi.Attr{Key: "seq", Value: abi.Int(40)})
	in.Records[10].Value = abi.String("ten")
	res, err := i.Process(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	for k, o := range res.Out {
		second := k == 1 || k == 7 || (k%10 == 0 && k != 10)
		if want := map[bool]uint32{true: 3}[second]; o.Handle != want || o.Index != k {
			t.Errorf("record %d goes to output %d, want %d", k, o.Handle, want)
		}
	}
	_, err = m.Instantiate(t.Context(), sandbox.Env{Name: "route", Logger: slog.New(slog.DiscardHandler)})
	var refusal *sandbox.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(err.Error(), "output second is not configured") {
		t.Errorf("without the output: error %v", err)
	}
}

func TestThresholdExample(t *testing.T) {
	m := compile(t, newHost(t), example(t, "threshold"))
	i := instantiate(t, m, sandbox.Env{Name: "threshold", Config: map[string]string{"above": "49"}})
	in := batch(100)
	in.Records[99].Value = abi.String("broken")
	in.Records[3].Value = abi.Value{}
	res, err := i.Process(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Out) != 49 || res.Out[0].Index != 50 || res.Out[48].Index != 98 || res.Out[48].Address != in.Records[98].Address {
		t.Errorf("%d out: %+v", len(res.Out), res.Out)
	}
	if want := []abi.Reject{{Index: 3, Reason: "the value is no number"}, {Index: 99, Reason: "the value is no number"}}; !slices.Equal(res.Rejects, want) {
		t.Errorf("rejects %+v", res.Rejects)
	}
	bad := sandbox.Env{Name: "threshold", Config: map[string]string{"above": "high"}, Logger: slog.New(slog.DiscardHandler)}
	if _, err := m.Instantiate(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "config key above: high is no number") {
		t.Errorf("bad config: error %v", err)
	}
}

// What a Go module makes stays alive until the host has read it, whatever its garbage
// collector does in between.
func TestGoFanOutUnderGarbageCollection(t *testing.T) {
	m := compile(t, newHost(t), build(t, "./testdata/guests/fanout"))
	i := instantiate(t, m, sandbox.Env{Name: "fanout", Limits: sandbox.Limits{Deadline: time.Minute}})
	in := batch(3000)
	for range 3 {
		res, err := i.Process(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Out) != 6000 {
			t.Fatalf("%d out", len(res.Out))
		}
		for k := range in.Records {
			first, second := res.Out[2*k], res.Out[2*k+1]
			copied, _ := second.Attr("copy")
			unit, _ := second.Attr(abi.AttrUnit)
			if first.Index != k || first.Address != in.Records[k].Address || len(first.Attrs) != 2 ||
				second.Address != fmt.Sprintf("%s/%d", in.Records[k].Address, k) || copied != abi.String(fmt.Sprint("copy ", k)) || unit != abi.String("°C") {
				t.Fatalf("record %d: %+v, %+v", k, first, second)
			}
		}
	}
}

func TestCacheWarmStart(t *testing.T) {
	dir, wasm := t.TempDir(), example(t, "scale")
	var took [3]time.Duration
	for k := range took {
		h := openCached(t, cacheIn(dir))
		begin := cpu(t)
		m, err := h.Compile(t.Context(), wasm)
		took[k] = cpu(t) - begin
		if err != nil {
			t.Fatal(err)
		}
		if h.log.has("INFO module compiled", fmt.Sprintf("from_cache=%t", k > 0)) != 1 {
			t.Errorf("start %d: %v", k, h.log.lines)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Error(err)
		}
		h.close(t)
	}
	t.Logf("%d bytes: %v", len(wasm), took)
	if warm := min(took[1], took[2]); warm > took[0]/3 {
		t.Errorf("cold %v, from the cache %v", took[0], warm)
	}
}

func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestStrictGo: a Go guest is whole after every batch: put back, or started afresh
// when its heap had to grow for the batch, which then has room for the next.
func TestStrictGo(t *testing.T) {
	m := compile(t, newHost(t), build(t, "./testdata/guests/fanout"))
	i := instantiate(t, m, sandbox.Env{Strict: true})
	sizes := []int{1, 1, 1, 1, 1, 2000, 2000, 2000, 2000, 2000, 1}
	for k, n := range sizes {
		res, err := i.Process(t.Context(), batch(n))
		if err != nil || len(res.Out) != 2*n {
			t.Fatalf("batch of %d: %+v, %v", n, len(res.Out), err)
		}
		if settled := k >= 4 && n <= sizes[k-4]; settled && i.MemoryBytes() == 0 {
			t.Errorf("batch %d, of %d records: the instance is gone, it was to be put back", k, n)
		}
	}
}

// A panic in a Go module is a trap with the panic's words, again and again, and the
// next batch works each time.
func TestGoPanicIsATrap(t *testing.T) {
	m := compile(t, newHost(t), build(t, "./testdata/guests/faulty"))
	i := instantiate(t, m, sandbox.Env{Name: "faulty", Revision: "r1"})
	for range 20 {
		in := batch(50)
		in.Records[20].Address = "panic"
		_, err := i.Process(t.Context(), in)
		var f *sandbox.Fault
		if !errors.As(err, &f) || f.Class != sandbox.ClassTrap || !strings.Contains(f.Message, "index out of range") {
			t.Fatalf("error %v", err)
		}
		res, err := i.Process(t.Context(), batch(50))
		if err != nil || len(res.Out) != 50 {
			t.Fatalf("the next batch: %v", err)
		}
	}
	for address, class := range map[string]sandbox.Class{"recurse": sandbox.ClassDepth, "loop": sandbox.ClassFuel, "exit": sandbox.ClassTrap, "allocate": sandbox.ClassMemory} {
		in := batch(1)
		in.Records[0].Address = address
		_, err := i.Process(t.Context(), in)
		var f *sandbox.Fault
		if !errors.As(err, &f) || f.Class != class {
			t.Errorf("%s: error %v, want class %s", address, err, class)
		}
		if res, err := i.Process(t.Context(), batch(50)); err != nil || len(res.Out) != 50 {
			t.Fatalf("the batch after %s: %v", address, err)
		}
	}
	for _, size := range []int{40 << 20, 70 << 20} { // more than the module's memory, more than any batch may have
		in := batch(1)
		in.Records[0].Value = abi.String(strings.Repeat("x", size))
		_, err := i.Process(t.Context(), in)
		var f *sandbox.Fault
		if !errors.As(err, &f) || f.Class != sandbox.ClassMemory {
			t.Errorf("%d bytes: error %v", size, err)
		}
		if res, err := i.Process(t.Context(), batch(50)); err != nil || len(res.Out) != 50 {
			t.Fatalf("the batch after %d bytes: %v", size, err)
		}
	}
	in := batch(1)
	in.Records[0].Address = "clocks"
	res, err := i.Process(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	// The wall clock is the batch's, and an hour's sleep takes no time.
	if got := res.Out[0].Value; got != abi.Int(in.Time) {
		t.Errorf("the module's clock says %v", got.AsInt())
	}
}

// After a fault a Go module is to the byte what it was after init.
func TestRestoredIsFresh(t *testing.T) {
	m := compile(t, newHost(t), build(t, "./testdata/guests/faulty"))
	i := instantiate(t, m, sandbox.Env{Name: "faulty", Limits: sandbox.Limits{Fuel: 50e6}})
	fresh := i.StateHash()
	for _, how := range []string{"panic", "loop", "panic"} {
		good, bad := batch(2), batch(1)
		bad.Records[0].Address = how
		if _, err := i.Process(t.Context(), good); err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		if i.StateHash() == fresh {
			t.Fatalf("%s: a batch leaves nothing in the memory", how)
		}
		if _, err := i.Process(t.Context(), bad); err == nil {
			t.Fatalf("%s: no fault", how)
		}
		if i.StateHash() != fresh {
			t.Errorf("%s: the state is not that after init", how)
		}
	}
}

// TestPoolState: what an instance remembers is that of its borrower, and a module
// that starts has no state.
func TestPoolState(t *testing.T) {
	p := newPool(t, compile(t, newHost(t), build(t, "./testdata/guests/stateful")), sandbox.Env{Name: "stateful"}, 0)
	defer closePool(t, p)
	for _, kv := range []mapKV{{"seen": "40"}, {"seen": "7"}} {
		i, err := p.Get(t.Context(), kv)
		if err != nil {
			t.Fatal(err)
		}
		res, err := i.Tick(t.Context(), &abi.Batch{Seq: 1})
		if err != nil || res.Out[0].Value != abi.String(kv["seen"]) {
			t.Errorf("got %+v, %v, want %s", res, err, kv["seen"])
		}
		p.Put(t.Context(), i)
	}
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
