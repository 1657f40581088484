//go:build conformance

package mqtt

import (
	"context"
	"crypto/sha256"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// publishEach publishes n messages at QoS 1, with at most a window of them not
// acknowledged.
func publishEach(t *testing.T, b *broker, n int, each func(i int) (topic string, payload []byte)) {
	t.Helper()
	client := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + b.addr()).SetClientID("publisher"))
	if token := client.Connect(); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
	defer client.Disconnect(250)
	window := make(chan paho.Token, 1000)
	var acked sync.WaitGroup
	acked.Go(func() {
		for token := range window {
			if !token.WaitTimeout(30*time.Second) || token.Error() != nil {
				t.Errorf("a message is not acknowledged: %v", token.Error())
			}
		}
	})
	for i := range n {
		topic, payload := each(i)
		window <- client.Publish(topic, 1, false, payload)
	}
	close(window)
	acked.Wait()
}

// heap is what is held, in bytes, garbage excluded.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// topicCounts is a pipeline that knows of each topic t/<n> only which message
// came last: they are numbered from 1 within their topic.
type topicCounts struct {
	mu      sync.Mutex
	last    []uint8
	records int
	errs    []string
}

func (c *topicCounts) emit(_ context.Context, b sources.Batch, done func(error)) error {
	c.mu.Lock()
	for _, r := range b.Records {
		c.records++
		topic, err := strconv.Atoi(strings.TrimPrefix(r.Address, "t/"))
		sensor, _ := r.Attr(abi.AttrSensorName)
		if n := r.Value.AsInt(); err != nil || n != int64(c.last[topic])+1 || sensor.Text() != strconv.Itoa(topic) {
			c.errs = append(c.errs, fmt.Sprintf("%s: number %d came after %d, for sensor %q", r.Address, n, c.last[topic], sensor.Text()))
		} else {
			c.last[topic]++
		}
	}
	c.mu.Unlock()
	done(nil)
	return nil
}

// manyTopics publishes rounds messages to each of n topics, all topics in turn,
// to one wildcard subscription.
func manyTopics(t *testing.T, n, rounds int) {
	m := startMosquitto(t, "allow_anonymous true", "max_queued_messages 0").start()
	s, st := newTestSource(t, m.url(), oneTopic("t/+", 1))
	c := topicCounts{last: make([]uint8, n)}
	run(t, s, c.emit)
	awaitState(t, st, sources.Connected)
	before := heap()
	begin := time.Now()
	publishEach(t, &m.broker, n*rounds, func(i int) (string, []byte) {
		return "t/" + strconv.Itoa(i%n), strconv.AppendInt(nil, int64(i/n+1), 10)
	})
	eventually(t, "all records", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.records >= n*rounds })
	took := time.Since(begin)
	held := heap() - before
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, err := range c.errs[:min(3, len(c.errs))] {
		t.Error(err)
	}
	if whole := !slices.ContainsFunc(c.last, func(l uint8) bool { return int(l) != rounds }); !whole || c.records != n*rounds {
		t.Errorf("%d records of %d messages; every topic whole: %v", c.records, n*rounds, whole)
	}
	if held > 16<<20 {
		t.Errorf("%d MiB are held after %d topics, want at most 16", held>>20, n)
	}
	t.Logf("%d topics, %d messages in %.1f s, %.1f MiB held", n, n*rounds, took.Seconds(), float64(held)/(1<<20))
}

func TestSmokeTwentyThousandTopics(t *testing.T) { manyTopics(t, 20_000, 2) }

func TestHundredThousandTopics(t *testing.T) { manyTopics(t, 100_000, 3) }

// TestLargePayloadsAgainstABlockedPipeline publishes 128 payloads of 1 MiB that
// are no text, to as many topics, while the pipeline takes nothing: a few are
// held in memory, the broker keeps the rest, and all of them arrive whole.
func TestLargePayloadsAgainstABlockedPipeline(t *testing.T) {
	const n, size = 128, 1 << 20
	m := startMosquitto(t, "allow_anonymous true", "max_queued_messages 0", "max_inflight_messages 0").start()
	s, st := newTestSource(t, m.url(), oneTopic("t/+", 1))
	release := make(chan struct{})
	var mu sync.Mutex
	sums := map[string][sha256.Size]byte{}
	run(t, s, func(ctx context.Context, b sources.Batch, done func(error)) error {
		select {
		case <-release:
		case <-ctx.Done():
			return ctx.Err()
		}
		mu.Lock()
		for _, r := range b.Records {
			sums[r.Address] = sha256.Sum256([]byte(r.Value.Text()))
		}
		mu.Unlock()
		done(nil)
		return nil
	})
	awaitState(t, st, sources.Connected)
	payload := func(i int) []byte {
		p := []byte(strings.Repeat("\xff", size))
		copy(p, strconv.Itoa(i))
		return p
	}
	before := heap()
	publishEach(t, &m.broker, n, func(i int) (string, []byte) { return "t/" + strconv.Itoa(i), payload(i) })
	awaitState(t, st, sources.Degraded, "the pipeline takes less")
	held := heap() - before
	// 32 MiB of the buffer, one batch, and what is being read.
	if held > 48<<20 {
		t.Errorf("%d MiB are held while the pipeline is blocked, want at most 48", held>>20)
	}
	close(release)
	eventually(t, "all payloads", func() bool { mu.Lock(); defer mu.Unlock(); return len(sums) == n })
	for i := range n {
		if sums["t/"+strconv.Itoa(i)] != sha256.Sum256(payload(i)) {
			t.Errorf("payload %d arrived changed", i)
		}
	}
	t.Logf("%d payloads of 1 MiB, %.1f MiB held while blocked, %v redelivered", n, float64(held)/(1<<20), st.Snapshot().Counters[metricRedelivered])
}
