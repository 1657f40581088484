package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lock takes the spool for this process until the Closer is closed. The lock
// dies with the process, so that nothing is left to clean up after a crash; the
// process number inside is for the error message of the next one.
func (d disk) lock(path string) (io.Closer, error) {
	if !d.real {
		c, err := d.Lock(path)
		if err != nil {
			return nil, fmt.Errorf("%w: lock %s: %w", ErrLocked, path, err)
		}
		return c, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		_ = f.Close()
		return nil, fmt.Errorf("%w: process %s holds %s: stop it first, or talk to it over its admin socket",
			ErrLocked, strings.TrimSpace(string(holder)), path)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
