package meter

// frame is one open block of a function body.
type frame struct {
	op       byte      // opBlock, opLoop or opIf; opBlock for the body itself
	targeted bool      // a branch leads to the label
	arity    int       // values that a branch to the label carries
	uses     int       // of locals, before the block
	start    int       // where it begins
	jumps    *dispatch // of a loop; nil when its header asks for fuel
}

// coder rewrites one function body. Bytes from buf[from:r.pos] are still to be
// copied verbatim; pending is the fuel of the instructions since the last charge.
//
// A charge stands at the end of each basic block, before the instruction that
// leaves it. It takes nothing from the operand stack and leaves nothing there,
// so it may stand anywhere, in unreachable code as well.
type coder struct {
	m       *module
	r       reader
	out     []byte
	from    int
	frames  []frame
	pending int64

	locals  int    // parameters and locals of the function
	local   bool   // the fuel is held in a local: the function has a loop of its own
	fuel    uint32 // added local, i64: the fuel left
	tmp     uint32 // added local, i32: an operand
	plain   bool   // copy without metering: what is tried first on small bodies
	cost    int64  // fuel of all instructions together
	size    bodySize
	calls   bool
	checks  bool // it loops or has bulk operations
	loops   bool // it has a loop whose header asks for fuel
	wrapped bool // a branch leaves the body: it needs a block around it

	// The last i32.const, and the last local.set right behind one.
	constEnd, setEnd     int
	constValue, setValue uint32
	setLocal             uint32
}

// copy takes over the bytes read so far but leaves out the last back bytes.
func (c *coder) copy(back int) {
	c.out = append(c.out, c.r.buf[c.from:c.r.pos-back]...)
	c.from = c.r.pos
}

func (c *coder) emit(b ...byte) { c.out = append(c.out, b...) }

func (c *coder) index(op byte, i uint32) { c.out = appendU32(append(c.out, op), i) }

// getFuel puts the fuel on the stack, setFuel takes it from there.
func (c *coder) getFuel() {
	if c.local {
		c.index(opLocalGet, c.fuel)
	} else {
		c.index(opGlobalGet, c.m.fuel)
	}
}

func (c *coder) setFuel() {
	if c.local {
		c.index(opLocalSet, c.fuel)
	} else {
		c.index(opGlobalSet, c.m.fuel)
	}
}

// flush leaves the fuel in the global, for a function that is called next, and
// refill takes back what it left.
func (c *coder) flush() {
	if c.local {
		c.spend()
		c.index(opGlobalSet, c.m.fuel)
	} else {
		c.charge()
	}
}

func (c *coder) refill() {
	if c.local {
		c.index(opGlobalGet, c.m.fuel)
		c.index(opLocalSet, c.fuel)
	}
}

// spend leaves the fuel minus what is pending on the stack.
func (c *coder) spend() {
	c.getFuel()
	if c.pending > 0 {
		c.out = appendS64(append(c.out, opI64Const), c.pending)
		c.emit(opI64Sub)
		c.pending = 0
	}
}

// charge takes what is pending from the fuel.
func (c *coder) charge() {
	if c.pending == 0 || c.plain {
		c.pending = 0
		return
	}
	c.spend()
	c.setFuel()
}

// checkFuel calls the check function when the value on the stack is below 0.
func (c *coder) checkFuel() {
	c.emit(opI64Const, 0, opI64LtS, opIf, blockEmpty)
	c.getFuel()
	c.index(opCall, c.m.check)
	if c.local {
		c.index(opLocalSet, c.fuel)
	} else {
		c.emit(opDrop) // it is in the global as well
	}
	c.emit(opEnd)
}

// ahead is the fuel of what is certain to follow: the instructions up to the one that
// ends the basic block, and which that is. 0 is that something stands between that is
// charged by its size, or that the end is not the block's.
func (c *coder) ahead() (cost int64, end byte) {
	r := c.r
	for r.err == nil {
		code := r.byte()
		cost += int64(ops[code].cost)
		switch i := ops[code].imm; i {
		case immNone:
		case immLocal, immGlobal:
			r.u32()
		case immI32:
			r.signed(32)
		case immI64:
			r.signed(64)
		case immF32:
			r.bytes(4)
		case immF64:
			r.bytes(8)
		case immMemArg:
			r.u32()
			r.u32()
		case immLabel, immLabels, immReturn, immFunc, immIndirect, immElse, immEnd:
			return cost, code
		case immBlock:
			if code != opBlock {
				return cost, code
			}
			r.signed(33)
		default:
			return 0, code
		}
	}
	return 0, 0
}

// body rewrites the instructions up to the end of the body; r stands behind the
// declarations of the locals.
func (c *coder) body(results int) {
	c.from = c.r.pos
	c.frames = append(c.frames[:0], frame{op: opBlock, arity: results})
	for len(c.frames) > 0 && c.r.err == nil {
		start := c.r.pos
		code := c.r.byte()
		o := ops[code]
		c.pending += int64(o.cost)
		c.cost += int64(o.cost)
		switch o.imm {
		case immNone:
		case immLocal:
			c.size.uses++
			i := c.r.u32()
			if int64(i) >= int64(c.locals) {
				c.r.fail("local %d does not exist", i)
			}
			if code == opLocalSet && start == c.constEnd {
				c.setEnd, c.setValue, c.setLocal = c.r.pos, c.constValue, i
			}
		case immI32:
			c.constValue = uint32(c.r.signed(32))
			c.constEnd = c.r.pos
		case immMemArg:
			c.memArg()
		case immI64:
			c.r.signed(64)
		case immF32:
			c.r.bytes(4)
		case immF64:
			c.r.bytes(8)
		case immGlobal:
			if i := c.r.u32(); int64(i) >= int64(len(c.m.globals)) {
				c.r.fail("global %d does not exist", i)
			}
		default:
			c.control(code, o.imm, start)
		}
	}
	if c.r.err == nil && c.r.more() {
		c.r.fail("instructions after the end of the body")
	}
}

// control handles what opens or leaves a block, calls, or is rare. start is
// where the instruction begins.
func (c *coder) control(code byte, i imm, start int) {
	switch i {
	case immBlock:
		c.open(code, start)
	case immElse:
		c.elseArm(start)
	case immEnd:
		c.close(start)
	case immLabel, immLabels:
		c.branch(code, start)
	case immReturn:
		c.leave(start)
	case immFunc:
		f := c.m.funcIndex(&c.r)
		if c.r.err == nil {
			c.call(start, c.m.types[c.m.funcs[f]], func() { c.index(opCall, c.m.shift(f)) })
		}
	case immIndirect:
		t := c.m.typeIndex(&c.r)
		c.r.u32()
		if c.r.err == nil {
			text := c.r.buf[start:c.r.pos]
			c.call(start, c.m.types[t], func() { c.out = append(c.out, text...) })
		}
	case immRefFunc:
		f := c.m.funcIndex(&c.r)
		c.copy(c.r.pos - start)
		c.index(opRefFunc, c.m.shift(f))
	case immIndex:
		c.r.u32()
		c.m.info.StatefulTables = c.m.info.StatefulTables || code == opTableSet
	case immTypes:
		for range c.r.count("types") {
			c.m.valueType(&c.r)
		}
	case immMemory:
		c.memory(code, start)
	case immRefType:
		c.m.refType(&c.r)
	case immBulk:
		c.bulk(start)
	case immVector:
		c.vector()
	default:
		c.unknown(code)
	}
}

// unknown refuses an opcode that the 2.0 core does not have.
func (c *coder) unknown(code byte) {
	switch {
	case code == 0xfe:
		c.m.refuse(needsThreads)
	case code == 0x12 || code == 0x13:
		c.m.refuse(needsTailCalls)
	case code >= 0x06 && code <= 0x0a || code == 0x18 || code == 0x19 || code == 0x1f:
		c.m.refuse(needsExceptions)
	case code == 0x14 || code == 0x15 || code >= 0xd3 && code <= 0xd6 || code == 0xfb:
		c.m.refuse(needsGC)
	}
	c.r.fail("instruction 0x%02x is not part of the 2.0 core", code)
}

// open starts a block. A loop is entered again and again: its header asks
// whether fuel is left, or the branches to it do.
func (c *coder) open(code byte, start int) {
	params, results := c.blockType()
	f := frame{op: code, arity: results, uses: c.size.uses, start: start}
	if code == opLoop {
		f.arity, f.jumps = params, c.dispatch()
		c.checks = true
		c.loops = c.loops || f.jumps == nil
	}
	c.size.open(code, params+results)
	c.frames = append(c.frames, f)
	if code == opBlock || c.plain || c.r.err != nil {
		return
	}
	arm := int64(0)
	if code == opIf {
		arm = c.arm()
	}
	text := c.r.buf[start:c.r.pos]
	c.copy(len(text))
	c.pending += arm
	c.charge()
	c.pending = -arm
	c.out = append(c.out, text...)
	if code == opLoop && f.jumps == nil {
		c.getFuel()
		c.checkFuel()
	}
}

// smallArm bounds what an arm may use that is charged before the if, taken or not.
const smallArm = 4

// arm is the fuel of the arm that follows when it only jumps, as most arms of Go do:
// a charge of its own would cost more than it takes.
func (c *coder) arm() int64 {
	if cost, end := c.ahead(); cost <= smallArm && (end == opBr || end == opReturn) {
		return cost
	}
	return 0
}

// blockType reads a block type and returns how many values go in and out.
func (c *coder) blockType() (params, results int) {
	if !c.r.more() {
		c.r.fail("it ends in the middle of an item")
		return 0, 0
	}
	switch t := c.r.buf[c.r.pos]; {
	case t == blockEmpty:
		c.r.pos++
		return 0, 0
	case t < 0x80 && t&0x40 != 0: // a negative number of one byte
		c.m.valueType(&c.r)
		return 0, 1
	}
	i := c.r.signed(33)
	if i < 0 || i >= int64(c.m.declared) {
		c.r.fail("type %d does not exist", i)
		return 0, 0
	}
	t := c.m.types[i]
	return len(t.params), len(t.results)
}

func (c *coder) elseArm(start int) {
	top := &c.frames[len(c.frames)-1]
	if top.op != opIf {
		c.r.fail("else without if")
		return
	}
	top.op = opElse
	c.chargeBefore(start)
}

// close ends a block. Where paths meet, each has been charged before; otherwise
// what is pending goes on.
func (c *coder) close(start int) {
	top := c.frames[len(c.frames)-1]
	c.size.close(top.op, top.targeted, c.size.uses-top.uses, c.locals)
	c.frames = c.frames[:len(c.frames)-1]
	if len(c.frames) == 0 {
		c.wrapped = top.targeted
		c.copy(c.r.pos - start)
		return
	}
	if top.op == opIf || top.op == opElse || top.op == opBlock && top.targeted {
		c.chargeBefore(start)
	}
}

// chargeBefore puts a charge before the instruction that begins at start.
func (c *coder) chargeBefore(start int) {
	if c.pending == 0 || c.plain {
		c.pending = 0
		return
	}
	text := c.r.buf[start:c.r.pos]
	c.copy(len(text))
	c.charge()
	c.out = append(c.out, text...)
}

func (c *coder) branch(code byte, start int) {
	targets := 0
	if code == opBrTable {
		targets = c.r.count("labels")
	}
	asks := false
	for range targets + 1 {
		at := c.target(c.r.u32())
		if c.r.err != nil {
			return
		}
		asks = asks || c.frames[at].jumps != nil && !c.leadsForward(start, at)
	}
	c.size.branch(targets)
	if asks {
		c.askBefore(start)
	} else {
		c.chargeBefore(start)
	}
}

// target notes a branch to a label and returns which frame it is.
func (c *coder) target(label uint32) int {
	if int64(label) >= int64(len(c.frames)) {
		c.r.fail("label %d does not exist", label)
		return 0
	}
	at := len(c.frames) - 1 - int(label)
	c.frames[at].targeted = true
	c.size.values += c.frames[at].arity
	return at
}

// leave turns return into a branch to the block around the body.
func (c *coder) leave(start int) {
	c.copy(c.r.pos - start)
	c.charge()
	if c.plain {
		c.emit(opReturn)
		return
	}
	label := uint32(len(c.frames) - 1)
	c.target(label)
	c.index(opBr, label)
}

// call hands the fuel over in the global and takes back what the callee left.
func (c *coder) call(start int, t funcType, emit func()) {
	c.calls = true
	c.size.values += len(t.params) + len(t.results)
	c.copy(c.r.pos - start)
	if c.plain {
		emit()
		return
	}
	// What follows a call is as certain as what stands before it.
	ahead, _ := c.ahead()
	c.pending += ahead
	c.flush()
	emit()
	c.refill()
	c.pending = -ahead
}
