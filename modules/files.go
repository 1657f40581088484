package modules

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// nameFile is the file of one name.
type nameFile struct {
	Version   int        `json:"version"`
	Name      string     `json:"name"`
	Active    string     `json:"active"`
	Previous  []string   `json:"previous"`  // digests that were active before, the latest last
	Revisions []Revision `json:"revisions"` // newest first

	damaged string // why the file could not be used
}

const nameFileVersion = 1

// readNameFile reads the file of a name. Damage is told in the result; the error
// is about a disk that cannot be read.
func readNameFile(path, name string) (nameFile, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nameFile{}, fmt.Errorf("read module name: %w", err)
	}
	var f nameFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nameFile{damaged: fmt.Sprintf("%s: %v", path, err)}, nil
	}
	if err := f.check(name); err != nil {
		return nameFile{damaged: fmt.Sprintf("%s: %v", path, err)}, nil
	}
	return f, nil
}

// check finds out whether a file can be what write wrote.
func (f nameFile) check(name string) error {
	if f.Version != nameFileVersion {
		return fmt.Errorf("version %d, this program knows %d", f.Version, nameFileVersion)
	}
	if f.Name != name {
		return fmt.Errorf("it says that it is the file of %q", f.Name)
	}
	for _, digest := range append(slices.Clone(f.Previous), f.Active) {
		if _, known := f.find(digest); !known && digest != "" {
			return errors.New("it points at a revision that it does not list")
		}
	}
	return nil
}

func (f nameFile) find(digest string) (Revision, bool) {
	for _, rev := range f.Revisions {
		if rev.Digest == digest {
			return rev, true
		}
	}
	return Revision{}, false
}

// retain drops the revisions that a name keeps no longer, and the way back to
// them.
func (f *nameFile) retain() (dropped []Revision) {
	kept := f.Revisions[:0:0]
	for i, rev := range f.Revisions {
		n := len(f.Previous)
		if i < keepRevisions || rev.Digest == f.Active || (n > 0 && rev.Digest == f.Previous[n-1]) {
			kept = append(kept, rev)
		} else {
			dropped = append(dropped, rev)
		}
	}
	f.Revisions = kept
	f.Previous = slices.DeleteFunc(f.Previous, func(digest string) bool { _, known := f.find(digest); return !known })
	return dropped
}

func (f nameFile) clone() nameFile {
	f.Previous, f.Revisions = slices.Clone(f.Previous), slices.Clone(f.Revisions)
	return f
}

func (f nameFile) entry(name string) Entry {
	e := Entry{Name: name, Active: f.Active, Revisions: slices.Clone(f.Revisions), Damaged: f.damaged}
	if n := len(f.Previous); n > 0 {
		e.Previous = f.Previous[n-1]
	}
	return e
}

// write replaces the file of a name, then what memory knows of it.
func (r *Registry) write(name string, f nameFile) (Entry, error) {
	f.Version = nameFileVersion
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return Entry{}, fmt.Errorf("write module name: %w", err)
	}
	if err := r.replace(r.namePath(name), append(b, '\n')); err != nil {
		return Entry{}, fmt.Errorf("write module name: %w", err)
	}
	r.names[name] = f
	return f.entry(name), nil
}

const torn = ".tmp-"

// replace puts data into path so that after a crash the file is the old one or
// the new one, whole; when it returns nil, the new one is on the disk.
func (r *Registry) replace(path string, data []byte) error {
	dir := filepath.Dir(path)
	r.step("create")
	tmp, err := os.CreateTemp(dir, torn+"*") // 0600
	if err != nil {
		return err
	}
	r.step("write")
	_, err = tmp.Write(data)
	r.step("sync")
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		r.step("rename")
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	r.step("sync dir")
	return syncDir(dir)
}

// syncDir makes the entries of a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// removeStrays removes revisions that no name has: a crash came before the name
// was written, or after. While a name is damaged, nobody knows which it had.
func (r *Registry) removeStrays() error {
	for _, f := range r.names {
		if f.damaged != "" {
			return nil
		}
	}
	files, err := os.ReadDir(r.revisions())
	if err != nil {
		return fmt.Errorf("list module revisions: %w", err)
	}
	for _, f := range files {
		digest, ok := strings.CutSuffix(f.Name(), ".wasm")
		if !ok || r.needed(digest) {
			continue
		}
		if err := os.Remove(filepath.Join(r.revisions(), f.Name())); err != nil {
			return fmt.Errorf("remove a revision that no name has: %w", err)
		}
	}
	return nil
}

// removeTorn removes what a crash left before its rename.
func removeTorn(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list module registry: %w", err)
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), torn) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
			return fmt.Errorf("remove what a crash left: %w", err)
		}
	}
	return nil
}
