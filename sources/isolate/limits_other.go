//go:build !linux

package isolate

import (
	"fmt"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithParent leaves a child to notice by its socket that its parent ended.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// apply sets the limits of this process that every system has: those of Go.
func (l Limits) apply() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("disable core dumps: %w", err)
	}
	debug.SetMemoryLimit(l.Memory)
	debug.SetMaxStack(l.Stack)
	return nil
}
