package modbus

import (
	"slices"
	"time"
)

// schedule is the groups of a bus by their deadlines, as a binary heap with the
// earliest first, so that none starves however long the others take. Groups with
// the same deadline keep their order. It belongs to the bus's goroutine, which
// asks it before every poll.
type schedule []due

// due is a group and its deadline.
type due struct {
	at     time.Time
	order  int
	member *member
	group  *pollGroup
}

func newSchedule(members []*member) schedule {
	var s schedule
	for _, m := range members {
		for _, g := range m.groups {
			s = append(s, due{g.next, len(s), m, g})
		}
	}
	// What is sorted is a heap.
	slices.SortStableFunc(s, func(a, b due) int { return a.at.Compare(b.at) })
	return s
}

func (a *due) before(b *due) bool {
	c := a.at.Compare(b.at)
	return c < 0 || c == 0 && a.order < b.order
}

// settle moves the first group to its place after its deadline has moved on.
func (s schedule) settle() {
	d := s[0]
	d.at = d.group.next
	i := 0
	for {
		child := 2*i + 1
		if child >= len(s) {
			break
		}
		if child+1 < len(s) && s[child+1].before(&s[child]) {
			child++
		}
		if !s[child].before(&d) {
			break
		}
		s[i], i = s[child], child
	}
	s[i] = d
}
