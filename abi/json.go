//go:build !wasip1

package abi

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"
)

// AppendJSON appends r as one line of JSON without a newline, the form for
// people and scripts (dlq show, module test):
//
//	{"event_time":"2026-01-02T03:04:05.000006Z","ingest_time":…,"source":"plc","address":"40001",
//	 "protocol":"modbus","kind":"float64","value":1.5,"status":0,
//	 "attrs":[{"key":"unit","kind":"string","value":"°C"}]}
//
// The form is typed and, for text that is UTF-8, lossless: times outside the
// years 1 to 9999 are integers of microseconds; int64 and uint64 of 2^53 and
// beyond, NaN and infinities are strings; bytes are base64; json is a string of
// its text; no value has kind "none" and no "value".
func AppendJSON(dst []byte, r *Record) []byte {
	dst = appendTime(append(dst, `{"event_time":`...), r.EventTime)
	dst = appendTime(append(dst, `,"ingest_time":`...), r.IngestTime)
	dst = appendQuoted(append(dst, `,"source":`...), r.Source)
	dst = appendQuoted(append(dst, `,"address":`...), r.Address)
	dst = append(append(append(dst, `,"protocol":"`...), r.Protocol.String()...), `",`...)
	dst = appendTyped(dst, r.Value)
	dst = strconv.AppendUint(append(dst, `,"status":`...), uint64(r.Status), 10)
	if len(r.Attrs) > 0 {
		dst = append(dst, `,"attrs":[`...)
		for i := range r.Attrs {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendQuoted(append(dst, `{"key":`...), r.Attrs[i].Key), ',')
			dst = append(appendTyped(dst, r.Attrs[i].Value), '}')
		}
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

const timeForm = "2006-01-02T15:04:05.000000Z"

func appendTime(dst []byte, us int64) []byte {
	t := time.UnixMicro(us).UTC()
	if t.Year() < 1 || t.Year() > 9999 {
		return strconv.AppendInt(dst, us, 10)
	}
	return append(t.AppendFormat(append(dst, '"'), timeForm), '"')
}

// appendTyped appends "kind":…,"value":… of v.
func appendTyped(dst []byte, v Value) []byte {
	dst = append(append(append(dst, `"kind":"`...), v.kind.String()...), '"')
	if v.kind == KindNone {
		return dst
	}
	dst = append(dst, `,"value":`...)
	switch v.kind {
	case KindBool:
		return strconv.AppendBool(dst, v.num != 0)
	case KindInt:
		n := int64(v.num)
		return appendInteger(dst, n > -1<<53 && n < 1<<53, strconv.FormatInt(n, 10))
	case KindUint:
		return appendInteger(dst, v.num < 1<<53, strconv.FormatUint(v.num, 10))
	case KindFloat:
		return appendFloat(dst, v.num)
	case KindBytes:
		return append(base64.StdEncoding.AppendEncode(append(dst, '"'), []byte(v.str)), '"')
	default:
		return appendQuoted(dst, v.str)
	}
}

func appendInteger(dst []byte, bare bool, digits string) []byte {
	if bare {
		return append(dst, digits...)
	}
	return append(append(append(dst, '"'), digits...), '"')
}

func appendFloat(dst []byte, bits uint64) []byte {
	f := math.Float64frombits(bits)
	switch {
	case math.IsInf(f, 1):
		return append(dst, `"Infinity"`...)
	case math.IsInf(f, -1):
		return append(dst, `"-Infinity"`...)
	case f != f && bits == math.Float64bits(math.NaN()):
		return append(dst, `"NaN"`...)
	case f != f:
		return fmt.Appendf(dst, `"NaN:%016x"`, bits)
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, 64)
}

// appendQuoted appends s as a JSON string. What is not UTF-8 becomes U+FFFD.
func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		}
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < 0x20 || c == 0x7f:
			dst = fmt.Appendf(dst, `\u%04x`, c)
		default:
			dst = append(dst, c)
		}
		i++
	}
	return append(dst, '"')
}

// jsonTyped is a value in JSON.
type jsonTyped struct {
	Kind  string          `json:"kind"`
	Value json.RawMessage `json:"value"`
}

// jsonAttr is an attribute in JSON.
type jsonAttr struct {
	Key string `json:"key"`
	jsonTyped
}

// jsonRecord is a record in JSON.
type jsonRecord struct {
	EventTime  json.RawMessage `json:"event_time"`
	IngestTime json.RawMessage `json:"ingest_time"`
	Source     string          `json:"source"`
	Address    string          `json:"address"`
	Protocol   string          `json:"protocol"`
	jsonTyped
	Status uint32     `json:"status"`
	Attrs  []jsonAttr `json:"attrs"`
}

// ParseJSON reads one record in the form of AppendJSON. Keys that are missing
// mean zero, no value and no attributes; keys that are unknown are an error.
func ParseJSON(line []byte) (Record, error) {
	var j jsonRecord
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return Record{}, fmt.Errorf("parse record: %w", err)
	}
	if len(bytes.TrimSpace(line[d.InputOffset():])) > 0 {
		return Record{}, fmt.Errorf("parse record: more than one value on the line")
	}
	r := Record{Source: j.Source, Address: j.Address, Status: j.Status}
	var err error
	if r.EventTime, err = parseTime(j.EventTime); err != nil {
		return Record{}, fmt.Errorf("parse event_time: %w", err)
	}
	if r.IngestTime, err = parseTime(j.IngestTime); err != nil {
		return Record{}, fmt.Errorf("parse ingest_time: %w", err)
	}
	if r.Protocol, err = parseProtocol(j.Protocol); err != nil {
		return Record{}, err
	}
	if r.Value, err = j.parse(); err != nil {
		return Record{}, fmt.Errorf("parse value: %w", err)
	}
	for i := range j.Attrs {
		v, err := j.Attrs[i].parse()
		if err == nil {
			err = checkKey(r.Attrs, j.Attrs[i].Key)
		}
		if err != nil {
			return Record{}, fmt.Errorf("parse attribute %q: %w", j.Attrs[i].Key, err)
		}
		r.Attrs = append(r.Attrs, Attr{Key: j.Attrs[i].Key, Value: v})
	}
	return r, nil
}

func parseTime(raw json.RawMessage) (int64, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return 0, nil
	}
	if raw[0] != '"' {
		return strconv.ParseInt(string(raw), 10, 64)
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return 0, err
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	return t.UnixMicro(), err
}

func parseProtocol(name string) (Protocol, error) {
	if name == "" {
		return ProtocolNone, nil
	}
	for p := ProtocolNone; p <= ProtocolModbus; p++ {
		if p.String() == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("parse protocol: %q is none of none, opcua, mqtt, modbus", name)
}

func (j *jsonTyped) parse() (Value, error) {
	kind, none := KindNone, len(j.Value) == 0 || string(j.Value) == "null"
	if j.Kind != "" {
		for kind < Kind(len(kindNames)) && kindNames[kind] != j.Kind {
			kind++
		}
	}
	switch {
	case j.Kind == "" && !none:
		return Value{}, fmt.Errorf("a value needs a kind: one of %v", kindNames)
	case int(kind) >= len(kindNames):
		return Value{}, fmt.Errorf("kind %q is none of %v", j.Kind, kindNames)
	case kind == KindNone && !none:
		return Value{}, fmt.Errorf("kind none has no value")
	case kind == KindNone:
		return Value{}, nil
	case none:
		return Value{}, fmt.Errorf("kind %s needs a value; without one the kind is none", j.Kind)
	}
	text, quoted, err := scalar(j.Value)
	if err != nil {
		return Value{}, err
	}
	v, err := parseScalar(kind, text, quoted)
	if err != nil {
		return Value{}, fmt.Errorf("%s is no %s: %w", j.Value, kind, err)
	}
	return v, nil
}

// scalar is the text of a JSON scalar, unquoted if it was a string.
func scalar(raw json.RawMessage) (text string, quoted bool, err error) {
	if raw[0] != '"' {
		return string(raw), false, nil
	}
	err = json.Unmarshal(raw, &text)
	return text, true, err
}

func parseScalar(kind Kind, text string, quoted bool) (Value, error) {
	switch kind {
	case KindInt:
		n, err := strconv.ParseInt(text, 10, 64)
		return Int(n), err
	case KindUint:
		n, err := strconv.ParseUint(text, 10, 64)
		return Uint(n), err
	case KindFloat:
		return parseFloat(text, quoted)
	case KindBool:
		if quoted || (text != "true" && text != "false") {
			return Value{}, fmt.Errorf("want true or false")
		}
		return Bool(text == "true"), nil
	}
	if !quoted {
		return Value{}, fmt.Errorf("want a string")
	}
	switch kind {
	case KindBytes:
		b, err := base64.StdEncoding.Strict().DecodeString(text)
		return Bytes(b), err
	case KindJSON:
		if !json.Valid([]byte(text)) {
			return Value{}, fmt.Errorf("the text is not JSON")
		}
		return JSON(text), nil
	default:
		return String(text), nil
	}
}

func parseFloat(text string, quoted bool) (Value, error) {
	if !quoted {
		f, err := strconv.ParseFloat(text, 64)
		return Float(f), err
	}
	switch text {
	case "NaN":
		return Float(math.NaN()), nil
	case "Infinity":
		return Float(math.Inf(1)), nil
	case "-Infinity":
		return Float(math.Inf(-1)), nil
	}
	if len(text) == len("NaN:")+16 && text[:4] == "NaN:" {
		b, err := hex.DecodeString(text[4:])
		if err != nil {
			return Value{}, err
		}
		var bits uint64
		for _, x := range b {
			bits = bits<<8 | uint64(x)
		}
		if v := (Value{kind: KindFloat, num: bits}); v.AsFloat() != v.AsFloat() {
			return v, nil
		}
	}
	return Value{}, fmt.Errorf(`want a number, "NaN", "Infinity" or "-Infinity"`)
}
