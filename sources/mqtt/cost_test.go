//go:build conformance

package mqtt

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/edgehost/edgehost/sources"
)

// BenchmarkCost compares the processor time that a message costs this process,
// read by the library alone (automatic acknowledgement) and by a source.
func BenchmarkCost(b *testing.B) {
	for qos := range 2 {
		b.Run(fmt.Sprintf("qos%d/library", qos), func(b *testing.B) { benchmark(b, qos, libraryAlone) })
		b.Run(fmt.Sprintf("qos%d/source", qos), func(b *testing.B) { benchmark(b, qos, sourceAlone) })
	}
}

func benchmark(b *testing.B, qos int, start func(b *testing.B, url string, qos int, n *atomic.Int64) (stop func())) {
	var n atomic.Int64
	m := startMosquitto(b, "allow_anonymous true", "max_queued_messages 0").start()
	stop := start(b, m.url(), qos, &n)
	defer stop()
	cmd := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", strconv.Itoa(m.port), "-t", "c", "-q", strconv.Itoa(qos), "-l")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	before := cpu(b)
	const payload = `{"value": 21.5, "ts": 1767225600123, "unit": "C"}` + "\n"
	for range b.N {
		if _, err := io.WriteString(in, payload); err != nil {
			b.Fatal(err)
		}
	}
	in.Close()
	cmd.Wait()
	deadline := time.After(20 * time.Second)
	for n.Load() < int64(b.N) {
		select {
		case <-deadline:
			b.Fatalf("%d of %d arrived", n.Load(), b.N)
		case <-time.After(time.Millisecond):
		}
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/msg")
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func libraryAlone(b *testing.B, url string, qos int, n *atomic.Int64) func() {
	opts := paho.NewClientOptions().AddBroker(url).SetClientID("library").SetOrderMatters(true)
	client := paho.NewClient(opts)
	if token := client.Connect(); token.Wait() && token.Error() != nil {
		b.Fatal(token.Error())
	}
	if token := client.Subscribe("c", byte(qos), func(paho.Client, paho.Message) { n.Add(1) }); token.Wait() && token.Error() != nil {
		b.Fatal(token.Error())
	}
	return func() { client.Disconnect(250) }
}

func sourceAlone(b *testing.B, url string, qos int, n *atomic.Int64) func() {
	status := sources.NewStatus("m", "mqtt")
	s, err := New("m", url, nil, oneTopic("c", qos), Deps{Status: status, Logger: slog.New(slog.DiscardHandler), HostID: "h"})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Run(ctx, func(_ context.Context, batch sources.Batch, done func(error)) error {
			n.Add(int64(len(batch.Records)))
			done(nil)
			return nil
		})
	}()
	for status.Snapshot().State != sources.Connected {
		<-time.After(time.Millisecond)
	}
	return func() { cancel(); <-ended }
}
