//go:build conformance

package opcua

import (
	"context"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gopcua/opcua"
	"github.com/gopcua/opcua/ua"

	"github.com/edgehost/edgehost/sources"
)

// cpu is what this process has used.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// TestCostAgainstLibrary compares CPU per value with the library's own
// subscription to the same 2 000 items, interleaved. The library counts values
// and drops them; we make records, batches and resume points of them. What else
// the machine does only adds: the least of several rounds counts, and there are more
// of them while that is too much.
func TestCostAgainstLibrary(t *testing.T) {
	const items, least, most, measure = 2000, 3, 10, 3 * time.Second
	p := startPeer(t, map[string]any{"counters": items, "everyMs": 100})
	var ours, theirs []float64
	a, b := 0.0, 0.0
	for n := 0; n < least || n < most && a/b > 1.3; n++ {
		ours = append(ours, ourCost(t, p.url, items, measure))
		theirs = append(theirs, libraryCost(t, p.url, items, measure))
		a, b = slices.Min(ours), slices.Min(theirs)
	}
	t.Logf("%.2f µs a value, the library alone %.2f µs: ratio %.2f after %d rounds", a, b, a/b, len(ours))
	if a/b > 1.3 {
		t.Errorf("we use %.2f times the CPU of the library alone, want at most 1.3", a/b)
	}
}

func ourCost(t *testing.T, url string, items int, measure time.Duration) float64 {
	t.Helper()
	n := 0
	emit := func(_ context.Context, b sources.Batch, done func(error)) error {
		n += len(b.Records)
		done(nil)
		return nil
	}
	cfg := counterConfig(items)
	src, status := makeSource(t, url, cfg, &collector{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- src.Run(ctx, emit) }()
	eventually(t, "connected", func() bool { return status.Snapshot().State == sources.Connected })
	before, records := cpu(t), status.Snapshot().Records
	wait(measure)
	used, got := cpu(t)-before, status.Snapshot().Records-records
	cancel()
	<-ended
	if got < uint64(items) {
		t.Fatalf("only %d values came", got)
	}
	return float64(used.Nanoseconds()) / 1000 / float64(got)
}

func libraryCost(t *testing.T, url string, items int, measure time.Duration) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := opcua.NewClient(url, opcua.SecurityMode(ua.MessageSecurityModeNone))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	notes := make(chan *opcua.PublishNotificationData, 100)
	sub, err := c.Subscribe(ctx, &opcua.SubscriptionParameters{Interval: 200 * time.Millisecond, MaxNotificationsPerPublish: 1000}, notes)
	if err != nil {
		t.Fatal(err)
	}
	cfg := counterConfig(items)
	for i := 0; i < items; i += 1000 {
		var reqs []*ua.MonitoredItemCreateRequest
		for k := i; k < min(i+1000, items); k++ {
			ref, err := parseNodeRef(cfg.Nodes[k].NodeID)
			if err != nil {
				t.Fatal(err)
			}
			id, err := ref.nodeID(2)
			if err != nil {
				t.Fatal(err)
			}
			reqs = append(reqs, &ua.MonitoredItemCreateRequest{MonitoringMode: ua.MonitoringModeReporting, ItemToMonitor: valueOf(id),
				RequestedParameters: &ua.MonitoringParameters{ClientHandle: uint32(k + 1), QueueSize: 1000, DiscardOldest: true}})
		}
		if _, err := sub.Monitor(ctx, ua.TimestampsToReturnBoth, reqs...); err != nil {
			t.Fatal(err)
		}
	}
	count := func(until <-chan time.Time) (n int) {
		for {
			select {
			case <-until:
				return n
			case v := <-notes:
				if d, ok := v.Value.(*ua.DataChangeNotification); ok {
					n += len(d.MonitoredItems)
				}
			}
		}
	}
	count(time.After(2 * time.Second))
	before := cpu(t)
	n := count(time.After(measure))
	used := cpu(t) - before
	if n < items {
		t.Fatalf("only %d values came to the library", n)
	}
	return float64(used.Nanoseconds()) / 1000 / float64(n)
}
