package modbus

import (
	"fmt"
	"strconv"
	"strings"
)

// RegisterType is one of the four tables of a Modbus device.
type RegisterType string

// The four tables, and the function codes that read them.
const (
	Coil     RegisterType = "coil"     // bits, function 1
	Discrete RegisterType = "discrete" // bits, function 2
	Holding  RegisterType = "holding"  // 16-bit registers, function 3
	Input    RegisterType = "input"    // 16-bit registers, function 4
)

var registerTypes = []RegisterType{Holding, Input, Coil, Discrete}

// bits reports whether the table holds bits, not registers.
func (t RegisterType) bits() bool { return t == Coil || t == Discrete }

// digit is the leading digit of the table in Modicon notation (Modicon Modbus
// Protocol Reference Guide PI-MBUS-300).
func (t RegisterType) digit() int {
	switch t {
	case Discrete:
		return 1
	case Input:
		return 3
	case Holding:
		return 4
	}
	return 0
}

// Addressing says how the numbers in registers[].address count.
type Addressing string

// The ways of counting. Auto takes a number that is written like Modicon
// notation for the configured register_type as such, refuses one that is
// written like Modicon notation for another register_type, and counts every
// other number from zero.
const (
	Auto      Addressing = "auto"
	Modicon   Addressing = "modicon"    // 40001 or 400001 is the first holding register
	ZeroBased Addressing = "zero_based" // 0 is the first register: the number on the wire
	OneBased  Addressing = "one_based"  // 1 is the first register
)

var addressings = []Addressing{Auto, Modicon, ZeroBased, OneBased}

// Address is registers[].address as it is written in the configuration. The
// text is kept, because leading zeros carry meaning in Modicon notation (00010
// is a coil) and YAML would read them as an octal number.
type Address string

// UnmarshalYAML takes the scalar as it is written, without its quotes.
func (a *Address) UnmarshalYAML(b []byte) error {
	text := strings.TrimSpace(string(b))
	if i := strings.Index(text, " #"); i >= 0 {
		text = strings.TrimSpace(text[:i])
	}
	*a = Address(strings.Trim(text, `"'`))
	return nil
}

// place is an address resolved: where a register lies on the wire, and how it
// is called by the person who configured it.
type place struct {
	offset int // number on the wire, from 0
	number int // as configured, without leading zeros
	digits int // 5 or 6 in Modicon notation, else 0
}

// at returns the place n registers (or bits) further on.
func (p place) at(n int) place {
	return place{offset: p.offset + n, number: p.number + n, digits: p.digits}
}

// label is the number as it stands in record addresses: in Modicon notation
// with all its digits (40001, 00017), else after the register type
// (holding:100).
func (p place) label(t RegisterType) string {
	if p.digits > 0 {
		return fmt.Sprintf("%0*d", p.digits, p.number)
	}
	return string(t) + ":" + strconv.Itoa(p.number)
}

const tableSize = 1 << 16 // registers, or bits, in a table

// resolve applies the address rules. Its errors end in what to do next.
func (a Address) resolve(mode Addressing, t RegisterType) (place, error) {
	n, err := a.parse()
	if err != nil {
		return place{}, err
	}
	switch mode {
	case ZeroBased:
		return a.plain(n, n)
	case OneBased:
		if n == 0 {
			return place{}, fmt.Errorf("0 does not exist when addresses count from one; the first register is 1 (or use addressing: zero_based)")
		}
		return a.plain(n, n-1)
	case Modicon:
		return a.modicon(n, t)
	}
	return a.auto(n, t)
}

func (a Address) parse() (int, error) {
	if a == "" {
		return 0, fmt.Errorf("is missing; give the number of the register, for example 40001")
	}
	text, base := string(a), 10
	if hex, ok := strings.CutPrefix(strings.ToLower(text), "0x"); ok {
		text, base = hex, 16
	}
	n, err := strconv.ParseUint(text, base, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a register number; write digits only, for example 40001", string(a))
	}
	return int(n), nil
}

func (a Address) plain(n, offset int) (place, error) {
	if offset >= tableSize {
		return place{}, fmt.Errorf("%d is beyond the last register of a table (%d)", n, n-offset+tableSize-1)
	}
	return place{offset: offset, number: n}, nil
}

// written finds the table and the place that n means when it is read as
// Modicon notation; ok is false when it cannot be read so.
func (a Address) written(n int) (t RegisterType, p place, ok bool) {
	for _, t := range []RegisterType{Discrete, Input, Holding} {
		d := t.digit()
		if n > d*10_000 && n <= d*10_000+9_999 && len(a) == 5 {
			return t, place{offset: n - d*10_000 - 1, number: n, digits: 5}, true
		}
		if n >= d*100_000 && n <= d*100_000+tableSize && n > d*100_000 && len(a) == 6 {
			return t, place{offset: n - d*100_000 - 1, number: n, digits: 6}, true
		}
	}
	return "", place{}, false
}

// zeros reports whether a is a coil in Modicon notation with leading zeros.
func (a Address) zeros() bool {
	return (len(a) == 5 || len(a) == 6) && a[0] == '0' && !strings.HasPrefix(strings.ToLower(string(a)), "0x")
}

func (a Address) modicon(n int, t RegisterType) (place, error) {
	if w, p, ok := a.written(n); ok {
		if w != t {
			return place{}, a.contradiction(w, t)
		}
		return p, nil
	}
	if t == Coil && n >= 1 && n <= 9_999 && len(a) <= 5 {
		return place{offset: n - 1, number: n, digits: 5}, nil
	}
	if t == Coil && n >= 1 && n <= tableSize && len(a) == 6 {
		return place{offset: n - 1, number: n, digits: 6}, nil
	}
	first := "1 (or 00001, 000001)"
	if d := t.digit(); d > 0 {
		first = fmt.Sprintf("%d or %d", d*10_000+1, d*100_000+1)
	}
	return place{}, fmt.Errorf("%s is not Modicon notation for register_type %s, where the first register is %s; correct it, or use addressing: zero_based", string(a), t, first)
}

func (a Address) auto(n int, t RegisterType) (place, error) {
	if w, p, ok := a.written(n); ok {
		if w != t {
			return place{}, a.contradiction(w, t)
		}
		return p, nil
	}
	if a.zeros() && n > 0 {
		return place{}, fmt.Errorf("%s is written like a coil in Modicon notation; set addressing: modicon, or addressing: zero_based and write it without leading zeros", string(a))
	}
	if n >= tableSize {
		return place{}, fmt.Errorf("%d is neither Modicon notation nor below %d; set addressing and a number that fits it", n, tableSize)
	}
	return place{offset: n, number: n}, nil
}

func (a Address) contradiction(written, configured RegisterType) error {
	return fmt.Errorf("%s is Modicon notation for register_type %s, but register_type is %s; correct one of them, or set addressing: zero_based if %s counts from zero",
		string(a), written, configured, string(a))
}
