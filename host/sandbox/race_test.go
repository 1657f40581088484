//go:build race

package sandbox_test

// places is how many places of an entry of the cache are damaged, one after the other.
const places = 12
