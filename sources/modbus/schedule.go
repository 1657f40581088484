package modbus

import (
	"cmp"
	"container/heap"
)

// schedule is the groups of a bus by their deadlines, the earliest first, so
// that none starves however long the others take. Groups with the same deadline
// keep their order. It belongs to the bus's goroutine and implements
// heap.Interface.
type schedule []due

// due is a group's place in a schedule.
type due struct {
	member *member
	group  *pollGroup
	order  int
}

func newSchedule(members []*member) schedule {
	var s schedule
	for _, m := range members {
		for _, g := range m.groups {
			s = append(s, due{m, g, len(s)})
		}
	}
	heap.Init(&s)
	return s
}

func (s schedule) Len() int      { return len(s) }
func (s schedule) Swap(i, j int) { s[i], s[j] = s[j], s[i] }

func (s schedule) Less(i, j int) bool {
	return cmp.Or(s[i].group.next.Compare(s[j].group.next), cmp.Compare(s[i].order, s[j].order)) < 0
}

// Push and Pop are for heap.Interface: a schedule is made whole.
func (s *schedule) Push(x any) { *s = append(*s, x.(due)) }

// Pop is Push's counterpart.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	t := (*s)[last]
	*s = (*s)[:last]
	return t
}
