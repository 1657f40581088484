package modbus

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestScheduleServesTheEarliest holds the heap against a search through all
// groups.
func TestScheduleServesTheEarliest(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	start := time.Now()
	m := &member{}
	for range 37 {
		m.groups = append(m.groups, &pollGroup{next: start.Add(time.Duration(r.IntN(5)) * time.Millisecond)})
	}
	s := newSchedule([]*member{m})
	for range 2000 {
		want := m.groups[0]
		for _, g := range m.groups {
			if g.next.Before(want.next) {
				want = g
			}
		}
		if s[0].group != want {
			t.Fatalf("the first is due at %v, want %v, or another of the same time first", s[0].at.Sub(start), want.next.Sub(start))
		}
		want.next = want.next.Add(time.Duration(1+r.IntN(9)) * time.Millisecond)
		s.settle()
	}
}
