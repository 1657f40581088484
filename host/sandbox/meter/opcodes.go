package meter

// imm says what follows an opcode.
type imm uint8

const (
	immUnknown imm = iota
	immNone
	immBlock    // block type
	immElse     // else
	immEnd      // end
	immLabel    // label index
	immLabels   // vector of labels and a default: br_table
	immReturn   // return: becomes a branch to the wrapper
	immFunc     // function index: call
	immIndirect // type index, table index: call_indirect
	immRefFunc  // function index: ref.func
	immLocal    // local index
	immGlobal   // global index
	immIndex    // an index that instrumenting does not move: a table
	immTypes    // vector of value types: select t*
	immMemArg   // alignment, offset
	immMemory   // memory index, which must be 0
	immI32
	immI64
	immF32
	immF64
	immRefType // ref.null
	immBulk    // prefix 0xfc
	immVector  // prefix 0xfd
)

// Opcodes that the pass handles or emits by name.
const (
	opUnreachable = 0x00
	opBlock       = 0x02
	opLoop        = 0x03
	opIf          = 0x04
	opElse        = 0x05
	opEnd         = 0x0b
	opBr          = 0x0c
	opBrIf        = 0x0d
	opBrTable     = 0x0e
	opReturn      = 0x0f
	opCall        = 0x10
	opIndirect    = 0x11
	opDrop        = 0x1a
	opSelect      = 0x1b
	opSelectT     = 0x1c
	opLocalGet    = 0x20
	opLocalSet    = 0x21
	opLocalTee    = 0x22
	opGlobalGet   = 0x23
	opGlobalSet   = 0x24
	opTableGet    = 0x25
	opTableSet    = 0x26
	opMemorySize  = 0x3f
	opMemoryGrow  = 0x40
	opI32Const    = 0x41
	opI64Const    = 0x42
	opF32Const    = 0x43
	opF64Const    = 0x44
	opI64LtS      = 0x53
	opI32LtU      = 0x49
	opI32GtU      = 0x4b
	opI32LeU      = 0x4d
	opI64GtU      = 0x56
	opI32Add      = 0x6a
	opI32Sub      = 0x6b
	opI32And      = 0x71
	opI64Add      = 0x7c
	opI64Sub      = 0x7d
	opI64Or       = 0x84
	opI64Shl      = 0x86
	opI64ShrU     = 0x88
	opI64ExtendU  = 0xad
	opRefNull     = 0xd0
	opRefIsNull   = 0xd1
	opRefFunc     = 0xd2
	opBulk        = 0xfc
	opVector      = 0xfd

	blockEmpty = 0x40

	typeI32  = 0x7f
	typeI64  = 0x7e
	typeF32  = 0x7d
	typeF64  = 0x7c
	typeV128 = 0x7b
	typeFunc = 0x70
	typeExt  = 0x6f
)

// op is what the pass must know of an opcode: what follows it and its fuel.
type op struct {
	imm  imm
	cost uint8
}

// ops is indexed by the first byte of an instruction. The opcodes are those of
// the WebAssembly core specification 2.0, section 5.4. A unit is about one
// simple instruction; costs above 1 are for what takes many cycles, so that a
// slice takes about as long whatever a module does with it.
var ops = opTable()

func opTable() (t [256]op) {
	set := func(from, to int, i imm, cost uint8) {
		for o := from; o <= to; o++ {
			t[o] = op{i, cost}
		}
	}
	set(0x00, 0x00, immNone, 1) // unreachable
	set(0x01, 0x01, immNone, 0) // nop
	set(opBlock, opLoop, immBlock, 0)
	set(opIf, opIf, immBlock, 1)
	set(opElse, opElse, immElse, 0)
	set(opEnd, opEnd, immEnd, 0)
	set(opBr, opBrIf, immLabel, 1)
	set(opBrTable, opBrTable, immLabels, 3)
	set(opReturn, opReturn, immReturn, 1)
	set(opCall, opCall, immFunc, 4)
	set(opIndirect, opIndirect, immIndirect, 6)
	set(0x1a, opSelect, immNone, 1) // drop, select
	set(opSelectT, opSelectT, immTypes, 1)
	set(opLocalGet, opLocalTee, immLocal, 1)
	set(opGlobalGet, opGlobalSet, immGlobal, 1)
	set(opTableGet, opTableSet, immIndex, 2)
	set(0x28, 0x35, immMemArg, 2) // loads
	set(0x36, 0x3e, immMemArg, 1) // stores
	set(opMemorySize, opMemorySize, immMemory, 1)
	set(opMemoryGrow, opMemoryGrow, immMemory, 100)
	set(opI32Const, opI32Const, immI32, 1)
	set(opI64Const, opI64Const, immI64, 1)
	set(opF32Const, opF32Const, immF32, 1)
	set(opF64Const, opF64Const, immF64, 1)
	set(0x45, 0xc4, immNone, 1) // comparisons, arithmetic, conversions, sign extension
	set(0x6d, 0x70, immNone, 8) // i32.div, i32.rem
	set(0x7f, 0x82, immNone, 8) // i64.div, i64.rem
	set(0x91, 0x91, immNone, 8) // f32.sqrt
	set(0x95, 0x95, immNone, 4) // f32.div
	set(0x9f, 0x9f, immNone, 8) // f64.sqrt
	set(0xa3, 0xa3, immNone, 4) // f64.div
	set(opRefNull, opRefNull, immRefType, 1)
	set(opRefIsNull, opRefIsNull, immNone, 1)
	set(opRefFunc, opRefFunc, immRefFunc, 30) // a call into the engine
	set(opBulk, opBulk, immBulk, 0)
	set(opVector, opVector, immVector, 0)
	return t
}

// What follows an opcode with prefix 0xfd (specification 2.0, section 5.4.8).
const (
	vecMemArg     = 1 << iota // alignment, offset
	vecLane                   // one byte
	vecLanes                  // 16 bytes: v128.const, i8x16.shuffle
	vecPlain                  // nothing
	vecMax        = 0x100     // relaxed SIMD begins here
	costVector    = 2
	costVectorDiv = 16
)

var vectorOps = vectorTable()

func vectorTable() (t [vecMax]uint8) {
	for o := range t {
		t[o] = vecPlain
	}
	for _, o := range []int{0x9a, 0xa2, 0xa5, 0xa6, 0xaf, 0xb0, 0xb2, 0xb3, 0xb4, 0xbb, 0xc2,
		0xc5, 0xc6, 0xcf, 0xd0, 0xd2, 0xd3, 0xd4, 0xe2, 0xee} {
		t[o] = 0 // not assigned
	}
	for o := 0x00; o <= 0x0b; o++ { // loads and v128.store
		t[o] = vecMemArg
	}
	t[0x0c], t[0x0d] = vecLanes, vecLanes
	for o := 0x15; o <= 0x22; o++ { // extract_lane, replace_lane
		t[o] = vecLane
	}
	for o := 0x54; o <= 0x5b; o++ { // load_lane, store_lane
		t[o] = vecMemArg | vecLane
	}
	t[0x5c], t[0x5d] = vecMemArg, vecMemArg // v128.load32_zero, v128.load64_zero
	return t
}

// vectorCost is the fuel of a vector instruction; sqrt and div take longest.
func vectorCost(sub uint32) int64 {
	switch sub {
	case 0xe3, 0xe7, 0xef, 0xf3:
		return costVectorDiv
	}
	return costVector
}

// Instructions with prefix 0xfc.
const (
	bulkMemoryInit = 8
	bulkDataDrop   = 9
	bulkMemoryCopy = 10
	bulkMemoryFill = 11
	bulkTableInit  = 12
	bulkElemDrop   = 13
	bulkTableCopy  = 14
	bulkTableGrow  = 15
	bulkTableSize  = 16
	bulkTableFill  = 17
	bulkLast       = bulkTableFill
)
