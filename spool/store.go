package spool

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// ExitDisk is the exit status after an error of the disk that leaves no safe
// way on (EX_IOERR of sysexits.h): Pebble cannot tell what was written then, so
// the process ends, and what was acknowledged is found again at the next start.
const ExitDisk = 74

const (
	cacheSize     = 8 << 20 // shared by all stores of a spool
	memTableSize  = 4 << 20
	maxOpenFiles  = 128 // of one store
	repeatWarning = 10 * time.Second
)

// pebbleOptions are the options of every Pebble in a spool, for every program
// that opens one: other options can rewrite the whole store inside Open.
// Values are compressed and sealed already, so nothing is compressed here, and
// the tables of a queue never overlap, so their number is no reason to stop.
func (s *Spool) pebbleOptions(name string) *pebble.Options {
	log := s.log.With("store", name)
	last := &lastWords{log: log, exit: os.Exit}
	o := &pebble.Options{
		FS:                          s.disk.FS,
		Cache:                       s.cache,
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                memTableSize,
		MemTableStopWritesThreshold: 2,
		L0StopWritesThreshold:       1000,
		MaxOpenFiles:                maxOpenFiles,
		Logger:                      last,
		EventListener:               newWatch(log).listener(),
	}
	o.Experimental.FileCacheShards = 1
	o.TargetFileSizes[0] = memTableSize
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	return o
}

// openPebble opens or makes a store for writing. Pebble writes what its log holds
// into a table first, and tries that for ever, hundreds of times a second; here a
// disk that does not take it is an error with ErrDisk, after which the process
// ought to end: the attempt that was left goes on until the disk takes it.
func (s *Spool) openPebble(name, data string) (*pebble.DB, error) {
	o := s.pebbleOptions(name)
	failed, say := make(chan error, 1), o.EventListener.BackgroundError
	o.EventListener.BackgroundError = func(err error) {
		say(err)
		select {
		case failed <- err:
		default:
		}
	}
	type result struct {
		db  *pebble.DB
		err error
	}
	done := make(chan result, 1)
	go func() {
		db, err := pebble.Open(data, o)
		done <- result{db, err}
	}()
	select {
	case r := <-done:
		return r.db, r.err
	case err := <-failed:
		go func() {
			if r := <-done; r.db != nil {
				_ = r.db.Close() // nobody has it
			}
		}()
		return nil, fmt.Errorf("%w: %w; check the disk and make room on it, then start again: nothing that was acknowledged is lost", ErrDisk, err)
	}
}

// lastWords is Pebble's logger. Fatalf ends the process.
type lastWords struct {
	log  *slog.Logger
	exit func(int)
}

// Infof implements pebble.Logger.
func (l *lastWords) Infof(format string, args ...any) {
	l.log.Debug(fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (l *lastWords) Errorf(format string, args ...any) {
	l.log.Error(fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger. It does not return.
func (l *lastWords) Fatalf(format string, args ...any) {
	l.log.Error("the spool's disk failed, so the process ends; nothing that was acknowledged is lost: check the disk, then start again",
		"error", fmt.Sprintf(format, args...))
	l.exit(ExitDisk)
}

// watch hears what Pebble has to say, and says it no more than once in a while:
// a failing flush is retried hundreds of times a second.
type watch struct {
	log *slog.Logger

	mu     sync.Mutex
	said   map[string]time.Time
	missed int
}

func newWatch(log *slog.Logger) *watch {
	return &watch{log: log, said: map[string]time.Time{}}
}

func (w *watch) listener() *pebble.EventListener {
	l := &pebble.EventListener{
		BackgroundError: func(err error) { w.say("background", "spool disk error", "error", err) },
		// The default ends the process, again at each start. A reader meets the
		// same damage as an error, reports it and goes on behind it.
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			w.say("corruption "+info.Path, "spool file is damaged", "file", info.Path, "error", info.Details)
		},
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
			w.say("stall", "spool writes wait for the disk", "reason", info.Reason)
		},
	}
	l.EnsureDefaults(nil)
	return l
}

func (w *watch) say(kind, text string, args ...any) {
	w.mu.Lock()
	now := time.Now()
	if now.Sub(w.said[kind]) < repeatWarning {
		w.missed++
		w.mu.Unlock()
		return
	}
	w.said[kind] = now
	args = append(args, "not_shown", w.missed)
	w.missed = 0
	w.mu.Unlock()
	w.log.Error(text, args...)
}

const (
	identityName  = "identity"
	identityMagic = "ehi1"
	identityLen   = len(identityMagic) + 16 + sha256.Size
)

// readIdentity returns the UUID of the store in dir, which every sealed value
// is bound to. found is false when there is no identity file; ErrDamaged when
// it was not written under this keyring.
func readIdentity(d disk, dir string, key []byte) (uuid [16]byte, found bool, err error) {
	data, err := d.readFile(d.PathJoin(dir, identityName))
	if errors.Is(err, fs.ErrNotExist) {
		return uuid, false, nil
	}
	if err != nil {
		return uuid, false, fmt.Errorf("read identity: %w", err)
	}
	uuid, err = decodeIdentity(data, key)
	return uuid, true, err
}

func decodeIdentity(data, key []byte) (uuid [16]byte, err error) {
	if len(data) != identityLen || string(data[:4]) != identityMagic {
		return uuid, fmt.Errorf("%w: not an identity file", ErrDamaged)
	}
	if !hmac.Equal(identityMAC(data[:20], key), data[20:]) {
		return uuid, fmt.Errorf("%w: the identity file does not match its code", ErrDamaged)
	}
	copy(uuid[:], data[4:20])
	return uuid, nil
}

func writeIdentity(d disk, dir string, uuid [16]byte, key []byte) error {
	data := append([]byte(identityMagic), uuid[:]...)
	data = append(data, identityMAC(data, key)...)
	if err := d.writeFile(d.PathJoin(dir, identityName), data); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

func identityMAC(data, key []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(data)
	return mac.Sum(nil)
}

func newUUID() (u [16]byte) {
	rand.Read(u[:])
	return u
}
