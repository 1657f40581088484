// Package guest is the Go SDK for modules. A module registers one operator and
// is built as a reactor:
//
//	package main
//
//	import "github.com/edgehost/edgehost/abi/guest"
//
//	func init() {
//		guest.Map(func(r *guest.Record) {
//			if v, ok := r.Number(); ok {
//				r.SetFloat(v*1.8 + 32)
//				r.SetUnit("°F")
//			}
//		})
//	}
//
//	func main() {}
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -ldflags="-s -w" -o scale.wasm .
//
// A Record is a view of a row in the module's memory, which is edited in place:
// nothing is decoded. Outside wasm, Run calls the same operator in a test.
package guest

import (
	"math"
	"strconv"

	"github.com/edgehost/edgehost/abi"
)

// operator is what a module registered, and what a batch needs while it runs.
type operator struct {
	process func(*header)
	tick    func(*Emitter)
	errors  []string // why edgehost_init refuses
	batch   uint32   // the address of the header; 0 before the first batch
	code    uint32   // what becomes of the batch
}

// module is the one operator of this module: a module has one memory and one
// thread, and its exports have no other way to find it.
var module operator

// Map calls f for every record, which f changes, rejects or leaves.
//
//go:noinline
func Map(f func(r *Record)) {
	register(func(h *header) {
		r, p, end := begin(h), h.rows, h.end()
		if p >= end {
			return
		}
		for { // a loop that looks at the end of a turn jumps once less
			r.look(p)
			f(r)
			if p += h.rowSize; p >= end {
				return
			}
		}
	})
}

// Filter keeps the records for which keep returns true. keep may also change or
// reject records; a rejected record is kept for that.
//
//go:noinline
func Filter(keep func(r *Record) bool) {
	register(func(h *header) {
		r, to := begin(h), h.rows
		for p, end := h.rows, h.end(); p < end; p += h.rowSize {
			r.look(p)
			if !keep(r) && r.row().disposition == abi.DispositionEmit {
				continue
			}
			if to != p {
				copyRow(to, p, h.rowSize)
			}
			to += h.rowSize
		}
		h.nOut = (to - h.rows) / h.rowSize
	})
}

// FlatMap calls f for every record, which f emits as often as it likes, changed in
// between if it likes. A record that f neither emits nor rejects is filtered.
//
//go:noinline
func FlatMap(f func(r *Record, out *Emitter)) {
	register(func(h *header) {
		r, out := begin(h), newEmitter(h)
		for p, end := h.rows, h.end(); p < end; p += h.rowSize {
			r.look(p)
			f(r, out)
			if r.row().disposition == abi.DispositionReject {
				out.Emit(r)
			}
		}
		out.finish()
	})
}

// begin is the view of the rows of a batch.
func begin(h *header) *Record {
	view = Record{attrSize: h.attrSize}
	return &view
}

// Tick calls f at the period that the pipeline configures, in addition to the
// operator: for windows and time-outs.
func Tick(f func(out *Emitter)) { module.tick = f }

func register(f func(*header)) {
	if module.process != nil {
		Refuse("two operators are registered: call one of Map, Filter and FlatMap, once")
	}
	module.process = f
}

// Refuse makes edgehost refuse the deployment with reason. Call it while the
// module starts.
func Refuse(reason string) { module.errors = append(module.errors, reason) }

// Fail makes the whole batch fail with reason, as a panic does: nothing of it counts,
// and edgehost looks for the record at fault by processing parts of the batch. To
// refuse one record, use Record.Reject.
func Fail(reason string) {
	if module.batch != 0 {
		(*header)(at(module.batch)).err, module.code = refOf(reason), 1
	}
}

// Concat is a + b in memory that lives until the next batch: use strings.Clone for
// what is to be kept. Go's own + costs the module's garbage collector ten times as
// much. Cheapest is a text of the batch of up to 32 bytes behind one and the same prefix
// of up to 8.
func Concat(a, b string) string { return concat(a, b) }

// Config is the value of a key of the deployment's configuration, and "" when
// the key is not set.
func Config(key string) string {
	v, _ := hostConfig(key)
	return v
}

// ConfigFloat is a key of the configuration as a number. A value that is no
// number refuses the deployment.
func ConfigFloat(key string, fallback float64) float64 {
	text, ok := hostConfig(key)
	if !ok {
		return fallback
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		Refuse("config key " + key + ": " + text + " is no number")
		return fallback
	}
	return v
}

// Handle is the handle of an output for Record.SetOutput. A name that the
// deployment does not offer refuses it.
func Handle(name string) uint32 {
	h := hostOutput(name)
	if h < 0 {
		Refuse("output " + name + " is not configured for this module")
		return 0
	}
	return uint32(h)
}

// Level is how serious a log line is.
type Level uint32

// The levels of Log.
const (
	Debug Level = 0
	Info  Level = 1
	Warn  Level = 2
	Error Level = 3
)

// Log writes a line to the log of edgehost. Lines of a batch that fails are
// dropped, as are lines over the rate limit.
func Log(level Level, text string) { hostLog(level, text) }

// start is edgehost_init. Outside wasm the directive is ignored.
//
//go:wasmexport edgehost_init
func start() uint32 {
	if module.process == nil {
		Refuse("no operator is registered: call guest.Map, guest.Filter or guest.FlatMap in an init function")
	}
	for _, reason := range module.errors {
		println(reason)
	}
	if len(module.errors) > 0 {
		return 1
	}
	return 0
}

// process is edgehost_process. Its first lines are those of tick: a function for them
// would be too large to be inlined.
//
//go:wasmexport edgehost_process
func process(batch uint32) uint32 {
	reset()
	generation++
	module.batch, module.code = batch, 0
	module.process((*header)(at(batch)))
	return module.code
}

// tick is edgehost_tick.
//
//go:wasmexport edgehost_tick
//nolint:unused // only a WebAssembly build exports it
func tick(batch uint32) uint32 {
	reset()
	generation++
	module.batch, module.code = batch, 0
	out := newEmitter((*header)(at(batch)))
	if module.tick != nil {
		module.tick(out)
	}
	out.finish()
	return module.code
}
