package sandbox

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/tetratelabs/wazero"
)

// CacheConfig says where compiled code is kept between starts.
type CacheConfig struct {
	// Dir is a directory of the cache's own, made when it does not exist (0700); ""
	// keeps nothing. One Host at a time uses it.
	Dir string
	// Key authenticates what is kept, 32 bytes or more. Whoever can write the disk
	// must not be able to read it there.
	Key []byte
	// MaxBytes bounds what is kept; what was not used for longest goes first. 0: 256 MiB.
	MaxBytes int64
	// Logger learns of every compilation, and why an entry was dropped. Dir needs it.
	Logger *slog.Logger
}

const (
	defaultCacheBytes = 256 << 20
	minCacheKey       = 32 // bytes

	cacheMagic = "edgehost compiled code 1 "
	workName   = "work"
)

// codeCache keeps compiled code on disk. wazero has a cache of its own, which
// executes what it finds after a CRC32. So wazero is given a work directory that is
// empty but while a module is compiled: an entry comes into it after its MAC has
// been found right, and goes out of it under a MAC.
//
//	<dir>/<sha256 of the metered module>   header line | what wazero wrote | HMAC-SHA-256
//	<dir>/work/                            wazero's; made afresh at each start
//
// The header names the module, the versions of wazero and Go, the machine and
// wazero's name for the file, and the MAC covers it, so that an entry is good for
// one module and one build of the engine. What the meter did is in the digest of
// its output.
//
// That protects from everything that happens to files while nobody looks: bit rot,
// torn writes, a backup of another host, two entries that changed places, code that
// was planted by somebody who writes the disk but has no key. It does not protect from the
// service's own user, or root, while the host runs: they could change the file
// between check and use, and the process too.
type codeCache struct {
	dir    string
	engine string // wazero's directory within work; its base names version and machine
	key    []byte
	most   int64 // bytes
	log    *slog.Logger

	wazero wazero.CompilationCache
	lock   io.Closer
	// turn is held by the one compilation that may use the work directory.
	turn chan struct{}
}

// badEntry is why an entry is not used and not kept.
type badEntry string

func (e badEntry) Error() string { return string(e) }

const otherVersion = badEntry("it was made by another version or on another kind of machine")

// openCodeCache takes a directory for this process and empties its work directory.
func openCodeCache(cfg CacheConfig) (*codeCache, error) {
	c := &codeCache{dir: cfg.Dir, key: cfg.Key, most: cfg.MaxBytes, log: cfg.Logger, turn: make(chan struct{}, 1)}
	if c.most == 0 {
		c.most = defaultCacheBytes
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	var err error
	if c.lock, err = c.own(); err != nil {
		return nil, err
	}
	if err := c.makeWork(); err != nil {
		return nil, errors.Join(err, c.lock.Close())
	}
	return c, nil
}

// makeWork makes the work directory afresh and gives it to wazero.
func (c *codeCache) makeWork() error {
	if err := os.RemoveAll(c.work()); err != nil {
		return fmt.Errorf("empty work directory: %w", err)
	}
	if err := os.Mkdir(c.work(), 0o700); err != nil {
		return fmt.Errorf("make work directory: %w", err)
	}
	cache, err := wazero.NewCompilationCacheWithDir(c.work())
	if err != nil {
		return err
	}
	made, err := os.ReadDir(c.work())
	if err == nil && len(made) != 1 {
		err = fmt.Errorf("wazero made %d directories, one was expected", len(made))
	}
	if err != nil {
		return errors.Join(err, cache.Close(context.Background()))
	}
	c.wazero, c.engine = cache, filepath.Join(c.work(), made[0].Name())
	return nil
}

func (c *codeCache) work() string             { return filepath.Join(c.dir, workName) }
func (c *codeCache) path(entry string) string { return filepath.Join(c.dir, entry) }

// close ends wazero's part and gives the directory back.
func (c *codeCache) close(ctx context.Context) error {
	return errors.Join(c.wazero.Close(ctx), os.RemoveAll(c.work()), c.lock.Close())
}

// begin waits for the turn of a compilation; end gives it on.
func (c *codeCache) begin(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *codeCache) end() { <-c.turn }

// compile compiles a metered module, or takes its code from the cache. Whatever is
// wrong with the cache costs time only.
func (c *codeCache) compile(ctx context.Context, r wazero.Runtime, digest string, metered []byte) (wazero.CompiledModule, error) {
	start := time.Now()
	sum := sha256.Sum256(metered)
	entry := hex.EncodeToString(sum[:])
	laid, err := c.lay(entry)
	if err != nil {
		c.reject(entry, digest, err)
	}
	defer c.clear()
	m, err := r.CompileModule(ctx, metered)
	if onDisk(err) || (err != nil && laid != "") {
		// Either wazero could not write what it made, and has it in memory now, or it
		// did not like what it read.
		c.log.Warn("the cache of compiled code does not work", "revision", short(digest), "error", err)
		c.clear()
		m, err = r.CompileModule(ctx, metered)
	}
	if err != nil {
		return nil, err
	}
	made, err := c.made(laid)
	switch {
	case err != nil:
	case made != "":
		err = c.keep(entry, made)
	case laid != "":
		now := time.Now()
		_ = os.Chtimes(c.path(entry), now, now) // when it fails, the entry only looks older than it is
	}
	if err != nil {
		c.log.Warn("compiled code is not kept", "revision", short(digest), "error", err)
	}
	c.log.Info("module compiled", "revision", short(digest), "from_cache", laid != "" && made == "", "ms", time.Since(start).Milliseconds())
	return m, nil
}

// onDisk reports whether an error is one of the file system.
func onDisk(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

// reject removes an entry that is no good. One that could not be read stays.
func (c *codeCache) reject(entry, digest string, err error) {
	var bad badEntry
	if errors.As(err, &bad) {
		level := slog.LevelWarn
		if bad == otherVersion {
			level = slog.LevelInfo
		}
		c.log.Log(context.Background(), level, "compiled code is dropped and made anew", "revision", short(digest), "entry", c.path(entry), "reason", bad.Error())
		err = os.RemoveAll(c.path(entry))
	}
	if err != nil {
		c.log.Warn("the cache of compiled code does not work", "revision", short(digest), "error", err)
	}
}

// header is the first line of an entry, but for wazero's name of the file (64
// digits) and the line's end.
func (c *codeCache) header(entry string) string {
	return cacheMagic + filepath.Base(c.engine) + " " + runtime.Version() + " " + entry + " "
}

func (c *codeCache) mac() hash.Hash { return hmac.New(sha256.New, c.key) }

// lay puts the content of an entry where wazero looks for it, once its MAC has
// been found right. It returns the name that it has there; "" is that there is
// none.
func (c *codeCache) lay(entry string) (name string, err error) {
	st, err := os.Lstat(c.path(entry))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case !st.Mode().IsRegular():
		return "", badEntry("it is no file")
	case st.Size() > c.most:
		return "", badEntry("it is larger than the whole cache may be")
	}
	f, err := os.Open(c.path(entry))
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	head := make([]byte, len(c.header(entry))+2*sha256.Size+1)
	body := st.Size() - int64(len(head)) - sha256.Size
	if _, err := io.ReadFull(f, head); body < 0 || err != nil {
		return "", badEntry("it is too short")
	}
	if name, err = c.parseHeader(head, entry); err != nil {
		return "", err
	}
	unchecked := filepath.Join(c.work(), "unchecked")
	if err := c.copyChecked(unchecked, f, head, body); err != nil {
		return "", errors.Join(err, os.RemoveAll(unchecked))
	}
	return name, os.Rename(unchecked, filepath.Join(c.engine, name))
}

// parseHeader returns wazero's name for the file.
func (c *codeCache) parseHeader(head []byte, entry string) (name string, err error) {
	rest, ours := bytes.CutPrefix(head, []byte(c.header(entry)))
	switch {
	case !bytes.HasPrefix(head, []byte(cacheMagic)):
		return "", badEntry("it is no compiled code")
	case !ours && bytes.Contains(head, []byte(" "+entry[:16])):
		return "", otherVersion
	case !ours:
		return "", badEntry("it is the code of another module")
	}
	name = string(rest[:2*sha256.Size])
	if _, err := hex.DecodeString(name); err != nil || rest[2*sha256.Size] != '\n' {
		return "", badEntry("its header is damaged")
	}
	return name, nil
}

// copyChecked copies n bytes from r to the file at path and compares the MAC that
// follows them with that of head and copy.
func (c *codeCache) copyChecked(path string, r io.Reader, head []byte, n int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	mac := c.mac()
	mac.Write(head)
	_, err = io.CopyN(io.MultiWriter(f, mac), r, n)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r, want); err != nil {
		return err
	}
	if !hmac.Equal(want, mac.Sum(nil)) {
		return badEntry("its seal does not match: it was changed, or sealed with another key")
	}
	return nil
}

// made returns the name of the file that wazero wrote; "" when it wrote none.
func (c *codeCache) made(laid string) (name string, err error) {
	files, err := os.ReadDir(c.engine)
	if err != nil {
		return "", fmt.Errorf("look for compiled code: %w", err)
	}
	for _, f := range files {
		if n := f.Name(); n != laid && len(n) == 2*sha256.Size {
			return n, nil
		}
	}
	return "", nil
}

// keep makes an entry of what wazero wrote. It syncs nothing: an entry that a
// crash tore is found out and made anew.
func (c *codeCache) keep(entry, made string) error {
	in, err := os.Open(filepath.Join(c.engine, made))
	if err != nil {
		return fmt.Errorf("read compiled code: %w", err)
	}
	defer func() { _ = in.Close() }() // only read
	tmp := filepath.Join(c.work(), "sealing")
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write compiled code: %w", err)
	}
	mac := c.mac()
	both := io.MultiWriter(out, mac)
	_, err = io.WriteString(both, c.header(entry)+made+"\n")
	if err == nil {
		_, err = io.Copy(both, in)
	}
	if err == nil {
		_, err = out.Write(mac.Sum(nil))
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = os.Rename(tmp, c.path(entry))
	}
	if err != nil {
		return fmt.Errorf("write compiled code: %w", errors.Join(err, os.RemoveAll(tmp)))
	}
	return c.trim()
}

// trim removes what was not used for longest until the rest is within its bound.
func (c *codeCache) trim() error {
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("list cache: %w", err)
	}
	var entries []fs.FileInfo
	var total int64
	for _, f := range files {
		if st, err := f.Info(); err == nil && st.Mode().IsRegular() {
			entries, total = append(entries, st), total+st.Size()
		}
	}
	slices.SortFunc(entries, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, st := range entries {
		if total <= c.most {
			break
		}
		if err := os.Remove(c.path(st.Name())); err != nil {
			return fmt.Errorf("make room in the cache: %w", err)
		}
		total -= st.Size()
	}
	return nil
}

// clear empties wazero's directory.
func (c *codeCache) clear() {
	files, _ := os.ReadDir(c.engine) // a directory that is gone is empty
	for _, f := range files {
		if err := os.RemoveAll(filepath.Join(c.engine, f.Name())); err != nil {
			c.log.Warn("the cache of compiled code does not work", "error", err)
		}
	}
}

func short(digest string) string { return digest[:min(12, len(digest))] }
