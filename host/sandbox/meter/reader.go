package meter

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// reader walks over one section or function body. The first error sticks: it
// moves the reader to its end, so that every loop ends and the caller checks
// err once.
type reader struct {
	buf  []byte
	pos  int
	base int // offset of buf[0] in the module, for messages
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("at offset 0x%x: %s", r.base+r.pos, fmt.Sprintf(format, args...))
	}
	r.pos = len(r.buf)
}

func (r *reader) more() bool { return r.pos < len(r.buf) }

func (r *reader) byte() byte {
	if r.pos >= len(r.buf) {
		r.fail("it ends in the middle of an item")
		return 0
	}
	b := r.buf[r.pos]
	r.pos++
	return b
}

// u32 reads an unsigned LEB128 of at most 32 bits, padded or not.
func (r *reader) u32() uint32 {
	if r.pos < len(r.buf) && r.buf[r.pos] < 0x80 {
		r.pos++
		return uint32(r.buf[r.pos-1])
	}
	var v uint64
	for shift := 0; shift < 35; shift += 7 {
		b := r.byte()
		if r.err != nil {
			return 0
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if v > 0xffff_ffff {
				break
			}
			return uint32(v)
		}
	}
	r.fail("a number does not fit 32 bits")
	return 0
}

// signed reads a signed LEB128 of bits bits: 32, 33 or 64.
func (r *reader) signed(bits int) int64 {
	var v int64
	for shift := 0; shift < bits; shift += 7 {
		b := r.byte()
		if r.err != nil {
			return 0
		}
		v |= int64(b&0x7f) << shift
		if b >= 0x80 {
			continue
		}
		if left := bits - shift; left < 7 {
			// The bits beyond the width must repeat the sign.
			if rest := int8(b<<1) >> left; rest != 0 && rest != -1 {
				break
			}
		}
		if shift+7 < 64 && b&0x40 != 0 {
			v |= -1 << (shift + 7)
		}
		return v
	}
	r.fail("a signed number does not fit %d bits", bits)
	return 0
}

func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(len(r.buf)-r.pos) {
		r.fail("%d bytes announced, %d left", n, len(r.buf)-r.pos)
		return nil
	}
	r.pos += int(n)
	return r.buf[r.pos-int(n) : r.pos]
}

func (r *reader) name() string {
	b := r.bytes(r.u32())
	if !utf8.Valid(b) {
		r.fail("a name is not UTF-8")
		return ""
	}
	return string(b)
}

// count reads the length of a vector whose items take at least one byte each.
func (r *reader) count(what string) int {
	n := r.u32()
	if uint64(n) > uint64(len(r.buf)-r.pos) {
		r.fail("%d %s announced in %d bytes", n, what, len(r.buf)-r.pos)
		return 0
	}
	return int(n)
}

// end fails when anything is left.
func (r *reader) end() error {
	if r.err == nil && r.more() {
		r.fail("%d bytes too many", len(r.buf)-r.pos)
	}
	return r.err
}

func appendU32(b []byte, v uint32) []byte { return binary.AppendUvarint(b, uint64(v)) }

// putPadded writes an unsigned LEB128 of exactly five bytes.
func putPadded(b []byte, v uint32) {
	for i := range 5 {
		b[i] = byte(v>>(7*i))&0x7f | 0x80
	}
	b[4] &= 0x7f
}

// appendS64 appends a signed LEB128, as i64.const takes it.
func appendS64(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if (v == 0 && c&0x40 == 0) || (v == -1 && c&0x40 != 0) {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

func appendName(b []byte, s string) []byte { return append(appendU32(b, uint32(len(s))), s...) }

// appendSection appends a section with its id and size.
func appendSection(b []byte, id byte, body []byte) []byte {
	b = appendU32(append(b, id), uint32(len(body)))
	return append(b, body...)
}
