package modbus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/edgehost/edgehost/abi"
)

// DataType says how the bits of one value are read.
type DataType string

// The data types. bool on a register is true when the register is not zero;
// bit is one bit of a register (key bit, 0 is the least significant). 8-bit
// types take the low byte unless the name says high. string holds two
// characters a register (key length, in characters). bcd16 has four decimal
// digits in a register, bcd32 eight in two.
const (
	TypeBool      DataType = "bool"
	TypeBit       DataType = "bit"
	TypeInt8      DataType = "int8"
	TypeInt8High  DataType = "int8_high"
	TypeUint8     DataType = "uint8"
	TypeUint8High DataType = "uint8_high"
	TypeInt16     DataType = "int16"
	TypeUint16    DataType = "uint16"
	TypeInt32     DataType = "int32"
	TypeUint32    DataType = "uint32"
	TypeInt64     DataType = "int64"
	TypeUint64    DataType = "uint64"
	TypeFloat16   DataType = "float16" // IEEE 754 binary16
	TypeFloat32   DataType = "float32"
	TypeFloat64   DataType = "float64"
	TypeString    DataType = "string"
	TypeBCD16     DataType = "bcd16"
	TypeBCD32     DataType = "bcd32"
)

// DataTypes lists every data type, in the order of the documentation.
var DataTypes = []DataType{TypeBool, TypeBit, TypeInt8, TypeInt8High, TypeUint8, TypeUint8High, TypeInt16, TypeUint16,
	TypeInt32, TypeUint32, TypeInt64, TypeUint64, TypeFloat16, TypeFloat32, TypeFloat64, TypeString, TypeBCD16, TypeBCD32}

// width is the number of registers of a value; strings have a length of their own.
func (d DataType) width() int {
	switch d {
	case TypeInt32, TypeUint32, TypeFloat32, TypeBCD32:
		return 2
	case TypeInt64, TypeUint64, TypeFloat64:
		return 4
	}
	return 1
}

// numeric reports whether scale and offset apply.
func (d DataType) numeric() bool { return d != TypeBool && d != TypeBit && d != TypeString }

// ByteOrder says in which order the bytes of a value stand in its registers. A
// is the most significant byte of the first 32 bits; 64-bit values follow the
// same two rules: CDAB reverses the registers, BADC swaps the two bytes within
// each register, DCBA does both. Types of one register, and strings, know only
// the swap within registers.
type ByteOrder string

// The byte orders.
const (
	ABCD ByteOrder = "ABCD" // big-endian, as the Modbus specification has it
	CDAB ByteOrder = "CDAB" // low register first
	BADC ByteOrder = "BADC" // bytes swapped within registers
	DCBA ByteOrder = "DCBA" // little-endian
)

var byteOrders = []ByteOrder{ABCD, CDAB, BADC, DCBA}

// orderAliases are other words for the orders, as devices' manuals have them.
var orderAliases = map[string]ByteOrder{
	"big": ABCD, "big_endian": ABCD, "little": DCBA, "little_endian": DCBA,
	"word_swap": CDAB, "byte_swap": BADC,
}

func parseOrder(s string) (ByteOrder, error) {
	if o := ByteOrder(strings.ToUpper(s)); slices.Contains(byteOrders, o) {
		return o, nil
	}
	if o, ok := orderAliases[strings.ToLower(s)]; ok {
		return o, nil
	}
	return "", fmt.Errorf("%q is not a byte order; use ABCD (big), CDAB (word_swap), BADC (byte_swap) or DCBA (little)", s)
}

// errDigit says that a BCD value holds something else.
var errDigit = errors.New("register does not hold BCD: a digit is above 9; check data_type and byte_order")

// decode reads the value of p from its registers as they came over the wire
// (big-endian within each register). It does not apply scale and offset. It
// fails only for BCD registers that hold no decimal digits.
func (p *Point) decode(wire []byte) (abi.Value, error) {
	var number [8]byte // what all types but long strings fit into, off the heap
	b := append(number[:0], wire...)
	p.reorder(b)
	switch p.DataType {
	case TypeBool:
		return abi.Bool(binary.BigEndian.Uint16(b) != 0), nil
	case TypeBit:
		return abi.Bool(binary.BigEndian.Uint16(b)>>p.Bit&1 != 0), nil
	case TypeInt8:
		return abi.Int(int64(int8(b[1]))), nil
	case TypeInt8High:
		return abi.Int(int64(int8(b[0]))), nil
	case TypeUint8:
		return abi.Uint(uint64(b[1])), nil
	case TypeUint8High:
		return abi.Uint(uint64(b[0])), nil
	case TypeInt16:
		return abi.Int(int64(int16(binary.BigEndian.Uint16(b)))), nil
	case TypeUint16:
		return abi.Uint(uint64(binary.BigEndian.Uint16(b))), nil
	case TypeInt32:
		return abi.Int(int64(int32(binary.BigEndian.Uint32(b)))), nil
	case TypeUint32:
		return abi.Uint(uint64(binary.BigEndian.Uint32(b))), nil
	case TypeInt64:
		return abi.Int(int64(binary.BigEndian.Uint64(b))), nil
	case TypeUint64:
		return abi.Uint(binary.BigEndian.Uint64(b)), nil
	case TypeFloat16:
		return abi.Float(float16(binary.BigEndian.Uint16(b))), nil
	case TypeFloat32:
		return abi.Float(float64(math.Float32frombits(binary.BigEndian.Uint32(b)))), nil
	case TypeFloat64:
		return abi.Float(math.Float64frombits(binary.BigEndian.Uint64(b))), nil
	case TypeString:
		return abi.String(text(b[:p.Length])), nil
	default: // bcd16, bcd32: New lets no other type through
		return bcd(b)
	}
}

// reorder puts the most significant byte of b first.
func (p *Point) reorder(b []byte) {
	if p.ByteOrder == BADC || p.ByteOrder == DCBA {
		for i := 0; i+1 < len(b); i += 2 {
			b[i], b[i+1] = b[i+1], b[i]
		}
	}
	if (p.ByteOrder == CDAB || p.ByteOrder == DCBA) && p.DataType != TypeString {
		for i, j := 0, len(b)-2; i < j; i, j = i+2, j-2 {
			b[i], b[i+1], b[j], b[j+1] = b[j], b[j+1], b[i], b[i+1]
		}
	}
}

func bcd(b []byte) (abi.Value, error) {
	var n uint64
	for _, c := range b {
		high, low := c>>4, c&15
		if high > 9 || low > 9 {
			return abi.Value{}, errDigit
		}
		n = n*100 + uint64(high)*10 + uint64(low)
	}
	return abi.Uint(n), nil
}

// text ends at the first NUL and loses the spaces that pad it. Bytes that are
// not UTF-8 are read as Latin-1.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	s = strings.TrimRight(s, " ")
	if utf8.ValidString(s) {
		return s
	}
	runes := make([]rune, len(s))
	for i := range len(s) {
		runes[i] = rune(s[i])
	}
	return string(runes)
}

func float16(h uint16) float64 {
	sign, exp, frac := 1.0, int(h>>10&0x1f), float64(h&0x3ff)
	if h>>15 != 0 {
		sign = -1
	}
	switch exp {
	case 0:
		return sign * math.Ldexp(frac, -24)
	case 0x1f:
		if frac != 0 {
			return math.NaN()
		}
		return math.Inf(int(sign))
	}
	return sign * math.Ldexp(1024+frac, exp-25)
}
