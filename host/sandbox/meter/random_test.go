package meter

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// program writes random functions of i32s that always end: loops count down a
// local of their own, calls lead to functions written before. Every function
// writes to the memory, so that a path that differs is seen.
type program struct {
	asm
	random  *rand.Rand
	arity   []int // results of each function; every one takes two parameters
	labels  []label
	left    int // instructions that the function may still have
	results int
	loops   int // loops open now, each with a local
	level   int // i32s on the stack that this block may use
}

type label struct {
	arity int
	loop  bool // branches to loops are left to the countdown
}

const (
	programLocals = 6 // two parameters and four
	loopLocals    = 4 // counters, and as many numbers of where a dispatch goes on
)

func (p *program) op(b ...byte) []byte { return b }

// block writes a run of instructions that takes nothing and leaves arity values.
func (p *program) block(arity int) []byte {
	outer := p.level
	p.level = 0
	var out []byte
	for range 1 + p.random.IntN(6) {
		out = append(out, p.instruction()...)
	}
	for ; p.level > arity; p.level-- {
		out = append(out, 0x1a)
	}
	for ; p.level < arity; p.level++ {
		out = append(out, p.value()...)
	}
	p.level = outer
	return out
}

func (p *program) value() []byte {
	if p.random.IntN(2) == 0 {
		return i32(p.random.Int64N(1 << p.random.IntN(31)))
	}
	return local(opLocalGet, p.random.IntN(programLocals))
}

func (p *program) push(b []byte, n int) []byte {
	p.level += n
	return b
}

func (p *program) instruction() []byte {
	if p.left--; p.left < 0 {
		return p.push(p.value(), 1)
	}
	switch p.random.IntN(17) {
	case 0, 1, 2:
		return p.push(p.value(), 1)
	case 3, 4, 5:
		ops := []byte{0x6a, 0x6b, 0x6c, 0x71, 0x72, 0x73, 0x74, 0x48, 0x6d, 0x70}
		return p.push(cat(p.value(), p.value(), p.op(ops[p.random.IntN(len(ops))])), 1)
	case 6:
		return cat(p.value(), local(opLocalSet, p.random.IntN(programLocals)))
	case 7:
		return cat(p.value(), i32(0xffff), p.op(opI32And), p.value(), p.op(0x36, 2, 0))
	case 8:
		return p.nested(opBlock)
	case 9:
		return p.nested(opIf)
	case 10:
		return p.loop()
	case 11, 12:
		return p.branch()
	case 13:
		return p.call()
	case 14:
		n := cat(p.value(), i32(0x1fff), p.op(opI32And))
		to, from := cat(p.value(), i32(0xffff), p.op(opI32And)), cat(p.value(), i32(0xffff), p.op(opI32And))
		if p.random.IntN(2) == 0 {
			return cat(to, from, n, p.op(opBulk, bulkMemoryCopy, 0, 0))
		}
		return cat(to, from, n, p.op(opBulk, bulkMemoryFill, 0))
	case 15:
		return p.dispatch()
	default:
		return p.push(cat(p.value(), p.op(opMemoryGrow, 0)), 1)
	}
}

// dispatch writes a loop in the manner of Go: three parts, jumps from one to a later
// one, and a few times one back.
func (p *program) dispatch() []byte {
	if p.loops == loopLocals {
		return nil
	}
	counter, pc := programLocals+p.loops, programLocals+loopLocals+p.loops
	p.loops++
	part := func(open int) []byte { // that many of the three blocks are still open
		p.labels = append(p.labels, label{loop: true})
		for range open {
			p.labels = append(p.labels, label{})
		}
		out := p.block(0)
		p.labels = p.labels[:len(p.labels)-1-open]
		return out
	}
	jump := func(to, label int) []byte {
		return cat(i32(int64(to)), local(opLocalSet, pc), []byte{opBr}, u(label))
	}
	out := cat(i32(int64(1+p.random.IntN(3))), local(opLocalSet, counter), i32(p.random.Int64N(4)), local(opLocalSet, pc),
		[]byte{opLoop, blockEmpty, opBlock, blockEmpty, opBlock, blockEmpty, opBlock, blockEmpty},
		local(opLocalGet, pc), []byte{opBrTable, 2, 0, 1, 2, opEnd},
		part(2))
	if p.random.IntN(2) == 0 {
		out = cat(out, p.value(), []byte{opIf, blockEmpty}, jump(1+p.random.IntN(3), 3), []byte{opEnd})
	}
	out = cat(out, []byte{opEnd}, part(1),
		local(opLocalGet, counter), i32(1), p.op(opI32Sub), local(opLocalTee, counter),
		[]byte{opIf, blockEmpty}, jump(p.random.IntN(2), 2), []byte{opEnd},
		[]byte{opEnd}, part(0), []byte{opEnd})
	p.loops--
	return out
}

// nested writes a block or an if with up to two results.
func (p *program) nested(op byte) []byte {
	arity := p.random.IntN(3)
	head := cat([]byte{op}, appendS64(nil, int64(p.blockType(arity))))
	if op == opIf {
		head = cat(p.value(), head)
	}
	p.labels = append(p.labels, label{arity: arity})
	out := cat(head, p.block(arity))
	if op == opIf && (arity > 0 || p.random.IntN(2) == 0) {
		out = cat(out, []byte{opElse}, p.block(arity))
	}
	p.labels = p.labels[:len(p.labels)-1]
	return p.push(append(out, opEnd), arity)
}

func (p *program) blockType(arity int) int {
	return p.typ(nil, slices.Repeat(oneI32, arity))
}

func (p *program) loop() []byte {
	if p.loops == loopLocals {
		return nil
	}
	counter := programLocals + p.loops
	p.loops++
	p.labels = append(p.labels, label{loop: true})
	out := cat(i32(int64(1+p.random.IntN(5))), local(opLocalSet, counter),
		[]byte{opLoop, blockEmpty}, p.block(0),
		local(opLocalGet, counter), i32(1), p.op(opI32Sub), local(opLocalTee, counter), []byte{opBrIf, 0, opEnd})
	p.labels = p.labels[:len(p.labels)-1]
	p.loops--
	return out
}

// branch writes br_if, br_table, br or return to labels that are not loops.
func (p *program) branch() []byte {
	var targets []int
	for i := range p.labels {
		if l := p.labels[len(p.labels)-1-i]; !l.loop {
			targets = append(targets, i)
		}
	}
	target := targets[p.random.IntN(len(targets))]
	arity := p.labels[len(p.labels)-1-target].arity
	var values []byte
	for range arity {
		values = append(values, p.value()...)
	}
	drop := slices.Repeat([]byte{0x1a}, arity)
	switch p.random.IntN(8) {
	case 0: // what follows cannot be reached; the values feed the stack's type
		return cat(values, []byte{opBr}, u(target), values, drop)
	case 1:
		results := make([]byte, 0, 8)
		for range p.results {
			results = append(results, p.value()...)
		}
		return cat(p.value(), []byte{opIf, blockEmpty}, results, []byte{opReturn, opEnd})
	case 2:
		same := []byte{}
		n := 0
		for _, t := range targets {
			if p.labels[len(p.labels)-1-t].arity == arity {
				same = append(same, u(t)...)
				n++
			}
		}
		return cat(p.value(), []byte{opIf}, appendS64(nil, int64(p.blockType(arity))), values, p.value(),
			shiftLabels(n, same, target), []byte{opElse}, values, []byte{opEnd}, drop)
	default:
		return cat(values, p.value(), []byte{opBrIf}, u(target), drop)
	}
}

// shiftLabels writes a br_table inside one more block.
func shiftLabels(n int, targets []byte, fallback int) []byte {
	out := cat([]byte{opBrTable}, u(n))
	for _, t := range targets {
		out = append(out, t+1)
	}
	return cat(out, u(fallback+1))
}

func (p *program) call() []byte {
	if len(p.arity) == 0 {
		return nil
	}
	f := p.random.IntN(len(p.arity))
	if p.random.IntN(3) == 0 {
		two := []byte{typeI32, typeI32}
		t := p.typ(two, slices.Repeat(oneI32, p.arity[f]))
		return p.push(cat(p.value(), p.value(), i32(int64(f)), []byte{opIndirect}, u(t), u(0)), p.arity[f])
	}
	return p.push(cat(p.value(), p.value(), call(f)), p.arity[f])
}

// newProgram writes a module of five functions.
func newProgram(seed uint64) *program {
	p := &program{random: rand.New(rand.NewPCG(seed, 7))}
	p.memory(1, 3)
	p.export("memory", kindMemory, 0)
	for i := range 5 {
		p.results = p.random.IntN(4)
		p.left = 40
		p.labels = []label{{arity: p.results}}
		body := p.block(p.results)
		p.fn(fmt.Sprintf("f%d", i), []byte{typeI32, typeI32}, slices.Repeat(oneI32, p.results),
			slices.Repeat(oneI32, programLocals-2+2*loopLocals), body)
		p.arity = append(p.arity, p.results)
	}
	p.table(5, -1)
	p.elements = append(p.elements, cat([]byte{0}, i32(0), []byte{opEnd}, vec(u(0), u(1), u(2), u(3), u(4))))
	return p
}

// TestRandomPrograms: random modules do the same plain and metered, and leave
// the depth as it was.
func TestRandomPrograms(t *testing.T) {
	h := newTestHost(t)
	ctx := t.Context()
	traps, yields, programs := 0, 0, uint64(250)
	if raced {
		programs = 25
	}
	for seed := range programs {
		wasm := newProgram(seed).build()
		plain, err := h.runtime.InstantiateWithConfig(ctx, wasm, wazero.NewModuleConfig().WithName(""))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		metered, _ := h.load(t, wasm)
		for i := range 10 {
			name := fmt.Sprintf("f%d", i%5)
			want, wantErr := plain.ExportedFunction(name).Call(ctx, uint64(i), 3)
			got, gotErr := h.call(t, metered, name, uint64(i), 3)
			if trapText(wantErr) != trapText(gotErr) || !slices.Equal(want, got) {
				t.Fatalf("seed %d %s: plain %v %v, metered %v %v", seed, name, want, wantErr, got, gotErr)
			}
			a, _ := plain.Memory().Read(0, plain.Memory().Size())
			b, _ := metered.Memory().Read(0, metered.Memory().Size())
			if !slices.Equal(a, b) {
				t.Fatalf("seed %d %s: the memories differ", seed, name)
			}
			if depth := metered.ExportedGlobal(DepthGlobal).Get(); gotErr == nil && depth != uint64(DefaultConfig().MaxDepth) {
				t.Fatalf("seed %d %s: depth %d afterwards", seed, name, depth)
			}
			if h.used < 0 {
				t.Fatalf("seed %d %s: used %d", seed, name, h.used)
			}
			traps += btoi(wantErr != nil)
			yields += h.yields
		}
		for _, m := range []api.Module{plain, metered} {
			m.Close(ctx)
		}
	}
	calls := int(programs) * 10
	t.Logf("%d calls, %d traps, %d yields", calls, traps, yields)
	if traps > calls/2 {
		t.Errorf("%d of %d calls trapped: too little ran", traps, calls)
	}
}

func trapText(err error) string {
	if err == nil {
		return ""
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}
