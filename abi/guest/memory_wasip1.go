//go:build wasip1

package guest

import (
	"time"
	"unsafe"
)

const chunkWords = 4 << 10

// What lives until the next batch: the garbage collector cannot see references
// that are written as numbers into rows.
var (
	arena []uint64   // edgehost_alloc
	chunk []uint64   // alloc, the piece in use
	spare []uint64   // alloc, the first piece, kept for the next batch
	full  [][]uint64 // alloc, pieces that are used up
	texts []string   // refOf
)

func reset() {
	chunk, full = spare, full[:0]
	clear(texts)
	texts = texts[:0]
}

// at is a pointer to an address of the linear memory.
func at(ptr uint32) unsafe.Pointer { return unsafe.Pointer(uintptr(ptr)) }

// refOf is a reference to s, which stays where it is.
func refOf(s string) ref {
	if s == "" {
		return ref{}
	}
	texts = append(texts, s)
	return ref{uint32(uintptr(unsafe.Pointer(unsafe.StringData(s)))), uint32(len(s))}
}

// alloc gives n zero bytes, a multiple of 8, until the next batch.
func alloc(n uint32) uint32 {
	words := int(n / 8)
	if words > len(chunk) {
		if spare == nil {
			spare = make([]uint64, max(chunkWords, words))
			chunk = spare
		} else {
			chunk = make([]uint64, max(chunkWords, words))
			full = append(full, chunk)
		}
	}
	clear(chunk[:words])
	p := unsafe.Pointer(unsafe.SliceData(chunk))
	chunk = chunk[words:]
	return uint32(uintptr(p))
}

//go:wasmexport edgehost_abi_v1
func exportMarker() {}

//go:wasmexport edgehost_alloc
func exportAlloc(size uint32) uint32 {
	arena = make([]uint64, (size+7)/8)
	return uint32(uintptr(unsafe.Pointer(unsafe.SliceData(arena))))
}

//go:wasmexport edgehost_init
func exportInit() uint32 { return start() }

//go:wasmexport edgehost_process
func exportProcess(batch uint32) uint32 { return process(batch) }

//go:wasmexport edgehost_tick
func exportTick(batch uint32) uint32 { return tick(batch) }

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

func hostKVSet(key string, value []byte, ttl time.Duration) int32 {
	return importKVSet(key, unsafe.Pointer(unsafe.SliceData(value)), uint32(len(value)), ttl.Milliseconds())
}

func hostKVDelete(key string) int32 { return importKVDelete(key) }

func hostMetric(kind uint32, name string) int32 { return importMetric(kind, name) }

func hostMetricAdd(id int32, delta float64) { importMetricAdd(id, delta) }

func hostMetricSet(id int32, value float64) { importMetricSet(id, value) }
