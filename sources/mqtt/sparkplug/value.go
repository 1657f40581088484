package sparkplug

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/edgehost/edgehost/abi"
)

// DataType is a data type of Sparkplug B (specification 3.0, section 6.4.16).
// 0 is unknown: a birth has to say it.
type DataType uint32

// The data types.
const (
	Unknown DataType = iota
	Int8
	Int16
	Int32
	Int64
	UInt8
	UInt16
	UInt32
	UInt64
	Float
	Double
	Boolean
	String
	DateTime // milliseconds since the Unix epoch
	Text
	UUID
	DataSet
	Bytes
	File
	Template
	PropertySet
	PropertySetList
	Int8Array
	Int16Array
	Int32Array
	Int64Array
	UInt8Array
	UInt16Array
	UInt32Array
	UInt64Array
	FloatArray
	DoubleArray
	BooleanArray
	StringArray
	DateTimeArray
)

var typeNames = [...]string{"Unknown", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float", "Double", "Boolean",
	"String", "DateTime", "Text", "UUID", "DataSet", "Bytes", "File", "Template", "PropertySet", "PropertySetList",
	"Int8Array", "Int16Array", "Int32Array", "Int64Array", "UInt8Array", "UInt16Array", "UInt32Array", "UInt64Array",
	"FloatArray", "DoubleArray", "BooleanArray", "StringArray", "DateTimeArray"}

// String is the name that the specification gives the type.
func (t DataType) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return "DataType(" + strconv.FormatUint(uint64(t), 10) + ")"
}

// Value is the value of m read as type t: numbers, text and bytes as such,
// data sets, templates and arrays as JSON, a null as no value. An error says
// why the bytes on the wire are none of t.
func (m Metric) Value(t DataType) (abi.Value, error) {
	if m.Null || m.value.kind == rawNone {
		return abi.Value{}, nil
	}
	return m.value.as(t, 0)
}

func (v raw) as(t DataType, depth int) (abi.Value, error) {
	switch t {
	case Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, DateTime:
		if v.kind != rawInt && v.kind != rawLong {
			return abi.Value{}, v.mismatch(t)
		}
		return v.integer(t), nil
	case Float, Double:
		return v.float(t)
	case Boolean:
		if v.kind != rawBool {
			return abi.Value{}, v.mismatch(t)
		}
		return abi.Bool(v.bits != 0), nil
	case String, Text, UUID:
		if v.kind != rawString {
			return abi.Value{}, v.mismatch(t)
		}
		return abi.String(text(v.data)), nil
	case Bytes, File:
		if v.kind != rawBytes {
			return abi.Value{}, v.mismatch(t)
		}
		return abi.Bytes(v.data), nil
	case DataSet, Template:
		return v.compound(t, depth)
	}
	if t >= Int8Array && t <= DateTimeArray {
		if v.kind != rawBytes {
			return abi.Value{}, v.mismatch(t)
		}
		return array(t, v.data)
	}
	return abi.Value{}, fmt.Errorf("data type %s is not a metric's", t)
}

func (v raw) mismatch(t DataType) error {
	names := [...]string{"no", "an integer", "a long", "a float", "a double", "a boolean", "a string", "a bytes", "a dataset", "a template"}
	return fmt.Errorf("a metric of type %s came with %s value", t, names[v.kind])
}

// integer cuts the two's complement on the wire to the type's width.
func (v raw) integer(t DataType) abi.Value {
	switch t {
	case Int8:
		return abi.Int(int64(int8(v.bits)))
	case Int16:
		return abi.Int(int64(int16(v.bits)))
	case Int32:
		return abi.Int(int64(int32(v.bits)))
	case Int64:
		if v.kind == rawInt {
			return abi.Int(int64(int32(v.bits)))
		}
		return abi.Int(int64(v.bits))
	case UInt8:
		return abi.Uint(uint64(uint8(v.bits)))
	case UInt16:
		return abi.Uint(uint64(uint16(v.bits)))
	case UInt32:
		return abi.Uint(uint64(uint32(v.bits)))
	case DateTime:
		return abi.Int(int64(v.bits))
	default:
		return abi.Uint(v.bits)
	}
}

func (v raw) float(t DataType) (abi.Value, error) {
	switch v.kind {
	case rawFloat:
		return abi.Float(float64(math.Float32frombits(uint32(v.bits)))), nil
	case rawDouble:
		return abi.Float(math.Float64frombits(v.bits)), nil
	}
	return abi.Value{}, v.mismatch(t)
}

func (v raw) compound(t DataType, depth int) (abi.Value, error) {
	var (
		out any
		err error
	)
	switch {
	case t == DataSet && v.kind == rawDataSet:
		out, err = dataSet(v.data)
	case t == Template && v.kind == rawTemplate:
		out, err = template(v.data, depth+1)
	default:
		return abi.Value{}, v.mismatch(t)
	}
	if err != nil {
		return abi.Value{}, err
	}
	return encode(out)
}

func encode(v any) (abi.Value, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return abi.Value{}, fmt.Errorf("encode value: %w", err)
	}
	return abi.JSON(string(text)), nil
}

// dataSetJSON is a data set as records hold it. The names of all keys are the
// protobuf definition's.
type dataSetJSON struct {
	Columns []string `json:"columns"`
	Types   []string `json:"types"`
	Rows    [][]any  `json:"rows"`
}

func dataSet(b []byte) (dataSetJSON, error) {
	out := dataSetJSON{Columns: []string{}, Types: []string{}, Rows: [][]any{}}
	var types []DataType
	var rows [][]byte
	err := fields(b, func(num protowire.Number, f field) error {
		switch {
		case num == 2 && f.wire == protowire.BytesType:
			out.Columns = append(out.Columns, text(f.data))
		case num == 3 && f.wire == protowire.VarintType:
			types = append(types, DataType(f.bits))
		case num == 3 && f.wire == protowire.BytesType: // packed
			for data := f.data; len(data) > 0; {
				v, n := protowire.ConsumeVarint(data)
				if n < 0 {
					return errMalformed
				}
				types = append(types, DataType(v))
				data = data[n:]
			}
		case num == 4 && f.wire == protowire.BytesType:
			rows = append(rows, f.data)
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	for _, t := range types {
		out.Types = append(out.Types, t.String())
	}
	for _, b := range rows {
		row, err := dataSetRow(b, types)
		if err != nil {
			return out, err
		}
		out.Rows = append(out.Rows, row)
	}
	return out, nil
}

func dataSetRow(b []byte, types []DataType) ([]any, error) {
	row := []any{}
	err := fields(b, func(num protowire.Number, f field) error {
		if num != 1 || f.wire != protowire.BytesType {
			return nil
		}
		if len(row) == len(types) {
			return errors.New("a row of a data set has more elements than columns")
		}
		v, err := scalar(f.data, types[len(row)], 0)
		row = append(row, v)
		return err
	})
	return row, err
}

// scalar reads a value whose fields begin at number first+1: 0 in the elements
// of a data set, 2 in the parameters of a template.
func scalar(b []byte, t DataType, first protowire.Number) (any, error) {
	var v raw
	err := fields(b, func(num protowire.Number, f field) error {
		at := num - first
		if at < 1 || at > 6 {
			return nil
		}
		if want := metricWires[at+9]; f.wire != want {
			return errMalformed
		}
		v = rawValue(rawKind(at-1)+rawInt, f)
		return nil
	})
	if err != nil || v.kind == rawNone {
		return nil, err
	}
	value, err := v.as(t, 0)
	if err != nil {
		return nil, err
	}
	return plain(value), nil
}

type templateJSON struct {
	Version    string          `json:"version,omitempty"`
	Ref        string          `json:"template_ref,omitempty"`
	Definition bool            `json:"is_definition"`
	Metrics    []memberJSON    `json:"metrics"`
	Parameters []parameterJSON `json:"parameters"`
}

type memberJSON struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Value any    `json:"value"`
}

type parameterJSON = memberJSON

func template(b []byte, depth int) (templateJSON, error) {
	out := templateJSON{Metrics: []memberJSON{}, Parameters: []parameterJSON{}}
	err := fields(b, func(num protowire.Number, f field) error {
		if num != 5 && f.wire != protowire.BytesType {
			return nil
		}
		switch num {
		case 1:
			out.Version = text(f.data)
		case 2:
			m, err := decodeMetric(f.data, depth)
			if err != nil {
				return err
			}
			value := abi.Value{}
			if !m.Null && m.value.kind != rawNone {
				if value, err = m.value.as(m.Type, depth); err != nil {
					return err
				}
			}
			out.Metrics = append(out.Metrics, memberJSON{m.Name, m.Type.String(), plain(value)})
		case 3:
			p, err := parameter(f.data)
			if err != nil {
				return err
			}
			out.Parameters = append(out.Parameters, p)
		case 4:
			out.Ref = text(f.data)
		case 5:
			out.Definition = f.bits != 0
		}
		return nil
	})
	return out, err
}

func parameter(b []byte) (parameterJSON, error) {
	var out parameterJSON
	var t DataType
	err := fields(b, func(num protowire.Number, f field) error {
		switch {
		case num == 1 && f.wire == protowire.BytesType:
			out.Name = text(f.data)
		case num == 2 && f.wire == protowire.VarintType:
			t = DataType(f.bits)
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	out.Type = t.String()
	out.Value, err = scalar(b, t, 2)
	return out, err
}

// plain is v as package json writes it: NaN and the infinities become text,
// and bytes base64.
func plain(v abi.Value) any {
	switch v.Kind() {
	case abi.KindBool:
		return v.AsBool()
	case abi.KindInt:
		return v.AsInt()
	case abi.KindUint:
		return v.AsUint()
	case abi.KindFloat:
		return number(v.AsFloat())
	case abi.KindBytes:
		return base64.StdEncoding.EncodeToString([]byte(v.Text()))
	case abi.KindJSON:
		return json.RawMessage(v.Text())
	case abi.KindNone:
		return nil
	}
	return v.Text()
}

func number(f float64) any {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return strconv.FormatFloat(f, 'g', -1, 64)
	}
	return f
}

// widths are the bytes of one element of the arrays that have them.
var widths = map[DataType]int{Int8Array: 1, Int16Array: 2, Int32Array: 4, Int64Array: 8, UInt8Array: 1, UInt16Array: 2, UInt32Array: 4, UInt64Array: 8,
	FloatArray: 4, DoubleArray: 8, DateTimeArray: 8}

// array reads the packed little-endian arrays of specification 3.0, section
// 6.4.17, as JSON.
func array(t DataType, b []byte) (abi.Value, error) {
	if len(b) > maxArray {
		return abi.Value{}, fmt.Errorf("the array has more than %d bytes", maxArray)
	}
	out := []any{}
	switch t {
	case StringArray:
		for len(b) > 0 {
			s, rest, ok := bytes.Cut(b, []byte{0})
			if !ok {
				return abi.Value{}, errors.New("a StringArray does not end with NUL")
			}
			out = append(out, text(s))
			b = rest
		}
		return encode(out)
	case BooleanArray:
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > 8*uint64(len(b)-4) {
			return abi.Value{}, errors.New("a BooleanArray holds less than its count says")
		}
		for i := range binary.LittleEndian.Uint32(b) {
			out = append(out, b[4+i/8]&(0x80>>(i%8)) != 0)
		}
		return encode(out)
	}
	width := widths[t]
	if len(b)%width != 0 {
		return abi.Value{}, fmt.Errorf("%d bytes are no %s", len(b), t)
	}
	for ; len(b) > 0; b = b[width:] {
		var eight [8]byte
		copy(eight[:], b[:width])
		out = append(out, element(t, binary.LittleEndian.Uint64(eight[:])))
	}
	return encode(out)
}

func element(t DataType, bits uint64) any {
	switch t {
	case FloatArray:
		return number(float64(math.Float32frombits(uint32(bits))))
	case DoubleArray:
		return number(math.Float64frombits(bits))
	case DateTimeArray:
		return bits
	}
	return plain(raw{kind: rawLong, bits: bits}.integer(t - Int8Array + Int8))
}

// text is b as UTF-8, which records demand.
func text(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}
