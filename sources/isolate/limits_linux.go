package isolate

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithParent makes the kernel kill a child whose parent ends.
func dieWithParent() *syscall.SysProcAttr {
	// A group of its own, since Ctrl-C in a terminal is for the parent.
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// apply sets the limits of this process.
func (l Limits) apply() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("disable core dumps: %w", err)
	}
	debug.SetMemoryLimit(l.Memory)
	debug.SetMaxStack(l.Stack)
	now, err := addressSpace()
	if err != nil {
		return fmt.Errorf("read the size of this process: %w", err)
	}
	// Go reserves much more addresses than it uses, so the limit stands on what
	// there is at the start.
	most := now + l.AddressSpace
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: most, Max: most}); err != nil {
		return fmt.Errorf("limit the address space: %w", err)
	}
	return nil
}

// addressSpace is VmSize in bytes, the first field of statm (proc_pid_statm(5)).
func addressSpace() (uint64, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(b), " ")
	pages, err := strconv.ParseUint(first, 10, 64)
	return pages * uint64(os.Getpagesize()), err
}
