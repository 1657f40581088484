package modbus

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// refusedRetry is how long a point that the device refused is left alone: a
// device that is reprogrammed gets its points back without a restart.
const refusedRetry = time.Minute

// memory is what a source has learned about the addresses that a device
// refuses, by indexes of points. It outlives connections. A nil memory knows
// nothing.
type memory struct {
	version atomic.Int64 // grows with every change

	mu    sync.Mutex
	cuts  map[int]bool    // a request must begin with this point: before it lies a hole, or a limit of the device
	holes map[int]refusal // points refused on their own
}

type refusal struct {
	err   error
	retry time.Time
}

func newMemory() *memory { return &memory{cuts: map[int]bool{}, holes: map[int]refusal{}} }

func (m *memory) cut(point int) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cuts[point]
}

func (m *memory) refused(point int) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.holes[point]
	return ok
}

func (m *memory) setCut(point int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cuts[point] = true
	m.version.Add(1)
}

func (m *memory) refuse(point int, err error, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holes[point] = refusal{err, now.Add(refusedRetry)}
	m.version.Add(1)
}

// acceptAll forgets the refusals of list: one address came back, so the others
// may have.
func (m *memory) acceptAll(list []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range list {
		delete(m.holes, i)
	}
	m.version.Add(1)
}

// holed reports whether points are refused.
func (m *memory) holed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.holes) > 0
}

// holesOf returns those of list that are refused, with the reasons, and the one
// that has waited long enough to be tried again, or -1.
func (m *memory) holesOf(list []int, now time.Time) (refused []int, reasons []error, retry int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	retry = -1
	for _, i := range list {
		h, ok := m.holes[i]
		if !ok {
			continue
		}
		if retry < 0 && !now.Before(h.retry) {
			retry = i
			continue
		}
		refused, reasons = append(refused, i), append(reasons, h.err)
	}
	return slices.Clip(refused), reasons, retry
}
