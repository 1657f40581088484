package modbus

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestComparisonFindsEveryChange changes bytes of replies at random, to requests
// whose points are of all widths, overlap, and leave holes.
func TestComparisonFindsEveryChange(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 5_000 {
		table := registerTypes[n%len(registerTypes)]
		points, list := scatter(r, table)
		_, count := span(points, list)
		last := make(data, count*table.step())
		now := slices.Clone(last)
		for range r.IntN(4) {
			now[r.IntN(len(now))] ^= 1
		}
		var want []int
		for n, i := range list {
			from := int(points[i].Offset-points[list[0]].Offset) * table.step()
			to := from + points[i].Width*table.step()
			if !slices.Equal(last[from:to], now[from:to]) {
				want = append(want, n)
			}
		}
		if got := slices.Collect(newQuiet(points, list).changed(last, now)); !slices.Equal(got, want) {
			t.Fatalf("% x and % x, points %+v: got %v, want %v", last, now, points, got, want)
		}
	}
}

// scatter makes points of one request, in the order of offsets.
func scatter(r *rand.Rand, table RegisterType) (points []Point, list []int) {
	for i := range 1 + r.IntN(20) {
		p := Point{Type: table, Offset: uint16(1000 + r.IntN(40)), Width: 1, Report: OnChange}
		if !table.bits() {
			p.Width = 1 + r.IntN(6)
		}
		points, list = append(points, p), append(list, i)
	}
	slices.SortStableFunc(points, func(a, b Point) int { return cmp.Compare(a.Offset, b.Offset) })
	return points, list
}
