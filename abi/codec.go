//go:build !wasip1

package abi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// restVersion begins every record at rest.
const restVersion = 1

// ErrCorrupt is wrapped by every error about bytes that are not records at rest.
var ErrCorrupt = errors.New("corrupt record")

// AppendRecord appends the canonical encoding of r, the form in which records
// rest in the spool. It is a sequence of fields without padding (docs/abi.md):
//
//	u8 version | varint event_time | varint ingest_time - event_time | u8 protocol
//	| text source | text address | value | uvarint status | uvarint n, n * (text key, value)
//
// text is a uvarint length and bytes; value is a kind and what the kind needs.
// Encodings may be concatenated.
func AppendRecord(dst []byte, r *Record) []byte {
	dst = append(dst, restVersion)
	dst = binary.AppendVarint(dst, r.EventTime)
	dst = binary.AppendVarint(dst, r.IngestTime-r.EventTime)
	dst = append(dst, byte(r.Protocol))
	dst = appendText(dst, r.Source)
	dst = appendText(dst, r.Address)
	dst = appendValue(dst, r.Value)
	dst = binary.AppendUvarint(dst, uint64(r.Status))
	dst = binary.AppendUvarint(dst, uint64(len(r.Attrs)))
	for i := range r.Attrs {
		dst = appendText(dst, r.Attrs[i].Key)
		dst = appendValue(dst, r.Attrs[i].Value)
	}
	return dst
}

// AppendRecords appends the canonical encodings of recs.
func AppendRecords(dst []byte, recs []Record) []byte {
	for i := range recs {
		dst = AppendRecord(dst, &recs[i])
	}
	return dst
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func appendValue(dst []byte, v Value) []byte {
	dst = append(dst, byte(v.kind))
	switch v.kind {
	case KindBool:
		return append(dst, byte(v.num))
	case KindInt:
		return binary.AppendVarint(dst, int64(v.num))
	case KindUint:
		return binary.AppendUvarint(dst, v.num)
	case KindFloat:
		return binary.LittleEndian.AppendUint64(dst, v.num)
	case KindString, KindBytes, KindJSON:
		return appendText(dst, v.str)
	default:
		return dst
	}
}

// DecodeRecords reads what AppendRecords wrote, to the end of b. The records
// share one copy of b. What it accepts encodes to the same bytes again. Errors
// wrap ErrCorrupt.
func DecodeRecords(b []byte) ([]Record, error) {
	if len(b) == 0 {
		return nil, nil
	}
	c := reader{b: string(b)}
	recs := make([]Record, 0, 1+len(b)/48) // 50 to 70 bytes each are usual
	for len(c.b) > 0 {
		start := len(b) - len(c.b)
		recs = append(recs, Record{})
		c.record(&recs[len(recs)-1])
		if c.err != nil {
			return nil, fmt.Errorf("%w %d at byte %d: %w", ErrCorrupt, len(recs)-1, start, c.err)
		}
	}
	return recs, nil
}

// reader takes fields off the front of b until the first error.
type reader struct {
	b     string
	chunk []Attr
	err   error
}

func (c *reader) record(r *Record) {
	if v := c.byte(); v != restVersion && c.err == nil {
		c.err = fmt.Errorf("version %d, this edgehost reads version %d", v, restVersion)
		return
	}
	r.EventTime = c.varint()
	r.IngestTime = r.EventTime + c.varint()
	r.Protocol = Protocol(c.byte())
	r.Source = c.text()
	r.Address = c.text()
	r.Value = c.value()
	status := c.uvarint()
	if status > math.MaxUint32 {
		c.fail("status over 32 bits")
	}
	r.Status = uint32(status)
	n := c.uvarint()
	if n == 0 || c.err != nil {
		return
	}
	if n > uint64(len(c.b)/2) { // an attribute takes at least two bytes
		c.fail("more attributes than bytes")
		return
	}
	if uint64(len(c.chunk)) < n {
		// As many again as fit into what is left, so that allocation stays in
		// proportion to the input.
		c.chunk = make([]Attr, max(n, uint64(min(len(c.b)/16, 256))))
	}
	r.Attrs, c.chunk = c.chunk[:n:n], c.chunk[n:]
	for i := range r.Attrs {
		r.Attrs[i].Key = c.text()
		r.Attrs[i].Value = c.value()
		if c.err != nil {
			return
		}
	}
}

func (c *reader) value() Value {
	v := Value{kind: Kind(c.byte())}
	switch v.kind {
	case KindNone:
	case KindBool:
		v.num = uint64(c.byte())
		if v.num > 1 {
			c.fail("bool is neither 0 nor 1")
		}
	case KindInt:
		v.num = uint64(c.varint())
	case KindUint:
		v.num = c.uvarint()
	case KindFloat:
		if len(c.b) < 8 {
			c.fail("cut short")
			return v
		}
		v.num = binary.LittleEndian.Uint64([]byte(c.b[:8]))
		c.b = c.b[8:]
	case KindString, KindBytes, KindJSON:
		v.str = c.text()
	default:
		c.fail("unknown kind")
	}
	return v
}

func (c *reader) text() string {
	n := c.uvarint()
	if n > uint64(len(c.b)) {
		c.fail("cut short")
	}
	if c.err != nil {
		return ""
	}
	s := c.b[:n]
	c.b = c.b[n:]
	return s
}

func (c *reader) byte() byte {
	if len(c.b) == 0 {
		c.fail("cut short")
		return 0
	}
	x := c.b[0]
	c.b = c.b[1:]
	return x
}

// uvarint reads a base-128 number and refuses longer spellings than the
// shortest.
func (c *reader) uvarint() uint64 {
	var x uint64
	for i := range min(len(c.b), binary.MaxVarintLen64) {
		b := c.b[i]
		if b < 0x80 {
			if (i > 0 && b == 0) || (i == binary.MaxVarintLen64-1 && b > 1) {
				break
			}
			c.b = c.b[i+1:]
			return x | uint64(b)<<(7*i)
		}
		x |= uint64(b&0x7f) << (7 * i)
	}
	c.fail("bad number")
	return 0
}

func (c *reader) varint() int64 {
	u := c.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (c *reader) fail(why string) {
	if c.err == nil {
		c.err = errors.New(why)
	}
}
