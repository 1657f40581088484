// Package modules is the registry of uploaded modules on disk. A revision is an
// immutable file named by its digest; a name points at one revision and
// remembers those it pointed at before. Every change is one atomic rename, so a
// crash leaves the old state or the new one.
//
//	<dir>/revisions/<sha256>.wasm    what was uploaded, 0600
//	<dir>/names/<name>.json          active digest and history
//	<dir>/{revisions,names}/.tmp-*   torn by a crash; removed by Open
//
// The package knows bytes and names, not WebAssembly: admission comes before Put.
package modules

import (
	"errors"
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

// Revision is one immutable module as a name sees it.
type Revision struct {
	Digest string    // sha256 in hex
	Size   int64     // bytes
	At     time.Time // when the name first pointed at it
	By     string    // who uploaded it, as the caller said
}

// Entry is one name.
type Entry struct {
	Name      string
	Active    string     // digest; "": none
	Revisions []Revision // newest first
}
