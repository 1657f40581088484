package spool

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var (
	crashCycles = flag.Int("crash-cycles", 300, "crashes in TestCrash")
	crashSeed   = flag.Uint64("crash-seed", 0, "seed of TestCrash; 0: of the clock")
)

// model is what the caller of a queue knows: what it appended, what it was told
// is durable, which commits are durable, and what it settled.
type model struct {
	frames    []*modelFrame
	committed map[[16]byte]uint64 // the durable commits: what keep answers from
	head      uint64
	settled   uint64 // records
}

type modelFrame struct {
	Frame
	base    uint64
	durable bool // done(nil) came
	void    bool
}

func (m *model) keep(o Owner) bool { return o.Seq <= m.committed[o.ID] }

func (m *model) records() (n uint64) {
	for _, f := range m.frames {
		if m.keep(f.Owner) && !f.void {
			n += uint64(f.Count)
		}
	}
	return n
}

// crasher drives one queue until its machine crashes, again and again.
type crasher struct {
	t    *testing.T
	rng  *rand.Rand
	b    *bed
	q    *Queue
	r    *Reader
	read []Stored // by r, not settled
	m    model
	seq  map[[16]byte]uint64 // the last commit that each owner tried
	now  time.Time
}

// TestCrash: what is durable and committed is there after any crash until it is
// settled; what is not committed never comes back; the counters agree with the keys.
func TestCrash(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("run again with -crash-seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for cycle := 0; cycle < *crashCycles; {
		c := &crasher{t: t, rng: rng, b: newBed(t, vfs.NewCrashableMem()), seq: map[[16]byte]uint64{}, now: time.Now(),
			m: model{committed: map[[16]byte]uint64{}}}
		c.b.o.WindowRecords = 1 + rng.IntN(60)
		c.b.reopen()
		c.b.keep = c.m.keep
		c.start()
		for range 1 + rng.IntN(8) {
			c.work(rng.IntN(40))
			c.crash()
			cycle++
			if t.Failed() {
				t.Fatalf("in cycle %d", cycle)
			}
		}
		c.b.close()
	}
}

func (c *crasher) start() {
	c.q = c.b.queue("q")
	c.q.keep.step = uint64(c.rng.IntN(20_000))
	c.r = c.q.Reader(c.q.Head())
	c.read = nil
}

func (c *crasher) work(ops int) {
	for range ops {
		switch c.rng.IntN(12) {
		case 0, 1, 2, 3, 4:
			c.transaction()
		case 5, 6:
			c.consume()
		case 7, 8:
			c.advance()
		case 9:
			c.now = c.now.Add(time.Duration(c.rng.IntN(20)) * time.Second)
			c.q.tick(c.now)
		case 10:
			c.q.Retain(time.Duration(c.rng.IntN(2)*c.rng.IntN(20)) * time.Second)
		case 11:
			if err := c.q.db.Flush(); err != nil {
				c.t.Fatal(err)
			}
		}
		if st := c.q.Stat(); st.Err != nil {
			c.t.Fatal(st.Err)
		}
	}
}

// transaction appends the frames of one commit and then commits it, voids it,
// or leaves it for the crash.
func (c *crasher) transaction() {
	id := [][16]byte{alice, bob}[c.rng.IntN(2)]
	c.seq[id]++
	seq := c.seq[id]
	var wg sync.WaitGroup
	n := 1 + c.rng.IntN(4)
	for range n {
		f := &modelFrame{Frame: Frame{Owner: Owner{id, seq}, Count: 1 + c.rng.IntN(20), MinTime: int64(seq),
			Payload: bytes.Repeat(fmt.Appendf(nil, "%d/%d/%d.", id[0], seq, c.rng.Uint64()), c.rng.IntN(200))}}
		c.m.frames = append(c.m.frames, f)
		wg.Add(1)
		c.q.Append(f.Frame, func(base uint64, err error) {
			f.base, f.durable = base, err == nil
			wg.Done()
		})
	}
	wg.Wait()
	switch fate := c.rng.IntN(10); {
	case fate < 7:
		c.m.committed[id] = seq
		if fate > 0 { // 0: the crash comes between the two
			c.q.Commit(id, seq)
			return
		}
		c.crash()
	case fate < 9:
		if err := c.q.Void(id, seq); err != nil {
			c.t.Fatal(err)
		}
		for _, f := range c.m.frames {
			f.void = f.void || f.Owner == Owner{id, seq}
		}
	default:
		c.crash()
	}
}

// consume reads what there is.
func (c *crasher) consume() {
	for {
		st, wake, err := c.r.try()
		if err != nil {
			c.t.Fatal(err)
		}
		if wake != nil {
			return
		}
		c.read = append(c.read, st)
	}
}

func (c *crasher) advance() {
	if len(c.read) == 0 {
		return
	}
	n := 1 + c.rng.IntN(len(c.read))
	last := c.read[n-1]
	to := last.end() - uint64(c.rng.IntN(last.Count))
	var live uint64
	for _, st := range c.read[:n] {
		if lo, hi := max(st.Base, c.m.head), min(st.end(), to); lo < hi {
			live += hi - lo
		}
	}
	if to <= c.m.head {
		return
	}
	if err := c.q.Advance(to, Settled{Delivered: live}); err != nil {
		c.t.Fatal(err)
	}
	c.m.head = to
	c.m.settled += live
	keep := c.read[:0]
	for _, st := range c.read {
		if st.end() > to {
			keep = append(keep, st)
		}
	}
	c.read = keep
}

// crash takes the disk as a power cut at this moment would leave it, starts
// again from it and checks the law.
func (c *crasher) crash() {
	cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 25, 50, 100}[c.rng.IntN(4)], RNG: c.rng}
	clone := c.b.o.FS.(*vfs.MemFS).CrashClone(cfg)
	c.b.close()
	c.b.o.FS = clone
	c.b.open()
	before := c.q.Head()
	c.start()
	head := c.q.Head()
	if head > before {
		c.t.Errorf("head is %d after the crash, it was %d", head, before)
	}
	c.consume()
	c.checkRead(head)
	st := c.q.Stat()
	count, err := c.q.CountWaiting()
	if err != nil {
		c.t.Fatal(err)
	}
	if st.WaitingRecords != count || st.Damaged != 0 || st.Err != nil {
		c.t.Errorf("waiting: %d, by keys %d: %+v", st.WaitingRecords, count, st)
	}
	if total := c.m.records(); st.Settled.sum()+count != total || st.Settled.sum() > c.m.settled {
		c.t.Errorf("settled %d (%d before) + waiting %d is not %d appended", st.Settled.sum(), c.m.settled, count, total)
	}
	c.m.head, c.m.settled = head, st.Settled.sum()
}

// checkRead compares all that was read from head on with the model.
func (c *crasher) checkRead(head uint64) {
	want := map[uint64]*modelFrame{}
	for _, f := range c.m.frames {
		switch {
		case !f.durable:
			c.t.Errorf("frame at %d was not durable", f.base)
		case !c.m.keep(f.Owner):
			f.void = true
		case !f.void && f.base+uint64(f.Count) > head:
			want[f.base] = f
		}
	}
	for _, st := range c.read {
		f := want[st.Base]
		if f == nil || f.Owner != st.Owner || f.Count != st.Count || f.MinTime != st.MinTime || !bytes.Equal(f.Payload, st.Payload) {
			c.t.Errorf("frame at %d (%v, %d records) is not what was committed there", st.Base, st.Owner, st.Count)
		}
		delete(want, st.Base)
	}
	for base, f := range want {
		c.t.Errorf("lost: frame at %d of %v, %d records; head %d", base, f.Owner, f.Count, head)
	}
}

// TestCrashWhileOpening: a crash at any step of making a spool, its key and its
// stores leaves something that opens again.
func TestCrashWhileOpening(t *testing.T) {
	mem := vfs.NewCrashableMem()
	rng := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	var clones []*vfs.MemFS
	steps := vfs.WithLogging(mem, func(string, ...any) {
		mu.Lock()
		defer mu.Unlock()
		clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: len(clones) % 2 * 50, RNG: rng}))
	})
	make := func(fs vfs.FS) error {
		s, err := Open(Options{Dir: "/state/spool", FS: fs, Logger: quiet()})
		if err != nil {
			return err
		}
		keep := func(Owner) bool { return true }
		_, errQ := s.Queue("q", keep)
		_, errS := s.State("host")
		_, errD := s.DeadLetters(keep)
		return errors.Join(errQ, errS, errD, s.Close())
	}
	if err := make(steps); err != nil {
		t.Fatal(err)
	}
	if len(clones) < 50 {
		t.Fatalf("only %d steps", len(clones))
	}
	for i, fs := range clones {
		if err := make(fs); err != nil {
			t.Errorf("crash before step %d of %d: %v", i, len(clones), err)
		}
	}
}
