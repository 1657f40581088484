package meter

// Info is what Instrument learned about a module. Counts and sizes are those of
// the module as its author built it, without what was added.
type Info struct {
	FuelGlobal  string // exported name of the fuel counter: the constant FuelGlobal
	DepthGlobal string // exported name of the depth counter: the constant DepthGlobal
	Slice       int64  // units of fuel that the counter starts with
	MaxDepth    int64  // what the depth counter starts with

	// Globals names the exports of every mutable global that a snapshot must
	// hold beside the memory, in index order. All are numbers of 32 or 64 bits.
	Globals []string
	// OpaqueGlobals is set when a mutable global holds a vector or a reference,
	// which a host can neither read nor write whole: no snapshot is exact then.
	OpaqueGlobals bool
	// StatefulTables is set when the code can change a table or drop a segment:
	// a snapshot of memory and globals does not hold that.
	StatefulTables bool

	Imports []Import // in order, without the added yield
	Exports []Export // in order, without the added globals

	MemoryMin uint32 // pages that the memory starts with; 0 without a memory
	MemoryMax uint32 // pages that it may grow to in the metered module
	Tables    int    // tables, imported ones included
	Funcs     int    // functions that the module defines
	GlobalN   int    // globals that the module defines
	Start     bool   // a start function runs when the module is instantiated
	SIMD      bool   // the code uses vector instructions

	Bytes       int // the module
	CodeBytes   int // all function bodies
	DataBytes   int // all data segments
	LargestBody int // the largest function body
	OutBytes    int // the metered module

	// Name is the module's name from its name section, "" when it has none.
	Name string
	// Producers holds what the producers section says about the tools that
	// built the module, such as "language: Go 1.26"; it is the module's own claim.
	Producers []string
	// Custom names the custom sections in order. Only the name section is kept.
	Custom []string
}

// Import is one import of the module.
type Import struct {
	Module string // such as "wasi_snapshot_preview1"
	Name   string
	Kind   string // "func", "table", "memory" or "global"
	Type   string // in text form, such as "(i32, i32) -> (i32)", "funcref 1..10", "mut i64"
}

// Export is one export of the module.
type Export struct {
	Name string
	Kind string // as in Import
	Type string // as in Import
}
