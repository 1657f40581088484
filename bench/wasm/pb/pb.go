// Package pb is the protobuf of peer/peer.proto by hand, on protowire: the host's
// half (records to bytes and back), and the operators of the Go guest on bytes.
package pb

import (
	"errors"
	"math"

	"github.com/edgehost/edgehost/abi"
	"google.golang.org/protobuf/encoding/protowire"
)

// Append appends the records as a peer.Batch.
func Append(dst []byte, recs []abi.Record) []byte {
	for i := range recs {
		r := &recs[i]
		n := 0
		for k := range r.Attrs {
			s := attrSize(&r.Attrs[k])
			n += 1 + protowire.SizeBytes(s)
		}
		n += 4 + protowire.SizeVarint(uint64(r.EventTime)) + protowire.SizeVarint(uint64(r.IngestTime)) +
			protowire.SizeBytes(len(r.Source)) + protowire.SizeBytes(len(r.Address)) +
			1 + protowire.SizeVarint(uint64(r.Protocol)) + valueSize(r.Value)
		if r.Status != 0 {
			n += 1 + protowire.SizeVarint(uint64(r.Status))
		}
		dst = append(dst, 1<<3|2)
		dst = protowire.AppendVarint(dst, uint64(n))
		dst = appendVarint(dst, 1, uint64(r.EventTime))
		dst = appendVarint(dst, 2, uint64(r.IngestTime))
		dst = appendText(dst, 3, r.Source)
		dst = appendText(dst, 4, r.Address)
		dst = appendVarint(dst, 5, uint64(r.Protocol))
		if r.Status != 0 {
			dst = appendVarint(dst, 6, uint64(r.Status))
		}
		dst = appendValue(dst, r.Value, 7, 8, 10, 11)
		for k := range r.Attrs {
			a := &r.Attrs[k]
			dst = append(dst, 12<<3|2)
			dst = protowire.AppendVarint(dst, uint64(attrSize(a)))
			dst = appendText(dst, 1, a.Key)
			dst = appendValue(dst, a.Value, 2, 3, 5, 6)
		}
	}
	return dst
}

func attrSize(a *abi.Attr) int { return 1 + protowire.SizeBytes(len(a.Key)) + valueSize(a.Value) }

func valueSize(v abi.Value) int {
	switch v.Kind() {
	case abi.KindBool:
		return 2
	case abi.KindInt:
		return 1 + protowire.SizeVarint(v.Bits())
	case abi.KindFloat:
		return 9
	case abi.KindString:
		return 1 + protowire.SizeBytes(len(v.Text()))
	}
	return 0
}

func appendVarint(dst []byte, field byte, v uint64) []byte {
	return protowire.AppendVarint(append(dst, field<<3), v)
}

func appendText(dst []byte, field byte, s string) []byte {
	return protowire.AppendString(append(dst, field<<3|2), s)
}

func appendValue(dst []byte, v abi.Value, b, i, d, s byte) []byte {
	switch v.Kind() {
	case abi.KindBool:
		return appendVarint(dst, b, v.Bits())
	case abi.KindInt:
		return appendVarint(dst, i, v.Bits())
	case abi.KindFloat:
		return protowire.AppendFixed64(append(dst, d<<3|1), v.Bits())
	case abi.KindString:
		return appendText(dst, s, v.Text())
	}
	return dst
}

var errWire = errors.New("not a peer.Batch")

// field is one field: bits for numbers, text for what has a length.
type field struct {
	num  protowire.Number
	bits uint64
	text []byte
}

func next(b []byte) (f field, rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return f, nil, errWire
	}
	f.num, b = num, b[n:]
	switch typ {
	case protowire.VarintType:
		f.bits, n = protowire.ConsumeVarint(b)
	case protowire.Fixed64Type:
		f.bits, n = protowire.ConsumeFixed64(b)
	case protowire.BytesType:
		f.text, n = protowire.ConsumeBytes(b)
	default:
		return f, nil, errWire
	}
	if n < 0 {
		return f, nil, errWire
	}
	return f, b[n:], nil
}

func (f *field) value(b, i, d, s protowire.Number) abi.Value {
	switch f.num {
	case b:
		return abi.Bool(f.bits != 0)
	case i:
		return abi.Int(int64(f.bits))
	case d:
		return abi.Float(math.Float64frombits(f.bits))
	case s:
		return abi.String(string(f.text))
	}
	return abi.Value{}
}

// Decode reads a peer.Batch into recs, which it reuses; attributes and texts are
// new.
func Decode(b []byte, recs []abi.Record) ([]abi.Record, error) {
	recs = recs[:0]
	var attrs []abi.Attr
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return nil, err
		}
		b = rest
		recs = append(recs, abi.Record{})
		r := &recs[len(recs)-1]
		if len(attrs) < 16 {
			attrs = make([]abi.Attr, 512)
		}
		n := 0
		for in := f.text; len(in) > 0; {
			if f, in, err = next(in); err != nil {
				return nil, err
			}
			switch f.num {
			case 1:
				r.EventTime = int64(f.bits)
			case 2:
				r.IngestTime = int64(f.bits)
			case 3:
				r.Source = string(f.text)
			case 4:
				r.Address = string(f.text)
			case 5:
				r.Protocol = abi.Protocol(f.bits)
			case 6:
				r.Status = uint32(f.bits)
			case 12:
				a := &attrs[n]
				n++
				for sub := f.text; len(sub) > 0; {
					if f, sub, err = next(sub); err != nil {
						return nil, err
					}
					if f.num == 1 {
						a.Key = string(f.text)
					} else {
						a.Value = f.value(2, 3, 5, 6)
					}
				}
			default:
				r.Value = f.value(7, 8, 10, 11)
			}
		}
		r.Attrs, attrs = attrs[:n:n], attrs[n:]
	}
	return recs, nil
}

// Transform runs an operator on the bytes of a batch as a guest does that works on
// bytes: it decodes what it needs and copies the rest. dst is appended to.
func Transform(op byte, dst, b []byte) ([]byte, error) {
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return nil, err
		}
		b = rest
		rec := f.text
		var address []byte
		var value field
		for in := rec; len(in) > 0; {
			if f, in, err = next(in); err != nil {
				return nil, err
			}
			switch f.num {
			case 4:
				address = f.text
			case 7, 8, 10, 11:
				value = f
			}
		}
		v := math.Float64frombits(value.bits)
		if op == 'f' && value.num == 10 && !(v > 50) {
			continue
		}
		if op != 's' {
			dst = protowire.AppendBytes(append(dst, 1<<3|2), rec)
			continue
		}
		grown := protowire.SizeBytes(len(address)+len(prefix)) - protowire.SizeBytes(len(address))
		dst = protowire.AppendVarint(append(dst, 1<<3|2), uint64(len(rec)+grown))
		for in := rec; len(in) > 0; {
			var after []byte
			if f, after, err = next(in); err != nil {
				return nil, err
			}
			switch {
			case f.num == 4:
				dst = protowire.AppendVarint(append(dst, 4<<3|2), uint64(len(address)+len(prefix)))
				dst = append(append(dst, prefix...), address...)
			case f.num == 10:
				dst = protowire.AppendFixed64(append(dst, 10<<3|1), math.Float64bits(v*1.8+32))
			default:
				dst = append(dst, in[:len(in)-len(after)]...)
			}
			in = after
		}
	}
	return dst, nil
}

const prefix = "site/"
