package meter

import "math/bits"

// What operations on many bytes cost. A page that is touched for the first time
// costs the kernel 16 faults; copying and filling run at 8 to 16 bytes a
// nanosecond, in cold memory at half of that.
const (
	pageShift  = 12 // memory.grow: 4096 units a page
	bytesShift = 3  // memory.copy, .fill, .init: a unit for 8 bytes
	entryShift = 1  // table.copy, .fill, .init, .grow: a unit for 2 entries
	costBulk   = 8  // each of them, however short
	costEngine = 100
)

func (c *coder) memArg() {
	if align := c.r.u32(); align >= 64 {
		c.m.refuse(needsMultiMem)
		c.r.fail("alignment 2^%d", align)
	} else if align >= 32 {
		c.r.fail("alignment 2^%d", align)
	}
	c.r.u32()
}

// memory handles memory.size and memory.grow.
func (c *coder) memory(code byte, start int) {
	c.memoryZero()
	if code == opMemoryGrow {
		c.chargeAmount(start, mask(uint64(c.m.cfg.MemoryPages)), opI64Shl, pageShift)
	}
}

func (c *coder) memoryZero() {
	if c.r.byte() != 0 && c.r.err == nil {
		c.m.refuse(needsMultiMem)
		c.r.fail("memory index above 0")
	}
}

// mask covers every amount that can succeed. A larger amount fails or traps by
// itself and is not to look as if the module had spent all its fuel.
func mask(limit uint64) int32 {
	return int32(uint32(min(uint64(1)<<bits.Len64(limit)-1, 0xffff_ffff)))
}

// chargeAmount charges for the amount on top of the stack, an i32, and asks at
// once whether fuel is left, since the operation itself cannot be stopped.
func (c *coder) chargeAmount(start int, mask int32, shiftOp byte, shift int64) {
	c.checks = true
	c.size.blocks += blocksBulk
	if c.plain || c.r.err != nil {
		return
	}
	text := c.r.buf[start:c.r.pos]
	c.copy(len(text))
	c.index(opLocalTee, c.tmp)
	c.spend()
	c.index(opLocalGet, c.tmp)
	c.out = appendS64(append(c.out, opI32Const), int64(mask))
	c.emit(opI32And, opI64ExtendU)
	c.out = appendS64(append(c.out, opI64Const), shift)
	c.emit(shiftOp, opI64Sub)
	c.setFuel()
	c.getFuel()
	c.checkFuel()
	c.out = append(c.out, text...)
}

// inPieces charges for a short operation, whose length is on top of the stack,
// and hands a long one to an added function:
//
//	local.tee $tmp   i32.const inlineBytes   i32.gt_u
//	if (param i32 i32 i32)
//	  flush   call $added   take back
//	else
//	  fuel -= pending + $tmp >> bytesShift   the instruction
//	end
func (c *coder) inPieces(start int, added uint32) {
	c.checks = true
	c.size.blocks += 2 * blocksBulk
	if c.plain || c.r.err != nil {
		return
	}
	c.m.pieces = true
	text := c.r.buf[start:c.r.pos]
	c.copy(len(text))
	c.index(opLocalTee, c.tmp)
	c.index(opLocalGet, c.tmp)
	c.out = appendS64(append(c.out, opI32Const), inlineBytes)
	c.emit(opI32GtU, opIf)
	c.out = appendS64(c.out, int64(c.m.bulkType))
	pending := c.pending
	c.flush()
	c.index(opCall, c.m.check+added)
	c.refill()
	c.emit(opElse)
	c.pending = pending
	c.spend()
	c.index(opLocalGet, c.tmp)
	c.emit(opI64ExtendU, opI64Const, bytesShift, opI64ShrU, opI64Sub)
	c.setFuel()
	c.out = append(c.out, text...)
	c.emit(opEnd)
}

// bulk handles the instructions with prefix 0xfc.
func (c *coder) bulk(start int) {
	sub := c.r.u32()
	cost := int64(costBulk)
	switch {
	case sub < bulkMemoryInit: // saturating truncation
		cost = 2
	case sub == bulkMemoryInit, sub == bulkMemoryCopy:
		if sub == bulkMemoryInit {
			c.r.u32() // data segment
		} else {
			c.memoryZero()
		}
		c.memoryZero()
	case sub == bulkMemoryFill:
		c.memoryZero()
	case sub == bulkTableInit, sub == bulkTableCopy:
		c.r.u32() // element segment or table
		c.r.u32() // table
	case sub <= bulkLast:
		c.r.u32() // segment or table
	case c.r.err == nil:
		c.r.fail("instruction 0xfc 0x%02x is not part of the 2.0 core", sub)
	}
	if sub == bulkTableGrow {
		cost = costEngine
	}
	c.pending += cost
	c.cost += cost
	switch sub {
	case bulkMemoryCopy:
		c.inPieces(start, addedCopy)
	case bulkMemoryFill:
		c.inPieces(start, addedFill)
	case bulkMemoryInit:
		c.chargeAmount(start, mask(uint64(c.m.cfg.MemoryPages)<<16), opI64ShrU, bytesShift)
	case bulkTableInit, bulkTableCopy, bulkTableGrow, bulkTableFill:
		c.m.info.StatefulTables = true
		c.chargeAmount(start, mask(uint64(c.m.cfg.TableEntries)), opI64ShrU, entryShift)
	case bulkDataDrop, bulkElemDrop:
		c.m.info.StatefulTables = true
	}
}

// vector handles the instructions with prefix 0xfd.
func (c *coder) vector() {
	c.m.info.SIMD = true
	sub := c.r.u32()
	if sub >= vecMax {
		c.m.refuse(needsRelaxed)
		c.r.fail("instruction 0xfd 0x%02x", sub)
		return
	}
	form := vectorOps[sub]
	if form == 0 {
		c.r.fail("instruction 0xfd 0x%02x is not part of the 2.0 core", sub)
	}
	if form&vecMemArg != 0 {
		c.memArg()
	}
	if form&vecLane != 0 {
		c.r.byte()
	}
	if form&vecLanes != 0 {
		c.r.bytes(16)
	}
	c.pending += vectorCost(sub)
	c.cost += vectorCost(sub)
}
