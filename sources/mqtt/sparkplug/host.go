package sparkplug

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// Bounds of all that a host remembers.
const (
	maxNodes      = 10_000
	maxKnown      = 1_000_000 // metrics of all edge nodes
	askEvery      = 10 * time.Second
	askEveryAtMax = 10 * time.Minute
)

// Quality says how far a sample can be believed.
type Quality uint8

// The qualities.
const (
	Good      Quality = iota
	Uncertain         // the name comes from a birth that may be out of date
	Bad               // there is no value, or none that can be read
)

// Sample is one metric at one time.
type Sample struct {
	Group, Node, Device string // Device is "" for metrics of the edge node itself
	Metric              string
	Type                DataType
	Value               abi.Value
	Time                int64 // microseconds since the Unix epoch; 0: the payload does not say
	Unit                string
	Quality             Quality
	Reason              string // why Quality is not Good
	Historical          bool   // published late, after the edge node was cut off
	Stale               bool   // the edge node or device died
	Null                bool   // the publisher says that there is no value
}

// Address is group/node/metric, or group/node/device/metric.
func (s Sample) Address() string {
	if s.Device == "" {
		return s.Group + "/" + s.Node + "/" + s.Metric
	}
	return s.Group + "/" + s.Node + "/" + s.Device + "/" + s.Metric
}

// Reading is what a message means.
type Reading struct {
	Samples []Sample
	// Unnamed counts metrics whose alias no birth has explained. They are in
	// the payload only.
	Unnamed int
	// Ask, when not "", is the topic on which the edge node is to be asked for a
	// rebirth: it is due, and not asked for too often.
	Ask string
}

// Host keeps the tables of all edge nodes that it hears. It belongs to one
// goroutine.
type Host struct {
	nodes map[string]*node
	known int // metrics in all tables
	files store
	dirty map[string]*node
	log   *slog.Logger
	now   func() time.Time
}

// node is the table of one edge node.
type node struct {
	group, name string
	devices     map[string]*device // "" is the edge node itself
	born        bool               // since its last death
	bdSeq       uint64             // number of its session
	hasBdSeq    bool
	seq         uint64
	hasSeq      bool
	doubt       string // why the table may be out of date; "" when it is not
	asked       time.Time
	wait        time.Duration // from asked until it may be asked again
}

// device is the part of a table that one birth fills.
type device struct {
	Alive   bool                `json:"-"`
	Types   map[string]DataType `json:"types"` // by the name of the metric
	Aliases map[uint64]string   `json:"aliases"`
}

// NewHost makes a host that keeps its tables in dir, "" for in memory only. A
// table that cannot be read is logged and left out: its edge node will be
// asked to be born again.
func NewHost(dir string, log *slog.Logger, now func() time.Time) *Host {
	h := &Host{nodes: map[string]*node{}, dirty: map[string]*node{}, files: store(dir), log: log, now: now}
	for _, n := range h.files.load(log) {
		if h.room(n.size()) && len(h.nodes) < maxNodes {
			h.known += n.size()
			h.nodes[n.key()] = n
		}
	}
	h.Away("the connection began after the birth")
	return h
}

// Away says that messages may have been missed, for a reason: every table is
// doubtful until the next birth.
func (h *Host) Away(reason string) {
	for _, n := range h.nodes {
		n.doubt, n.hasSeq = reason, false
	}
}

// Read reads a message of a topic that begins with spBv1.0/. again says that
// it may be one that was read before. Commands and states of hosts mean
// nothing to us: their Reading is empty. An error says why the payload cannot
// be read.
func (h *Host) Read(topic string, payload []byte, again bool) (Reading, error) {
	t, ok := parseTopic(topic)
	if !ok {
		return Reading{}, nil
	}
	p, err := Decode(payload)
	if err != nil {
		return Reading{}, err
	}
	n, err := h.node(t)
	if err != nil {
		return Reading{}, err
	}
	if t.kind != "NBIRTH" && t.kind != "NDEATH" {
		n.count(p, again)
	}
	var r Reading
	switch t.kind {
	case "NBIRTH", "DBIRTH":
		r, err = h.birth(n, t, p)
	case "NDEATH":
		r = h.nodeDeath(n, p)
	case "DDEATH":
		r = h.deviceDeath(n, t, p)
	default:
		r = n.data(t, p)
	}
	if t.kind != "NDEATH" && (n.doubt != "" || r.Unnamed > 0) && n.due(h.now()) {
		r.Ask = "spBv1.0/" + n.group + "/NCMD/" + n.name
	}
	return r, err
}

type topic struct{ group, kind, node, device string }

// parseTopic takes "spBv1.0/group/type/node[/device]" apart; false for what is
// neither birth, data nor death.
func parseTopic(s string) (topic, bool) {
	levels := strings.Split(s, "/")
	if len(levels) < 4 || len(levels) > 5 || levels[0] != "spBv1.0" {
		return topic{}, false
	}
	t := topic{group: levels[1], kind: levels[2], node: levels[3]}
	kinds := []string{"NBIRTH", "NDATA", "NDEATH"}
	if len(levels) == 5 {
		t.device, kinds = levels[4], []string{"DBIRTH", "DDATA", "DDEATH"}
		if t.device == "" {
			return topic{}, false
		}
	}
	return t, slices.Contains(kinds, t.kind)
}

func (n *node) key() string { return n.group + "/" + n.name }

// size is the number of metrics of the table.
func (n *node) size() int {
	size := 0
	for _, d := range n.devices {
		size += len(d.Types)
	}
	return size
}

func (h *Host) room(metrics int) bool { return h.known+metrics <= maxKnown }

func (h *Host) node(t topic) (*node, error) {
	key := t.group + "/" + t.node
	if n := h.nodes[key]; n != nil {
		return n, nil
	}
	if len(h.nodes) == maxNodes {
		return nil, fmt.Errorf("more than %d edge nodes publish here", maxNodes)
	}
	n := &node{group: t.group, name: t.node, devices: map[string]*device{}, doubt: "no birth of the edge node was seen"}
	h.nodes[key] = n
	return n, nil
}

// count follows the sequence numbers, which go from 0 to 255 and around.
func (n *node) count(p Payload, again bool) {
	if !p.HasSeq || again {
		return
	}
	if want := (n.seq + 1) % 256; n.hasSeq && p.Seq != want && n.doubt == "" {
		n.doubt = fmt.Sprintf("messages of the edge node are missing: sequence number %d came where %d was due", p.Seq, want)
	}
	n.seq, n.hasSeq = p.Seq, true
}

// due reports whether the edge node may be asked for a rebirth now, and takes
// it that it is. Without an answer it is asked ever more seldom.
func (n *node) due(now time.Time) bool {
	if now.Sub(n.asked) < n.wait {
		return false
	}
	n.asked = now
	n.wait = min(max(2*n.wait, askEvery), askEveryAtMax)
	return true
}

var errTooMany = errors.New("the edge nodes of this source have more metrics than are kept: the birth is read, its aliases are not kept")

// birth replaces the part of the table that t names.
func (h *Host) birth(n *node, t topic, p Payload) (Reading, error) {
	if t.kind == "NBIRTH" {
		h.known -= n.size()
		n.devices = map[string]*device{}
		n.born, n.doubt, n.wait = true, "", min(n.wait, askEvery)
		n.bdSeq, n.hasBdSeq = bdSeq(p)
		n.seq, n.hasSeq = p.Seq, p.HasSeq
	}
	if old := n.devices[t.device]; old != nil {
		h.known -= len(old.Types)
	}
	d := &device{Alive: true, Types: map[string]DataType{}, Aliases: map[uint64]string{}}
	n.devices[t.device] = d
	h.dirty[n.key()] = n
	if !h.room(len(p.Metrics)) {
		return n.data(t, p), errTooMany
	}
	for _, m := range p.Metrics {
		if m.Name == "" {
			continue
		}
		d.Types[m.Name] = m.Type
		if m.HasAlias {
			d.Aliases[m.Alias] = m.Name
		}
	}
	h.known += len(d.Types)
	return n.data(t, p), nil
}

// bdSeq is the number of the session that a birth begins or a death ends.
func bdSeq(p Payload) (uint64, bool) {
	for _, m := range p.Metrics {
		if m.Name == "bdSeq" && !m.Null && (m.value.kind == rawInt || m.value.kind == rawLong) {
			return m.value.bits, true
		}
	}
	return 0, false
}

// data makes samples of the metrics of p.
func (n *node) data(t topic, p Payload) Reading {
	d := n.devices[t.device]
	switch {
	case n.doubt != "":
	case !n.born:
		n.doubt = "the edge node sends although it died"
	case d == nil:
		n.doubt = "no birth of the device was seen"
	case !d.Alive:
		n.doubt = "the device sends although it died"
	}
	if d == nil {
		d = &device{}
	}
	var r Reading
	for _, m := range p.Metrics {
		s := Sample{Group: n.group, Node: n.name, Device: t.device, Metric: m.Name, Type: m.Type, Unit: m.Unit, Historical: m.Historical}
		named := m.Name != ""
		if !named && m.HasAlias {
			s.Metric = d.Aliases[m.Alias]
		}
		known, ok := d.Types[s.Metric]
		if s.Type == Unknown {
			s.Type = known
		}
		if s.Metric == "" || s.Type == Unknown || (!named && ok && known != s.Type) {
			r.Unnamed++
			continue
		}
		s.Time = micros(m.Timestamp, p.Timestamp)
		s.read(m)
		if s.Quality == Good && n.doubt != "" && (!named || m.Type == Unknown) {
			s.Quality, s.Reason = Uncertain, "the metric's name or type comes from a birth that may be out of date: "+n.doubt
		}
		r.Samples = append(r.Samples, s)
	}
	if r.Unnamed > 0 && n.doubt == "" {
		n.doubt = "the edge node uses aliases that its birth does not have"
	}
	return r
}

// read puts the value of m into s.
func (s *Sample) read(m Metric) {
	v, err := m.Value(s.Type)
	switch {
	case err != nil:
		s.Quality, s.Reason = Bad, err.Error()
	case m.Null:
		s.Null = true
		s.Quality, s.Reason = Bad, "the edge node says that the metric has no value (is_null)"
	default:
		s.Value = v
	}
}

// micros is the first of two timestamps in milliseconds that is set. What no
// clock shows (beyond the year 9999) is not set.
func micros(ms ...uint64) int64 {
	const year10000 = 253_402_300_800_000
	for _, t := range ms {
		if t > 0 && t < year10000 {
			return int64(t) * 1000
		}
	}
	return 0
}

// nodeDeath ends the session of an edge node. The broker may deliver the death
// of an earlier session late: it is not of this one.
func (h *Host) nodeDeath(n *node, p Payload) Reading {
	if session, ok := bdSeq(p); ok && n.hasBdSeq && n.born && session != n.bdSeq {
		return Reading{}
	}
	var r Reading
	for _, name := range slices.Sorted(maps.Keys(n.devices)) {
		r.Samples = append(r.Samples, n.dead(name, "the edge node died (NDEATH)")...)
	}
	n.born = false
	n.hasSeq = false
	return r
}

func (h *Host) deviceDeath(n *node, t topic, p Payload) Reading {
	r := Reading{Samples: n.dead(t.device, "the device died (DDEATH)")}
	for i := range r.Samples {
		r.Samples[i].Time = micros(p.Timestamp)
	}
	return r
}

// dead makes a Bad sample for every metric of a device that lived.
func (n *node) dead(name, reason string) []Sample {
	d := n.devices[name]
	if d == nil || !d.Alive {
		return nil
	}
	d.Alive = false
	var out []Sample
	for _, metric := range slices.Sorted(maps.Keys(d.Types)) {
		out = append(out, Sample{Group: n.group, Node: n.name, Device: name, Metric: metric, Type: d.Types[metric],
			Quality: Bad, Reason: reason, Stale: true})
	}
	return out
}
