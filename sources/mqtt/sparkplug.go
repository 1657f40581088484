package mqtt

import (
	"fmt"
	"strings"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/mqtt/sparkplug"
)

const sparkplugNamespace = "spBv1.0/"

// Attributes of records of Sparkplug B, beside the reserved ones: sensor_name
// is the metric, backfilled says that the value is historical, stale that its
// edge node or device died.
const (
	attrGroup  = "sparkplug_group"
	attrNode   = "sparkplug_node"
	attrDevice = "sparkplug_device"
	attrType   = "sparkplug_type"
)

// sparkplugRecords are the records of msg: none for commands, states of hosts
// and deaths of what was not known. It is called once for each message, in
// order, since each changes what the next one means.
func (m *mapper) sparkplugRecords(msg *message, info *topicInfo) (recs []abi.Record, ok bool) {
	if m.host == nil {
		m.host = sparkplug.NewHost(m.tables, m.log, m.now)
	}
	if msg.conn > m.hostConn {
		if m.hostConn > 0 {
			m.host.Away("the connection to the broker was lost in between")
		}
		m.hostConn = msg.conn
	}
	reading, err := m.host.Read(msg.topic, msg.payload, msg.dup)
	recs = make([]abi.Record, 0, len(reading.Samples)+1)
	for _, s := range reading.Samples {
		recs = append(recs, m.sparkplugRecord(msg, info, s))
	}
	if reading.Ask != "" && info.rebirth {
		m.ask(reading.Ask)
	}
	reason := ""
	switch {
	case err != nil:
		reason = err.Error()
	case reading.Unnamed > 0:
		reason = fmt.Sprintf("%d metrics have an alias, or no type, that no birth of the edge node explains", reading.Unnamed)
	default:
		return recs, true
	}
	r := m.record(msg, info, 6)
	sources.NotGood(&r, sources.StatusBadDecoding, "", reason)
	r.Attrs = append(r.Attrs, abi.Attr{Key: abi.AttrRaw, Value: abi.Bytes(msg.payload)})
	return append(recs, r), false
}

func (m *mapper) sparkplugRecord(msg *message, info *topicInfo, s sparkplug.Sample) abi.Record {
	r := m.record(msg, info, 12)
	r.Address, r.Value = s.Address(), s.Value
	r.Attrs[info.sensor].Value = abi.String(s.Metric)
	set := func(key string, v abi.Value) { r.Attrs = sources.SetAttr(r.Attrs, key, v) }
	set(attrGroup, abi.String(s.Group))
	set(attrNode, abi.String(s.Node))
	if s.Device != "" {
		set(attrDevice, abi.String(s.Device))
	}
	set(attrType, abi.String(s.Type.String()))
	if s.Unit != "" {
		set(abi.AttrUnit, abi.String(s.Unit))
	}
	if s.Historical {
		set(abi.AttrBackfilled, abi.Bool(true))
	}
	if s.Stale {
		set(abi.AttrStale, abi.Bool(true))
	}
	stamp(&r, s.Time)
	switch {
	case s.Quality == sparkplug.Uncertain:
		sources.NotGood(&r, sources.StatusUncertain, "", s.Reason)
	case s.Stale:
		sources.NotGood(&r, sources.StatusBadNoCommunication, "", s.Reason)
	case s.Quality == sparkplug.Bad && s.Null:
		sources.NotGood(&r, sources.StatusBad, "", s.Reason)
	case s.Quality == sparkplug.Bad:
		sources.NotGood(&r, sources.StatusBadDecoding, "", s.Reason)
	}
	return r
}

// save keeps what births have told, before anything of them is called safe.
func (m *mapper) save() error {
	if m.host == nil {
		return nil
	}
	return m.host.Save()
}

// ask sends an edge node the command to be born again. A command that does not
// fit is not sent: the next message of the edge node asks again.
func (s *Source) ask(topic string) {
	select {
	case s.commands <- topic:
		s.status.Add(metricRebirths, 1)
		s.log.Info("mqtt: asked a Sparkplug edge node for a rebirth", "topic", topic)
	default:
	}
}

func isSparkplug(filter string) bool {
	return strings.HasPrefix(filter, sparkplugNamespace)
}
