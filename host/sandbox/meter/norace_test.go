//go:build !race

package meter

// raced says that the race detector runs.
const raced = false
