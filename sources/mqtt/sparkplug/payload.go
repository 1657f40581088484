// Package sparkplug reads Sparkplug B (version 3.0 of its specification, and
// what publishers of 2.2 send): payloads, and the state that a host must keep
// of each edge node to understand them. It knows no MQTT client.
//
//	NBIRTH, DBIRTH  names, types and aliases of all metrics   ──> table of the edge node
//	NDATA, DDATA    alias and value ──table──> samples with names
//	NDEATH, DDEATH  a Bad sample for every metric of the table
//
// Births are published once and may be missed, so a table can be older than
// the edge node's session: whoever relied on it then would put values under
// wrong names. After a gap in the sequence numbers, a reconnect or a restart
// the table still names what comes, but the samples are Uncertain until the
// edge node was born again, which the host asks it for.
package sparkplug

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds of one payload: a publisher cannot make us hold more than this.
const (
	maxMetrics = 100_000
	maxDepth   = 16      // templates within one another
	maxArray   = 1 << 20 // bytes of an array type, which grow as JSON
)

// Payload is one Sparkplug B payload.
type Payload struct {
	Timestamp uint64 // milliseconds since the Unix epoch; 0: none
	Seq       uint64 // 0 to 255
	HasSeq    bool
	Metrics   []Metric
}

// Metric is one metric of a payload. DATA payloads may leave out Name and Type
// when a birth has given them.
type Metric struct {
	Name       string
	Alias      uint64
	HasAlias   bool
	Timestamp  uint64 // milliseconds since the Unix epoch; 0: none
	Type       DataType
	Historical bool // published late, after the edge node was cut off
	Null       bool
	Unit       string // of the property engUnit; "" when there is none
	value      raw
}

// raw is a value as it lies on the wire: which of the value fields it came in,
// and its bits or bytes.
type raw struct {
	kind rawKind
	bits uint64
	data []byte
}

type rawKind uint8

const (
	rawNone rawKind = iota
	rawInt          // uint32
	rawLong         // uint64
	rawFloat
	rawDouble
	rawBool
	rawString
	rawBytes
	rawDataSet
	rawTemplate
)

var errMalformed = errors.New("not a Sparkplug B payload")

// Decode reads a payload. It keeps no reference to b.
func Decode(b []byte) (Payload, error) {
	var p Payload
	err := fields(b, func(num protowire.Number, f field) error {
		switch num {
		case 1:
			p.Timestamp = f.bits
		case 2:
			if len(p.Metrics) == maxMetrics {
				return fmt.Errorf("payload holds more than %d metrics", maxMetrics)
			}
			m, err := decodeMetric(f.data, 0)
			if err != nil {
				return err
			}
			p.Metrics = append(p.Metrics, m)
		case 3:
			p.Seq, p.HasSeq = f.bits, true
		}
		return nil
	})
	return p, err
}

// field is the content of one protobuf field: bits of the number types, data of
// the others.
type field struct {
	bits uint64
	data []byte
	wire protowire.Type
}

// fields calls fn for every field of the message b, in order.
func fields(b []byte, fn func(protowire.Number, field) error) error {
	for len(b) > 0 {
		num, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		f := field{wire: wire}
		switch wire {
		case protowire.VarintType:
			f.bits, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(b)
			f.bits = uint64(v)
		case protowire.Fixed64Type:
			f.bits, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			f.data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, wire, b)
		}
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		if err := fn(num, f); err != nil {
			return err
		}
	}
	return nil
}

// metricWires are the wire types of the fields of a metric; whoever writes
// others does not write Sparkplug B.
var metricWires = map[protowire.Number]protowire.Type{
	1: protowire.BytesType, 2: protowire.VarintType, 3: protowire.VarintType, 4: protowire.VarintType, 5: protowire.VarintType,
	7: protowire.VarintType, 9: protowire.BytesType, 10: protowire.VarintType, 11: protowire.VarintType, 12: protowire.Fixed32Type,
	13: protowire.Fixed64Type, 14: protowire.VarintType, 15: protowire.BytesType, 16: protowire.BytesType, 17: protowire.BytesType, 18: protowire.BytesType,
}

func decodeMetric(b []byte, depth int) (Metric, error) {
	var m Metric
	if depth > maxDepth {
		return m, fmt.Errorf("templates lie more than %d deep", maxDepth)
	}
	err := fields(b, func(num protowire.Number, f field) error {
		if want, known := metricWires[num]; known && f.wire != want {
			return errMalformed
		}
		switch num {
		case 1:
			m.Name = text(f.data)
		case 2:
			m.Alias, m.HasAlias = f.bits, true
		case 3:
			m.Timestamp = f.bits
		case 4:
			m.Type = DataType(min(f.bits, math.MaxUint32))
		case 5:
			m.Historical = f.bits != 0
		case 7:
			m.Null = f.bits != 0
		case 9:
			m.Unit = unit(f.data)
		case 10, 11, 12, 13, 14, 15, 16, 17, 18:
			m.value = rawValue(rawKind(num-10)+rawInt, f)
		}
		return nil
	})
	return m, err
}

// rawValue keeps its own copy of the bytes.
func rawValue(kind rawKind, f field) raw {
	v := raw{kind: kind, bits: f.bits}
	if kind == rawInt {
		v.bits = uint64(uint32(f.bits))
	}
	if kind >= rawString {
		v.data = append([]byte{}, f.data...)
	}
	return v
}

// unit finds the engineering unit among the properties of a metric. Ignition
// and Tahu call it engUnit. Properties that are not well formed have none.
func unit(set []byte) string {
	var keys []string
	var values [][]byte
	err := fields(set, func(num protowire.Number, f field) error {
		switch {
		case num == 1 && f.wire == protowire.BytesType:
			keys = append(keys, string(f.data))
		case num == 2 && f.wire == protowire.BytesType:
			values = append(values, f.data)
		}
		return nil
	})
	if err != nil {
		return ""
	}
	for i, key := range keys[:min(len(keys), len(values))] {
		if key != "engUnit" && key != "unit" {
			continue
		}
		out := ""
		err = fields(values[i], func(num protowire.Number, f field) error {
			if num == 8 && f.wire == protowire.BytesType {
				out = text(f.data)
			}
			return nil
		})
		if err == nil && out != "" {
			return out
		}
	}
	return ""
}

// Rebirth is the payload of an NCMD that asks an edge node to be born again
// (specification 3.0, section 6.4.20), at the given time in milliseconds since
// the Unix epoch.
func Rebirth(at uint64) []byte {
	var m []byte
	m = protowire.AppendTag(m, 1, protowire.BytesType)
	m = protowire.AppendString(m, "Node Control/Rebirth")
	m = protowire.AppendTag(m, 3, protowire.VarintType)
	m = protowire.AppendVarint(m, at)
	m = protowire.AppendTag(m, 4, protowire.VarintType)
	m = protowire.AppendVarint(m, uint64(Boolean))
	m = protowire.AppendTag(m, 14, protowire.VarintType)
	m = protowire.AppendVarint(m, 1)
	var p []byte
	p = protowire.AppendTag(p, 1, protowire.VarintType)
	p = protowire.AppendVarint(p, at)
	p = protowire.AppendTag(p, 2, protowire.BytesType)
	return protowire.AppendBytes(p, m)
}
