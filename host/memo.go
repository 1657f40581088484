package host

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/edgehost/edgehost/host/sandbox"
	"github.com/edgehost/edgehost/spool"
)

// memo is what the modules of one pipeline remember, in the scope (pipeline,
// module, source) and kept across revisions. What a batch writes is seen by the
// rest of the batch at once, by later batches of its source when it has gone
// through the chain, and after a crash when its commit record is written.
//
//	batch: a call's writes ─keep─> open ─accept─> cache ─commit─> state store
//	       (recall)                  └─reset (fault, hold)─> forgotten
//
// Its methods are called by any goroutine; a source has one batch at a time on its
// way, so that nobody else touches the batch's scopes.
type memo struct {
	state    *spool.State
	pipeline string

	mu    sync.Mutex
	cache map[memoKey]memoValue
	bytes int // of keys and values in cache
	// used is the size of what each module remembers of each source, of batches
	// that were accepted.
	used    map[memoScope]int
	pending []pending // accepted batches whose commit record is not written yet
}

// pending is what one batch wrote.
type pending struct {
	seq  uint64
	keys []memoKey
}

// recall is the memory as one batch sees it: the memo, and what the batch wrote so
// far. It belongs to the goroutine that transforms the batch and serves one after
// the other.
type recall struct {
	memo *memo

	// The scope and clock of the call that runs, and what its batch wrote so far.
	source string
	now    int64
	open   map[memoKey]memoValue
	call   map[memoKey]memoValue
	// What the batch and the call add to the size of what modules remember.
	openGrown, callGrown map[memoScope]int
}

// memoCacheBytes bounds the values of one pipeline that are kept in memory;
// beyond it those that are on disk are forgotten.
const memoCacheBytes = 8 << 20

// memoQuota bounds the keys and values that one module remembers of one source,
// in bytes.
const memoQuota = 16 << 20

type memoKey struct{ module, source, key string }

type memoScope struct{ module, source string }

// memoValue is a value or its absence.
type memoValue struct {
	value   []byte
	expires int64 // microseconds since the Unix epoch; 0: never
	absent  bool
	seq     uint64 // of the batch that wrote it; 0: it is on disk
}

func newMemo(state *spool.State, pipeline string) *memo {
	return &memo{state: state, pipeline: pipeline, cache: map[memoKey]memoValue{}, used: map[memoScope]int{}}
}

func (m *memo) recall() *recall {
	return &recall{memo: m, open: map[memoKey]memoValue{}, call: map[memoKey]memoValue{},
		openGrown: map[memoScope]int{}, callGrown: map[memoScope]int{}}
}

// view is the sandbox.KV of one module of the pipeline.
type view struct {
	r      *recall
	module string
}

func (r *recall) view(module string) *view { return &view{r, module} }

// Get implements sandbox.KV.
func (v *view) Get(key string) ([]byte, bool, error) {
	r := v.r
	val, err := r.seen(memoKey{v.module, r.source, key})
	if err != nil {
		return nil, false, err
	}
	if val.absent || (val.expires != 0 && val.expires <= r.now) {
		return nil, false, nil
	}
	return val.value, true, nil
}

// seen is a value as the running call sees it.
func (r *recall) seen(k memoKey) (memoValue, error) {
	if val, ok := r.call[k]; ok {
		return val, nil
	}
	if val, ok := r.open[k]; ok {
		return val, nil
	}
	return r.memo.stored(k)
}

// stored reads the cache, else the disk.
func (m *memo) stored(k memoKey) (memoValue, error) {
	m.mu.Lock()
	val, ok := m.cache[k]
	m.mu.Unlock()
	if ok {
		return val, nil
	}
	b, err := m.state.Get(m.space(k.scope()), k.key)
	if err != nil {
		return val, fmt.Errorf("read value: %w", err)
	}
	if val, err = decodeMemo(b); err != nil {
		return val, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(k, val)
	return val, nil
}

// put enters a value into the cache and makes room when it is full. The memo is
// locked.
func (m *memo) put(k memoKey, val memoValue) {
	if old, ok := m.cache[k]; ok {
		m.bytes -= len(k.key) + len(old.value)
	}
	m.cache[k] = val
	m.bytes += len(k.key) + len(val.value)
	if m.bytes <= memoCacheBytes {
		return
	}
	for k, val := range m.cache {
		if val.seq == 0 {
			delete(m.cache, k)
			m.bytes -= len(k.key) + len(val.value)
		}
	}
}

// begin sets the scope for a batch of a source.
func (r *recall) begin(source string, now int64) {
	r.source, r.now = source, now
	clear(r.open)
	clear(r.openGrown)
	r.reset()
}

// note takes the writes of one module's call; the modules behind it in the same
// run of the chain see them. It reports false when the module would remember
// more than it may.
func (r *recall) note(module string, writes []sandbox.KVWrite) (fits bool, err error) {
	if len(writes) == 0 {
		return true, nil
	}
	scope := memoScope{module, r.source}
	used, err := r.memo.size(scope)
	if err != nil {
		return false, err
	}
	for _, w := range writes {
		k := memoKey{module, r.source, w.Key}
		old, err := r.seen(k)
		if err != nil {
			return false, err
		}
		val := memoValue{value: w.Value, absent: w.Delete}
		if w.TTL > 0 {
			val.expires = r.now + w.TTL.Microseconds()
		}
		r.callGrown[scope] += val.size(k) - old.size(k)
		r.call[k] = val
	}
	return used+r.openGrown[scope]+r.callGrown[scope] <= memoQuota, nil
}

// size is what a module remembers of a source, counted on disk at first.
func (m *memo) size(s memoScope) (int, error) {
	m.mu.Lock()
	n, ok := m.used[s]
	m.mu.Unlock()
	if ok {
		return n, nil
	}
	err := m.state.Scan(m.space(s), func(key string, b []byte) error {
		n += len(key) + max(0, len(b)-8)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read state: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used[s] = n
	return n, nil
}

// size is what a value counts against the quota.
func (v memoValue) size(k memoKey) int {
	if v.absent {
		return 0
	}
	return len(k.key) + len(v.value)
}

// keep ends a run of the chain that went well; reset one that did not.
func (r *recall) keep() {
	for k, val := range r.call {
		r.open[k] = val
	}
	for s, n := range r.callGrown {
		r.openGrown[s] += n
	}
	r.reset()
}

func (r *recall) reset() {
	clear(r.call)
	clear(r.callGrown)
}

// accept ends a batch: its writes are seen by the next one of its source and
// returned for the commit record.
func (r *recall) accept(seq uint64) []spool.Set {
	if len(r.open) == 0 {
		return nil
	}
	m := r.memo
	sets := make([]spool.Set, 0, len(r.open))
	wrote := pending{seq: seq}
	m.mu.Lock()
	defer m.mu.Unlock()
	for s, n := range r.openGrown {
		m.used[s] += n
	}
	for k, val := range r.open {
		val.seq = seq
		m.put(k, val)
		wrote.keys = append(wrote.keys, k)
		sets = append(sets, spool.Set{Space: m.space(k.scope()), Key: k.key, Value: val.encode()})
	}
	m.pending = append(m.pending, wrote)
	clear(r.open)
	clear(r.openGrown)
	return sets
}

// written says that the batches up to seq are on disk. Those of different sources
// were accepted in any order.
func (m *memo) written(seq uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending = slices.DeleteFunc(m.pending, func(p pending) bool {
		if p.seq > seq {
			return false
		}
		for _, k := range p.keys {
			// A later batch may have written the key again.
			if val := m.cache[k]; val.seq == p.seq {
				val.seq = 0
				m.cache[k] = val
			}
		}
		return true
	})
}

func (k memoKey) scope() memoScope { return memoScope{k.module, k.source} }

func (m *memo) space(s memoScope) string {
	return "kv\x00" + m.pipeline + "\x00" + s.module + "\x00" + s.source
}

// encode is the form on disk: the time of expiry, then the value; nil deletes.
func (v memoValue) encode() []byte {
	if v.absent {
		return nil
	}
	return append(binary.LittleEndian.AppendUint64(nil, uint64(v.expires)), v.value...)
}

func decodeMemo(b []byte) (memoValue, error) {
	if b == nil {
		return memoValue{absent: true}, nil
	}
	if len(b) < 8 {
		return memoValue{}, fmt.Errorf("read value: %d bytes: %w", len(b), errFrame)
	}
	return memoValue{expires: int64(binary.LittleEndian.Uint64(b)), value: b[8:]}, nil
}
