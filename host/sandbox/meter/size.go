package meter

import "time"

// bodySize counts what the time to compile a function grows with.
type bodySize struct {
	blocks int // basic blocks, those that metering adds included
	loops  int
	nested int // loops open now
	depth  int // the most of them
	values int // passed to calls, blocks and branches
}

// Blocks of one source construct, metering included.
const (
	blocksIf   = 3
	blocksLoop = 10 // a loop header costs the engine more than the 4 blocks around it
	blocksBulk = 8
)

func (s *bodySize) open(op byte, values int) {
	s.values += values
	switch op {
	case opIf:
		s.blocks += blocksIf
	case opLoop:
		s.blocks += blocksLoop
		s.loops++
		s.nested++
		s.depth = max(s.depth, s.nested)
	default:
		s.blocks++
	}
}

func (s *bodySize) close(op byte) {
	if op == opLoop {
		s.nested--
	}
}

// compileTime estimates how long wazero 1.12.0 compiles a function that was
// built to take long. Three things grow faster than the body, as measured on one
// core: the square of the blocks (2 ns each: 8,000 ifs take 1.2 s), blocks times
// locals (700 ns: 4,000 ifs over 1,000 locals, 43 KB, take 7 s), and the depth of
// nested loops times loops times the square of the locals (2 ns: 250 nested loops
// over 400 locals, 5 KB, take 19 s). Ordinary functions compile in a tenth of the
// estimate: the largest of Go guests is at 80 ms, of C guests at 90 ms.
func (s *bodySize) compileTime(locals int) time.Duration {
	blocks, loops, depth, n := float64(s.blocks), float64(s.loops), float64(s.depth), float64(locals)
	ns := 2*blocks*blocks + 700*blocks*n + 2*depth*loops*n*n + 100*float64(s.values)
	return time.Duration(min(ns, 1e18))
}
