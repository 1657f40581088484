package opcua

import (
	"context"
	"slices"
	"sync"
	"syscall"
)

// meter counts the bytes that arrive over the connections of one source. The
// library keeps its connection to itself, so the kernel is asked for what it
// counts anyway. Any goroutine may call any method.
type meter struct {
	mu    sync.Mutex
	conns []metered
}

type metered struct {
	conn syscall.RawConn
	seen uint64 // bytes that were taken
}

// watch is the ControlContext of a net.Dialer.
func (m *meter) watch(_ context.Context, _, _ string, c syscall.RawConn) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns = append(m.conns, metered{conn: c})
	return nil
}

// take returns the bytes that arrived since the last call. Those of a connection
// that was closed in between are lost.
func (m *meter) take() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	total := 0
	m.conns = slices.DeleteFunc(m.conns, func(c metered) bool { return c.conn.Control(func(uintptr) {}) != nil })
	for i := range m.conns {
		c := &m.conns[i]
		// An error is a connection that has just been closed.
		_ = c.conn.Control(func(fd uintptr) {
			if n := received(fd); n > c.seen {
				total += int(n - c.seen)
				c.seen = n
			}
		})
	}
	return total
}
