package opcua

import (
	"fmt"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
)

// BenchmarkAccept is one notification of 1 000 values on its way to records.
func BenchmarkAccept(b *testing.B) {
	const n = 1000
	src := &Source{name: "s", cfg: DefaultConfig(), status: sources.NewStatus("s", protocol)}
	e := &engine{src: src}
	sub := &subscription{items: map[uint32]*item{}, next: 1, stash: map[uint32]*ua.NotificationMessage{}}
	m := &ua.NotificationMessage{SequenceNumber: 1}
	var d ua.DataChangeNotification
	now := time.Now()
	for i := range uint32(n) {
		it := &item{handle: i, node: ua.NewStringNodeID(2, fmt.Sprint(i)), address: fmt.Sprint("ns=2;s=", i), path: "0:Root/0:Objects/2:x", cfg: src.cfg.Defaults, types: newTypeSystem()}
		it.describe("opc.tcp://h:4840", "x", "bar", map[string]string{"plc_name": "p"})
		sub.items[i] = it
		d.MonitoredItems = append(d.MonitoredItems, &ua.MonitoredItemNotification{ClientHandle: i,
			Value: &ua.DataValue{Value: ua.MustVariant(float64(i)), SourceTimestamp: now, ServerTimestamp: now.Add(time.Millisecond)}})
	}
	m.NotificationData = []*ua.ExtensionObject{{Value: &d}}
	b.ReportAllocs()
	for b.Loop() {
		e.accept(sub, m)
		e.queue = nil
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/value")
}
