package meter

import (
	"fmt"
	"strings"
)

// scanExports notes the exports and adds the counters and every mutable global.
func (m *module) scanExports(r *reader) {
	n := m.items(r, "exports")
	saved := m.savedGlobals()
	out := appendU32(nil, uint32(n+len(saved)+2))
	for range n {
		ex := Export{Name: r.name()}
		kind, index := r.byte(), r.u32()
		if r.err != nil {
			return
		}
		if strings.HasPrefix(ex.Name, reserved) {
			m.refuse("it exports %.80q: names that begin with %s belong to the host", ex.Name, reserved)
		}
		if ex.Type = m.itemType(kind, index); ex.Type == "" {
			r.fail("export %.80q: item %d of kind %d does not exist", ex.Name, index, kind)
			return
		}
		ex.Kind = kindNames[kind]
		m.info.Exports = append(m.info.Exports, ex)
		if kind == kindFunc {
			index = m.shift(index)
		}
		out = appendU32(append(appendName(out, ex.Name), kind), index)
	}
	for _, g := range saved {
		name := fmt.Sprintf("%s%d", savedGlobal, g)
		m.info.Globals = append(m.info.Globals, name)
		out = appendU32(append(appendName(out, name), kindGlobal), g)
	}
	out = appendU32(append(appendName(out, FuelGlobal), kindGlobal), m.fuel)
	m.rewritten[secExport] = appendU32(append(appendName(out, DepthGlobal), kindGlobal), m.depth)
}

// savedGlobals lists the mutable globals whose value fits 64 bits.
func (m *module) savedGlobals() (saved []uint32) {
	for i, g := range m.globals {
		switch {
		case !g.mutable:
		case g.value == typeV128 || isRef(g.value):
			m.info.OpaqueGlobals = true
		default:
			saved = append(saved, uint32(i))
		}
	}
	return saved
}

// itemType returns the type of an item in text form, "" when there is none.
func (m *module) itemType(kind byte, index uint32) string {
	i := int64(index)
	switch {
	case kind == kindFunc && i < int64(len(m.funcs)):
		return m.types[m.funcs[i]].String()
	case kind == kindTable && i < int64(len(m.tables)):
		return m.tables[i].String()
	case kind == kindMemory && i < int64(len(m.memories)):
		return m.memories[i].String()
	case kind == kindGlobal && i < int64(len(m.globals)):
		return m.globals[i].String()
	}
	return ""
}

func (m *module) scanStart(r *reader) {
	f := m.funcIndex(r)
	m.info.Start = true
	m.rewritten[secStart] = appendU32(nil, m.shift(f))
}

// scanElements copies the element segments with the function indices moved.
func (m *module) scanElements(r *reader) {
	n := m.items(r, "element segments")
	out := appendU32(nil, uint32(n))
	total := 0
	for range n {
		flags := r.u32()
		if flags > 7 {
			r.fail("element segment of kind %d", flags)
		}
		out = appendU32(out, flags)
		passive, explicit, exprs := flags&1 != 0, flags&2 != 0, flags&4 != 0
		if explicit && !passive {
			out = appendU32(out, r.u32()) // table
		}
		if !passive {
			out = m.constExpr(r, out)
		}
		if passive || explicit {
			out = append(out, m.elementKind(r, exprs))
		}
		items := r.count("elements")
		total += items
		out = appendU32(out, uint32(items))
		for range items {
			if exprs {
				out = m.constExpr(r, out)
			} else {
				out = appendU32(out, m.shift(m.funcIndex(r)))
			}
			if r.err != nil {
				return
			}
		}
		if r.err != nil {
			return
		}
	}
	if limit := int64(m.cfg.Tables) * int64(m.cfg.TableEntries); int64(total) > limit {
		m.refuse("its element segments hold %d entries, %d are allowed", total, limit)
	}
	m.rewritten[secElement] = out
}

// elementKind reads the reference type of expressions or the kind of indices.
func (m *module) elementKind(r *reader, exprs bool) byte {
	if exprs {
		return m.refType(r)
	}
	kind := r.byte()
	if kind != 0 {
		r.fail("element kind 0x%02x is not known", kind)
	}
	return kind
}

// scanData checks the form of the data segments; they stay as they are.
func (m *module) scanData(r *reader) {
	for range m.items(r, "data segments") {
		switch flags := r.u32(); flags {
		case 2:
			if r.u32() != 0 {
				m.refuse(needsMultiMem)
			}
			m.constExpr(r, nil)
		case 0:
			m.constExpr(r, nil)
		case 1:
		default:
			r.fail("data segment of kind %d", flags)
		}
		m.info.DataBytes += len(r.bytes(r.u32()))
		if r.err != nil {
			return
		}
	}
}
