package meter

import "time"

// smallBody and smallCost bound the functions without loops and calls that are
// charged at once, at the entry, for the most that they can use: accessors. They
// do not ask whether fuel is left; their callers do.
const (
	smallBody = 96
	smallCost = 32
)

// code rewrites all function bodies and adds that of the check function.
func (m *module) code() []byte {
	r := reader{buf: m.bodies[secCode], base: m.bases[secCode]}
	n := r.count("bodies")
	if r.err == nil && n != len(m.funcs)-m.importedFuncs {
		m.refuse("code section: %d bodies for %d functions", n, len(m.funcs)-m.importedFuncs)
		return nil
	}
	out := make([]byte, 0, len(r.buf)+len(r.buf)/2+1024)
	out = append(out, 0, 0, 0, 0, 0) // the number of bodies, when it is known
	c := coder{m: m}
	for i := range n {
		body := r.bytes(r.u32())
		if r.err != nil || len(m.reasons) == maxReasons {
			break
		}
		fn := uint32(m.importedFuncs + i)
		m.info.CodeBytes += len(body)
		m.info.LargestBody = max(m.info.LargestBody, len(body))
		if len(body) > m.cfg.BodyBytes {
			m.refuse("%s has a body of %d bytes, %d are allowed: split it", m.funcName(fn), len(body), m.cfg.BodyBytes)
			continue
		}
		out = c.function(out, fn, reader{buf: body, base: r.base + r.pos - len(body)})
	}
	if err := r.end(); err != nil && len(m.reasons) < maxReasons {
		m.refuse("code section: %v", err)
	}
	if limit := 10 * m.cfg.CompileTime; m.compile > limit {
		m.refuse("its functions would take about %v to compile together, %v are allowed", m.compile.Round(time.Second), limit)
	}
	putPadded(out, uint32(n+m.added()))
	return m.appendAdded(out)
}

// function appends the rewritten body of one function with its size.
func (c *coder) function(out []byte, fn uint32, r reader) []byte {
	m := c.m
	t := m.types[m.funcs[fn]]
	groups, declared := c.scanLocals(&r, len(t.params))
	if c.locals > m.cfg.Locals {
		m.refuse("%s has %d locals, %d are allowed: split it", m.funcName(fn), c.locals, m.cfg.Locals)
		return out
	}
	c.plain, c.local = len(r.buf) <= smallBody, false
	c.run(r, len(t.results))
	if c.plain && (c.calls || c.checks || c.cost > smallCost) {
		c.plain, c.local = false, c.loops
		c.run(r, len(t.results))
	} else if !c.plain && c.loops {
		c.local = true
		c.run(r, len(t.results))
	}
	if c.r.err != nil {
		m.refuse("%s: %v", m.funcName(fn), c.r.err)
		return out
	}
	estimate := c.size.compileTime(c.locals)
	if estimate > m.cfg.CompileTime {
		m.refuse("%s would take about %v to compile, %v are allowed: it has too many blocks, nested loops and locals (%d); split it",
			m.funcName(fn), estimate.Round(time.Millisecond), m.cfg.CompileTime, c.locals)
		return out
	}
	m.compile += estimate
	head := c.prologue(groups, declared, fn)
	c.epilogue()
	out = appendU32(out, uint32(len(head)+len(c.out)))
	return append(append(out, head...), c.out...)
}

// run rewrites the body from where the locals end.
func (c *coder) run(r reader, results int) {
	c.r, c.out = r, c.out[:0]
	c.pending, c.cost, c.size = 0, 0, bodySize{}
	c.calls, c.checks, c.loops, c.wrapped = false, false, false, false
	c.constEnd, c.setEnd = -1, -1
	c.tmp, c.fuel = uint32(c.locals), uint32(c.locals)+1
	c.body(results)
}

// scanLocals reads the declarations of the locals; it returns how many groups
// there are and their text.
func (c *coder) scanLocals(r *reader, params int) (groups int, text []byte) {
	groups = r.count("groups of locals")
	start := r.pos
	total := uint64(params)
	for range groups {
		total += uint64(r.u32())
		c.m.valueType(r)
	}
	c.locals = int(min(total, 1<<31))
	return groups, r.buf[min(start, r.pos):r.pos]
}

// weight is how many frames of the depth limit a frame counts for. The engine
// gives every value that it cannot hold in a register a slot of its own; the
// divisors keep the stack of 2,000 frames below the engine's 50 MB.
func (c *coder) weight() int64 {
	return int64(1 + (c.locals+c.size.values)/256 + len(c.r.buf)/2048)
}

// prologue returns the locals and what runs when the function is entered.
func (c *coder) prologue(groups int, declared []byte, fn uint32) []byte {
	added := []byte{1, typeI32, 1, typeI64} // tmp, fuel
	switch {
	case c.plain:
		added = nil
	case !c.local:
		added = added[:2]
	}
	head := append(appendU32(nil, uint32(groups+len(added)/2)), declared...)
	body := coder{m: c.m, local: c.local, fuel: c.fuel, out: append(head, added...)}
	if c.local {
		body.refill()
	}
	switch {
	case c.plain && c.cost > 0:
		body.pending = c.cost
		body.charge()
	case c.plain:
	case c.calls:
		body.index(opGlobalGet, c.m.depth)
		body.out = appendS64(append(body.out, opI64Const), c.weight())
		body.emit(opI64Sub)
		body.index(opGlobalSet, c.m.depth)
		body.index(opGlobalGet, c.m.depth)
		body.getFuel()
		body.emit(opI64Or)
		body.checkFuel()
	default:
		body.getFuel()
		body.checkFuel()
	}
	if c.wrapped && !c.plain {
		body.out = c.m.appendWrapType(append(body.out, opBlock), c.m.funcs[fn])
	}
	return body.out
}

// epilogue appends what runs when the function is left.
func (c *coder) epilogue() {
	if c.plain {
		c.emit(opEnd)
		return
	}
	if c.wrapped {
		c.charge()
		c.emit(opEnd)
	}
	c.flush()
	if c.calls {
		c.index(opGlobalGet, c.m.depth)
		c.out = appendS64(append(c.out, opI64Const), c.weight())
		c.emit(opI64Add)
		c.index(opGlobalSet, c.m.depth)
	}
	c.emit(opEnd)
}

// appendWrapType appends the type of a block that leaves the function's results.
func (m *module) appendWrapType(b []byte, t uint32) []byte {
	switch results := m.types[t].results; len(results) {
	case 0:
		return append(b, blockEmpty)
	case 1:
		return append(b, results[0])
	}
	return appendS64(b, int64(m.wrapTypes[t]))
}
