package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Pool is the instances of one deployment of a module. Guest memory is a cache, so
// any of them may serve any source; how many calls there are at a time is the
// caller's choice.
//
//	Get ─> warm, the last one first ─or─> start one ─> calls ─> Put ─> warm
//	                                                        └─> worn out: closed
//
// Instances that nobody needed for a while are closed, down to none. All methods
// may be called by any number of goroutines.
type Pool struct {
	module *Module
	env    Env
	idle   time.Duration
	limit  uint64 // of linear memory, in bytes

	mu       sync.Mutex
	changed  sync.Cond
	warm     []*pooled // by the time of their return
	out      map[*Instance]*pooled
	age      int // of the deployment's guest memory; Renew begins a new one
	recycled uint64
	clock    *time.Timer // closes idle instances; nil: there is none
	pending  int         // instances that are being started or closed
	closed   bool
}

// pooled is one instance and what the pool knows of it.
type pooled struct {
	instance *Instance
	age      int
	calls    int       // loans since the instance was started
	fresh    uint64    // linear memory when it was first returned, in bytes
	memory   uint64    // linear memory when it was last returned
	since    time.Time // of the last return
}

// DefaultIdle is how long an instance may be unused before it is closed.
const DefaultIdle = 5 * time.Minute

// When an instance is worn out: its memory is near its limit, or a multiple of
// what it was after the first call. It has served wornCalls calls before, so that a
// module that always needs that much is not started for each.
const (
	wornCalls  = 100
	wornFactor = 4
	wornFloor  = 1 << 20 // bytes; less is never worth it
)

// NewPool starts the first instance of a deployment, as Instantiate does, and
// returns the pool that it is in. idle 0 means DefaultIdle.
func (m *Module) NewPool(ctx context.Context, env Env, idle time.Duration) (*Pool, error) {
	pick(&idle, DefaultIdle)
	p := &Pool{module: m, env: env, idle: idle, limit: uint64(env.Limits.orDefault().MemoryPages) << 16, out: map[*Instance]*pooled{}}
	p.changed.L = &p.mu
	first, err := m.Instantiate(ctx, env)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep(&pooled{instance: first, memory: first.MemoryBytes()})
	return p, nil
}

// Get lends an instance until Put. kv is what it remembers meanwhile; nil grants
// no state. The errors are those of Instantiate; a closed pool lends nothing.
func (p *Pool) Get(ctx context.Context, kv KV) (*Instance, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, fmt.Errorf("use module %s: its pool is closed", p.env.Name)
	}
	var l *pooled
	if n := len(p.warm); n > 0 {
		l, p.warm[n-1] = p.warm[n-1], nil
		p.warm = p.warm[:n-1]
		p.out[l.instance] = l
		p.mu.Unlock()
		l.instance.env.KV = kv
		return l.instance, nil
	}
	l = &pooled{age: p.age}
	p.pending++
	p.mu.Unlock()
	i, err := p.module.Instantiate(ctx, p.env)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended(1)
	if err != nil {
		return nil, err
	}
	l.instance = i
	p.out[i] = l
	i.env.KV = kv
	return i, nil
}

// Put takes an instance of Get back. Nothing of its last Result's slices may be
// used any more.
func (p *Pool) Put(ctx context.Context, i *Instance) {
	i.env.KV = p.env.KV
	p.mu.Lock()
	l := p.out[i]
	delete(p.out, i)
	l.calls++
	l.memory = i.MemoryBytes()
	if l.fresh == 0 {
		l.fresh = l.memory
	}
	worn := l.worn(p.limit)
	if worn {
		p.recycled++
	}
	if !worn && l.age == p.age && !p.closed {
		p.keep(l)
		p.changed.Broadcast()
		p.mu.Unlock()
		return
	}
	p.pending++
	p.mu.Unlock()
	p.discard(ctx, []*pooled{l})
}

// worn reports whether the memory of an instance has grown so far that a fresh
// one is better.
func (l *pooled) worn(limit uint64) bool {
	return l.calls >= wornCalls && l.memory >= wornFloor && (l.memory >= limit/4*3 || l.memory >= wornFactor*l.fresh)
}

// keep makes an instance warm. The pool is locked.
func (p *Pool) keep(l *pooled) {
	l.since = time.Now()
	p.warm = append(p.warm, l)
	if p.clock == nil {
		p.clock = time.AfterFunc(p.idle, p.sweep)
	}
}

// sweep closes what was idle for too long, and comes again when the next one may
// be.
func (p *Pool) sweep() {
	p.mu.Lock()
	n, now := 0, time.Now()
	for n < len(p.warm) && now.Sub(p.warm[n].since) >= p.idle {
		n++
	}
	idle := p.take(n)
	p.clock = nil
	if len(p.warm) > 0 && !p.closed {
		p.clock = time.AfterFunc(p.warm[0].since.Add(p.idle).Sub(now), p.sweep)
	}
	p.mu.Unlock()
	p.discard(context.Background(), idle)
}

// take removes the n instances that were returned first, for discard. The pool is
// locked.
func (p *Pool) take(n int) []*pooled {
	taken := append([]*pooled(nil), p.warm[:n]...)
	p.warm = append(p.warm[:0], p.warm[n:]...)
	clear(p.warm[len(p.warm):cap(p.warm)])
	p.pending += n
	return taken
}

// discard closes instances that nobody has any more. What edgehost_stop says is of
// no use to the batch that ended before.
func (p *Pool) discard(ctx context.Context, list []*pooled) {
	for _, l := range list {
		if err := l.instance.Close(ctx); err != nil {
			p.env.Logger.Warn("instance did not stop in order", "module", p.env.Name, "error", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended(len(list))
}

func (p *Pool) ended(n int) {
	p.pending -= n
	p.changed.Broadcast()
}

// Renew closes all instances, those that are lent when they come back: what they
// remember beside KV is forgotten.
func (p *Pool) Renew(ctx context.Context) {
	p.mu.Lock()
	p.age++
	old := p.take(len(p.warm))
	p.mu.Unlock()
	p.discard(ctx, old)
}

// Close waits until every instance came back and is closed.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return errors.New("pool is closed twice")
	}
	p.closed = true
	if p.clock != nil {
		p.clock.Stop()
		p.clock = nil
	}
	warm := p.take(len(p.warm))
	p.mu.Unlock()
	p.discard(ctx, warm)
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.out) > 0 || p.pending > 0 {
		p.changed.Wait()
	}
	return nil
}

// PoolStat is what a pool holds now.
type PoolStat struct {
	Instances   int    // warm and lent
	Warm        int    // of them, those that wait
	MemoryBytes uint64 // linear memory of all, each as of its last return
	Recycled    uint64 // instances that were closed because their memory had grown
}

// Stat may be called at any time, also after Close.
func (p *Pool) Stat() PoolStat {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PoolStat{Instances: len(p.warm) + len(p.out), Warm: len(p.warm), Recycled: p.recycled}
	for _, l := range p.warm {
		s.MemoryBytes += l.memory
	}
	for _, l := range p.out {
		s.MemoryBytes += l.memory
	}
	return s
}
