package modbus

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestSmokePlanOfScatteredFields is the bar of the field: 200 fields in blocks
// of four with gaps of one to four, over a span of 308 registers.
func TestSmokePlanOfScatteredFields(t *testing.T) {
	c := Config{}
	at := 0
	for block := range 50 {
		for range 4 {
			c.Registers = append(c.Registers, Register{Address: Address(fmt.Sprint(at)), RegisterType: Holding})
			at++
		}
		at += block%4 + 1
	}
	if span := at - (49%4 + 1); span < 300 || span > 330 {
		t.Fatalf("the fields span %d registers", span)
	}
	plan, err := Plan(c)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan) != 3 {
		t.Errorf("got %d requests, want 3:\n%v", len(plan), plan)
	}
	strict := 0
	c.MaxGap = &strict
	if plan, err = Plan(c); err != nil || len(plan) != 50 {
		t.Errorf("with max_gap 0: got %d requests (%v), want 50", len(plan), err)
	}
}

func TestPlanPrintsRequests(t *testing.T) {
	plan, err := Plan(read(t, seed))
	if err != nil {
		t.Fatal(err)
	}
	want := "unit 1 holding: 10 registers at offset 0 every 1s: 5 values, 1:40001 to 1:40009"
	if len(plan) != 1 || plan[0].String() != want {
		t.Errorf("got %v, want %s", plan, want)
	}
}

func TestPlanSeparatesUnitsTablesAndIntervals(t *testing.T) {
	plan, err := Plan(read(t, `
registers:
  - {address: 40001, register_type: holding}
  - {address: 40002, register_type: holding, slave_id: 2}
  - {address: 40003, register_type: holding, poll_interval_ms: 100}
  - {address: 40004, register_type: holding}
  - {address: 30002, register_type: input}
  - {address: 0, count: 2000, register_type: coil}
  - {address: 2000, count: 1, register_type: coil}
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range plan {
		got = append(got, fmt.Sprintf("%d %s %d+%d %v", r.Slave, r.Type, r.Start, r.Count, r.Interval))
	}
	want := "1 holding 2+1 100ms, 1 holding 0+4 1s, 1 input 1+1 1s, 1 coil 0+2000 1s, 1 coil 2000+1 1s, 2 holding 1+1 1s"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

func TestPlanProperties(t *testing.T) {
	types := []DataType{TypeUint16, TypeFloat32, TypeInt64, TypeString}
	rapid.Check(t, func(t *rapid.T) {
		gap := rapid.IntRange(0, 20).Draw(t, "gap")
		most := rapid.IntRange(4, maxRegisters).Draw(t, "most")
		c := Config{MaxGap: &gap, MaxRegistersPerRequest: most, Addressing: ZeroBased}
		for n := range rapid.IntRange(1, 60).Draw(t, "registers") {
			r := Register{Name: fmt.Sprint(n), Address: Address(fmt.Sprint(rapid.IntRange(0, 600).Draw(t, "address"))), RegisterType: rapid.SampledFrom(registerTypes).Draw(t, "table")}
			if slave := rapid.IntRange(0, 2).Draw(t, "slave"); slave > 0 {
				r.SlaveID = &slave
			}
			r.Values = rapid.IntRange(1, 5).Draw(t, "values")
			if !r.RegisterType.bits() {
				r.DataType = rapid.SampledFrom(types).Draw(t, "type")
			}
			if r.DataType == TypeString {
				r.Length = rapid.IntRange(1, 2*most).Draw(t, "length")
			}
			c.Registers = append(c.Registers, r)
		}
		points, err := Expand(c)
		if err != nil {
			t.Fatal(err)
		}
		memory := drawMemory(t, len(points))
		checkPlan(t, points, limits{most, gap}, nil)
		checkPlan(t, points, limits{most, gap}, memory)
	})
}

func drawMemory(t *rapid.T, points int) *memory {
	m := newMemory()
	for range rapid.IntRange(0, 5).Draw(t, "facts") {
		i := rapid.IntRange(0, points-1).Draw(t, "point")
		if rapid.Bool().Draw(t, "cut") {
			m.cuts[i] = true
		} else {
			m.holes[i] = refusal{err: illegalAddress}
		}
	}
	return m
}

// checkPlan checks that every point that the device accepts is read exactly
// once, wholly, and that no request breaks a limit or what memory knows.
func checkPlan(t *rapid.T, points []Point, l limits, m *memory) {
	times := make([]int, len(points))
	for _, g := range groups(points) {
		most, gap := l.most, l.gap
		if g.table.bits() {
			most, gap = most*16, gap*16
		}
		for _, run := range l.runs(points, g.points, m) {
			start, count := span(points, run)
			if count > most {
				t.Fatalf("%d registers in one request, the most are %d", count, most)
			}
			end := int(start)
			for n, i := range run {
				p := points[i]
				times[i]++
				if p.Slave != g.slave || p.Type != g.table || p.Offset < start || int(p.Offset)+p.Width > int(start)+count {
					t.Fatalf("point %+v is not in %d+%d", p, start, count)
				}
				if int(p.Offset)-end > gap {
					t.Fatalf("hole of %d before %s, the widest is %d", int(p.Offset)-end, p.Address, gap)
				}
				if n > 0 && m.cut(i) {
					t.Fatalf("%s is not at the beginning of its request", p.Address)
				}
				end = max(end, int(p.Offset)+p.Width)
			}
		}
	}
	for i, n := range times {
		if want := map[bool]int{true: 0, false: 1}[m.refused(i)]; n != want {
			t.Fatalf("%s is read %d times, want %d", points[i].Address, n, want)
		}
	}
}

// TestPlanIsGreedy checks that no two neighbouring requests could be one.
func TestPlanIsGreedy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var points []Point
		for _, at := range rapid.SliceOfN(rapid.Uint16Range(0, 500), 1, 80).Draw(t, "offsets") {
			points = append(points, Point{Type: Holding, Offset: at, Width: 1})
		}
		g := groups(points)[0]
		l := limits{125, 8}
		runs := l.runs(points, g.points, nil)
		for n := 1; n < len(runs); n++ {
			next := runs[n][0]
			joined := slices.Concat(runs[n-1], []int{next})
			_, count := span(points, joined)
			before, width := span(points, runs[n-1])
			if count <= l.most && int(points[next].Offset)-int(before)-width <= l.gap {
				t.Fatalf("point at %d would have fitted into the request at %d", points[next].Offset, before)
			}
		}
	})
}
