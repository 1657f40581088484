package sandbox

import (
	"github.com/edgehost/edgehost/host/sandbox/meter"
	"github.com/tetratelabs/wazero/api"
)

// snapshot is the state of an instance after init: linear memory and mutable
// globals. Tables and dropped segments are not part of it, so a module that
// changes them is started afresh instead.
type snapshot struct {
	exact   bool // restoring gives the state that was taken
	memory  []byte
	globals []api.MutableGlobal
	values  []uint64
}

// take remembers the state of mod.
func (s *snapshot) take(mod api.Module, info *meter.Info) {
	*s = snapshot{exact: !info.StatefulTables && !info.OpaqueGlobals}
	if !s.exact {
		return
	}
	view, _ := mod.Memory().Read(0, mod.Memory().Size())
	s.memory = append(s.memory, view...)
	for _, name := range info.Globals {
		g := mod.ExportedGlobal(name).(api.MutableGlobal)
		s.globals = append(s.globals, g)
		s.values = append(s.values, g.Get())
	}
}

// restore puts the state back and reports whether it could: not after the memory
// has grown, since it cannot shrink.
func (s *snapshot) restore(mod api.Module) bool {
	if !s.exact || mod.IsClosed() || int(mod.Memory().Size()) != len(s.memory) {
		return false
	}
	if !mod.Memory().Write(0, s.memory) {
		return false
	}
	for k, g := range s.globals {
		g.Set(s.values[k])
	}
	return true
}
