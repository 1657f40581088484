package sandbox

import (
	"log/slog"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// Limits bound a module. The zero value of a field means its default.
type Limits struct {
	ModuleBytes     int           // size of a module
	CompileDeadline time.Duration // for Compile: wall time, so that it allows for a machine that is busy
	MemoryPages     uint32        // 64 KiB pages of linear memory
	InitDeadline    time.Duration // for instantiation, _initialize and edgehost_init together
	Deadline        time.Duration // for one batch
	Fuel            int64         // units for one batch; a unit is about one simple instruction
	FuelPerRow      int64         // units for each record of a batch in addition
	RowsOutFactor   int           // rows out <= RowsOutFactor * rows in + RowsOutExtra
	RowsOutExtra    int           //
	BytesOutFactor  int           // bytes out <= BytesOutFactor * bytes in + BytesOutExtra
	BytesOutExtra   int           //
	LogBytes        int           // bytes of log a second of each instance; what is more is dropped and counted
}

// DefaultLimits are the limits of docs/abi.md: a Go module that decodes JSON in
// every record keeps them.
func DefaultLimits() Limits {
	return Limits{
		ModuleBytes:     16 << 20,
		CompileDeadline: 2 * time.Minute,
		MemoryPages:     512,
		InitDeadline:    2 * time.Second,
		Deadline:        time.Second,
		Fuel:            20_000_000,
		FuelPerRow:      300_000,
		RowsOutFactor:   16,
		RowsOutExtra:    1024,
		BytesOutFactor:  4,
		BytesOutExtra:   1 << 20,
		LogBytes:        8 << 10,
	}
}

// orDefault replaces what is zero by its default.
func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	pick(&l.ModuleBytes, d.ModuleBytes)
	pick(&l.CompileDeadline, d.CompileDeadline)
	pick(&l.MemoryPages, d.MemoryPages)
	pick(&l.InitDeadline, d.InitDeadline)
	pick(&l.Deadline, d.Deadline)
	pick(&l.Fuel, d.Fuel)
	pick(&l.FuelPerRow, d.FuelPerRow)
	pick(&l.RowsOutFactor, d.RowsOutFactor)
	pick(&l.RowsOutExtra, d.RowsOutExtra)
	pick(&l.BytesOutFactor, d.BytesOutFactor)
	pick(&l.BytesOutExtra, d.BytesOutExtra)
	pick(&l.LogBytes, d.LogBytes)
	return l
}

func pick[T comparable](field *T, fallback T) {
	var zero T
	if *field == zero {
		*field = fallback
	}
}

// Env is what one deployment of a module may use. It is not changed after
// Instantiate.
type Env struct {
	Name, Revision string            // for faults and logs
	Config         map[string]string // what config_get reads
	Outputs        map[string]uint32 // names of outputs and their handles, below 2^31; 0 is the default output
	KV             KV                // what kv_get reads; nil grants no state
	Limits         Limits            // the zero value means DefaultLimits
	Logger         *slog.Logger      // what the module logs; never nil
	// Strict puts the instance back after every call, not only after a fault: no
	// call sees anything of an earlier one but what KV gives.
	Strict bool
}

// outputLimits are the limits in the terms of the abi.
func (e *Env) outputLimits() abi.OutputLimits {
	l := abi.OutputLimits{
		RowsFactor: e.Limits.RowsOutFactor, RowsExtra: e.Limits.RowsOutExtra,
		BytesFactor: e.Limits.BytesOutFactor, BytesExtra: e.Limits.BytesOutExtra,
		Handles: make(map[uint32]bool, len(e.Outputs)),
	}
	for _, handle := range e.Outputs {
		l.Handles[handle] = true
	}
	return l
}
