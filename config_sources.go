package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/modbus"
	"github.com/edgehost/edgehost/sources/opcua"
)

// staleOverride replaces stale_after_seconds for some points of a source.
type staleOverride struct {
	Address      string  `yaml:"address"` // a glob over addresses: * is any text
	AfterSeconds float64 `yaml:"after_seconds"`
}

// The clocks that sources[].timestamp names.
const (
	timestampSource = "source" // the device's, or the time at which it answered
	timestampServer = "server" // of an OPC UA server
	timestampIngest = "ingest" // ours
)

// secondsOf is a number of seconds of the configuration as a duration.
func secondsOf(s float64) time.Duration {
	return time.Duration(math.Round(s * float64(time.Second)))
}

// watch is what all protocols share in the handling of records.
func (c *config) watch(s *sourceConfig) sources.WatchConfig {
	w := sources.WatchConfig{StaleAfter: secondsOf(s.StaleAfterSeconds), MaxSkew: secondsOf(s.MaxClockSkewSeconds),
		Ingest: s.OPCUA == nil && s.Timestamp == timestampIngest}
	for _, o := range s.StaleOverrides {
		w.Rules = append(w.Rules, sources.StaleRule{Address: o.Address, After: secondsOf(o.AfterSeconds)})
	}
	return w
}

// points tells the points of a source and what their records say of them, by a
// digest: it stays the same while nothing changes that decides either, such as a
// password.
func (c *sourceConfig) points() string {
	said := []any{c.Protocol, c.Endpoint, c.Endpoints, c.Tags}
	switch {
	case c.MQTT != nil:
		said = append(said, c.MQTT.Endpoints, c.MQTT.Topics, c.MQTT.Payload)
	case c.Modbus != nil:
		said = append(said, c.Modbus.SlaveID, c.Modbus.Addressing, c.Modbus.Registers)
	case c.OPCUA != nil:
		said = append(said, c.OPCUA.Nodes)
	}
	b, err := json.Marshal(said)
	if err != nil {
		return "" // a number that JSON has no word for: then nothing is kept
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// shortest is the least time after which any point of the source counts as
// silent, in seconds; 0: none ever does.
func (c *sourceConfig) shortest() float64 {
	least := c.StaleAfterSeconds
	for _, o := range c.StaleOverrides {
		if o.AfterSeconds > 0 && (least == 0 || o.AfterSeconds < least) {
			least = o.AfterSeconds
		}
	}
	return least
}

// checkShared checks the keys that are the same for all protocols, and moves
// those that may stand beside the block of a protocol, or in it, to where they
// are used.
func (c *config) checkShared(at string, s *sourceConfig) {
	if s.OPCUA != nil && s.OPCUA.CertificateRenewDays == 0 {
		s.OPCUA.CertificateRenewDays = c.Security.Certificates.RotationDaysBeforeExpiry
	}
	c.shareMQTT(at, s)
	between(c, at+".stale_after_seconds", s.StaleAfterSeconds, 0, 1e7)
	between(c, at+".max_clock_skew_seconds", s.MaxClockSkewSeconds, 0, 1e9)
	for i, o := range s.StaleOverrides {
		where := fmt.Sprintf("%s.stale_overrides[%d]", at, i)
		if o.Address == "" {
			c.doc.failAt(where+".address", "is missing; write the address of a point, in which * stands for any text")
		}
		between(c, where+".after_seconds", o.AfterSeconds, 0, 1e7)
	}
	c.checkTimestamp(at, s)
	c.checkSilence(at, s)
}

func (c *config) shareMQTT(at string, s *sourceConfig) {
	if s.MQTT == nil {
		if len(s.Endpoints) > 0 {
			c.doc.failAt(at+".endpoints", "only mqtt sources can fail over; write one endpoint")
		}
		return
	}
	if len(s.Endpoints) > 0 && len(s.MQTT.Endpoints) > 0 {
		c.doc.failAt(at+".endpoints", "stands beside mqtt.endpoints; keep one of them")
	}
	s.MQTT.Endpoints = append(s.MQTT.Endpoints, s.Endpoints...)
	for _, key := range []struct {
		name       string
		ours, mqtt *float64
	}{{"stale_after_seconds", &s.StaleAfterSeconds, &s.MQTT.StaleAfterSeconds}, {"max_clock_skew_seconds", &s.MaxClockSkewSeconds, &s.MQTT.MaxClockSkewSeconds}} {
		switch {
		case *key.ours == 0:
			*key.ours = *key.mqtt
		case *key.mqtt == 0:
			*key.mqtt = *key.ours
		case *key.ours != *key.mqtt:
			c.doc.failAt(at+"."+key.name, "stands beside mqtt.%s; keep one of them", key.name)
		}
	}
}

// checkTimestamp: sources[].timestamp is the choice for every protocol; an OPC
// UA source makes it itself, since it has the server's clock too.
func (c *config) checkTimestamp(at string, s *sourceConfig) {
	if s.Timestamp == "" {
		return
	}
	c.oneOf(at+".timestamp", s.Timestamp, timestampSource, timestampServer, timestampIngest)
	switch {
	case s.OPCUA != nil && s.OPCUA.Timestamp != "" && s.OPCUA.Timestamp != s.Timestamp:
		c.doc.failAt(at+".timestamp", "stands beside opcua.timestamp; keep one of them")
	case s.OPCUA != nil:
		s.OPCUA.Timestamp = s.Timestamp
	case s.Timestamp == timestampServer:
		c.doc.failAt(at+".timestamp", "server is the clock of an OPC UA server; a %s source has source or ingest", s.Protocol)
	}
}

// A point whose value does not change is silent by design where it is reported
// on change: a heartbeat tells it from one that has stopped. Unless configured
// otherwise there are this many of them in the time that silence may last.
const heartbeatsInTime = 3

// checkSilence makes heartbeats where the configuration says nothing of them, and
// refuses those that come too late. A heartbeat of 0 that is written in the file
// stays: then a value that does not change counts as silent.
func (c *config) checkSilence(at string, s *sourceConfig) {
	after := s.shortest()
	switch {
	case after == 0:
	case s.OPCUA != nil:
		c.opcuaSilence(at, s.OPCUA, after)
	case s.Modbus != nil:
		c.modbusSilence(at, s, after)
	}
}

// opcuaTick is how often an OPC UA source looks at its heartbeats.
const opcuaTick = 1

func (c *config) opcuaSilence(at string, o *opcua.Config, after float64) {
	if after < heartbeatsInTime*opcuaTick {
		c.doc.failAt(at+".stale_after_seconds", "%v is too short for opcua, which tells a value that does not change from one that has stopped once a second; write at least %d",
			after, heartbeatsInTime*opcuaTick)
		return
	}
	if o.Defaults.HeartbeatSeconds == nil {
		o.Defaults.HeartbeatSeconds = new(int(after / heartbeatsInTime))
	}
	c.checkHeartbeat(at+".opcua.defaults.heartbeat_seconds", float64(*o.Defaults.HeartbeatSeconds), opcuaTick, after)
	for i, n := range o.Nodes {
		if n.HeartbeatSeconds != nil {
			c.checkHeartbeat(fmt.Sprintf("%s.opcua.nodes[%d].heartbeat_seconds", at, i), float64(*n.HeartbeatSeconds), opcuaTick, after)
		}
	}
}

func (c *config) modbusSilence(at string, s *sourceConfig, shortest float64) {
	if _, written := c.doc.places[at+".modbus.heartbeat_seconds"]; !written {
		s.Modbus.HeartbeatSeconds = shortest / heartbeatsInTime
	}
	points, err := modbus.Expand(*s.Modbus)
	if err != nil {
		return // told where the block is checked
	}
	watch := c.watch(s)
	for i := range points {
		p := &points[i]
		after := watch.After(p.Address)
		switch {
		case after == 0:
			continue
		case after < 2*p.Interval:
			c.doc.failAt(at+".stale_after_seconds", "%v is less than two polls of %s, which is polled every %v; write at least %v, or an entry of stale_overrides",
				after.Seconds(), p.Address, p.Interval, 2*p.Interval.Seconds())
		case p.Report == modbus.OnChange && p.Heartbeat > 0 && p.Heartbeat+p.Interval > after:
			c.doc.failAt(at+".stale_after_seconds", "%v is less than heartbeat_seconds and the poll interval of %s together (%v): a value that does not change would count as silent; write more, or a shorter heartbeat_seconds, or 0 there if that is meant",
				after.Seconds(), p.Address, p.Heartbeat+p.Interval)
		default:
			continue
		}
		return
	}
}

func (c *config) checkHeartbeat(path string, heartbeat, step, after float64) {
	if heartbeat > 0 && heartbeat+step > after {
		c.doc.failAt(path, "%v leaves no time before stale_after_seconds (%v): a value that does not change would count as silent; write less, or 0 if that is meant", heartbeat, after)
	}
}
