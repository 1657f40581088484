package opcua

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
)

// attrEventTimeFrom says which clock an event time is from when the configured
// one gave none: server or ingest.
const attrEventTimeFrom = "event_time_from"

// attrHeartbeat marks a value that was repeated because none came.
const attrHeartbeat = "heartbeat"

// overflowBits of a status code: the info type is DataValue and the overflow
// bit is set (Part 4, 7.39.1).
const overflowBits = 0x480

// item is one monitored or polled value, or the events of one node.
type item struct {
	handle  uint32
	node    *ua.NodeID
	address string // as in records
	path    string // browse path, "" when not known
	cfg     ItemConfig
	types   *typeSystem
	enum    enumNames
	event   *eventFilter // events instead of values
	// modelChange says that the events are for us: they make no records.
	modelChange bool
	refreshing  bool    // the server repeats its conditions
	span        float64 // of the EURange, when we apply a percent dead-band
	undamped    bool    // its dead-band cannot be applied
	history     bool    // the server historises the value

	// attrs are those of every record; good are attrs for a Good value, ready
	// to be shared by records.
	attrs, good []abi.Attr

	// The rest is the engine's.
	sub       *subscription
	serverID  uint32
	status    ua.StatusCode // why it could not be created
	failed    bool
	told      bool // the failure was delivered as a record
	delivered bool // at least one value came since it was created
	skipNext  bool
	lastAt    time.Time // when the last value came
	lastValue abi.Value
	lastCode  uint32
	lastEvent int64 // eventTime of the last value, microseconds
	heartbeat abi.Record
	gapFrom   int64     // event time before a hole, until its history was read
	gapTo     int64     // event time behind it, 0: it is not closed
	origin    int       // index in Config.Nodes
	checkedAt time.Time // when it was last compared with the server
	probed    int       // how often the server had another value while we got none
}

// describe fills in the attributes that do not change. Later tags win over
// earlier ones, and what the protocol knows over both.
func (it *item) describe(endpoint, name, unit string, tags ...map[string]string) {
	it.attrs = sources.TagAttrs(tags...)
	set := func(key string, v abi.Value) { it.attrs = sources.SetAttr(it.attrs, key, v) }
	set(abi.AttrEndpoint, abi.String(endpoint))
	set(abi.AttrNamespace, abi.Int(int64(it.node.Namespace())))
	if it.path != "" {
		set(abi.AttrBrowsePath, abi.String(it.path))
	}
	if name != "" {
		set(abi.AttrSensorName, abi.String(name))
	}
	if unit != "" {
		set(abi.AttrUnit, abi.String(unit))
	}
	if it.event != nil {
		set(abi.AttrEvent, abi.Bool(true))
	}
	it.attrs = slices.Clip(it.attrs)
	it.good = slices.Clip(append(it.attrs, abi.Attr{Key: abi.AttrQuality, Value: abi.String("Good")},
		abi.Attr{Key: abi.AttrStatus, Value: abi.String("Good")}))
}

// attrArena holds the attributes of many records in few allocations. The
// engine's goroutine owns it; what it gave away is not touched again.
type attrArena struct{ free []abi.Attr }

// join returns base and extra in one slice of the arena.
func (a *attrArena) join(base, extra []abi.Attr) []abi.Attr {
	n := len(base) + len(extra)
	if len(a.free) < n {
		a.free = make([]abi.Attr, max(n, 512))
	}
	out := a.free[:n:n]
	a.free = a.free[n:]
	copy(out[copy(out, base):], extra)
	return out
}

// record makes the record of one value. now is the ingest time.
func (it *item) record(source string, cfg *Config, v *ua.DataValue, now time.Time, arena *attrArena) abi.Record {
	r := abi.Record{IngestTime: now.UnixMicro(), Source: source, Address: it.address, Protocol: abi.ProtocolOPCUA, Status: uint32(v.Status), Attrs: it.good}
	enum := it.enum
	if cfg.Enums == "number" {
		enum = nil
	}
	d := it.types.convert(v.Value, enum)
	r.Value = d.value
	var room [10]abi.Attr
	extra := room[:0]
	if v.Status != ua.StatusOK {
		r.Attrs = it.attrs
		extra = append(extra, abi.Attr{Key: abi.AttrQuality, Value: abi.String(qualityName(v.Status))},
			abi.Attr{Key: abi.AttrStatus, Value: abi.String(statusName(v.Status))})
		if v.Status>>30 != 0 {
			extra = append(extra, abi.Attr{Key: abi.AttrReason, Value: abi.String(statusWords(v.Status))})
		}
		if v.Status&overflowBits == overflowBits {
			extra = append(extra, abi.Attr{Key: abi.AttrOverflow, Value: abi.Bool(true)})
		}
	}
	if !math.IsNaN(d.number) {
		extra = append(extra, abi.Attr{Key: abi.AttrRawValue, Value: abi.Float(d.number)})
	}
	if d.raw != nil {
		extra = append(extra, abi.Attr{Key: abi.AttrRaw, Value: abi.Bytes(d.raw)})
	}
	if d.reason != "" && v.Status>>30 == 0 {
		extra = append(extra, abi.Attr{Key: abi.AttrReason, Value: abi.String(d.reason)})
	}
	extra = stamp(&r, extra, cfg, v, now)
	if len(extra) > 0 {
		r.Attrs = arena.join(r.Attrs, extra)
	}
	return r
}

// stamp sets the event time from the configured clock, or from the next one
// with a note in extra that says so.
func stamp(r *abi.Record, extra []abi.Attr, cfg *Config, v *ua.DataValue, now time.Time) []abi.Attr {
	from := ""
	switch {
	case cfg.Timestamp == "ingest":
		r.EventTime = now.UnixMicro()
	case cfg.Timestamp == "source" && !v.SourceTimestamp.IsZero():
		r.EventTime = exactTime(v.SourceTimestamp).UnixMicro()
	case !v.ServerTimestamp.IsZero():
		r.EventTime = exactTime(v.ServerTimestamp).UnixMicro()
		if cfg.Timestamp == "source" {
			from = "server"
		}
	default:
		r.EventTime, from = now.UnixMicro(), "ingest"
	}
	if from != "" {
		extra = append(extra, abi.Attr{Key: attrEventTimeFrom, Value: abi.String(from)})
	}
	if t := exactTime(v.ServerTimestamp); !t.IsZero() && t.UnixMicro() != r.EventTime {
		extra = append(extra, abi.Attr{Key: abi.AttrServerTime, Value: abi.Int(t.UnixMicro())})
	}
	return extra
}

// statusWords is a status code in words, for the reason of a record.
func statusWords(s ua.StatusCode) string {
	if d, ok := ua.StatusCodes[s&0xFFFF0000]; ok && d.Text != "" {
		return d.Text
	}
	return fmt.Sprintf("status 0x%08X", uint32(s))
}

// failure is the record that says that an item cannot be read.
func (it *item) failure(source string, now time.Time) abi.Record {
	return abi.Record{EventTime: now.UnixMicro(), IngestTime: now.UnixMicro(), Source: source, Address: it.address, Protocol: abi.ProtocolOPCUA,
		Status: uint32(it.status), Attrs: append(it.attrs, abi.Attr{Key: abi.AttrQuality, Value: abi.String(qualityName(it.status))},
			abi.Attr{Key: abi.AttrStatus, Value: abi.String(statusName(it.status))},
			abi.Attr{Key: abi.AttrReason, Value: abi.String("item refused by the server: " + statusWords(it.status))})}
}
