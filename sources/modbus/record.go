package modbus

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// The status codes of bad records beside those of all sources: OPC UA part 6,
// annex A.
const (
	statusTimeout         uint32 = 0x800A0000
	statusUnsupported     uint32 = 0x800B0000
	statusNotFound        uint32 = 0x803E0000
	statusNotConnected    uint32 = 0x808A0000
	statusDeviceFailure   uint32 = 0x808B0000
	statusInvalidArgument uint32 = 0x80AB0000
)

// quality says why a point is bad.
type quality struct {
	code         uint32
	name, reason string
}

func qualityOf(err error) quality {
	q := quality{sources.StatusBadCommunication, "BadCommunicationError", err.Error()}
	var ex exception
	switch {
	case errors.As(err, &ex):
		q.code, q.name = ex.status()
	case errors.Is(err, errSilent):
		q.code, q.name = statusTimeout, "BadTimeout"
	case errors.Is(err, errDigit):
		q.code, q.name = sources.StatusBadDecoding, "BadDecodingError"
	}
	return q
}

func (e exception) status() (code uint32, name string) {
	switch e {
	case illegalFunction:
		return statusUnsupported, "BadServiceUnsupported"
	case illegalAddress:
		return statusNotFound, "BadNotFound"
	case illegalValue:
		return statusInvalidArgument, "BadInvalidArgument"
	case gatewayPath, gatewaySilent:
		return sources.StatusBadNoCommunication, "BadNoCommunication"
	}
	return statusDeviceFailure, "BadDeviceFailure"
}

// pointState is what was last reported of a point.
type pointState struct {
	known bool // read since Run began
	bad   bool
	why   quality // when bad
	value abi.Value
	at    time.Time // of the last good record; zero: the next value is reported whatever it is
}

// fixedAttrs is what every good record of p carries; the slice is full, so
// that appending to it copies.
func fixedAttrs(p *Point, tags map[string]string) []abi.Attr {
	attrs := []abi.Attr{
		{Key: abi.AttrSlaveID, Value: abi.Int(int64(p.Slave))},
		{Key: abi.AttrRegisterAddress, Value: abi.Int(int64(p.Number))},
		{Key: abi.AttrRegisterType, Value: abi.String(string(p.Type))},
		{Key: abi.AttrScaleFactor, Value: abi.Int(int64(p.ScaleFactor))},
	}
	static := sources.TagAttrs(tags, p.Tags)
	if p.Unit != "" {
		static = sources.SetAttr(static, abi.AttrUnit, abi.String(p.Unit))
	}
	if p.Name != "" {
		static = sources.SetAttr(static, abi.AttrSensorName, abi.String(p.Name))
	}
	attrs = append(attrs, static...)
	return attrs[:len(attrs):len(attrs)]
}

// newAttrs returns the fixed attributes of point i with room for some more.
// They are cut from one allocation for many records, which halves the cost of a
// record.
func (s *Source) newAttrs(i, more int) []abi.Attr {
	const chunk = 256
	n := len(s.attrs[i]) + more
	if len(s.spare) < n {
		s.spare = make([]abi.Attr, max(n, chunk))
	}
	out := append(s.spare[:0:n], s.attrs[i]...)
	s.spare = s.spare[n:]
	return out
}

// relearn makes every point be reported anew when a batch was not stored.
func (s *Source) relearn() {
	if !s.forget.Swap(false) {
		return
	}
	s.epoch++
	for i := range s.states {
		s.states[i].at, s.states[i].bad = time.Time{}, false
	}
}

// records appends the records that r makes.
func (s *Source) records(recs []abi.Record, r result) []abi.Record {
	for _, b := range r.blocks {
		if r.group.table.bits() {
			s.bytes += (len(b.data) + 7) / 8
		} else {
			s.bytes += len(b.data)
		}
		recs = s.block(recs, b)
	}
	return recs
}

func (s *Source) point(recs []abi.Record, i int, b block) []abi.Record {
	if b.err != nil {
		return s.fail(recs, i, b.at, qualityOf(b.err))
	}
	p := &s.points[i]
	from := int(p.Offset - b.start)
	if p.Type.bits() {
		return s.good(recs, i, b.at, abi.Bool(b.data[from] != 0))
	}
	raw, err := p.decode(b.data[2*from : 2*(from+p.Width)])
	if err != nil {
		return s.fail(recs, i, b.at, qualityOf(err))
	}
	return s.good(recs, i, b.at, raw)
}

// good appends a record of point i, whose register value is raw, unless it is
// to be reported on change only and has not changed.
func (s *Source) good(recs []abi.Record, i int, at time.Time, raw abi.Value) []abi.Record {
	p, st := &s.points[i], &s.states[i]
	value := p.engineering(raw)
	s.dirty = s.dirty || !st.known || st.bad
	st.known = true
	if p.Report == OnChange && !st.bad && !st.at.IsZero() && !p.changed(st.value, value) &&
		(p.Heartbeat == 0 || at.Sub(st.at) < p.Heartbeat) {
		return recs
	}
	st.bad, st.value, st.at = false, value, at
	attrs := s.newAttrs(i, 2)
	if number, ok := raw.Number(); ok {
		attrs = append(attrs, abi.Attr{Key: abi.AttrRawValue, Value: abi.Float(number)})
	}
	if scaled, clamped, ok := p.scaled(value); ok {
		attrs = append(attrs, abi.Attr{Key: abi.AttrScaledValue, Value: abi.Int(scaled)})
		if clamped {
			s.deps.Status.Add(MetricClamped, 1)
		}
	}
	return append(recs, s.record(p, at, value, sources.StatusGood, attrs))
}

// fail appends a bad record of point i unless it is bad already.
func (s *Source) fail(recs []abi.Record, i int, at time.Time, q quality) []abi.Record {
	st := &s.states[i]
	s.dirty = s.dirty || !st.known || !st.bad || st.why.code != q.code
	st.known = true
	if !st.bad || st.why.code != q.code {
		st.why = q
	}
	if st.bad {
		return recs
	}
	st.bad = true
	s.epoch++
	r := s.record(&s.points[i], at, abi.Value{}, q.code, s.newAttrs(i, 3))
	sources.NotGood(&r, q.code, q.name, q.reason)
	return append(recs, r)
}

func (s *Source) record(p *Point, at time.Time, v abi.Value, status uint32, attrs []abi.Attr) abi.Record {
	return abi.Record{EventTime: sources.Micros(at), IngestTime: s.ingest, Source: s.name,
		Address: p.Address, Protocol: abi.ProtocolModbus, Value: v, Status: status, Attrs: attrs}
}

// engineering applies scale and offset. The value is a float64 when there is
// one of them or the type is a float; else it is an int64 or uint64 as read, so
// that 64-bit counters stay exact. Bools and strings are as read.
func (p *Point) engineering(raw abi.Value) abi.Value {
	if !p.DataType.numeric() || (p.Scale == 1 && p.ValueOffset == 0) {
		return raw
	}
	number, _ := raw.Number()
	return abi.Float(number*p.Scale + p.ValueOffset)
}

// scaled is the integer of the bronze table's scaled_value: the engineering
// value times scale_factor, rounded, and clamped to 32 bits. NaN and text have
// none.
func (p *Point) scaled(value abi.Value) (n int64, clamped, ok bool) {
	number, ok := value.Number()
	if !ok || math.IsNaN(number) {
		return 0, false, false
	}
	number = math.Round(number * float64(p.ScaleFactor))
	if in := max(min(number, math.MaxInt32), math.MinInt32); in != number {
		return int64(in), true, true
	}
	return int64(number), false, true
}

// changed reports whether value differs from last by more than the dead-band.
func (p *Point) changed(last, value abi.Value) bool {
	if last == value {
		return false
	}
	a, isNumber := last.Number()
	b, _ := value.Number()
	if !isNumber || value.Kind() == abi.KindBool || p.Deadband == 0 || math.IsNaN(a) || math.IsNaN(b) {
		return true
	}
	return math.Abs(a-b) > p.Deadband
}

// report says how the source is, in words that stay the same while nothing
// changes.
func (s *Source) report() {
	if !s.dirty {
		return
	}
	s.dirty = false
	var good, bad, unknown int
	for i := range s.states {
		switch st := &s.states[i]; {
		case !st.known:
			unknown++
		case st.bad:
			bad++
		default:
			good++
		}
	}
	switch {
	case bad == 0:
		s.deps.Status.Report(s.deps.Log, sources.Connected, "")
	case good > 0:
		s.deps.Status.Report(s.deps.Log, sources.Degraded, fmt.Sprintf("%d of %d points cannot be read: %s", bad, len(s.points), s.reasons()))
	case unknown == 0:
		s.deps.Status.Report(s.deps.Log, sources.Stalled, "no point can be read: "+s.reasons())
	}
}

// reasons names the first bad points, one for each unit, and why.
func (s *Source) reasons() string {
	const most = 3
	var words []string
	seen := map[uint8]bool{}
	for i := range s.points {
		p := &s.points[i]
		if !s.states[i].known || !s.states[i].bad || seen[p.Slave] {
			continue
		}
		if len(words) == most {
			return strings.Join(append(words, "…"), "; ")
		}
		seen[p.Slave] = true
		words = append(words, p.Address+": "+s.states[i].why.reason)
	}
	return strings.Join(words, "; ")
}
