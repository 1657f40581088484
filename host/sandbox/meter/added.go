package meter

// The functions that are added behind those of the module, in this order.
const (
	addedCheck = iota // (i64) -> (i64)
	addedFill         // (i32, i32, i32) -> ()
	addedCopy         // (i32, i32, i32) -> ()
)

var addedNames = [...]string{reserved + "check", reserved + "fill", reserved + "copy"}

// Operations on more than inlineBytes are done by the added functions in pieces
// of pieceBytes with a check before each.
const (
	inlineBytes = 4 << 10
	pieceBytes  = 256 << 10
)

// added says how many functions are added: fill and copy only on demand, since
// they are not valid in a module without a memory.
func (m *module) added() int {
	if m.pieces {
		return len(addedNames)
	}
	return 1
}

func (m *module) functionSection() []byte {
	n := len(m.funcs) - m.importedFuncs + m.added()
	out := append(appendU32(nil, uint32(n)), m.funcTypes...)
	out = appendU32(out, m.checkType)
	for range m.added() - 1 {
		out = appendU32(out, m.bulkType)
	}
	return out
}

// appendAdded appends the bodies of the added functions.
func (m *module) appendAdded(out []byte) []byte {
	bodies := []coder{m.checkBody(), m.fillBody(), m.copyBody()}
	for _, c := range bodies[:m.added()] {
		out = append(appendU32(out, uint32(len(c.out))), c.out...)
	}
	return out
}

// checkBody is called when a counter is below 0:
//
//	(func (param $fuel i64) (result i64)
//	  (global.set $FuelGlobal (local.get $fuel))
//	  (call $yield)
//	  (if (i64.lt_s (global.get $DepthGlobal) (i64.const 0)) (then unreachable))
//	  (global.get $FuelGlobal))
func (m *module) checkBody() coder {
	c := coder{m: m, out: []byte{0}}
	c.index(opLocalGet, 0)
	c.index(opGlobalSet, m.fuel)
	c.index(opCall, m.yield)
	c.index(opGlobalGet, m.depth)
	c.emit(opI64Const, 0, opI64LtS, opIf, blockEmpty, opUnreachable, opEnd)
	c.index(opGlobalGet, m.fuel)
	c.emit(opEnd)
	return c
}

// Locals of the functions that work in pieces: the operands, then these.
const (
	pieceTo    = 0
	pieceFrom  = 1 // what memory.fill writes, for fill
	pieceLeft  = 2
	pieceSize  = 3 // of this piece
	pieceAhead = 4 // where this piece begins, beyond to and from
	pieceFuel  = 5
)

// fillBody fills in pieces:
//
//	(func (param $to i32) (param $value i32) (param $left i32) (local …)
//	  bounds of $to: what is out of bounds is left to the instruction, which traps
//	  (loop
//	    $size = min($left, pieceBytes)
//	    charge and check
//	    (memory.fill $to $value $size)
//	    $to += $size
//	    $left -= $size
//	    (br_if 0 $left)))
func (m *module) fillBody() coder {
	instruction := []byte{opBulk, bulkMemoryFill, 0}
	c := m.openPieces()
	c.bounds(pieceTo, instruction)
	c.openPiece()
	c.index(opLocalGet, pieceTo)
	c.index(opLocalGet, pieceFrom)
	c.index(opLocalGet, pieceSize)
	c.emit(instruction...)
	c.step(opI32Add, pieceTo)
	c.closePiece()
	return c
}

// copyBody copies in pieces, as fillBody does, from the front when the bytes
// move down and from the back when they move up, so that pieces may overlap.
func (m *module) copyBody() coder {
	instruction := []byte{opBulk, bulkMemoryCopy, 0, 0}
	c := m.openPieces()
	c.bounds(pieceTo, instruction)
	c.bounds(pieceFrom, instruction)
	c.openPiece()
	// $ahead = $to > $from ? $left - $size : 0
	c.index(opLocalGet, pieceLeft)
	c.index(opLocalGet, pieceSize)
	c.emit(opI32Sub, opI32Const, 0)
	c.index(opLocalGet, pieceTo)
	c.index(opLocalGet, pieceFrom)
	c.emit(opI32GtU, opSelect)
	c.index(opLocalSet, pieceAhead)
	for _, base := range []uint32{pieceTo, pieceFrom} {
		c.index(opLocalGet, base)
		c.index(opLocalGet, pieceAhead)
		c.emit(opI32Add)
	}
	c.index(opLocalGet, pieceSize)
	c.emit(instruction...)
	c.index(opLocalGet, pieceTo)
	c.index(opLocalGet, pieceFrom)
	c.emit(opI32LeU, opIf, blockEmpty)
	c.step(opI32Add, pieceTo)
	c.step(opI32Add, pieceFrom)
	c.emit(opEnd)
	c.closePiece()
	return c
}

func (m *module) openPieces() coder {
	c := coder{m: m, local: true, fuel: pieceFuel, out: []byte{2, 2, typeI32, 1, typeI64}}
	c.index(opGlobalGet, m.fuel)
	c.index(opLocalSet, pieceFuel)
	return c
}

// bounds lets the instruction trap when base + left is beyond the memory.
func (c *coder) bounds(base uint32, instruction []byte) {
	c.index(opLocalGet, base)
	c.emit(opI64ExtendU)
	c.index(opLocalGet, pieceLeft)
	c.emit(opI64ExtendU, opI64Add, opMemorySize, 0, opI64ExtendU, opI64Const, 16, opI64Shl, opI64GtU, opIf, blockEmpty)
	for i := range uint32(3) {
		c.index(opLocalGet, i)
	}
	c.emit(instruction...)
	c.emit(opEnd)
}

func (c *coder) openPiece() {
	c.emit(opLoop, blockEmpty)
	c.pending = pieceBytes >> bytesShift
	c.spend()
	c.index(opLocalTee, pieceFuel)
	c.checkFuel()
	c.index(opLocalGet, pieceLeft)
	c.out = appendS64(append(c.out, opI32Const), pieceBytes)
	c.index(opLocalGet, pieceLeft)
	c.out = appendS64(append(c.out, opI32Const), pieceBytes)
	c.emit(opI32LtU, opSelect)
	c.index(opLocalSet, pieceSize)
}

// step adds the size of the piece to a local or subtracts it.
func (c *coder) step(op byte, i uint32) {
	c.index(opLocalGet, i)
	c.index(opLocalGet, pieceSize)
	c.emit(op)
	c.index(opLocalSet, i)
}

func (c *coder) closePiece() {
	c.step(opI32Sub, pieceLeft)
	c.index(opLocalGet, pieceLeft)
	c.emit(opBrIf, 0, opEnd)
	c.index(opLocalGet, pieceFuel)
	c.index(opGlobalSet, c.m.fuel)
	c.emit(opEnd)
}
