package mqtt

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/mqtt/sparkplug"
)

// What is remembered of topics is bounded in number and length, since a publisher
// may invent topics without end. A topic that is not remembered costs a little
// time with each message and no record.
const (
	topicCacheSize   = 10000
	topicCacheLength = 1024 // bytes; longer topics are not remembered
)

// attrDup is true in the records of a message that the broker sent again because
// it had no acknowledgement: only these can double what came before. Other
// records do not have it.
const attrDup = "dup"

// attrEventTimeFrom is "ingest" when the payload has a timestamp that cannot be
// read, so that the time of arrival counts.
const attrEventTimeFrom = "event_time_from"

// mapper turns messages into records. It belongs to one goroutine, but for
// lastSeen.
type mapper struct {
	source string
	tags   map[string]string
	rules  []*rule
	cache  map[string]*topicInfo
	status *sources.Status
	log    *slog.Logger
	now    func() time.Time

	host     *sparkplug.Host // nil until the first Sparkplug message
	hostConn uint64          // connection of the last one
	tables   string          // directory of the host
	ask      func(topic string)

	made []abi.Record // what records returned last
}

// rule is one configured topic, ready for use.
type rule struct {
	topic    string
	filter   []string
	decoder  *decoder
	template template
	tags     map[string]string
	lastSeen atomic.Int64 // microseconds since the Unix epoch; 0: never

	sparkplug bool
	rebirth   bool // an edge node may be asked for a rebirth
}

// topicInfo is what is the same for all messages of a topic.
type topicInfo struct {
	decoder *decoder
	attrs   []abi.Attr
	sensor  int // index of sensor_name in attrs
	rules   []*rule

	sparkplug, rebirth bool // of the first rule
}

func newMapper(tags map[string]string, s *Source, tables string) (*mapper, error) {
	m := &mapper{source: s.name, tags: tags, cache: map[string]*topicInfo{},
		status: s.status, log: s.log, now: func() time.Time { return s.now() }, tables: tables, ask: s.ask}
	cfg := s.cfg
	for i, t := range cfg.Topics {
		d, err := newDecoder(t.Payload)
		if err != nil {
			return nil, fmt.Errorf("topics[%d].payload: %w", i, err)
		}
		r := &rule{topic: t.Topic, filter: strings.Split(t.Topic, "/"), decoder: d, tags: t.Tags,
			sparkplug: t.Payload.Format == formatSparkplug, rebirth: t.Payload.Rebirth == nil || *t.Payload.Rebirth}
		if t.TopicTemplate != "" {
			if r.template, err = parseTemplate(t.TopicTemplate); err != nil {
				return nil, fmt.Errorf("topics[%d].topic_template: %w", i, err)
			}
		}
		m.rules = append(m.rules, r)
	}
	return m, nil
}

// info returns what is known of a topic. A topic that no rule selects (queued
// by the broker before the configuration changed) is read as the first rule is.
func (m *mapper) info(topic string) *topicInfo {
	if info, ok := m.cache[topic]; ok {
		return info
	}
	levels := strings.Split(topic, "/")
	info := &topicInfo{decoder: m.rules[0].decoder, sparkplug: m.rules[0].sparkplug, rebirth: m.rules[0].rebirth}
	var named map[string]string
	var tags map[string]string
	for _, r := range m.rules {
		if !matches(r.filter, levels) {
			continue
		}
		info.rules = append(info.rules, r)
		if len(info.rules) > 1 {
			continue
		}
		info.decoder, tags = r.decoder, r.tags
		info.sparkplug, info.rebirth = r.sparkplug, r.rebirth
		if r.template != nil {
			named, _ = r.template.read(levels)
		}
	}
	info.attrs = sources.TagAttrs(m.tags, tags, named)
	info.sensor = slices.IndexFunc(info.attrs, func(a abi.Attr) bool { return a.Key == abi.AttrSensorName })
	if info.sensor < 0 {
		info.sensor = len(info.attrs)
		info.attrs = append(info.attrs, abi.Attr{Key: abi.AttrSensorName, Value: abi.String(levels[len(levels)-1])})
	}
	if len(topic) > topicCacheLength {
		return info
	}
	if len(m.cache) >= topicCacheSize {
		clear(m.cache)
	}
	m.cache[topic] = info
	return info
}

// records returns the records of msg: at least one, whatever it holds, unless
// it is Sparkplug B. They are valid until the next call. ok is false when the
// payload could not be read as configured.
func (m *mapper) records(msg *message) (recs []abi.Record, ok bool) {
	if msg.records != nil {
		return msg.records, true
	}
	info := m.info(msg.topic)
	for _, r := range info.rules {
		r.lastSeen.Store(msg.arrived)
	}
	if msg.tooLarge > 0 {
		r := m.record(msg, info, 3)
		sources.NotGood(&r, sources.StatusBadTooLarge, "", fmt.Sprintf("payload too large (%d bytes)", msg.tooLarge))
		return []abi.Record{r}, false
	}
	if info.sparkplug {
		recs, ok = m.sparkplugRecords(msg, info)
		msg.records = recs
		return recs, ok
	}
	samples, err := info.decoder.decode(msg.payload)
	if err != nil {
		r := m.record(msg, info, 4)
		sources.NotGood(&r, sources.StatusBadDecoding, "", err.Error())
		r.Attrs = append(r.Attrs, abi.Attr{Key: abi.AttrRaw, Value: abi.Bytes(msg.payload)})
		return []abi.Record{r}, false
	}
	clear(m.made) // so that what went on is not kept in memory by them
	m.made = m.made[:0]
	for _, s := range samples {
		r := m.record(msg, info, s.attrs())
		s.fill(&r, info)
		stamp(&r, s.time)
		m.made = append(m.made, r)
	}
	return m.made, true
}

// attrs is how many attributes fill and stamp may add.
func (s sample) attrs() int {
	n := 0
	for _, has := range []bool{s.unit != "", s.path != "", s.raw, s.time != 0, s.noTime} {
		if has {
			n++
		}
	}
	if s.reason != "" {
		n += 3
	}
	return n
}

// record is msg without its value, with room for extra attributes.
func (m *mapper) record(msg *message, info *topicInfo, extra int) abi.Record {
	const own = 3 // qos, retain, dup
	attrs := make([]abi.Attr, len(info.attrs), len(info.attrs)+len(msg.attrs)+own+extra)
	copy(attrs, info.attrs)
	for _, a := range msg.attrs {
		attrs = sources.SetAttr(attrs, a.Key, a.Value)
	}
	attrs = append(attrs,
		abi.Attr{Key: abi.AttrQoS, Value: abi.Int(int64(msg.qos))},
		abi.Attr{Key: abi.AttrRetain, Value: abi.Bool(msg.retained)})
	if msg.dup {
		attrs = sources.SetAttr(attrs, attrDup, abi.Bool(true))
	}
	return abi.Record{EventTime: msg.arrived, IngestTime: msg.arrived, Source: m.source, Address: msg.topic,
		Protocol: abi.ProtocolMQTT, Status: sources.StatusGood, Attrs: attrs}
}

// fill puts s into r, which record made of the topic info.
func (s sample) fill(r *abi.Record, info *topicInfo) {
	r.Value = s.value
	if s.unit != "" {
		r.Attrs = sources.SetAttr(r.Attrs, abi.AttrUnit, abi.String(s.unit))
	}
	if s.path != "" {
		name := r.Attrs[info.sensor].Value.Text()
		r.Attrs[info.sensor].Value = abi.String(name + "." + s.path)
		r.Attrs = sources.SetAttr(r.Attrs, abi.AttrSensorPath, abi.String(s.path))
	}
	if s.raw {
		r.Attrs = append(r.Attrs, abi.Attr{Key: abi.AttrRaw, Value: s.value})
	}
	if s.noTime {
		r.Attrs = sources.SetAttr(r.Attrs, attrEventTimeFrom, abi.String("ingest"))
	}
	r.Status = s.status
	if s.reason != "" {
		sources.NotGood(r, s.status, "", s.reason)
	}
}

// stamp sets the time that the payload gives, in microseconds since the Unix
// epoch; 0 leaves that of arrival.
func stamp(r *abi.Record, at int64) {
	if at == 0 {
		return
	}
	r.EventTime = at
	r.Attrs = append(r.Attrs, abi.Attr{Key: abi.AttrTimestampMS, Value: abi.Int(at / 1000)})
}
