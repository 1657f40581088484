//go:build wasip1

package guest

import "unsafe"

const (
	chunkWords = 4 << 10
	mostWords  = 128 << 10
)

// What lives until the next batch: the garbage collector cannot see references
// that are written as numbers into rows.
var (
	arena  []uint64   // edgehost_alloc
	first  []uint64   // bump, the piece that every batch begins with
	others [][]uint64 // bump, the pieces of this batch beside it
	texts  []string   // refOf
)

// The same as numbers: a pointer that is stored costs the garbage collector's barrier,
// and every jump costs a Go module a look into a table, as much as 30 instructions.
// What runs for each batch and each record is therefore written without either.
var (
	arenaAt, arenaSize uint32
	begins, free, ends uint32 // of the piece in use: its span, and where it is free
	untidy             = true // the last batch needed more than first
)

func reset() {
	if untidy {
		tidy()
	}
	free = begins
}

// tidy drops what the last batch kept beside first.
//
//go:noinline
func tidy() {
	if first == nil || len(others) > 0 { // as much as the last batch took, within reason
		first = make([]uint64, min(chunkWords*(1+2*len(others)), mostWords))
	}
	clear(others)
	others = others[:0]
	clear(texts)
	texts = texts[:0]
	untidy = false
	use(first)
}

func use(piece []uint64) {
	begins = address(piece)
	free, ends = begins, begins+uint32(len(piece))*8
}

func address(words []uint64) uint32 { return uint32(uintptr(unsafe.Pointer(unsafe.SliceData(words)))) }

// at is a pointer to an address of the linear memory.
func at(ptr uint32) unsafe.Pointer { return unsafe.Pointer(uintptr(ptr)) }

// text is a view of the guest's memory. unsafe.String would look at the length three
// times.
func (r ref) text() string {
	s := struct {
		at unsafe.Pointer
		n  int
	}{at(r.ptr), int(r.n)}
	return *(*string)(unsafe.Pointer(&s))
}

// refOf is a reference to s, which stays where it is.
func refOf(s string) ref {
	p := uint32(uintptr(unsafe.Pointer(unsafe.StringData(s))))
	if p-begins < ends-begins || p-arenaAt < arenaSize {
		return ref{p, uint32(len(s))}
	}
	untidy, texts = true, append(texts, s)
	return ref{p, uint32(len(s))}
}

// bump gives n bytes, a multiple of 8, until the next batch.
func bump(n uint32) uint32 {
	if n > ends-free {
		more(n)
	}
	p := free
	free += n
	return p
}

//go:noinline
func more(n uint32) {
	piece := make([]uint64, max(chunkWords, n/8))
	others, untidy = append(others, piece), true
	use(piece)
}

// alloc gives n zero bytes, a multiple of 8, until the next batch.
func alloc(n uint32) uint32 {
	p := bump(n)
	clear(unsafe.Slice((*uint64)(at(p)), n/8))
	return p
}

// join remembers a result of concat in this batch. It names strings by where they
// lie, as numbers, and texts keeps them there.
type join struct {
	a, b, out uint64
	gen       uint32
}

var (
	joins    [1024]join
	kept     string // the last text of keep: mostly it is the same one again
	keptAt   uint64
	prefixAt uint64 // the same when it is at most a word long, else nowhere
	prefix   uint64
)

const (
	word    = 8
	nowhere = ^uint64(0)
	slack   = 32 // bytes behind the host's batch that may be read
)

func where(s string) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.StringData(s)))) | uint64(len(s))<<32
}

// concat puts a short text of the batch behind a short prefix without a jump: the
// four conditions for it are one, and words that are copied too much are overwritten
// or never looked at.
func concat(a, b string) string {
	from := uint64(uintptr(unsafe.Pointer(unsafe.StringData(b))))
	odd := where(a) ^ prefixAt // the sign bits: outside the batch, too long, no room
	odd |= (^(from - uint64(arenaAt) - uint64(arenaSize)) | (from - uint64(arenaAt)) | (slack - uint64(len(b))) | (uint64(ends) - uint64(free) - word - slack)) >> 63
	if odd != 0 {
		return joined(a, b)
	}
	p := free
	n := uint32(len(a) + len(b))
	free += (n + word - 1) &^ (word - 1)
	*(*uint64)(at(p)) = prefix
	*(*[slack / word]uint64)(at(p + uint32(len(a)))) = *(*[slack / word]uint64)(unsafe.Pointer(unsafe.StringData(b)))
	return ref{p, n}.text()
}

// joined is concat for everything else.
//
//go:noinline
func joined(a, b string) string {
	ka, kb := where(a), where(b)
	j := &joins[uint32(kb)/8%uint32(len(joins))]
	if j.b != kb || j.a != ka || j.gen != generation {
		keep(a)
		keep(b)
		n := uint32(len(a) + len(b))
		p := bump((n + word - 1) &^ (word - 1))
		to := (*[1 << 30]byte)(at(p))
		copy(to[:len(a)], a)
		copy(to[len(a):n], b)
		*j = join{ka, kb, uint64(p) | uint64(n)<<32, generation}
	}
	return textOf(j.out)
}

// keep keeps s where it is until the next batch. The host's batch stays by itself.
func keep(s string) {
	if w := where(s); w == keptAt || uint32(w)-arenaAt < arenaSize {
		return
	}
	untidy, texts = true, append(texts, kept)
	kept, keptAt, prefixAt = s, where(s), nowhere
	if len(s) <= word {
		prefix, prefixAt = 0, keptAt
		copy((*[word]byte)(unsafe.Pointer(&prefix))[:], s)
	}
}

//go:wasmexport edgehost_abi_v1
func exportMarker() {}

//go:wasmexport edgehost_alloc
func exportAlloc(size uint32) uint32 {
	arena = make([]uint64, (size+word-1)/word+slack/word)
	arenaAt, arenaSize = address(arena), uint32(len(arena))*word-slack
	return arenaAt
}

//go:wasmimport edgehost log
func importLog(level uint32, text string) int32

//go:wasmimport edgehost config_get
func importConfigGet(key string, buf unsafe.Pointer, size uint32) int32

//go:wasmimport edgehost output
func importOutput(name string) int32

func hostLog(level Level, text string) { importLog(uint32(level), text) }

func hostConfig(key string) (string, bool) {
	v, ok := fetch(func(buf unsafe.Pointer, size uint32) int32 { return importConfigGet(key, buf, size) })
	return string(v), ok
}

// fetch calls a function that fills a buffer or says how large it must be.
func fetch(get func(buf unsafe.Pointer, size uint32) int32) ([]byte, bool) {
	buf := make([]byte, 256)
	for {
		n := get(unsafe.Pointer(unsafe.SliceData(buf)), uint32(len(buf)))
		if n < 0 {
			return nil, false
		}
		if int(n) <= len(buf) {
			return buf[:n], true
		}
		buf = make([]byte, n)
	}
}

func hostOutput(name string) int32 { return importOutput(name) }

//go:wasmimport edgehost kv_get
func importKVGet(key string, buf unsafe.Pointer, size uint32) int32

//go:wasmimport edgehost kv_set
func importKVSet(key string, value unsafe.Pointer, size uint32, ttl int64) int32

//go:wasmimport edgehost kv_delete
func importKVDelete(key string) int32

//go:wasmimport edgehost metric
func importMetric(kind uint32, name string) int32

//go:wasmimport edgehost metric_add
func importMetricAdd(id int32, delta float64) int32

//go:wasmimport edgehost metric_set
func importMetricSet(id int32, value float64) int32

func hostKVGet(key string) ([]byte, bool) {
	return fetch(func(buf unsafe.Pointer, size uint32) int32 { return importKVGet(key, buf, size) })
}

func hostKVSet(key string, value []byte, ttl int64) int32 {
	return importKVSet(key, unsafe.Pointer(unsafe.SliceData(value)), uint32(len(value)), ttl)
}

func hostKVDelete(key string) int32 { return importKVDelete(key) }

func hostMetric(kind uint32, name string) int32 { return importMetric(kind, name) }

func hostMetricAdd(id int32, delta float64) { importMetricAdd(id, delta) }

func hostMetricSet(id int32, value float64) { importMetricSet(id, value) }
