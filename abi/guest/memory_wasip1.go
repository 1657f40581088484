//go:build wasip1

package guest

import "unsafe"

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

// alloc gives n bytes, a multiple of 8, until the next batch.
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
	buf := make([]byte, 256)
	for {
		n := importConfigGet(key, unsafe.Pointer(unsafe.SliceData(buf)), uint32(len(buf)))
		if n < 0 {
			return "", false
		}
		if int(n) <= len(buf) {
			return string(buf[:n]), true
		}
		buf = make([]byte, n)
	}
}

func hostOutput(name string) int32 { return importOutput(name) }
