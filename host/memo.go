package host

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/edgehost/edgehost/host/sandbox"
	"github.com/edgehost/edgehost/spool"
)

// memo is what the modules of one pipeline remember, in the scope (pipeline,
// module, source) and kept across revisions. What a batch writes is seen by the
// rest of the batch at once, by later batches when the batch is sent to the
// committer, and after a crash when its commit record is written.
//
//	batch: a call's writes ─keep─> open ─accept─> cache ─commit─> state store
//	                                 └─reset (fault, hold)─> forgotten
//
// begin, keep, accept and reset are called by the pipeline's goroutine; written
// by the committer's.
type memo struct {
	state    *spool.State
	pipeline string

	// The scope and clock of the call that runs, and what its batch wrote so far.
	source string
	now    int64
	open   map[memoKey]memoValue
	call   map[memoKey]memoValue

	mu      sync.Mutex
	cache   map[memoKey]memoValue
	bytes   int       // of keys and values in cache
	pending []pending // batches whose commit record is not written yet, in order
}

// pending is what one batch wrote.
type pending struct {
	seq  uint64
	keys []memoKey
}

// memoCacheBytes bounds the values of one pipeline that are kept in memory;
// beyond it those that are on disk are forgotten.
const memoCacheBytes = 8 << 20

type memoKey struct{ module, source, key string }

// memoValue is a value or its absence.
type memoValue struct {
	value   []byte
	expires int64 // microseconds since the Unix epoch; 0: never
	absent  bool
	seq     uint64 // of the batch that wrote it; 0: it is on disk
}

func newMemo(state *spool.State, pipeline string) *memo {
	return &memo{state: state, pipeline: pipeline, open: map[memoKey]memoValue{}, call: map[memoKey]memoValue{}, cache: map[memoKey]memoValue{}}
}

// view is the sandbox.KV of one module of the pipeline.
type view struct {
	m      *memo
	module string
}

// Get implements sandbox.KV.
func (v view) Get(key string) ([]byte, bool, error) {
	m := v.m
	k := memoKey{v.module, m.source, key}
	val, ok := m.call[k]
	if !ok {
		val, ok = m.open[k]
	}
	if !ok {
		var err error
		if val, err = m.stored(k); err != nil {
			return nil, false, err
		}
	}
	if val.absent || (val.expires != 0 && val.expires <= m.now) {
		return nil, false, nil
	}
	return val.value, true, nil
}

// stored reads the cache, else the disk.
func (m *memo) stored(k memoKey) (memoValue, error) {
	m.mu.Lock()
	val, ok := m.cache[k]
	m.mu.Unlock()
	if ok {
		return val, nil
	}
	b, err := m.state.Get(m.space(k), k.key)
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

// put enters a value into the cache and makes room when it is full.
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
func (m *memo) begin(source string, now int64) {
	m.source, m.now = source, now
	clear(m.open)
	clear(m.call)
}

// note takes the writes of one module's call; the modules behind it in the same
// run of the chain see them.
func (m *memo) note(module string, writes []sandbox.KVWrite) {
	for _, w := range writes {
		val := memoValue{value: w.Value, absent: w.Delete}
		if w.TTL > 0 {
			val.expires = m.now + w.TTL.Microseconds()
		}
		m.call[memoKey{module, m.source, w.Key}] = val
	}
}

// keep ends a run of the chain that went well; reset one that did not.
func (m *memo) keep() {
	for k, val := range m.call {
		m.open[k] = val
	}
	clear(m.call)
}

func (m *memo) reset() { clear(m.call) }

// accept ends a batch: its writes are seen by the next one and returned for the
// commit record.
func (m *memo) accept(seq uint64) []spool.Set {
	if len(m.open) == 0 {
		return nil
	}
	sets := make([]spool.Set, 0, len(m.open))
	wrote := pending{seq: seq}
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, val := range m.open {
		val.seq = seq
		m.put(k, val)
		wrote.keys = append(wrote.keys, k)
		sets = append(sets, spool.Set{Space: m.space(k), Key: k.key, Value: val.encode()})
	}
	m.pending = append(m.pending, wrote)
	clear(m.open)
	return sets
}

// written says that the batches up to seq are on disk.
func (m *memo) written(seq uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.pending) > 0 && m.pending[0].seq <= seq {
		for _, k := range m.pending[0].keys {
			// A later batch may have written the key again.
			if val := m.cache[k]; val.seq == m.pending[0].seq {
				val.seq = 0
				m.cache[k] = val
			}
		}
		m.pending = m.pending[1:]
	}
}

func (m *memo) space(k memoKey) string {
	return "kv\x00" + m.pipeline + "\x00" + k.module + "\x00" + k.source
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
