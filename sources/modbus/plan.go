package modbus

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Request is one read that a source sends: the points it covers lie wholly in it.
type Request struct {
	Slave    uint8
	Type     RegisterType
	Interval time.Duration
	Start    uint16   // first register (or bit) on the wire, from 0
	Count    int      // registers, or bits
	Points   []string // record addresses, in the order of their offsets
}

// String is the line that the command modbus plan prints.
func (r Request) String() string {
	what := "registers"
	if r.Type.bits() {
		what = "bits"
	}
	return fmt.Sprintf("unit %d %s: %d %s at offset %d every %v: %d values, %s to %s",
		r.Slave, r.Type, r.Count, what, r.Start, r.Interval, len(r.Points), r.Points[0], r.Points[len(r.Points)-1])
}

// Plan returns the requests that a source of this configuration sends, by unit,
// table and interval. A device that refuses an address makes its source split
// requests at run time; the plan is what it begins with. The error joins
// everything that Validate finds.
func Plan(c Config) ([]Request, error) {
	points, err := Expand(c)
	if err != nil {
		return nil, err
	}
	limits := c.withDefaults().limits()
	var out []Request
	for _, g := range groups(points) {
		for _, run := range limits.runs(points, g.points, nil) {
			start, count := span(points, run)
			r := Request{Slave: g.slave, Type: g.table, Interval: g.interval, Start: start, Count: count}
			for _, i := range run {
				r.Points = append(r.Points, points[i].Address)
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// groupKey is what points must share to be read in one request.
type groupKey struct {
	slave    uint8
	table    RegisterType
	interval time.Duration
}

// group is the points of one key, as indexes in the order of their offsets.
type group struct {
	groupKey
	points []int
}

// groups sorts points into groups, in the order of unit, table and interval.
func groups(points []Point) []group {
	byKey := map[groupKey][]int{}
	for i := range points {
		k := groupKey{points[i].Slave, points[i].Type, points[i].Interval}
		byKey[k] = append(byKey[k], i)
	}
	out := make([]group, 0, len(byKey))
	for k, list := range byKey {
		slices.SortStableFunc(list, func(a, b int) int { return cmp.Compare(points[a].Offset, points[b].Offset) })
		out = append(out, group{k, list})
	}
	slices.SortFunc(out, func(a, b group) int {
		return cmp.Or(cmp.Compare(a.slave, b.slave), cmp.Compare(slices.Index(registerTypes, a.table), slices.Index(registerTypes, b.table)),
			cmp.Compare(a.interval, b.interval))
	})
	return out
}

// limits bounds requests, in registers; for bits every number counts 16 times.
type limits struct{ most, gap int }

func (c Config) limits() limits { return limits{c.MaxRegistersPerRequest, *c.MaxGap} }

// runs cuts list, the points of one group, into the runs that one request each
// reads. It merges greedily while the hole is at most gap and the whole at most
// most. Where memory says that the device refuses, it cuts.
func (l limits) runs(points []Point, list []int, m *memory) [][]int {
	if len(list) > 0 && points[list[0]].Type.bits() {
		l = limits{l.most * bitsPerWord, l.gap * bitsPerWord}
	}
	var out [][]int
	var start, end int
	open := false
	for _, i := range list {
		p := &points[i]
		if m.refused(i) {
			open = false
			continue
		}
		from, to := int(p.Offset), int(p.Offset)+p.Width
		if open && !m.cut(i) && from-end <= l.gap && max(end, to)-start <= l.most {
			out[len(out)-1] = append(out[len(out)-1], i)
			end = max(end, to)
			continue
		}
		out = append(out, []int{i})
		start, end, open = from, to, true
	}
	return out
}

// span is the registers (or bits) that cover the points of list, which is in
// the order of offsets.
func span(points []Point, list []int) (start uint16, count int) {
	start = points[list[0]].Offset
	for _, i := range list {
		count = max(count, int(points[i].Offset)+points[i].Width-int(start))
	}
	return start, count
}
