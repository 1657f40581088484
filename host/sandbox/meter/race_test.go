//go:build race

package meter

// raced says that the race detector runs, under which the engine compiles ten times
// slower. It has nothing to find here: one goroutine meters a module and compiles it.
const raced = true
