// Package mqtt reads topics of an MQTT broker.
//
// Reading must never wait for the pipeline (the broker would time us out), so
// the guard in front of the MQTT library only puts messages into a bounded
// buffer; one goroutine, the pump, makes records of them and emits. The broker
// gets its acknowledgement when the pipeline has made the record durable, in
// order of arrival, and keeps a session for us under a stable client id: what was
// not acknowledged comes again after any outage, ours included. When the buffer
// is full a persistent session disconnects and comes back when half of it has
// drained; without one what does not fit is dropped and counted.
//
//	broker ──PUBLISH──> guard ──> buffer ──> pump ──emit──> pipeline
//	   ^                            │                          │
//	   └───────PUBACK, PUBREC───────┘<──────── done ───────────┘
package mqtt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/mqtt/sparkplug"
)

// Metrics of this protocol, and the reasons under which it counts failures.
const (
	metricMessages     = "mqtt_messages_total"
	metricRedelivered  = "mqtt_redelivered_total" // messages that the broker sent again
	metricUnacked      = "mqtt_unacked"
	metricDropped      = "mqtt_dropped_total"
	metricDecodeErrors = "mqtt_decode_errors_total"
	metricRebirths     = "mqtt_sparkplug_rebirths_total" // rebirths that were asked for
	metricSessionsLost = "mqtt_sessions_lost_total"      // persistent sessions that a broker did not keep

	reasonBufferFull = "buffer_full"
	reasonTooLarge   = "too_large"
	reasonDecode     = "decode_error"
	reasonShutdown   = "shutdown"
)

// Metrics and Reasons are what a source counts from 0 on.
var (
	Metrics = []string{metricMessages, metricRedelivered, metricUnacked, metricDropped, metricDecodeErrors, metricRebirths, metricSessionsLost}
	Reasons = []string{reasonBufferFull, reasonTooLarge, reasonDecode, reasonShutdown}
)

// settleTime is how long an ending source waits for the pipeline to settle
// what it has, so that a clean restart does not make the broker send it again.
const settleTime = time.Second

// maxCommands is how many commands wait for a connection at most.
const maxCommands = 100

// goodbyeTime is how long a broker that does not read may hold up the end of a
// connection.
const goodbyeTime = time.Second

// takeOverTime is longer than two clients of one client id leave each other in
// peace: the longest pause of the back-off, and its jitter.
const takeOverTime = 400 * time.Second

// Deps is what a source needs from its host.
type Deps struct {
	Status *sources.Status
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now
	// HostID makes the client id: the same for ever on one host, different on
	// every other. Not needed when the configuration names a client id.
	HostID string
	// StateDir, when not "", keeps the names of the subscriptions of a persistent
	// session, so that those that leave the configuration leave the broker too,
	// and what Sparkplug births have told.
	StateDir string
}

// Source reads one broker. It implements sources.Source.
type Source struct {
	name      string
	cfg       Config
	endpoints []endpoint
	clientID  string
	subs      []subscription
	filters   filterFile
	mapper    *mapper
	buf       *buffer
	status    *sources.Status
	log       *slog.Logger
	now       func() time.Time
	commands  chan string // topics of Sparkplug commands to be published
	// hadSession says that a broker has kept a session for us since we were made.
	hadSession bool
	flaps      int // connections in a row that were taken at once and lost soon
	// silent is 1 for endpoints that did not answer when they were tried last, by
	// URL: the others need not wait for their time-out again.
	silent map[string]int
}

var _ sources.Peered = (*Source)(nil)

// New makes the source called name of endpoint. It validates cfg and reads no
// files; what works but is probably not meant goes to the log.
func New(name, endpoint string, tags map[string]string, cfg Config, deps Deps) (*Source, error) {
	if err := cfg.check(endpoint, tags); err != nil {
		return nil, fmt.Errorf("configure source %s: %w", name, err)
	}
	for _, w := range cfg.Warnings(endpoint) {
		deps.Logger.Warn("configuration of source", "source", name, "key", w.Path, "warning", w.Msg)
	}
	cfg = cfg.withDefaults()
	s := &Source{name: name, cfg: cfg, status: deps.Status, log: deps.Logger, now: deps.Now,
		subs: subscriptions(cfg.Topics), clientID: cfg.ClientID,
		commands: make(chan string, maxCommands), silent: map[string]int{},
		buf: newBuffer(cfg.BufferMaxMessages, max(bufferBytes, 2*cfg.MaxPayloadBytes))}
	if s.now == nil {
		s.now = time.Now
	}
	if s.clientID == "" {
		if deps.HostID == "" {
			return nil, fmt.Errorf("configure source %s: no host id to derive the client id from: set mqtt.client_id", name)
		}
		s.clientID = clientID(deps.HostID, name)
	}
	s.filters = newFilterFile(deps.StateDir, s.clientID)
	var err error
	if s.mapper, err = newMapper(tags, s, tablesDir(deps.StateDir, s.clientID)); err != nil {
		return nil, fmt.Errorf("configure source %s: %w", name, err)
	}
	for _, raw := range append([]string{endpoint}, cfg.Endpoints...) {
		e, err := parseEndpoint(raw, cfg.TLS)
		if err != nil {
			return nil, fmt.Errorf("configure source %s: endpoint %w", name, err)
		}
		s.endpoints = append(s.endpoints, e)
	}
	return s, nil
}

// Peers implements sources.Peered.
func (s *Source) Peers() []string {
	var out []string
	for _, e := range s.endpoints {
		out = append(out, e.host)
	}
	return out
}

// clientID is 23 characters of those that every MQTT 3.1.1 broker must take
// (section 3.1.3.1).
func clientID(hostID, name string) string {
	sum := sha256.Sum256([]byte(hostID + "\x00" + name))
	return "edgehost" + hex.EncodeToString(sum[:])[:15]
}

// errBufferFull ends a connection, not the source.
var errBufferFull = errors.New("buffer is full")

// Run connects, subscribes and emits until ctx or the connection ends.
func (s *Source) Run(ctx context.Context, emit sources.Emit) error {
	p := s.startPump(ctx, emit)
	err := s.connections(ctx, p)
	p.stop(ctx)
	if ctx.Err() != nil {
		s.countLeft()
		return ctx.Err()
	}
	return err
}

// connections makes one connection, and another each time that a full buffer
// was the reason to end it.
func (s *Source) connections(ctx context.Context, p *pump) error {
	for {
		c, err := s.connect(ctx)
		if err != nil {
			return err
		}
		if !c.resumed {
			s.buf.newSession()
		}
		if err = s.serve(ctx, c, p); !errors.Is(err, errBufferFull) {
			return err
		}
		s.status.Report(s.log, sources.Degraded,
			"the pipeline takes less than the broker sends: disconnected until half of the buffer has drained; the broker keeps what is published")
		if err := s.awaitHalf(ctx, p); err != nil {
			return err
		}
	}
}

// countLeft counts what ends with us: messages of QoS 0 that the pipeline did
// not take. The broker has the others.
func (s *Source) countLeft() {
	if n := s.buf.waitingQoS0(); n > 0 {
		s.status.Fail(reasonShutdown, n)
	}
}

// receive gets the messages of the connection with this number, on the
// goroutine that reads it: it must not wait.
func (s *Source) receive(number uint64, m *message) {
	m.conn, m.arrived = number, sources.Micros(s.now())
	if m.dup {
		s.status.Add(metricRedelivered, 1)
	}
	if s.buf.push(m) == dropped {
		s.status.Fail(reasonBufferFull, 1)
		s.status.Add(metricDropped, 1)
	}
}

// serve subscribes and watches over a connection until it, the pump or ctx
// ends, or the buffer is full.
func (s *Source) serve(ctx context.Context, c *connection, p *pump) error {
	stopAcks, acksStopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(acksStopped)
		s.write(c, stopAcks)
	}()
	err := s.watch(ctx, c, p)
	if ctx.Err() != nil {
		s.awaitSettled(p)
	}
	close(stopAcks)
	<-acksStopped
	c.close()
	return err
}

// write acknowledges to the broker what settles, until stop closes: what one
// commit of the pipeline settles leaves in one write. What is not acknowledged
// when the connection ends is when the broker sends it again.
func (s *Source) write(c *connection, stop <-chan struct{}) {
	for stopped := false; !stopped; {
		select {
		case <-stop:
			stopped = true
		case <-s.buf.ackReady:
		case <-c.guard.queued:
		case topic := <-s.commands:
			c.guard.enqueue(publishPacket(c.guard.v5, topic, sparkplug.Rebirth(uint64(s.now().UnixMilli()))))
		}
		if !c.client.open() {
			continue
		}
		if err := c.guard.send(s.buf.takeAcks(), s.cfg.connectTimeout()); err != nil {
			c.lose(fmt.Errorf("acknowledge: %w", err))
			_ = c.guard.Close()
		}
	}
}

func (s *Source) watch(ctx context.Context, c *connection, p *pump) error {
	complaint, err := s.subscribe(ctx, c)
	if err != nil {
		return err
	}
	s.report(complaint, c)
	check := time.NewTicker(time.Second)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-c.lost:
			return s.lostError(c, err)
		case <-s.buf.overflow:
			return errBufferFull
		case <-p.ended:
			return p.err
		case <-check.C:
			s.report(complaint, c)
		}
	}
}

// awaitSettled waits until the pipeline has nothing of ours.
func (s *Source) awaitSettled(p *pump) {
	deadline := time.After(settleTime)
	<-p.ended
	for s.buf.inPipeline() > 0 {
		select {
		case <-s.buf.freed:
		case <-deadline:
			return
		}
	}
}

// awaitHalf waits until the pump has drained half of the buffer.
func (s *Source) awaitHalf(ctx context.Context, p *pump) error {
	for !s.buf.half() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.ended:
			return p.err
		case <-s.buf.freed:
		}
	}
	return nil
}

// lostError words the loss of a connection that stood. A broker that takes us at
// once each time, and soon closes again, has most likely given our session to
// another client with our client id, who gets it back in turn.
func (s *Source) lostError(c *connection, err error) error {
	if closedByPeer(err) && time.Since(c.since) < takeOverTime {
		s.flaps++
	} else {
		s.flaps = 0
	}
	if s.flaps >= 3 {
		return fmt.Errorf("broker %s takes the connection and soon closes it, again and again: another client probably uses client id %q "+
			"(two hosts with one configuration?): give each its own mqtt.client_id (%w)", c.to.url, s.clientID, err)
	}
	return fmt.Errorf("lost the connection to %s: %w", c.to.url, err)
}
