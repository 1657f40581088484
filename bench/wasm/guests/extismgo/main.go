// The Extism Go guest: the imports as Extism's Go PDK uses them, 8 bytes a call.
package main

import (
	"encoding/binary"

	"github.com/edgehost/edgehost/bench/wasm/pb"
)

//go:wasmimport extism:host/env input_length
func inputLength() uint64

//go:wasmimport extism:host/env input_load_u8
func inputLoadU8(at uint64) uint32

//go:wasmimport extism:host/env input_load_u64
func inputLoadU64(at uint64) uint64

//go:wasmimport extism:host/env alloc
func extAlloc(n uint64) uint64

//go:wasmimport extism:host/env store_u8
func storeU8(at uint64, v uint32)

//go:wasmimport extism:host/env store_u64
func storeU64(at uint64, v uint64)

//go:wasmimport extism:host/env output_set
func outputSet(at, n uint64)

var in, out []byte

func run(op byte) int32 {
	n := int(inputLength())
	if cap(in) < n {
		in = make([]byte, n)
	}
	in = in[:n]
	i := 0
	for ; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(in[i:], inputLoadU64(uint64(i)))
	}
	for ; i < n; i++ {
		in[i] = byte(inputLoadU8(uint64(i)))
	}
	var err error
	if out, err = pb.Transform(op, out[:0], in); err != nil {
		return 1
	}
	n = len(out)
	to := extAlloc(uint64(n))
	for i = 0; i+8 <= n; i += 8 {
		storeU64(to+uint64(i), binary.LittleEndian.Uint64(out[i:]))
	}
	for ; i < n; i++ {
		storeU8(to+uint64(i), uint32(out[i]))
	}
	outputSet(to, uint64(n))
	return 0
}

//go:wasmexport pass
func pass() int32 { return run('p') }

//go:wasmexport filter
func filter() int32 { return run('f') }

//go:wasmexport scale
func scale() int32 { return run('s') }

func main() {}
