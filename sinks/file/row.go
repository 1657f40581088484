package file

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
)

// addressColumn is the column of the bronze tables that holds the address.
var addressColumn = map[abi.Protocol]string{abi.ProtocolMQTT: "topic", abi.ProtocolOPCUA: "node_id", abi.ProtocolModbus: "address", abi.ProtocolNone: "address"}

// fixed are the columns that are no attributes; an attribute of the same name is
// written with attr_ before it.
var fixed = map[string]bool{
	"record_id": true, "event_time": true, "ingest_time": true, "source_name": true, "topic": true, "node_id": true,
	"address": true, "protocol": true, "value": true, "value_type": true, "status_code": true,
}

// appendRow appends r as one line of JSON: the columns of the bronze tables by
// name, then its attributes. Numbers are exact, bytes are base64, NaN and the
// infinities, which JSON lacks, are text; what r does not have is left out.
func appendRow(dst []byte, r *sinks.Record) ([]byte, error) {
	dst = append(dst, `{"record_id":"`...)
	dst = r.ID.AppendText(dst)
	dst = append(dst, `","event_time":`...)
	dst = strconv.AppendInt(dst, r.EventTime, 10)
	dst = append(dst, `,"ingest_time":`...)
	dst = strconv.AppendInt(dst, r.IngestTime, 10)
	var err error
	field := func(name string, v abi.Value) {
		if err != nil || v.IsNone() {
			return
		}
		dst = append(appendString(append(dst, ','), name), ':')
		if dst, err = appendValue(dst, v); err != nil {
			err = fmt.Errorf("column %s cannot hold a %s value: %w", name, v.Kind(), err)
		}
	}
	if r.Source != "" {
		field("source_name", abi.String(r.Source))
	}
	if r.Address != "" {
		field(addressColumn[r.Protocol], abi.String(r.Address))
	}
	field("protocol", abi.String(r.Protocol.String()))
	field("value", r.Value)
	if !r.Value.IsNone() {
		field("value_type", abi.String(r.Value.Kind().String()))
	}
	field("status_code", abi.Uint(uint64(r.Status)))
	for _, a := range r.Attrs {
		name := a.Key
		if fixed[name] {
			name = "attr_" + name
		}
		field(name, a.Value)
	}
	return append(dst, "}\n"...), err
}

// appendValue appends v as JSON.
func appendValue(dst []byte, v abi.Value) ([]byte, error) {
	switch v.Kind() {
	case abi.KindBool:
		return strconv.AppendBool(dst, v.AsBool()), nil
	case abi.KindInt:
		return strconv.AppendInt(dst, v.AsInt(), 10), nil
	case abi.KindUint:
		return strconv.AppendUint(dst, v.AsUint(), 10), nil
	case abi.KindFloat:
		f := v.AsFloat()
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return strconv.AppendQuote(dst, strconv.FormatFloat(f, 'g', -1, 64)), nil
		}
		return strconv.AppendFloat(dst, f, 'g', -1, 64), nil
	case abi.KindBytes:
		return append(base64.StdEncoding.AppendEncode(append(dst, '"'), []byte(v.Text())), '"'), nil
	case abi.KindJSON:
		compact, err := json.Marshal(json.RawMessage(v.Text())) // one line, checked
		if err != nil {
			return dst, errors.New("it is not valid JSON")
		}
		return append(dst, compact...), nil
	default:
		if !utf8.ValidString(v.Text()) {
			return dst, errors.New("it is not valid UTF-8")
		}
		return appendString(dst, v.Text()), nil
	}
}

func appendString(dst []byte, s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		return append(dst, `""`...) // text always marshals
	}
	return append(dst, b...)
}
