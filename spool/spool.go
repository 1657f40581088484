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
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
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
	// ErrDisk: the disk does not take what has to be written to open a store.
	ErrDisk = errors.New("the spool's disk failed")
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

// The directories of a spool: keyring.json, keyring.json.bak and host.lock lie
// beside them.
const (
	queueDir      = "q"     // <name>/{identity,cursor,data}
	stateDir      = "state" // <name>/{identity,data}
	dlqDir        = "dlq"   // identity, data
	quarantineDir = "quarantine"
	dataName      = "data"
	lockName      = "host.lock"

	closeLimit = 15 * time.Second
)

// Spool is a directory of queues, open and locked for this process. Any
// goroutine may call any method.
type Spool struct {
	disk        disk
	dir         string
	o           Options
	log         *slog.Logger
	keys        *keyring
	cursorKey   []byte
	identityKey []byte
	nameKey     []byte
	generated   string
	lock        io.Closer
	cache       *pebble.Cache

	mu     sync.Mutex
	closed bool
	queues map[string]*Queue
	states map[string]*State
	dlq    *DeadLetters
}

// Open takes the lock and opens the keyring, and makes both in an empty
// directory. No queue is touched before the key has proved right. Errors:
// ErrLocked, ErrWrongKey, ErrWeakKey, or of the file system.
func Open(o Options) (*Spool, error) {
	s := &Spool{dir: o.Dir, o: o, log: o.Logger, queues: map[string]*Queue{}, states: map[string]*State{}}
	s.disk = disk{FS: o.FS}
	if o.FS == nil {
		s.disk = disk{FS: vfs.Default, real: true}
	}
	if s.o.Getenv == nil {
		s.o.Getenv = os.Getenv
	}
	if s.o.WindowRecords == 0 {
		s.o.WindowRecords = 10_000
	}
	if s.o.MaxLetterBytes == 0 {
		s.o.MaxLetterBytes = 64 << 20
	}
	if err := s.disk.mkdir(s.dir); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	var err error
	if s.lock, err = s.disk.lock(s.disk.PathJoin(s.dir, lockName)); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if err := s.openKeys(); err != nil {
		_ = s.lock.Close()
		return nil, fmt.Errorf("open spool: %w", err)
	}
	s.cache = pebble.NewCache(cacheSize)
	return s, nil
}

func (s *Spool) openKeys() error {
	var err error
	s.keys, s.generated, err = openKeyring(s.disk, s.dir, s.o.Keys, s.o.Getenv, s.log)
	if err != nil {
		return err
	}
	s.warnOpenKey()
	for purpose, key := range map[string]*[]byte{"cursor": &s.cursorKey, "identity": &s.identityKey, "names": &s.nameKey} {
		if *key, err = s.keys.derive(purpose); err != nil {
			return err
		}
	}
	return nil
}

// warnOpenKey complains of a key file that others can read. It is no error,
// because mounted secrets often come that way.
func (s *Spool) warnOpenKey() {
	path := cmp.Or(s.o.Keys.KeyFile, s.generated)
	if !s.disk.real || path == "" {
		return
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		s.log.Warn("others may read the spool's key file; run `chmod 600` on it", "file", path, "mode", info.Mode().Perm().String())
	}
}

// GeneratedKey returns the path of the key file when the key lies beside the
// data because the configuration names none; "" otherwise.
func (s *Spool) GeneratedKey() string { return s.generated }

// Key derives 32 bytes from the root secret of the keyring, for a purpose outside
// the spool. The same keyring gives the same bytes, also under a new user key.
func (s *Spool) Key(purpose string) ([]byte, error) { return s.keys.derive("for " + purpose) }

// Queue opens the queue called name, or makes it. keep says whether the commit
// that covers an owner's frame is known; frames that it refuses are voided. It
// is asked only about the newest frames, whose fate the last run did not write
// down. A queue that is open already is returned as it is.
func (s *Spool) Queue(name string, keep func(Owner) bool) (*Queue, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if q := s.queues[name]; q != nil {
		return q, nil
	}
	q, err := s.openQueue(name, keep)
	if err != nil {
		return nil, fmt.Errorf("open queue %s: %w", name, err)
	}
	s.queues[name] = q
	return q, nil
}

// Queues returns the names of the queues on disk, open or not, sorted.
func (s *Spool) Queues() []string {
	files, err := s.disk.list(s.disk.PathJoin(s.dir, queueDir))
	if err != nil {
		s.log.Error("cannot list the queues of the spool", "error", err)
	}
	var names []string
	for _, f := range files {
		if name, err := unsafeName(f); err == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// State opens the state store called name, or makes it.
func (s *Spool) State(name string) (*State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if st := s.states[name]; st != nil {
		return st, nil
	}
	st, err := s.openState(name)
	if err != nil {
		return nil, err
	}
	s.states[name] = st
	return st, nil
}

// DeadLetters opens the dead-letter queue. Letters whose owner keep refuses are
// removed; a letter with a zero Owner.ID needs no commit and is not asked about.
func (s *Spool) DeadLetters(keep func(Owner) bool) (*DeadLetters, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.dlq != nil {
		return s.dlq, nil
	}
	d, err := s.openDeadLetters(keep)
	if err != nil {
		return nil, err
	}
	s.dlq = d
	return d, nil
}

// Usage adds up what the spool takes on disk. It walks the directory: not more
// than once a second, please.
func (s *Spool) Usage() (Usage, error) {
	u := Usage{
		Bytes:           s.disk.size(s.dir),
		QuarantineBytes: s.disk.size(s.disk.PathJoin(s.dir, quarantineDir)),
	}
	free, err := s.disk.GetDiskUsage(s.dir)
	if errors.Is(err, vfs.ErrUnsupported) {
		return u, nil
	}
	if err != nil {
		return u, fmt.Errorf("ask for free space: %w", err)
	}
	u.FreeBytes = free.AvailBytes
	return u, nil
}

// Close finishes the commits that are under way, writes the cursors and gives
// up the lock. It takes at most 15 seconds: with a disk that hangs it returns an
// error, and the process may exit, since all that was acknowledged is on disk.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()

	done := make(chan error, 1)
	go func() { done <- s.closeAll() }()
	select {
	case err := <-done:
		return err
	case <-time.After(closeLimit):
		return fmt.Errorf("close spool: the disk did not answer within %s", closeLimit)
	}
}

func (s *Spool) closeAll() error {
	var wg sync.WaitGroup
	errs := make([]error, 0, len(s.queues)+len(s.states)+2)
	var mu sync.Mutex
	add := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	for _, q := range s.queues {
		wg.Go(func() { add(q.close()) })
	}
	for _, st := range s.states {
		wg.Go(func() { add(st.close()) })
	}
	if s.dlq != nil {
		wg.Go(func() { add(s.dlq.close()) })
	}
	wg.Wait()
	s.cache.Unref()
	add(s.lock.Close())
	return errors.Join(errs...)
}

// safeName turns a name into a file name: letters, digits, '-', '_' and '.'
// stay, every other byte, and a dot in front, becomes %XX.
func safeName(name string) (string, error) {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	if b.Len() == 0 || b.Len() > 200 {
		return "", fmt.Errorf("name %q: it must have 1 to 200 bytes, and fewer with unusual characters", name)
	}
	return b.String(), nil
}

// unsafeName is the way back.
func unsafeName(file string) (string, error) {
	name, err := url.PathUnescape(file)
	if err != nil {
		return "", err
	}
	if again, err := safeName(name); err != nil || again != file {
		return "", fmt.Errorf("%q is not the file name of a queue", file)
	}
	return name, nil
}
