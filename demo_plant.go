package main

import (
	"fmt"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
)

// plant is the MQTT part of the demo's simulated plant: a broker on a free port
// of 127.0.0.1, and three lines whose sensors publish to it.
type plant struct {
	addr   string
	server *broker.Server
	rate   int
	count  atomic.Uint64
	stop   chan struct{}
	wg     sync.WaitGroup
	once   sync.Once
}

// sensors are what each line of the plant has.
var sensors = []struct {
	name, unit string
	mean, span float64
}{
	{"temperature", "C", 62, 8}, {"pressure", "bar", 5.5, 0.7}, {"vibration", "mm/s", 2.1, 1.4},
	{"speed", "rpm", 1480, 30}, {"current", "A", 14, 3}, {"heartbeat", "", 1, 0},
}

func startPlant(rate int) (*plant, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the demo's broker: %w", err)
	}
	p := &plant{addr: l.Addr().String(), rate: rate, stop: make(chan struct{})}
	p.server = broker.New(&broker.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := p.server.AddHook(new(auth.AllowHook), nil); err != nil {
		return nil, fmt.Errorf("configure the demo's broker: %w", err)
	}
	if err := p.server.AddListener(listeners.NewNet("demo", l)); err != nil {
		return nil, fmt.Errorf("configure the demo's broker: %w", err)
	}
	if err := p.server.Serve(); err != nil {
		return nil, fmt.Errorf("start the demo's broker: %w", err)
	}
	return p, nil
}

// run publishes at the plant's rate until halt.
func (p *plant) run() {
	p.wg.Go(func() {
		const slice = 10 * time.Millisecond
		tick := time.NewTicker(slice)
		defer tick.Stop()
		start, n := time.Now(), 0
		for {
			select {
			case <-p.stop:
				return
			case now := <-tick.C:
				for due := int(now.Sub(start).Seconds() * float64(p.rate)); n < due; n++ {
					p.publish(n, now)
				}
			}
		}
	})
}

func (p *plant) publish(n int, now time.Time) {
	s := sensors[n%len(sensors)]
	line := n/len(sensors)%3 + 1
	v := s.mean + s.span*math.Sin(float64(n)/150+float64(line))
	if n%5003 == 5002 {
		v = 1e9 // a broken sensor, for the dead-letter queue
	}
	payload := fmt.Appendf(nil, `{"value": %.3f, "unit": %q, "ts": %d}`, v, s.unit, now.UnixMilli())
	topic := fmt.Sprintf("plant/line%d/%s", line, s.name)
	// Publishing to the broker in this process fails only when it is closed.
	if p.server.Publish(topic, payload, false, 1) == nil {
		p.count.Add(1)
	}
}

// sent is how many messages the broker took.
func (p *plant) sent() uint64 { return p.count.Load() }

// halt ends publishing.
func (p *plant) halt() {
	p.once.Do(func() { close(p.stop) })
	p.wg.Wait()
}

func (p *plant) close() error {
	p.halt()
	return p.server.Close()
}

// replaceWords replaces words of a template.
func replaceWords(text string, words map[string]string) string {
	for word, with := range words {
		text = strings.ReplaceAll(text, word, with)
	}
	return text
}
