//go:build unix

package sandbox

import "golang.org/x/sys/unix"

// reserve maps n bytes that read as zero and take no memory until they are
// written. nil means that there is no such address space.
func reserve(n uint64) []byte {
	if n == 0 {
		return nil
	}
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil
	}
	return b
}

// release gives back what reserve mapped.
func release(b []byte) {
	if b != nil {
		_ = unix.Munmap(b) // fails only for a span that reserve did not return
	}
}
