package zerobus

import (
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
)

// source is where a column's value comes from.
type source uint8

// The sources. Every name that is not in sources is the key of an attribute.
const (
	fromAttr source = iota
	fromEventTime
	fromIngestTime
	fromSourceName
	fromAddress  // the address of every protocol
	fromTopic    // the address of an MQTT record, else the attribute
	fromNodeID   // the address of an OPC UA record, else the attribute
	fromRegister // the attribute, else the address of a Modbus record when it is a number
	fromProtocol
	fromValue       // of the column's type; NULL in a number column when value_string takes it
	fromValueString // a value that is not a number, as text
	fromValueNum    // a value that is a number or a bool
	fromValueType   // the attribute, else the name of the value's kind
	fromStatusCode
	fromStatus  // the attribute, else Good, Uncertain or Bad by the status code
	fromQuality // Good, Uncertain or Bad by the status code, whatever a module left in the attribute
	fromRecordID
	fromRawValue    // the attribute, else the value when it is a number
	fromScaledValue // the attribute, else round(value * scale_factor), kept within int32
	fromScaleFactor // the attribute, else 1 when there is a value to scale
)

var sources = map[string]source{
	"event_time": fromEventTime, "ingest_time": fromIngestTime, "source_name": fromSourceName, "address": fromAddress,
	"topic": fromTopic, "node_id": fromNodeID, "register_address": fromRegister, "protocol": fromProtocol,
	"value": fromValue, "value_string": fromValueString, "value_num": fromValueNum, "value_type": fromValueType,
	"status_code": fromStatusCode, "status": fromStatus, "quality": fromQuality, "record_id": fromRecordID,
	"raw_value": fromRawValue, "scaled_value": fromScaledValue, "scale_factor": fromScaleFactor,
}

var owners = map[source]abi.Protocol{fromTopic: abi.ProtocolMQTT, fromNodeID: abi.ProtocolOPCUA, fromRegister: abi.ProtocolModbus}

// plan is what to do for one column, worked out once.
type plan struct {
	from     source
	key      string // of the attribute
	tag      uint64
	column   Column
	wire     descriptorpb.FieldDescriptorProto_Type
	nullable bool
	owner    abi.Protocol // of the sources that are the address of one protocol
	// optional lets a value that is not a number stay NULL, since another column
	// takes it as text.
	optional bool
}

// encoder turns records into rows of one table. It is used by one goroutine.
type encoder struct {
	table   string
	plans   []plan
	clamped uint64 // scaled values beyond int32
}

// newEncoder makes the encoder of a valid schema.
func newEncoder(s Schema) *encoder {
	e := &encoder{table: s.Table}
	takesText := false
	for _, c := range s.Columns {
		key := c.From
		if key == "" {
			key = c.Name
		}
		p := plan{from: sources[key], key: key, column: c, wire: protoTypes[c.Type], nullable: c.Nullable, owner: owners[sources[key]]}
		p.tag = protowire.EncodeTag(protowire.Number(c.Number), wireType(p.wire))
		takesText = takesText || p.from == fromValueString
		e.plans = append(e.plans, p)
	}
	for i := range e.plans {
		e.plans[i].optional = takesText && e.plans[i].from == fromValue
	}
	return e
}

func wireType(t descriptorpb.FieldDescriptorProto_Type) protowire.Type {
	switch t {
	case descriptorpb.FieldDescriptorProto_TYPE_DOUBLE:
		return protowire.Fixed64Type
	case descriptorpb.FieldDescriptorProto_TYPE_FLOAT:
		return protowire.Fixed32Type
	case descriptorpb.FieldDescriptorProto_TYPE_STRING, descriptorpb.FieldDescriptorProto_TYPE_BYTES:
		return protowire.BytesType
	default:
		return protowire.VarintType
	}
}

// append appends the row of r to dst. The error is Permanent; it names the
// column, the kind of the value and the table, never the value. dst comes back
// unchanged with an error.
func (e *encoder) append(dst []byte, r *sinks.Record) ([]byte, error) {
	out := dst
	for i := range e.plans {
		p := &e.plans[i]
		if p.from == fromRecordID && p.wire == descriptorpb.FieldDescriptorProto_TYPE_STRING { // every row has it: no string is made
			out = protowire.AppendVarint(protowire.AppendVarint(out, p.tag), sinks.IDLen)
			out = r.ID.AppendText(out)
			continue
		}
		v := e.value(p, r)
		if v.IsNone() {
			if !p.nullable {
				return dst, sinks.Permanent(fmt.Errorf("column %s of %s is NOT NULL and the record has no value for it", p.column.Name, e.table))
			}
			continue
		}
		var err error
		if out, err = p.append(out, v); err != nil {
			if p.optional && p.nullable && textual(v.Kind()) {
				continue
			}
			return dst, sinks.Permanent(fmt.Errorf("column %s (%s) of %s cannot take %s: %w", p.column.Name, p.column.Type, e.table, describe(v), err))
		}
	}
	return out, nil
}

// describe says what v is without saying what it holds.
func describe(v abi.Value) string {
	if textual(v.Kind()) {
		return fmt.Sprintf("a %s value of %d bytes", v.Kind(), len(v.Text()))
	}
	return fmt.Sprintf("a %s value", v.Kind())
}

func textual(k abi.Kind) bool {
	return k == abi.KindString || k == abi.KindBytes || k == abi.KindJSON
}

// value is what r has for p; no value is NULL.
func (e *encoder) value(p *plan, r *sinks.Record) abi.Value {
	switch p.from {
	case fromEventTime:
		return abi.Int(r.EventTime)
	case fromIngestTime:
		return abi.Int(r.IngestTime)
	case fromSourceName:
		return text(r.Source)
	case fromAddress:
		return text(r.Address)
	case fromTopic, fromNodeID, fromRegister:
		return addressOf(p, r)
	case fromProtocol:
		return abi.String(r.Protocol.String())
	case fromValue:
		return r.Value
	case fromValueString:
		if textual(r.Value.Kind()) {
			return r.Value
		}
		return abi.Value{}
	case fromValueNum:
		return number(r.Value)
	case fromStatusCode:
		return abi.Int(int64(r.Status))
	case fromQuality:
		return abi.String(quality(r.Status))
	case fromRecordID:
		return abi.String(r.ID.String())
	default:
		return e.derived(p, r)
	}
}

// derived is the sources that are an attribute first.
func (e *encoder) derived(p *plan, r *sinks.Record) abi.Value {
	if v, ok := r.Attr(p.key); ok {
		return v
	}
	switch p.from {
	case fromValueType:
		if r.Value.IsNone() {
			return abi.Value{}
		}
		return abi.String(r.Value.Kind().String())
	case fromStatus:
		return abi.String(quality(r.Status))
	case fromRawValue:
		return number(r.Value)
	case fromScaledValue:
		return e.scaled(r)
	case fromScaleFactor:
		if _, ok := r.Value.Number(); !ok {
			return abi.Value{}
		}
		return abi.Int(1)
	default:
		return abi.Value{}
	}
}

// addressOf is the address for the columns that belong to one protocol. Records
// that a module made have no protocol; their address may stand in any of them.
func addressOf(p *plan, r *sinks.Record) abi.Value {
	if v, ok := r.Attr(p.key); ok {
		return v
	}
	if r.Protocol != p.owner && r.Protocol != abi.ProtocolNone {
		return abi.Value{}
	}
	if p.from != fromRegister {
		return text(r.Address)
	}
	n, err := parseInt(r.Address)
	if err != nil {
		return abi.Value{}
	}
	return abi.Int(n)
}

// scaled is round(value * scale_factor) within int32. The document's names look
// swapped; they are kept: raw_value is the register's value before scale and
// offset, the engineering value is scaled_value / scale_factor.
func (e *encoder) scaled(r *sinks.Record) abi.Value {
	n, ok := r.Value.Number()
	if !ok || math.IsNaN(n) {
		return abi.Value{}
	}
	if f, ok := r.Attr(abi.AttrScaleFactor); ok {
		if f, ok := f.Number(); ok {
			n *= f
		}
	}
	n = math.Round(n)
	if n > math.MaxInt32 || n < math.MinInt32 {
		e.clamped++
		n = max(math.MinInt32, min(math.MaxInt32, n))
	}
	return abi.Int(int64(n))
}

func text(s string) abi.Value {
	if s == "" {
		return abi.Value{}
	}
	return abi.String(s)
}

func number(v abi.Value) abi.Value {
	if n, ok := v.Number(); ok {
		return abi.Float(n)
	}
	return abi.Value{}
}

// quality is the severity in the top two bits of an OPC UA status code.
func quality(status uint32) string {
	switch status >> 30 {
	case 0:
		return "Good"
	case 1:
		return "Uncertain"
	default:
		return "Bad"
	}
}

// append appends tag and value, or says why the column cannot take v.
func (p *plan) append(dst []byte, v abi.Value) ([]byte, error) {
	switch p.wire {
	case descriptorpb.FieldDescriptorProto_TYPE_INT32, descriptorpb.FieldDescriptorProto_TYPE_INT64:
		n, err := toInt(v, p.column.Type)
		if err != nil {
			return dst, err
		}
		return protowire.AppendVarint(protowire.AppendVarint(dst, p.tag), uint64(n)), nil
	case descriptorpb.FieldDescriptorProto_TYPE_DOUBLE:
		n, ok := v.Number()
		if !ok {
			return dst, errNotNumber
		}
		return protowire.AppendFixed64(protowire.AppendVarint(dst, p.tag), math.Float64bits(n)), nil
	case descriptorpb.FieldDescriptorProto_TYPE_FLOAT:
		n, ok := v.Number()
		if !ok {
			return dst, errNotNumber
		}
		if math.Abs(n) > math.MaxFloat32 && !math.IsInf(n, 0) {
			return dst, errRange
		}
		return protowire.AppendFixed32(protowire.AppendVarint(dst, p.tag), math.Float32bits(float32(n))), nil
	case descriptorpb.FieldDescriptorProto_TYPE_BOOL:
		b, err := toBool(v)
		if err != nil {
			return dst, err
		}
		return protowire.AppendVarint(protowire.AppendVarint(dst, p.tag), protowire.EncodeBool(b)), nil
	case descriptorpb.FieldDescriptorProto_TYPE_BYTES:
		if v.Kind() != abi.KindBytes && v.Kind() != abi.KindString {
			return dst, errNotBytes
		}
		return protowire.AppendString(protowire.AppendVarint(dst, p.tag), v.Text()), nil
	default:
		s, err := toText(v, p.column.Type)
		if err != nil {
			return dst, err
		}
		if !utf8.ValidString(s) {
			return dst, errNotUTF8
		}
		return protowire.AppendString(protowire.AppendVarint(dst, p.tag), s), nil
	}
}
