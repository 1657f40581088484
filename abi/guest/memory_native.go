//go:build !wasip1

package guest

import (
	"bytes"
	"errors"
	"unsafe"

	"github.com/edgehost/edgehost/abi"
)

// memory stands in for linear memory outside wasm. Address 0 is never given out.
const memorySize = 64 << 20

var (
	memory []uint64
	next   uint32 // the first free byte
	native Host
)

// Host stands in for edgehost in tests.
type Host struct {
	Config  map[string]string
	Outputs map[string]uint32
	Log     func(level Level, text string) // nil drops the lines
	KV      map[string][]byte              // the state, changed at once; nil grants none
	Metrics map[string]float64             // the metrics by name; nil drops them
	names   []string                       // of the metrics, by id
}

// Run registers an operator by calling setup, starts it and runs it over one
// batch, natively and with the same rows in memory as in a sandbox. It is for
// tests and not safe for concurrent use: a module has one operator.
func Run(h Host, setup func(), in *abi.Batch) (*abi.Outputs, error) {
	module, native, next = operator{}, h, 8
	memory = make([]uint64, memorySize/8)
	setup()
	if start() != 0 {
		return nil, errors.New("the module refuses the deployment: " + module.errors[0])
	}
	a, out := abi.NewArena(), new(abi.Outputs)
	image, err := a.Encode(in, next, 0)
	if err != nil {
		return nil, err
	}
	batch := alloc(uint32(len(image)+7) &^ 7)
	copy(bytesOf(memory)[batch:], image)
	if process(batch) != 0 {
		return nil, errors.New("the module fails the batch: " + a.BatchError(bytesOf(memory)))
	}
	lim := abi.OutputLimits{Handles: map[uint32]bool{}}
	for _, handle := range h.Outputs {
		lim.Handles[handle] = true
	}
	return out, a.Decode(bytesOf(memory), &lim, out)
}

func bytesOf(words []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), len(words)*8)
}

func reset() {}

func at(ptr uint32) unsafe.Pointer { return unsafe.Pointer(&bytesOf(memory)[ptr]) }

// text is a view of the memory.
func (r ref) text() string {
	if r.n == 0 {
		return ""
	}
	return unsafe.String((*byte)(at(r.ptr)), r.n)
}

// refOf copies s into the memory, unless it lies there already.
func refOf(s string) ref {
	if s == "" {
		return ref{}
	}
	p, base := uintptr(unsafe.Pointer(unsafe.StringData(s))), uintptr(unsafe.Pointer(unsafe.SliceData(memory)))
	if p >= base && p < base+memorySize {
		return ref{uint32(p - base), uint32(len(s))}
	}
	to := alloc(uint32(len(s)+7) &^ 7)
	copy(bytesOf(memory)[to:], s)
	return ref{to, uint32(len(s))}
}

func alloc(n uint32) uint32 { return bump(n) }

func bump(n uint32) uint32 {
	p := next
	next += n
	return p
}

func concat(a, b string) string { return refOf(a + b).text() }

func hostLog(level Level, text string) {
	if native.Log != nil {
		native.Log(level, text)
	}
}

func hostConfig(key string) (string, bool) {
	v, ok := native.Config[key]
	return v, ok
}

func hostOutput(name string) int32 {
	if h, ok := native.Outputs[name]; ok {
		return int32(h)
	}
	return abi.ErrnoNotFound
}

func hostKVGet(key string) ([]byte, bool) {
	v, ok := native.KV[key]
	return v, ok
}

func hostKVSet(key string, value []byte, _ int64) int32 {
	switch {
	case native.KV == nil:
		return abi.ErrnoDenied
	case key == "":
		return abi.ErrnoInvalid
	case len(key) > abi.MaxKey || len(value) > abi.MaxKVValue:
		return abi.ErrnoTooLarge
	}
	native.KV[key] = bytes.Clone(value)
	return 0
}

func hostKVDelete(key string) int32 {
	if native.KV == nil {
		return abi.ErrnoDenied
	}
	delete(native.KV, key)
	return 0
}

func hostMetric(_ uint32, name string) int32 {
	native.names = append(native.names, name)
	return int32(len(native.names) - 1)
}

func hostMetricAdd(id int32, delta float64) {
	if native.Metrics != nil {
		native.Metrics[native.names[id]] += delta
	}
}

func hostMetricSet(id int32, value float64) {
	if native.Metrics != nil {
		native.Metrics[native.names[id]] = value
	}
}
