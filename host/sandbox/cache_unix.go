//go:build unix

package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// own takes the directory for this process until the Closer is closed, and shuts
// it to others. Its content does not depend on that: it is sealed.
func (c *codeCache) own() (io.Closer, error) {
	st, err := os.Lstat(c.dir)
	if err != nil {
		return nil, err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.IsDir():
		return nil, fmt.Errorf("%s is no directory", c.dir)
	case !ok || int(owner.Uid) != os.Geteuid():
		return nil, fmt.Errorf("%s belongs to another user: give it to the service, or remove it", c.dir)
	case st.Mode().Perm() != 0o700:
		c.log.Warn("others could enter the cache of compiled code; it is closed to them now", "dir", c.dir, "mode", st.Mode().Perm().String())
		if err := os.Chmod(c.dir, 0o700); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(c.dir)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another host uses %s", c.dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
