package zerobustest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// decoder turns the records of one stream into NDJSON rows.
type decoder struct {
	message protoreflect.MessageDescriptor // nil for a JSON stream
	key     string
	reject  []Match
}

var errRow = errors.New("row refused")

// newDecoder compiles the DescriptorProto of create_stream.
func newDecoder(descriptor []byte, key string) (*decoder, error) {
	var msg descriptorpb.DescriptorProto
	if err := proto.Unmarshal(descriptor, &msg); err != nil {
		return nil, fmt.Errorf("descriptor_proto is no DescriptorProto: %w", err)
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("row.proto"), Package: proto.String("edgehost.emulator"), Syntax: proto.String("proto2"),
		MessageType: []*descriptorpb.DescriptorProto{&msg},
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("descriptor_proto is invalid: %w", err)
	}
	return &decoder{message: file.Messages().Get(0), key: key}, nil
}

// row appends one record to dst as a line of JSON, and returns its key.
func (d *decoder) row(dst, record []byte) (line []byte, key string, err error) {
	if d.message == nil {
		return d.jsonRow(dst, record)
	}
	msg := dynamicpb.NewMessage(d.message)
	if err := proto.Unmarshal(record, msg); err != nil {
		return dst, "", fmt.Errorf("%w: %w", errRow, err)
	}
	if len(msg.GetUnknown()) > 0 {
		return dst, "", fmt.Errorf("%w: it has fields that the descriptor lacks", errRow)
	}
	if err := d.refuse(func(column string) (string, bool) {
		f := d.message.Fields().ByName(protoreflect.Name(column))
		if f == nil || !msg.Has(f) {
			return "", false
		}
		return keyText(f, msg.Get(f)), true
	}); err != nil {
		return dst, "", err
	}
	if f := d.message.Fields().ByName(protoreflect.Name(d.key)); f != nil && msg.Has(f) {
		key = keyText(f, msg.Get(f))
	}
	return append(appendMessage(dst, msg), '\n'), key, nil
}

// keyText is the key column as text.
func keyText(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if f.Kind() == protoreflect.StringKind && !f.IsList() {
		return v.String()
	}
	return string(appendField(nil, f, v))
}

// jsonRow is row for a JSON stream: an object, compacted to one line.
func (d *decoder) jsonRow(dst, record []byte) (line []byte, key string, err error) {
	trimmed := bytes.TrimSpace(record)
	if len(trimmed) == 0 || trimmed[0] != '{' || !json.Valid(trimmed) {
		return dst, "", fmt.Errorf("%w: it is not a JSON object", errRow)
	}
	var row map[string]json.RawMessage
	if len(d.reject) > 0 {
		if err := json.Unmarshal(trimmed, &row); err != nil {
			return dst, "", fmt.Errorf("%w: %w", errRow, err)
		}
	}
	if err := d.refuse(func(column string) (string, bool) {
		raw, ok := row[column]
		return rawText(raw), ok
	}); err != nil {
		return dst, "", err
	}
	out := bytes.NewBuffer(dst)
	if err := json.Compact(out, trimmed); err != nil {
		return dst, "", fmt.Errorf("%w: %w", errRow, err)
	}
	return append(out.Bytes(), '\n'), jsonKey(trimmed, d.key), nil
}

// refuse returns an error when a column has a value that is to be rejected.
func (d *decoder) refuse(column func(string) (string, bool)) error {
	for _, m := range d.reject {
		if v, ok := column(m.Column); ok && v == m.Value {
			return fmt.Errorf("%w: column %s has a value that the table cannot take", errRow, m.Column)
		}
	}
	return nil
}

// appendMessage writes the fields that are set, in the descriptor's order.
func appendMessage(dst []byte, m protoreflect.Message) []byte {
	dst = append(dst, '{')
	fields, first := m.Descriptor().Fields(), true
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(appendString(dst, string(f.Name())), ':')
		dst = appendField(dst, f, m.Get(f))
	}
	return append(dst, '}')
}

// appendField writes a field: ARRAY columns are lists, MAP columns maps.
func appendField(dst []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	switch {
	case f.IsList():
		dst = append(dst, '[')
		for i := range v.List().Len() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendValue(dst, f, v.List().Get(i))
		}
		return append(dst, ']')
	case f.IsMap():
		dst = append(dst, '{')
		first := true
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			if !first {
				dst = append(dst, ',')
			}
			first = false
			dst = append(appendString(dst, k.String()), ':')
			dst = appendValue(dst, f.MapValue(), v)
			return true
		})
		return append(dst, '}')
	default:
		return appendValue(dst, f, v)
	}
}

// appendValue writes one scalar or message. 64-bit integers are exact numbers,
// not text; bytes are base64.
func appendValue(dst []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return strconv.AppendBool(dst, v.Bool())
	case protoreflect.FloatKind:
		return appendFloat(dst, v.Float(), 32)
	case protoreflect.DoubleKind:
		return appendFloat(dst, v.Float(), 64)
	case protoreflect.StringKind:
		return appendString(dst, v.String())
	case protoreflect.BytesKind:
		return appendString(dst, base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return appendMessage(dst, v.Message())
	case protoreflect.EnumKind:
		return strconv.AppendInt(dst, int64(v.Enum()), 10)
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return strconv.AppendUint(dst, v.Uint(), 10)
	default:
		return strconv.AppendInt(dst, v.Int(), 10)
	}
}

// appendFloat writes NaN and the infinities, which JSON lacks, as text.
func appendFloat(dst []byte, f float64, bits int) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return appendString(dst, strconv.FormatFloat(f, 'g', -1, bits))
	}
	return strconv.AppendFloat(dst, f, 'g', -1, bits)
}

// appendString appends s as JSON text. Most text is plain and needs no encoder.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			b, err := json.Marshal(s)
			if err != nil {
				return append(dst, `""`...) // text always marshals
			}
			return append(dst, b...)
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}
