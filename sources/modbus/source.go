// Package modbus is the Modbus source: it polls the four tables of devices over
// TCP, TLS (Modbus/TCP Security), UDP, serial lines (RTU) and RTU over TCP, and
// makes a record of each value.
//
//	Config ──Expand──> points ──Plan──> requests, by unit, table and interval
//
//	Source.Run ──join──> bus: one connection, one goroutine, many units and sources
//	    ^                 │  earliest deadline ──> poll: retry, breaker, split
//	    └──── result ─────┘
//	    └──> decode, scale, report changes ──emit──> pipeline
//
// A connection is closed and opened again after every failure but an exception.
// On RTU framing, where a late reply looks like the next one, the line is left
// alone for one time-out in between. Nothing here can write to a device: over
// Modbus TCP one type holds a request and can hold a read only, else the
// library's read functions alone are called, and a test holds the package to both.
package modbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync/atomic"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// Deps is what the host gives a source. No field may be nil.
type Deps struct {
	Log    *slog.Logger
	Status *sources.Status
	Buses  *Buses // shared by all modbus sources of the process
}

// Source polls one endpoint. It implements sources.Peered.
type Source struct {
	name     string
	tags     map[string]string
	settings settings
	config   Config
	points   []Point
	groups   []group
	memories []*memory // of groups; they outlive connections
	deps     Deps

	// Run's own, kept from one Run to the next.
	states  []pointState
	attrs   [][]abi.Attr // by point: what never changes
	forget  atomic.Bool  // a batch was not stored: report everything anew
	epoch   int          // grows when a reply like the last one can make records again
	spare   []abi.Attr   // room for the attributes of the next records
	expect  int          // records of the next batch, going by the last ones
	bytes   int          // of replies that are not counted yet
	results []result     // room for the next results
	ingest  int64        // IngestTime of the records that are being made
	dirty   bool         // a point became known, good or bad since the last report
}

// New makes the source called name in the configuration. endpoint is
// modbus+tcp://host:502 (modbus:// is short for it), modbus+tls://host:802,
// modbus+udp://host:502, modbus+rtutcp://host:502 (or modbus+rtuovertcp) or
// modbus+rtu:///dev/ttyUSB0. tags go into every record. The error joins
// everything that is wrong; paths are relative to the modbus block, but for
// "endpoint" and "tags", which stand beside it.
func New(name, endpoint string, tags map[string]string, cfg Config, deps Deps) (*Source, error) {
	errs := ValidateEndpoint(endpoint, cfg)
	errs = append(errs, sources.Prefix("tags", sources.ValidateTags(tags))...)
	errs = append(errs, cfg.Validate()...)
	if err := invalid(errs); err != nil {
		return nil, err
	}
	points, err := Expand(cfg)
	if err != nil {
		return nil, err
	}
	transport, address, err := parseEndpoint(endpoint)
	if err != nil {
		return nil, err
	}
	c := cfg.withDefaults()
	s := &Source{name: name, tags: maps.Clone(tags), config: c, points: points, groups: groups(points), deps: deps,
		states: make([]pointState, len(points)),
		settings: settings{transport: transport, address: address,
			timeout: millis(c.TimeoutMS), pauseBetween: millis(c.PauseBetweenRequestsMS), pauseConnect: millis(c.PauseAfterConnectMS)}}
	if transport == "rtu" {
		s.settings.serial = c.Serial
	}
	if transport == "tcp+tls" {
		s.settings.tls = c.TLS
	}
	for range s.groups {
		s.memories = append(s.memories, newMemory())
	}
	for _, g := range s.groups {
		for _, metric := range UnitMetrics {
			deps.Status.Declare([]string{ofUnit(metric, g.slave)}, nil)
		}
	}
	for i := range points {
		s.attrs = append(s.attrs, fixedAttrs(&points[i], tags))
	}
	return s, nil
}

// Peers implements sources.Peered: none for serial lines and UDP.
func (s *Source) Peers() []string {
	switch s.settings.transport {
	case "rtu", "udp":
		return nil
	}
	return []string{s.settings.address}
}

// Reach implements sources.Reacher.
func (s *Source) Reach(ctx context.Context, peer string) error {
	return s.deps.Buses.reach(ctx, s.connection().key(), peer)
}

func millis(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// ValidateEndpoint returns what is wrong with endpoint, and with the keys of
// cfg that do not go with its scheme. The path of the former is "endpoint".
func ValidateEndpoint(endpoint string, cfg Config) []sources.FieldError {
	transport, _, err := parseEndpoint(endpoint)
	if err != nil {
		return []sources.FieldError{{Path: "endpoint", Msg: err.Error()}}
	}
	var errs fieldErrors
	if transport != "rtu" && cfg.Serial != (SerialConfig{}) {
		errs.add("serial", "is for modbus+rtu endpoints only")
	}
	if transport != "tcp+tls" && cfg.TLS != (sources.TLSConfig{}) {
		errs.add("tls", "is for modbus+tls endpoints only; write modbus+tls:// to secure the connection")
	}
	if transport == "tcp+tls" && cfg.TLS.InsecureSkipVerify {
		errs.add("tls.insecure_skip_verify", "is not supported for modbus+tls: put the device's own certificate into tls.ca_cert_path to trust it alone")
	}
	if transport == "rtu" || transport == "rtuovertcp" {
		points, err := Expand(cfg)
		if err == nil {
			for i := range points {
				if points[i].Slave == 0 {
					errs.add("slave_id", "0 is the broadcast address of a serial line, to which no device replies; use 1 to 247")
					break
				}
			}
		}
	}
	return errs
}

// Conflict says why s and o cannot run side by side: they share a connection and
// do not agree on its settings. It is nil when they can. A source that conflicts
// with one that runs already shows as failed.
func (s *Source) Conflict(o *Source) error {
	mine, theirs := s.connection(), o.connection()
	if mine.key() != theirs.key() {
		return nil
	}
	return conflict(theirs, mine, o.name)
}

// connection is the settings with the device that a link leads to.
func (s *Source) connection() settings {
	c := s.settings
	if c.transport == "rtu" {
		c.address = device(c.address)
	}
	return c
}

// Run implements sources.Source.
func (s *Source) Run(ctx context.Context, emit sources.Emit) error {
	m := s.member()
	for i := range s.states {
		s.states[i].known = false
	}
	if err := s.deps.Buses.join(s.connection(), m); err != nil {
		return sources.ConfigError(err)
	}
	defer m.box.late.Stop()
	defer s.deps.Buses.leave(m)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.box.ready:
		case <-m.box.late.C:
			m.box.expire()
		case down := <-m.down:
			if err := s.lost(ctx, emit, m, down); err != nil {
				return err
			}
			return down
		}
		if err := s.deliver(ctx, emit, m); err != nil {
			return err
		}
	}
}

func (s *Source) member() *member {
	c := s.config
	m := &member{source: s.name, status: s.deps.Status, points: s.points, limits: c.limits(), retries: *c.Retries,
		breaker: c.UnitBreaker, box: newBox(), down: make(chan error, 1)}
	for i, g := range s.groups {
		m.groups = append(m.groups, &pollGroup{group: g, memory: s.memories[i], tally: m.unit(g.slave), planned: -1})
	}
	return m
}

// deliver makes records of what lies in the box and emits them, in batches that
// are whole polls of a group. Each group can be polled again as soon as its poll
// is emitted.
func (s *Source) deliver(ctx context.Context, emit sources.Emit, m *member) error {
	list := m.box.take(s.results)
	s.results = list
	var recs []abi.Record
	from := 0
	for i := range list {
		if i == from {
			s.relearn()
			s.ingest = sources.Micros(time.Now())
			recs = make([]abi.Record, 0, s.expect)
		}
		recs = s.records(recs, list[i])
		if len(recs) < sources.BatchRecords && i+1 < len(list) {
			continue
		}
		s.expect = max(len(recs), s.expect-s.expect/8)
		s.count(recs)
		s.report()
		if err := s.send(ctx, emit, recs); err != nil {
			return err
		}
		for _, done := range list[from : i+1] {
			done.group.queued.Add(-1)
		}
		from = i + 1
	}
	clear(list)
	return nil
}

// count counts recs and the bytes that carried them.
func (s *Source) count(recs []abi.Record) {
	if len(recs) > 0 || s.bytes > 0 {
		s.deps.Status.Read(len(recs), s.bytes)
	}
	s.bytes = 0
}

// lost delivers what was read before the connection went down, and then one bad
// record for each point that was not bad.
func (s *Source) lost(ctx context.Context, emit sources.Emit, m *member, down error) error {
	var recs []abi.Record
	now := time.Now()
	s.ingest = sources.Micros(now)
	s.relearn()
	for _, r := range m.box.take(nil) {
		recs = s.records(recs, r)
	}
	s.count(recs)
	for i := range s.points {
		recs = s.fail(recs, i, now, quality{statusNotConnected, "BadNotConnected", down.Error()})
	}
	return s.send(ctx, emit, recs)
}

// reasonNotStored is for records that the pipeline gave back: their points are
// read again.
const reasonNotStored = "not_stored"

// Reasons are those under which a source counts failures.
var Reasons = []string{reasonNotStored}

// send emits recs in batches. When a batch cannot be emitted, or is not stored
// later, every point is reported anew by the next poll: what it holds then is
// worth more than what it held.
func (s *Source) send(ctx context.Context, emit sources.Emit, recs []abi.Record) error {
	for len(recs) > 0 {
		n := min(len(recs), sources.BatchRecords)
		batch := sources.Batch{Time: sources.Micros(time.Now()), Records: recs[:n:n]}
		err := emit(ctx, batch, func(err error) {
			if err != nil && !errors.Is(err, sources.ErrDropped) {
				s.deps.Status.Fail(reasonNotStored, n)
				s.forget.Store(true)
			}
		})
		if err != nil {
			s.forget.Store(true)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("emit batch: %w", err)
		}
		recs = recs[n:]
	}
	return nil
}
