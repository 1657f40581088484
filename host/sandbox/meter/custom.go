package meter

import "slices"

// scanCustom notes the custom sections. The name section is understood, since
// traps are read with it; the others are dropped: what they say of addresses in
// the code is no longer true. As the specification has it, a custom section whose
// contents are torn does not make the module invalid: it is dropped.
func (m *module) scanCustom(custom []reader) {
	for _, r := range custom {
		name := r.name()
		if r.err != nil {
			m.refuse("custom section: %v", r.err)
			continue
		}
		m.info.Custom = append(m.info.Custom, name)
		switch {
		case name == "name" && m.funcNames == nil:
			m.scanNames(r)
		case name == "producers":
			m.info.Producers = producers(r)
		}
	}
}

// Subsections of the name section (specification 2.0, section 7.4.1).
const (
	namesModule = 0
	namesFuncs  = 1
)

func (m *module) scanNames(r reader) {
	for r.more() {
		id := r.byte()
		sub := reader{buf: r.bytes(r.u32())}
		switch id {
		case namesModule:
			if name := sub.name(); sub.end() == nil {
				m.info.Name = name
			}
		case namesFuncs:
			if names := m.readNames(&sub); sub.end() == nil {
				m.funcNames = names
			}
		}
	}
}

func (m *module) readNames(r *reader) map[uint32]string {
	n := r.count("names")
	if n > m.cfg.Functions+m.cfg.Items {
		return nil
	}
	names := make(map[uint32]string, n)
	for range n {
		f := r.u32()
		name := r.name()
		if r.err != nil {
			return nil
		}
		names[f] = name
	}
	return names
}

// names returns the name section of the rewritten module, nil without one.
func (m *module) names() []byte {
	if m.funcNames == nil && m.info.Name == "" {
		return nil
	}
	out := appendName(nil, "name")
	if m.info.Name != "" {
		out = appendSection(out, namesModule, appendName(nil, m.info.Name))
	}
	names := make(map[uint32]string, len(m.funcNames)+2)
	for f, name := range m.funcNames {
		if int64(f) < int64(len(m.funcs)) {
			names[m.shift(f)] = name
		}
	}
	names[m.yield] = reserved + YieldName
	for i, name := range addedNames[:m.added()] {
		names[m.check+uint32(i)] = name
	}
	indices := make([]uint32, 0, len(names))
	for f := range names {
		indices = append(indices, f)
	}
	slices.Sort(indices)
	funcs := appendU32(nil, uint32(len(indices)))
	for _, f := range indices {
		funcs = appendName(appendU32(funcs, f), names[f])
	}
	return appendSection(out, namesFuncs, funcs)
}

// producers reads the section of the tool conventions; what does not parse is
// left out, since nothing depends on it.
func producers(r reader) (out []string) {
	const most = 16
	for range r.count("fields") {
		field := r.name()
		for range r.count("values") {
			tool, version := r.name(), r.name()
			if r.err != nil || len(out) == most {
				return out
			}
			text := field + ": " + tool
			if version != "" {
				text += " " + version
			}
			out = append(out, text)
		}
	}
	return out
}
