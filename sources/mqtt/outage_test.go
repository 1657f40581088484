package mqtt

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/edgehost/edgehost/sources"
)

// TestNothingIsLostOverKicks breaks the connection every 37 acknowledgements.
func TestNothingIsLostOverKicks(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		t.Run(fmt.Sprintf("qos %d", qos), func(t *testing.T) {
			p := newPeer(t)
			p.kickAt = 37
			p.start()
			s, st := newTestSource(t, p.url(), oneTopic("a", int(qos)))
			var k sink
			run(t, s, k.emit)
			const n = 1000
			for i := range n {
				p.publish("a", fmt.Sprintf("m%04d", i), qos)
				if qos == 2 && i%100 == 99 {
					p.kick()
				}
			}
			eventually(t, "all acknowledged", func() bool { return len(p.ackedPayloads()) == n })
			got := k.texts()
			first := slices.Compact(slices.Sorted(slices.Values(got)))
			if len(first) != n {
				t.Errorf("%d of %d messages arrived", len(first), n)
			}
			redelivered := int(st.Snapshot().Counters[metricRedelivered])
			if len(got)-n > redelivered {
				t.Errorf("%d records more than messages, but only %d redeliveries counted", len(got)-n, redelivered)
			}
			t.Logf("%d records of %d messages over %d connections, %d redelivered", len(got), n, p.connectCount(), redelivered)
		})
	}
}

// TestFullBufferDisconnectsAndResumes blocks the pipeline until a persistent
// session overflows: it goes away without losing anything and comes back.
func TestFullBufferDisconnectsAndResumes(t *testing.T) {
	p := newPeer(t)
	p.window = 1000
	p.start()
	cfg := oneTopic("a", 1)
	cfg.BufferMaxMessages = 100
	s, st := newTestSource(t, p.url(), cfg)
	release := make(chan struct{})
	var k sink
	run(t, s, k.after(release))
	awaitState(t, st, sources.Connected)
	const n = 500
	for i := range n {
		p.publish("a", fmt.Sprintf("m%04d", i), 1)
	}
	awaitState(t, st, sources.Degraded, "half of the buffer")
	if held, _ := s.buf.counts(); held > 100 {
		t.Errorf("%d messages held, the bound is 100", held)
	}
	if acked := p.ackedPayloads(); len(acked) > 0 {
		t.Errorf("%d acknowledged while the pipeline took nothing", len(acked))
	}
	close(release)
	eventually(t, "all acknowledged", func() bool { return len(p.ackedPayloads()) == n })
	awaitState(t, st, sources.Connected)
	if got := slices.Compact(slices.Sorted(slices.Values(k.texts()))); len(got) != n {
		t.Errorf("%d of %d messages arrived", len(got), n)
	}
	if failed := st.Snapshot().Failed; len(failed) > 0 {
		t.Errorf("failures of a persistent session: %v", failed)
	}
}

// TestFullBufferDropsQoS0 does the same without a session: what does not fit
// is gone and counted, and the connection stays.
func TestFullBufferDropsQoS0(t *testing.T) {
	p := newPeer(t).start()
	cfg := oneTopic("a", 0)
	cfg.BufferMaxMessages = 100
	s, st := newTestSource(t, p.url(), cfg)
	release := make(chan struct{})
	var k sink
	run(t, s, k.after(release))
	awaitState(t, st, sources.Connected)
	const n = 500
	for i := range n {
		p.publish("a", fmt.Sprintf("m%04d", i), 0)
	}
	eventually(t, "400 drops", func() bool { return st.Snapshot().Failed[reasonBufferFull] == n-100 })
	close(release)
	eventually(t, "the other records", func() bool { return len(k.records()) == 100 })
	p.publish("a", "after", 0)
	eventually(t, "the next record", func() bool { return len(k.records()) == 101 })
	if p.connectCount() != 1 {
		t.Errorf("%d connections, want 1", p.connectCount())
	}
}

// TestCleanStopWaitsForAcks ends a source whose batch is still on its way to
// the disk: the broker hears of it before we go.
func TestCleanStopWaitsForAcks(t *testing.T) {
	p := newPeer(t).start()
	s, st := newTestSource(t, p.url(), oneTopic("a", 1))
	pending := make(chan func(error), 1)
	k := sink{hold: func(done func(error)) { pending <- done }}
	stop := run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	p.publish("a", "1", 1)
	done := <-pending
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	eventually(t, "the source to end", func() bool { return s.buf.inPipeline() == 1 })
	done(nil)
	<-stopped
	eventually(t, "the acknowledgement", func() bool { return len(p.ackedPayloads()) == 1 })
}

func TestFailOver(t *testing.T) {
	p := newPeer(t).start()
	cfg := oneTopic("a", 1)
	cfg.Endpoints = []string{p.url()}
	s, st := newTestSource(t, "mqtt://127.0.0.1:1", cfg)
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	p.publish("a", "1", 1)
	eventually(t, "a record by the second endpoint", func() bool { return len(k.records()) == 1 })

	cfg.Endpoints = []string{"mqtt://127.0.0.1:2"}
	s, st = newTestSource(t, "mqtt://127.0.0.1:1", cfg)
	run(t, s, k.emit)
	awaitState(t, st, sources.Reconnecting, "mqtt://127.0.0.1:1", "mqtt://127.0.0.1:2")
}

// TestSilentEndpointGoesLast: an endpoint that takes the connection and says
// nothing costs its time-out once, and not each time that the other is lost.
func TestSilentEndpointGoesLast(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var tried atomic.Int32 // connections that say something: the supervisor looks who listens
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if n, _ := conn.Read(make([]byte, 1)); n > 0 {
					tried.Add(1)
				}
				io.Copy(io.Discard, conn)
			})
		}
	})
	defer wg.Wait()
	defer silent.Close()
	p := newPeer(t).start()
	cfg := oneTopic("a", 1)
	cfg.ConnectTimeoutSeconds = 1
	alone, st := newTestSource(t, "mqtt://"+silent.Addr().String(), cfg)
	stop := run(t, alone, new(sink).emit)
	awaitState(t, st, sources.Reconnecting, "nothing answers")
	stop()
	cfg.Endpoints = []string{p.url()}
	s, st := newTestSource(t, "mqtt://"+silent.Addr().String(), cfg)
	run(t, s, new(sink).emit)
	awaitState(t, st, sources.Connected)
	before := tried.Load()
	for n := 2; n <= 5; n++ {
		p.kick()
		eventually(t, "the next connection", func() bool { return p.connectCount() == n })
		awaitState(t, st, sources.Connected)
	}
	if n := tried.Load() - before; n > 0 {
		t.Errorf("the silent endpoint was tried %d times more, before the other", n)
	}
}
