// The smallest Go guest, on the bare record ABI v1: it passes batches on.
package main

import "unsafe"

var arena []uint64

//go:wasmexport edgehost_abi_v1
func marker() {}

//go:wasmexport edgehost_alloc
func alloc(size uint32) uint32 {
	arena = make([]uint64, (size+7)/8)
	return uint32(uintptr(unsafe.Pointer(unsafe.SliceData(arena))))
}

//go:wasmexport edgehost_process
func process(uint32) uint32 { return 0 }

func main() {}
