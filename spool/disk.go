package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is a file system and whether it is the machine's own: only there do
// files have permissions.
type disk struct {
	vfs.FS
	real bool
}

// writeFile replaces the file at path by data, readable by its owner only. It
// returns when the file and its directory entry are on the disk; a crash leaves
// the old file or the new one.
func (d disk) writeFile(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := d.writeAndSync(tmp, data); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := d.Rename(tmp, path); err != nil {
		return fmt.Errorf("rename %s: %w", tmp, err)
	}
	return d.syncDir(d.PathDir(path))
}

func (d disk) writeAndSync(path string, data []byte) error {
	var f interface {
		io.WriteCloser
		Sync() error
	}
	var err error
	if d.real {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	} else {
		f, err = d.Create(path, vfs.WriteCategoryUnspecified)
	}
	if err != nil {
		return err
	}
	// A vfs.File may change the slice that it writes.
	_, err = f.Write(append([]byte(nil), data...))
	if err == nil {
		err = f.Sync()
	}
	if errClose := f.Close(); err == nil {
		err = errClose
	}
	return err
}

// readFile returns the content of a small file.
func (d disk) readFile(path string) ([]byte, error) {
	f, err := d.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(f)
	if errClose := f.Close(); err == nil {
		err = errClose
	}
	return data, err
}

// mkdir makes a directory (0700) and its parents, and syncs the entry of each
// one that was not there before.
func (d disk) mkdir(path string) error {
	if _, err := d.Stat(path); err == nil {
		return nil
	}
	parent := d.PathDir(path)
	if parent != path {
		if err := d.mkdir(parent); err != nil {
			return err
		}
	}
	if err := d.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	return d.syncDir(parent)
}

func (d disk) syncDir(path string) error {
	dir, err := d.OpenDir(path)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", path, err)
	}
	err = dir.Sync()
	if errClose := dir.Close(); err == nil {
		err = errClose
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}

// list returns the names in a directory; none when it does not exist.
func (d disk) list(path string) ([]string, error) {
	names, err := d.List(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

// size adds up the files below path. Files that vanish meanwhile do not count.
func (d disk) size(path string) uint64 {
	info, err := d.Stat(path)
	if err != nil {
		return 0
	}
	if !info.IsDir() {
		return uint64(info.Size())
	}
	names, err := d.List(path)
	if err != nil {
		return 0
	}
	var sum uint64
	for _, name := range names {
		sum += d.size(d.PathJoin(path, name))
	}
	return sum
}
