package sandbox

import "github.com/tetratelabs/wazero/api"

// snapshot is the state of an instance after init: linear memory and mutable
// globals. Tables and dropped segments are not part of it, so a module that
// changes them is started afresh instead.
type snapshot struct {
	exact      bool // restoring gives the state that was taken
	memory     []byte
	globals    []api.MutableGlobal
	values     []uint64
	base, room uint32 // of the arena
	mono       int64
}

// take remembers the state of i.
func (s *snapshot) take(i *Instance) {
	info := i.module.meter
	*s = snapshot{exact: !info.StatefulTables && !info.OpaqueGlobals, memory: s.memory[:0],
		base: i.base, room: i.room, mono: i.mono}
	if !s.exact {
		return
	}
	view, _ := i.mod.Memory().Read(0, i.mod.Memory().Size())
	s.memory = append(s.memory, view...)
	for _, name := range info.Globals {
		g := i.mod.ExportedGlobal(name).(api.MutableGlobal)
		s.globals = append(s.globals, g)
		s.values = append(s.values, g.Get())
	}
}

// restore puts the state back and reports whether it could: not after the memory
// has grown, since it cannot shrink.
func (s *snapshot) restore(i *Instance) bool {
	mod := i.mod
	if !s.exact || mod.IsClosed() || int(mod.Memory().Size()) != len(s.memory) {
		return false
	}
	if !mod.Memory().Write(0, s.memory) {
		return false
	}
	for k, g := range s.globals {
		g.Set(s.values[k])
	}
	i.base, i.room, i.mono = s.base, s.room, s.mono
	return true
}

// maxSpare bounds the memory that strict modules start with beyond their minimum, in
// pages: all of it is copied after every batch.
const maxSpare = 8 << 20 >> 16

// reset puts the instance back into the state of its snapshot. One that cannot be
// put back is dropped, and the next call starts it afresh; a strict one with the
// memory that it needed, so that it need not grow again.
func (i *Instance) reset() {
	if i.snapshot.restore(i) {
		return
	}
	if i.env.Strict && i.snapshot.exact {
		i.spare = min(i.spare+uint32((i.memory.used-i.fresh)>>16), maxSpare)
	}
	i.drop()
}
