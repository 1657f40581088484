package modbus

import (
	"math/rand/v2"
	"testing"
)

// TestComparisonFindsEveryChange changes bytes of a reply at random and asks for
// extents of all widths, overlapping ones among them.
func TestComparisonFindsEveryChange(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		a := make([]byte, 2*(1+r.IntN(125)))
		b := append([]byte(nil), a...)
		for range r.IntN(4) {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		}
		c := comparison{a: data{words: a}, b: data{words: b}}
		for from := 0; from < len(a); from += 2 * r.IntN(3) {
			to := min(from+2*(1+r.IntN(6)), len(a))
			want := string(a[from:to]) != string(b[from:to])
			if got := c.differs(extent{uint16(from), uint16(to)}); got != want {
				t.Fatalf("% x and % x, bytes %d to %d: differs %v, want %v", a, b, from, to, got, want)
			}
		}
	}
	c := comparison{a: data{bits: []bool{false, true, false}}, b: data{bits: []bool{false, true, true}}}
	for i, want := range []bool{false, false, true} {
		if got := c.differs(extent{uint16(i), uint16(i + 1)}); got != want {
			t.Errorf("bit %d: differs %v, want %v", i, got, want)
		}
	}
}
