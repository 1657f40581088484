package modbus

import (
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/edgehost/edgehost/abi"
)

// golden holds the value of each type and its registers as they go over the
// wire under each byte order.
var golden = []struct {
	point Point
	want  abi.Value
	wire  [4]string // ABCD, CDAB, BADC, DCBA
}{
	{Point{DataType: TypeBool}, abi.Bool(true), [4]string{"0100", "0100", "0001", "0001"}},
	{Point{DataType: TypeBool}, abi.Bool(false), [4]string{"0000", "0000", "0000", "0000"}},
	{Point{DataType: TypeBit, Bit: 0}, abi.Bool(true), [4]string{"0001", "0001", "0100", "0100"}},
	{Point{DataType: TypeBit, Bit: 9}, abi.Bool(true), [4]string{"0200", "0200", "0002", "0002"}},
	{Point{DataType: TypeBit, Bit: 15}, abi.Bool(false), [4]string{"7fff", "7fff", "ff7f", "ff7f"}},
	{Point{DataType: TypeInt8}, abi.Int(-2), [4]string{"01fe", "01fe", "fe01", "fe01"}},
	{Point{DataType: TypeInt8High}, abi.Int(-2), [4]string{"fe01", "fe01", "01fe", "01fe"}},
	{Point{DataType: TypeUint8}, abi.Uint(254), [4]string{"01fe", "01fe", "fe01", "fe01"}},
	{Point{DataType: TypeUint8High}, abi.Uint(254), [4]string{"fe01", "fe01", "01fe", "01fe"}},
	{Point{DataType: TypeInt16}, abi.Int(-2), [4]string{"fffe", "fffe", "feff", "feff"}},
	{Point{DataType: TypeUint16}, abi.Uint(0x1234), [4]string{"1234", "1234", "3412", "3412"}},
	{Point{DataType: TypeInt32}, abi.Int(-559038737), [4]string{"deadbeef", "beefdead", "addeefbe", "efbeadde"}},
	{Point{DataType: TypeUint32}, abi.Uint(0xdeadbeef), [4]string{"deadbeef", "beefdead", "addeefbe", "efbeadde"}},
	{Point{DataType: TypeInt64}, abi.Int(-0x123456789abcdf0), [4]string{"fedcba9876543210", "32107654ba98fedc", "dcfe98ba54761032", "1032547698badcfe"}},
	{Point{DataType: TypeUint64}, abi.Uint(0xfedcba9876543210), [4]string{"fedcba9876543210", "32107654ba98fedc", "dcfe98ba54761032", "1032547698badcfe"}},
	{Point{DataType: TypeFloat16}, abi.Float(-1.5), [4]string{"be00", "be00", "00be", "00be"}},
	{Point{DataType: TypeFloat16}, abi.Float(math.Ldexp(1, -24)), [4]string{"0001", "0001", "0100", "0100"}},
	{Point{DataType: TypeFloat16}, abi.Float(65504), [4]string{"7bff", "7bff", "ff7b", "ff7b"}},
	{Point{DataType: TypeFloat16}, abi.Float(math.Inf(-1)), [4]string{"fc00", "fc00", "00fc", "00fc"}},
	{Point{DataType: TypeFloat32}, abi.Float(float64(float32(21.5))), [4]string{"41ac0000", "000041ac", "ac410000", "0000ac41"}},
	{Point{DataType: TypeFloat64}, abi.Float(-math.Pi), [4]string{"c00921fb54442d18", "2d18544421fbc009", "09c0fb214454182d", "182d4454fb2109c0"}},
	{Point{DataType: TypeString, Length: 5}, abi.String("PUMP1"), [4]string{"50554d503120", "50554d503120", "5550504d2031", "5550504d2031"}},
	{Point{DataType: TypeString, Length: 6}, abi.String("AB"), [4]string{"414200585900", "414200585900", "424158000059", "424158000059"}},
	{Point{DataType: TypeString, Length: 4}, abi.String("5°C"), [4]string{"35b04320", "35b04320", "b0352043", "b0352043"}},
	{Point{DataType: TypeBCD16}, abi.Uint(1234), [4]string{"1234", "1234", "3412", "3412"}},
	{Point{DataType: TypeBCD32}, abi.Uint(12345678), [4]string{"12345678", "56781234", "34127856", "78563412"}},
}

func TestDecodeGolden(t *testing.T) {
	seen := map[DataType]bool{}
	for _, g := range golden {
		seen[g.point.DataType] = true
		for i, order := range byteOrders {
			wire, err := hex.DecodeString(g.wire[i])
			if err != nil {
				t.Fatal(err)
			}
			p := g.point
			p.ByteOrder = order
			got, err := p.decode(wire)
			if err != nil || got != g.want {
				t.Errorf("%s %s of %s: got %v (%v), want %v", p.DataType, order, g.wire[i], got, err, g.want)
			}
		}
	}
	for _, d := range DataTypes {
		if !seen[d] {
			t.Errorf("no golden vector for %s", d)
		}
	}
}

func TestDecodeNaN(t *testing.T) {
	p := Point{DataType: TypeFloat16, ByteOrder: ABCD}
	if v, err := p.decode([]byte{0x7e, 0x01}); err != nil || !math.IsNaN(v.AsFloat()) {
		t.Errorf("got %v (%v), want NaN", v, err)
	}
}

func TestDecodeRefusesBCDThatIsNone(t *testing.T) {
	for _, p := range []Point{{DataType: TypeBCD16, ByteOrder: ABCD, Width: 1}, {DataType: TypeBCD32, ByteOrder: DCBA, Width: 2}} {
		if v, err := p.decode([]byte{0x12, 0x3a, 0x12, 0x34}[:2*p.Width]); !errors.Is(err, errDigit) {
			t.Errorf("%s: got %v (%v), want errDigit", p.DataType, v, err)
		}
	}
}

func TestByteOrderNames(t *testing.T) {
	for name, want := range map[string]ByteOrder{"ABCD": ABCD, "cdab": CDAB, "badc": BADC, "DCBA": DCBA,
		"big": ABCD, "little": DCBA, "word_swap": CDAB, "byte_swap": BADC, "Big_Endian": ABCD} {
		if got, err := parseOrder(name); got != want || err != nil {
			t.Errorf("%q: got %s (%v), want %s", name, got, err, want)
		}
	}
	if _, err := parseOrder("ACBD"); err == nil || !strings.Contains(err.Error(), "word_swap") {
		t.Errorf("ACBD: got %v, want an error that lists the orders", err)
	}
}

func FuzzDecode(f *testing.F) {
	for i, g := range golden {
		wire, err := hex.DecodeString(g.wire[0])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, uint8(i), uint8(i%4))
	}
	f.Fuzz(func(t *testing.T, wire []byte, typ, order uint8) {
		p := Point{DataType: DataTypes[int(typ)%len(DataTypes)], ByteOrder: byteOrders[order%4], Width: 1}
		if p.Width = p.DataType.width(); p.DataType == TypeString {
			p.Length = len(wire) / 2 * 2
			p.Width = len(wire) / 2
		}
		if len(wire) < 2*p.Width || p.Width == 0 {
			return
		}
		before := string(wire)
		v, err := p.decode(wire[:2*p.Width])
		if (err != nil) != v.IsNone() {
			t.Errorf("%s: value %v beside error %v", p.DataType, v, err)
		}
		if string(wire) != before {
			t.Errorf("%s changed its input", p.DataType)
		}
	})
}
