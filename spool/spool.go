// Package spool keeps bytes safe on disk until somebody has taken them: durable,
// encrypted queues on Pebble, a small sealed key-value store beside them, and
// the dead-letter queue. It knows no records and no rows.
//
//	Append ─▶ sealed frame ─▶ group commit (fsync) ─▶ done(base)
//
//	Oldest        Head            Tail                  Next      one queue, in
//	  │ settled,   │ waiting       │ synced, but their    │        record sequence
//	  │ retained   │ (committed)   │ commit is missing    │        numbers
//	  ▼────────────▼───────────────▼──────────────────────▼
//	               Reader ─▶ … ─▶ Advance
//
// A frame is what one commit of a pipeline put into one queue. It becomes
// readable when its owner's commit is known (Queue.Commit); what a crash left
// uncommitted is voided when the queue is opened. One queue is one Pebble that
// holds frames only; head, counters and the committed tail lie in a side file.
package spool

import (
	"errors"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrWrongKey: the key does not open the keyring. Nothing was changed.
	ErrWrongKey = errors.New("wrong spool key")
	// ErrWeakKey: the key or passphrase is too short or too regular to protect anything.
	ErrWeakKey = errors.New("weak spool key")
	// ErrLocked: another process holds the spool.
	ErrLocked = errors.New("spool is in use")
	// ErrClosed: the spool, queue or reader was closed.
	ErrClosed = errors.New("spool is closed")
	// ErrFull: the dead-letter queue has reached its size; it never drops.
	ErrFull = errors.New("dead-letter queue is full")
	// ErrDamaged: stored bytes do not open under their seal.
	ErrDamaged = errors.New("damaged")
)

// KeyConfig says where the key that opens the keyring comes from. At most one
// field is set. All empty: a key file `spool.key` (0600) is made in the parent
// of Options.Dir; it protects nothing from a thief of the whole disk.
type KeyConfig struct {
	// KeyEnv names the environment variable that holds 32 random bytes in base64.
	KeyEnv string `yaml:"key_env"`
	// KeyFile is the path of a file that holds the same.
	KeyFile string `yaml:"key_file"`
	// PassphraseEnv names the environment variable that holds a passphrase; the key is made from it with Argon2id.
	PassphraseEnv string `yaml:"passphrase_env"`
}

// Options say where a spool lives. Dir, Keys and Logger are the caller's
// choice; every other field may stay zero.
type Options struct {
	Dir    string // made when it does not exist (0700)
	Keys   KeyConfig
	FS     vfs.FS // nil: the real one
	Logger *slog.Logger
	Getenv func(string) string // nil: os.Getenv

	// Linger is the least time between two commits of one queue; 512 records or
	// 128 KiB waiting end it early, and a frame that comes after a pause never
	// waits. 0: the next commit starts when the last one is on disk.
	Linger time.Duration
	// WindowRecords bounds the newest frames that a queue keeps in memory for its readers. 0: 10,000.
	WindowRecords int
	// MaxLetterBytes bounds the dead-letter queue, in sealed bytes. 0: 64 MiB.
	MaxLetterBytes int64
}

// Owner says who appended a frame (a pipeline) and which of its commits covers it.
type Owner struct {
	ID  [16]byte
	Seq uint64
}

// Frame is what one commit of one owner puts into one queue.
type Frame struct {
	Owner            Owner
	Count            int   // records inside, >= 1
	MinTime, MaxTime int64 // event times of the records, µs since 1970; stored in the clear
	Payload          []byte
}

// Stored is a frame as a reader returns it: Base is the sequence number of its
// first record, so it covers [Base, Base+Count). Payload is shared by all
// readers: read it, never write to it.
type Stored struct {
	Base uint64
	Frame
}

// Settled counts records by how they were settled.
type Settled struct{ Delivered, DeadLettered, Dropped uint64 }

// Stat is a queue at one moment. Counts are records unless they say bytes.
type Stat struct {
	Oldest uint64 // first record still on disk
	Head   uint64 // first record that is not settled
	Tail   uint64 // first record that may not be read yet
	Next   uint64 // the next frame gets this sequence number

	WaitingRecords     uint64 // committed and not settled
	WaitingBytes       uint64 // the same, sealed
	UncommittedRecords uint64 // appended, commit not known yet
	OldestWaiting      int64  // least event time of the frame at Head, µs; 0: nothing waits
	MemoryRecords      uint64 // in the memory window
	MemoryBytes        uint64
	DiskBytes          uint64 // all files of the queue

	Settled Settled // since the queue was made
	Voided  uint64  // removed because their commit never came; since the queue was made
	Damaged uint64  // unreadable or missing; since the queue was made. They are settled like others

	Commits           uint64 // group commits since the queue was opened
	Frames            uint64 // frames in them
	LastCommitLatency time.Duration

	// Err is what a person must know: the queue was started anew because its
	// files were damaged (they lie in quarantine), or the cursor cannot be
	// written. nil: nothing.
	Err error
}

// Usage is the room a spool takes on disk.
type Usage struct {
	Bytes           uint64 // everything below Dir, quarantine included
	QuarantineBytes uint64
	FreeBytes       uint64 // what the file system has left for us; 0 when unknown
}
