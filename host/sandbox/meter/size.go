package meter

import "time"

// bodySize counts what the time to compile a function grows with.
type bodySize struct {
	blocks int // basic blocks, those that metering adds included
	walks  int // blocks that a look for the value of a local passes
	values int // passed to calls, blocks and branches
	uses   int // of locals
	nested int // loops open now
	depth  int // the most of them

	// Sums of the squares of the locals that may differ where paths meet: at the
	// headers of loops, at other labels.
	loops, labels float64
}

// Blocks of one source construct, metering included.
const (
	blocksIf    = 3
	blocksLoop  = 10 // a loop header costs the engine more than the 4 blocks around it
	blocksBulk  = 8
	blocksCheck = 4
)

func (s *bodySize) open(op byte, values int) {
	s.values += values
	switch op {
	case opIf:
		s.blocks += blocksIf
		s.walks += blocksIf
	case opLoop:
		s.blocks += blocksLoop
		s.walks += blocksIf
		s.nested++
		s.depth = max(s.depth, s.nested)
	default:
		s.branch(0)
	}
}

// branch adds a branch with targets beside its first.
func (s *bodySize) branch(targets int) {
	s.blocks += 1 + targets/3
	s.walks += 1 + targets/3
}

// close ends a block within which locals were used uses times. targeted says
// whether a branch leads to its label.
func (s *bodySize) close(op byte, targeted bool, uses, locals int) {
	n := float64(min(uses, locals))
	switch {
	case op == opLoop:
		s.nested--
		s.loops += n * n
	case op != opBlock || targeted:
		s.labels += n * n
	}
}

// compileTime estimates how long wazero 1.12.0 compiles a function that was
// built to take long. Some things grow faster than the body, as measured on one
// core: the square of the blocks (2 ns each: 8,000 ifs take 1.2 s), blocks times
// locals (700 ns: 4,000 ifs over 1,000 locals, 43 KB, take 7 s), and the square of
// the locals that are used in it for each loop and the loops around it (2 ns: 250
// nested loops over 400 locals, 5 KB, take 19 s) and for each label (4 ns: 1,000 targets of one
// br_table over 1,000 locals, 13 KB, take 6 s); calls may return 1,000 values in
// 2 bytes (700 ns each). Ordinary functions compile in a tenth of the estimate.
func (s *bodySize) compileTime(locals int) time.Duration {
	blocks, n := float64(s.blocks), float64(locals)
	ns := 2*blocks*blocks + 700*float64(s.walks)*n + 2*float64(s.depth)*s.loops + 4*s.labels + 700*float64(s.values) + 15*n
	return time.Duration(min(ns, 1e18))
}
