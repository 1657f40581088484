// Package modules is the registry of uploaded modules on disk. A revision is an
// immutable file named by its digest; a name points at one revision and
// remembers those it pointed at before. Every change is one atomic rename, so a
// crash leaves the old state or the new one. A name keeps its newest revisions
// and those that it needs; what no name keeps is deleted.
//
//	<dir>/revisions/<sha256>.wasm    what was uploaded, 0600
//	<dir>/names/<name>.json          active digest, revisions, what was active before
//	<dir>/{revisions,names}/.tmp-*   torn by a crash; removed by Open
//
// The package knows bytes and names, not WebAssembly: admission comes before Put.
package modules

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// The errors that callers tell apart.
var (
	// ErrNotFound means that there is no such name or revision.
	ErrNotFound = errors.New("not found")
	// ErrName means that a name is not one that the registry takes.
	ErrName = errors.New("bad module name")
	// ErrDamaged means that a file no longer holds what was written.
	ErrDamaged = errors.New("damaged")
	// ErrNoPrevious means that there is nothing to roll back to.
	ErrNoPrevious = errors.New("no earlier revision")
)

// What a name keeps: its newest revisions, in addition to the active one and the
// one that Rollback would put in force; and how many steps back it remembers.
const (
	keepRevisions = 10
	keepPrevious  = 100
)

// Revision is one immutable module as a name sees it.
type Revision struct {
	Digest string    `json:"digest"` // sha256 in hex
	Size   int64     `json:"size"`   // bytes
	At     time.Time `json:"at"`     // when the name first took it
	By     string    `json:"by"`     // who uploaded it, as the caller said
}

// Entry is one name.
type Entry struct {
	Name      string
	Active    string     // digest; "": none
	Previous  string     // digest that Rollback would put in force; "": none
	Revisions []Revision // newest first
	// Damaged says what is wrong with the file of the name; such an entry has
	// nothing else, and the next Point replaces it.
	Damaged string
}

// Registry is an open registry. Any goroutine may call any method. One process
// at a time may have a directory open; the host's lock on its state directory
// sees to that.
type Registry struct {
	dir string
	mu  sync.Mutex
	// names holds the file of each name as it is on disk.
	names map[string]nameFile
	// pending are revisions that were Put and that no name has taken yet.
	pending map[string]bool
	// step is called before each step of a change to the disk, by its name; a
	// test stops the process there.
	step func(string)
}

// Open opens the registry in dir, making it when it does not exist, and removes
// what a crash left half written or without a name. A damaged name does not stop Open: List shows
// it, and Active has nothing for it.
func Open(dir string) (*Registry, error) {
	r := &Registry{dir: dir, names: map[string]nameFile{}, pending: map[string]bool{}, step: func(string) {}}
	for _, d := range []string{dir, r.revisions(), r.pointers()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make module registry: %w", err)
		}
		if err := os.Chmod(d, 0o700); err != nil {
			return nil, fmt.Errorf("restrict module registry to its owner: %w", err)
		}
		if err := removeTorn(d); err != nil {
			return nil, err
		}
		// A rename just before a crash may not be on the disk yet.
		if err := syncDir(d); err != nil {
			return nil, err
		}
	}
	files, err := os.ReadDir(r.pointers())
	if err != nil {
		return nil, fmt.Errorf("list module names: %w", err)
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || CheckName(name) != nil {
			continue
		}
		if r.names[name], err = readNameFile(r.namePath(name), name); err != nil {
			return nil, err
		}
	}
	return r, r.removeStrays()
}

var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// CheckName returns an error that wraps ErrName and tells the rule, unless name
// can be the name of a module. Letters are lower case, so that a name means the
// same file on every file system.
func CheckName(name string) error {
	if nameRule.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%w %q: use 1 to 64 of a-z 0-9 . _ - and start with a letter or digit", ErrName, name)
}

// Put keeps wasm as a revision and returns its digest. A revision that is there
// already is left alone; a damaged one is mended.
func (r *Registry) Put(wasm []byte) (digest string, err error) {
	if len(wasm) == 0 {
		return "", errors.New("keep module: the file is empty")
	}
	sum := sha256.Sum256(wasm)
	digest = hex.EncodeToString(sum[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending[digest] = true
	if _, err := r.Read(digest); err == nil {
		return digest, nil
	}
	if err := r.replace(r.revisionPath(digest), wasm); err != nil {
		return "", fmt.Errorf("keep module: %w", err)
	}
	return digest, nil
}

// Read returns the revision with that digest. It hashes what it read: a file
// that changed on disk gives an error that wraps ErrDamaged, one that is not
// there ErrNotFound.
func (r *Registry) Read(digest string) ([]byte, error) {
	if b, err := hex.DecodeString(digest); err != nil || len(b) != sha256.Size {
		return nil, fmt.Errorf("read module revision %q: %w: a digest is 64 hex digits", digest, ErrNotFound)
	}
	path := r.revisionPath(digest)
	wasm, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read module revision %s: %w in %s", short(digest), ErrNotFound, r.revisions())
	}
	if err != nil {
		return nil, fmt.Errorf("read module revision: %w", err)
	}
	if sum := sha256.Sum256(wasm); hex.EncodeToString(sum[:]) != digest {
		return nil, fmt.Errorf("read module revision %s: %w: %s no longer has the digest in its name; upload the module again",
			short(digest), ErrDamaged, path)
	}
	return wasm, nil
}

// Point lets name know the revision and, when activate is set, puts it in force.
// The revision must have been Put. by says who, at when. Revisions that the name
// keeps no longer are deleted, unless another name has them.
func (r *Registry) Point(name, digest string, activate bool, by string, at time.Time) (Entry, error) {
	if err := CheckName(name); err != nil {
		return Entry{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	wasm, err := r.Read(digest)
	if err != nil {
		return Entry{}, fmt.Errorf("point %s at a revision: %w", name, err)
	}
	f := r.names[name].clone()
	if f.damaged != "" {
		f = nameFile{}
	}
	f.Name = name
	if _, known := f.find(digest); !known {
		f.Revisions = slices.Insert(f.Revisions, 0, Revision{Digest: digest, Size: int64(len(wasm)), At: at.UTC(), By: by})
	}
	if activate && f.Active != digest {
		if f.Active != "" {
			f.Previous = append(f.Previous, f.Active)
			f.Previous = f.Previous[max(0, len(f.Previous)-keepPrevious):]
		}
		f.Active = digest
	}
	dropped := f.retain()
	e, err := r.write(name, f)
	if err != nil {
		return Entry{}, err
	}
	delete(r.pending, digest)
	for _, rev := range dropped {
		if !r.needed(rev.Digest) {
			_ = os.Remove(r.revisionPath(rev.Digest)) // what stays is removed by the next Open
		}
	}
	return e, nil
}

// Active returns the revision that name points at.
func (r *Registry) Active(name string) (Revision, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.names[name]
	return f.find(f.Active)
}

// Rollback puts the revision that was in force before back in force; again, the
// one before that. It changes nothing when that revision cannot be read.
func (r *Registry) Rollback(name string) (Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.names[name]
	switch {
	case !ok:
		return Entry{}, fmt.Errorf("roll back %s: %w", name, ErrNotFound)
	case f.damaged != "":
		return Entry{}, fmt.Errorf("roll back %s: %w: %s", name, ErrDamaged, f.damaged)
	case len(f.Previous) == 0:
		return Entry{}, fmt.Errorf("roll back %s: %w: only one was ever active", name, ErrNoPrevious)
	}
	f = f.clone()
	last := len(f.Previous) - 1
	f.Active, f.Previous = f.Previous[last], f.Previous[:last]
	if _, err := r.Read(f.Active); err != nil {
		return Entry{}, fmt.Errorf("roll back %s: %w", name, err)
	}
	return r.write(name, f)
}

// List returns all names, sorted.
func (r *Registry) List() []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Entry, 0, len(r.names))
	for name, f := range r.names {
		out = append(out, f.entry(name))
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// needed reports whether a revision is one of a name or about to be.
func (r *Registry) needed(digest string) bool {
	for _, f := range r.names {
		if _, known := f.find(digest); known {
			return true
		}
	}
	return r.pending[digest]
}

func (r *Registry) revisions() string { return filepath.Join(r.dir, "revisions") }
func (r *Registry) pointers() string  { return filepath.Join(r.dir, "names") }
func (r *Registry) revisionPath(digest string) string {
	return filepath.Join(r.revisions(), digest+".wasm")
}
func (r *Registry) namePath(name string) string { return filepath.Join(r.pointers(), name+".json") }

func short(digest string) string { return digest[:min(12, len(digest))] }
