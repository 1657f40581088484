package meter

// dispatch is a loop that begins with a look into a table of jumps, as Go compiles
// every function:
//
//	loop $jump
//	  block … block
//	    local.get $pc   br_table 0 1 2 …
//	  end
//	  …   i32.const 7   local.set $pc   br $jump
//	end
//
// Most jumps lead forward, to the end of a block that is still open. They cannot go
// on for ever, and asking for fuel at the header would ask at each of them. So the
// branches that may lead back ask instead.
type dispatch struct {
	local  uint32
	first  int     // where the first of the blocks begins
	blocks []int32 // by the number in local: the block at whose end it goes on, counted from the outermost; -1 is none
}

// dispatch looks ahead whether the loop that was just opened is one; nil when it
// is not.
func (c *coder) dispatch() *dispatch {
	r, n := c.r, 0
	d := &dispatch{first: r.pos}
	for r.pos+1 < len(r.buf) && r.buf[r.pos] == opBlock && r.buf[r.pos+1] == blockEmpty {
		r.pos += 2
		n++
	}
	if n == 0 || r.byte() != opLocalGet {
		return nil
	}
	if d.local = r.u32(); r.byte() != opBrTable {
		return nil
	}
	d.blocks = make([]int32, r.count("labels")+1)
	for i := range d.blocks {
		if label := r.u32(); int64(label) < int64(n) {
			d.blocks[i] = int32(n - 1 - int(label))
		} else {
			d.blocks[i] = -1
		}
	}
	if r.err != nil {
		return nil
	}
	return d
}

// leadsForward reports whether the branch at start to the loop in frames[at] goes on
// further down in the text: the two instructions before it say where.
func (c *coder) leadsForward(start, at int) bool {
	d := c.frames[at].jumps
	if c.setEnd != start || c.setLocal != d.local {
		return false
	}
	k := d.blocks[min(uint64(c.setValue), uint64(len(d.blocks)-1))]
	open := at + 1 + int(k)
	return k >= 0 && open < len(c.frames) && c.frames[open].start == d.first+2*int(k)
}

// askBefore puts a charge and a check before the instruction that begins at start.
func (c *coder) askBefore(start int) {
	c.size.blocks += blocksCheck
	if c.plain || c.r.err != nil {
		return
	}
	text := c.r.buf[start:c.r.pos]
	c.copy(len(text))
	c.charge()
	c.getFuel()
	c.checkFuel()
	c.out = append(c.out, text...)
}
