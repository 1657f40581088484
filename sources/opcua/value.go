package opcua

import (
	"encoding/base64"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/edgehost/edgehost/abi"
	"github.com/gopcua/opcua/ua"
)

// builtinByName are the built-in types of Part 6, 5.1.2 by name.
var builtinByName = map[string]uint32{
	"Boolean": 1, "SByte": 2, "Byte": 3, "Int16": 4, "UInt16": 5, "Int32": 6, "UInt32": 7, "Int64": 8, "UInt64": 9, "Float": 10,
	"Double": 11, "String": 12, "DateTime": 13, "Guid": 14, "ByteString": 15, "XmlElement": 16, "NodeId": 17, "ExpandedNodeId": 18,
	"StatusCode": 19, "QualifiedName": 20, "LocalizedText": 21, "Structure": 22, "DataValue": 23, "BaseDataType": 24,
	"DiagnosticInfo": 25, "Number": 26, "Integer": 27, "UInteger": 28, "Enumeration": 29,
}

// maxDepth bounds nesting in what a server sends (Part 6, 5.1.2 asks for 100).
const maxDepth = 100

// decoded is what became of one value.
type decoded struct {
	value  abi.Value
	number float64 // of an enumeration delivered by name; else NaN
	raw    []byte  // the bytes of a structure that could not be decoded
	reason string  // why it could not
}

// convert makes a record's value of what the server sent. Arrays, matrices and
// structures become JSON.
func (ts *typeSystem) convert(v *ua.Variant, enum enumNames) decoded {
	d := decoded{number: math.NaN()}
	if v == nil || v.Value() == nil {
		return d
	}
	val := v.Value()
	if rv := reflect.ValueOf(val); rv.Kind() == reflect.Slice && v.Has(ua.VariantArrayValues) {
		if rv.IsNil() {
			return d
		}
		w := &jsonWriter{types: ts, enum: enum}
		w.any(val, 0)
		d.value, d.raw, d.reason = abi.JSON(string(w.b)), w.raw, w.reason
		return d
	}
	switch x := val.(type) {
	case int32:
		d.value = abi.Int(int64(x))
		if name, ok := enum[int64(x)]; ok {
			d.value, d.number = abi.String(name), float64(x)
		}
	case *ua.ExtensionObject, *ua.DataValue, *ua.Variant, *ua.DiagnosticInfo:
		w := &jsonWriter{types: ts, enum: enum}
		w.any(val, 0)
		d.raw, d.reason = w.raw, w.reason
		if w.reason == "" {
			d.value = abi.JSON(string(w.b))
		}
	default:
		var ok bool
		if d.value, ok = scalar(val); !ok {
			d.reason = fmt.Sprintf("unknown type %T", val)
		}
	}
	return d
}

// scalar is the value of the built-in types that need no definition.
func scalar(val any) (v abi.Value, ok bool) {
	switch x := val.(type) {
	case bool:
		return abi.Bool(x), true
	case int8:
		return abi.Int(int64(x)), true
	case int16:
		return abi.Int(int64(x)), true
	case int64:
		return abi.Int(x), true
	case uint8:
		return abi.Uint(uint64(x)), true
	case uint16:
		return abi.Uint(uint64(x)), true
	case uint32:
		return abi.Uint(uint64(x)), true
	case uint64:
		return abi.Uint(x), true
	case float32:
		// The shortest decimal that is this float32: 0.1 stays 0.1.
		f, err := strconv.ParseFloat(strconv.FormatFloat(float64(x), 'g', -1, 32), 64)
		if err != nil {
			f = float64(x)
		}
		return abi.Float(f), true
	case float64:
		return abi.Float(x), true
	case []byte:
		return abi.Bytes(x), true
	case ua.StatusCode:
		return abi.Uint(uint64(x)), true
	}
	s, ok := textOf(val)
	return abi.String(s), ok
}

// textOf is the text form of the built-in types that have one.
func textOf(v any) (string, bool) {
	switch x := v.(type) {
	case string:
		return validUTF8(x), true
	case time.Time:
		return timeText(exactTime(x)), true
	case *ua.GUID:
		if len(x.Data4) != 8 {
			return "", true
		}
		return x.String(), true
	case ua.XMLElement:
		return validUTF8(string(x)), true
	case *ua.XMLElement:
		return validUTF8(string(*x)), true
	case *ua.NodeID:
		return nodeText(x), true
	case *ua.ExpandedNodeID:
		return expandedText(x), true
	case *ua.QualifiedName:
		return strconv.Itoa(int(x.NamespaceIndex)) + ":" + validUTF8(x.Name), true
	case *ua.LocalizedText:
		return validUTF8(x.Text), true
	default:
		return "", false
	}
}

func validUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// timeText is RFC 3339 with the 100 ns that OPC UA carries; "" for no time.
func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.9999999Z")
}

func nodeText(n *ua.NodeID) string {
	if n == nil || n.Type() > ua.NodeIDTypeByteString {
		return ""
	}
	return validUTF8(n.String())
}

func expandedText(e *ua.ExpandedNodeID) string {
	if e == nil || e.NodeID == nil {
		return ""
	}
	text := nodeText(e.NodeID)
	if e.NamespaceURI != "" {
		if i := strings.IndexByte(text, ';'); i >= 0 && strings.HasPrefix(text, "ns=") {
			text = text[i+1:]
		}
		text = "nsu=" + validUTF8(e.NamespaceURI) + ";" + text
	}
	if e.ServerIndex != 0 {
		text = fmt.Sprintf("svr=%d;%s", e.ServerIndex, text)
	}
	return text
}

// jsonWriter writes values as JSON in the manner of Part 6, 5.4: NaN and the
// infinities are strings, bytes are base64, times RFC 3339.
type jsonWriter struct {
	types  *typeSystem
	enum   enumNames
	b      []byte
	raw    []byte // of the first structure that could not be decoded
	reason string
}

func (w *jsonWriter) any(v any, depth int) {
	if depth > maxDepth {
		w.b = append(w.b, "null"...)
		return
	}
	if s, ok := textOf(v); ok {
		w.string(s)
		return
	}
	switch x := v.(type) {
	case nil:
		w.b = append(w.b, "null"...)
	case int32:
		w.enumOrInt(int64(x), w.enum)
	case float32:
		w.float(float64(x), 32)
	case float64:
		w.float(x, 64)
	case []byte:
		w.string(base64.StdEncoding.EncodeToString(x))
	case ua.ByteArray:
		w.byteArray(x)
	case *ua.ExtensionObject:
		w.extension(x, depth)
	case *ua.Variant:
		w.any(x.Value(), depth+1)
	case *ua.DataValue:
		w.dataValue(x, depth)
	default:
		w.reflected(reflect.ValueOf(v), depth)
	}
}

func (w *jsonWriter) byteArray(x []byte) {
	w.b = append(w.b, '[')
	for i, c := range x {
		w.comma(i)
		w.b = strconv.AppendUint(w.b, uint64(c), 10)
	}
	w.b = append(w.b, ']')
}

func (w *jsonWriter) reflected(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Bool:
		w.b = strconv.AppendBool(w.b, v.Bool())
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int:
		w.b = strconv.AppendInt(w.b, v.Int(), 10)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		w.b = strconv.AppendUint(w.b, v.Uint(), 10)
	case reflect.Float32, reflect.Float64:
		w.float(v.Float(), v.Type().Bits())
	case reflect.String:
		w.string(validUTF8(v.String()))
	case reflect.Slice:
		w.b = append(w.b, '[')
		for i := range v.Len() {
			w.comma(i)
			w.any(v.Index(i).Interface(), depth+1)
		}
		w.b = append(w.b, ']')
	case reflect.Pointer:
		if v.IsNil() {
			w.b = append(w.b, "null"...)
			return
		}
		w.reflected(v.Elem(), depth)
	case reflect.Struct:
		w.b = append(w.b, '{')
		for i := range v.NumField() {
			w.comma(i)
			w.string(v.Type().Field(i).Name)
			w.b = append(w.b, ':')
			w.any(v.Field(i).Interface(), depth+1)
		}
		w.b = append(w.b, '}')
	default:
		w.b = append(w.b, "null"...)
	}
}

// extension writes a structure: decoded by the server's own definition, as one
// of the standard structures that the library knows, or as type and bytes.
func (w *jsonWriter) extension(x *ua.ExtensionObject, depth int) {
	if x == nil || x.TypeID == nil || x.TypeID.NodeID == nil {
		w.b = append(w.b, "null"...)
		return
	}
	switch body := x.Value.(type) {
	case nil:
		if x.EncodingMask == ua.ExtensionObjectEmpty && x.TypeID.NodeID.IntID() == 0 && x.TypeID.NodeID.StringID() == "" {
			w.b = append(w.b, "null"...)
			return
		}
		w.unknown(x.TypeID, nil, "structure "+expandedText(x.TypeID)+" is not known; its bytes are kept from the next value on")
	case *rawBody:
		start := len(w.b)
		if err := w.structure(x.TypeID.NodeID, body.b, depth); err != nil {
			w.b = w.b[:start]
			w.unknown(x.TypeID, body.b, err.Error())
		}
	default:
		w.reflected(reflect.ValueOf(body), depth)
	}
}

func (w *jsonWriter) unknown(id *ua.ExpandedNodeID, raw []byte, reason string) {
	if w.reason == "" {
		w.raw, w.reason = raw, reason
	}
	if w.types != nil {
		w.types.wanted(ua.NewNodeIDFromExpandedNodeID(id))
	}
	w.b = append(w.b, `{"type_id":`...)
	w.string(expandedText(id))
	w.b = append(w.b, `,"body":`...)
	w.string(base64.StdEncoding.EncodeToString(raw))
	w.b = append(w.b, '}')
}

func (w *jsonWriter) dataValue(x *ua.DataValue, depth int) {
	w.b = append(w.b, `{"value":`...)
	if x.Value != nil {
		w.any(x.Value.Value(), depth+1)
	} else {
		w.b = append(w.b, "null"...)
	}
	w.b = append(w.b, `,"status":`...)
	w.b = strconv.AppendUint(w.b, uint64(x.Status), 10)
	if !x.SourceTimestamp.IsZero() {
		w.b = append(w.b, `,"source_timestamp":`...)
		w.string(timeText(x.SourceTimestamp))
	}
	w.b = append(w.b, '}')
}

func (w *jsonWriter) enumOrInt(n int64, enum enumNames) {
	if name, ok := enum[n]; ok {
		w.string(name)
		return
	}
	w.b = strconv.AppendInt(w.b, n, 10)
}

func (w *jsonWriter) comma(i int) {
	if i > 0 {
		w.b = append(w.b, ',')
	}
}

func (w *jsonWriter) float(f float64, bits int) {
	switch {
	case math.IsNaN(f):
		w.b = append(w.b, `"NaN"`...)
	case math.IsInf(f, 1):
		w.b = append(w.b, `"Infinity"`...)
	case math.IsInf(f, -1):
		w.b = append(w.b, `"-Infinity"`...)
	default:
		w.b = strconv.AppendFloat(w.b, f, 'g', -1, bits)
	}
}

const hexDigits = "0123456789abcdef"

// string writes s, which is valid UTF-8, with the escapes of RFC 8259.
func (w *jsonWriter) string(s string) {
	w.b = append(w.b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			w.b = append(w.b, '\\', c)
		case c >= 0x20:
			w.b = append(w.b, c)
		default:
			w.b = append(w.b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	w.b = append(w.b, '"')
}
