package sandbox

import "github.com/tetratelabs/wazero/experimental"

// memory is the linear memory of one instance: a span of address space reserved
// up to the limit, so that growing copies nothing.
type memory struct {
	most    uint64 // bytes
	refused bool   // the module asked for more than most since the flag was cleared
	span    []byte
	used    uint64
}

// Allocate implements experimental.MemoryAllocator. It is called once for each
// instantiation.
func (m *memory) Allocate(_, most uint64) experimental.LinearMemory {
	m.span, m.used = reserve(min(most, m.most)), 0
	return m
}

// Reallocate implements experimental.LinearMemory.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.span)) {
		m.refused = true
		return nil
	}
	m.used = size
	return m.span[:size:size]
}

// bytes is the linear memory as it is now: a view until the module runs again.
func (m *memory) bytes() []byte { return m.span[:m.used:m.used] }

// Free implements experimental.LinearMemory. No view of the memory may be used
// afterwards.
func (m *memory) Free() {
	release(m.span)
	m.span, m.used = nil, 0
}
