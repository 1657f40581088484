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
	"strconv"
	"sync"
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
	// MaxBytes and MaxEntries bound what is kept; what was not used for longest goes
	// first. 0: 256 MiB, and 256 revisions of modules.
	MaxBytes   int64
	MaxEntries int
	// Logger learns of every compilation, and why an entry was dropped. Dir needs it.
	Logger *slog.Logger
}

// CacheStat counts since the Host was made.
type CacheStat struct {
	Hits, Misses uint64 // compilations that found their code, and those that did not
	Refused      uint64 // entries that were damaged or foreign, and are gone
	Removed      uint64 // entries of other versions, and those that gave room
	Failed       uint64 // errors of the disk: code that could not be read or kept
	Entries      int    // that are kept now
	Bytes        int64  // of them
}

const (
	defaultCacheBytes   = 256 << 20
	defaultCacheEntries = 256
	minCacheKey         = 32 // bytes

	cacheMagic = "edgehost compiled code 1 "
	workName   = "work"
)

// codeCache keeps compiled code on disk. wazero has a cache of its own, which
// executes what it finds after a CRC32. So wazero is given a desk, a work directory that is
// empty but while a module is compiled: an entry comes onto it after its MAC has
// been found right, and goes off it under a MAC.
//
//	<dir>/<sha256 of the metered module>   header line | what wazero wrote | HMAC-SHA-256
//	<dir>/work/<n>/                        wazero's, one for each engine; made afresh at each start
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
	dir     string
	engine  string // version of wazero and the machine, in wazero's words
	key     []byte
	most    int64 // bytes
	entries int   // at most
	log     *slog.Logger

	lock  io.Closer
	desks []*desk

	mu    sync.Mutex // one at a time removes entries
	count CacheStat
}

// desk is where one engine compiles; one compilation at a time uses it.
type desk struct {
	*codeCache
	work   string // directory
	engine string // wazero's directory in it
	wazero wazero.CompilationCache
}

// badEntry is why an entry is not used and not kept.
type badEntry string

func (e badEntry) Error() string { return string(e) }

const otherVersion = badEntry("it was made by another version or on another kind of machine")

// openCodeCache takes a directory for this process, empties its work directory, makes
// n desks and removes what can be of no use.
func openCodeCache(cfg CacheConfig, n int) (*codeCache, error) {
	c := &codeCache{dir: cfg.Dir, key: cfg.Key, most: cfg.MaxBytes, entries: cfg.MaxEntries, log: cfg.Logger}
	pick(&c.most, defaultCacheBytes)
	pick(&c.entries, defaultCacheEntries)
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	var err error
	if c.lock, err = c.own(); err != nil {
		return nil, err
	}
	if err = os.RemoveAll(c.path(workName)); err != nil {
		err = fmt.Errorf("empty work directory: %w", err)
	}
	for k := range n {
		if err == nil {
			err = c.addDesk(c.path(workName, strconv.Itoa(k)))
		}
	}
	if err == nil {
		err = c.sweep()
	}
	if err != nil {
		return nil, errors.Join(err, c.close(context.Background()))
	}
	return c, nil
}

// addDesk makes a work directory and gives it to wazero.
func (c *codeCache) addDesk(work string) error {
	if err := os.MkdirAll(work, 0o700); err != nil {
		return fmt.Errorf("make work directory: %w", err)
	}
	cache, err := wazero.NewCompilationCacheWithDir(work)
	if err != nil {
		return fmt.Errorf("make work directory: %w", err)
	}
	made, err := os.ReadDir(work)
	if err == nil && len(made) != 1 {
		err = fmt.Errorf("wazero made %d directories, one was expected", len(made))
	}
	if err != nil {
		return errors.Join(err, cache.Close(context.Background()))
	}
	c.engine = made[0].Name()
	c.desks = append(c.desks, &desk{codeCache: c, work: work, engine: filepath.Join(work, c.engine), wazero: cache})
	return nil
}

func (c *codeCache) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

// close ends wazero's part and gives the directory back.
func (c *codeCache) close(ctx context.Context) error {
	var errs []error
	for _, d := range c.desks {
		errs = append(errs, d.wazero.Close(ctx))
	}
	return errors.Join(append(errs, os.RemoveAll(c.path(workName)), c.lock.Close())...)
}

func (c *codeCache) stat() CacheStat {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// note changes what is counted.
func (c *codeCache) note(change func(*CacheStat)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.count)
}

// failed tells an error of the disk, which costs time only.
func (c *codeCache) failed(msg, digest string, err error) {
	c.note(func(n *CacheStat) { n.Failed++ })
	c.log.Warn(msg, "revision", short(digest), "error", err)
}

// compile compiles a metered module, or takes its code from the cache. Whatever is
// wrong with the cache costs time only.
func (d *desk) compile(ctx context.Context, r wazero.Runtime, digest string, metered []byte) (wazero.CompiledModule, error) {
	start := time.Now()
	sum := sha256.Sum256(metered)
	entry := hex.EncodeToString(sum[:])
	laid, err := d.lay(entry)
	if err != nil {
		d.reject(entry, digest, err)
	}
	defer d.clear()
	m, err := r.CompileModule(ctx, metered)
	if onDisk(err) || (err != nil && laid != "") {
		// Either wazero could not write what it made, and has it in memory now, or it
		// did not like what it read.
		d.failed("the cache of compiled code does not work", digest, err)
		d.clear()
		m, err = r.CompileModule(ctx, metered)
	}
	if err != nil {
		return nil, err
	}
	made, err := d.made(laid)
	hit := laid != "" && made == ""
	switch {
	case err != nil:
	case made != "":
		err = d.keep(entry, made)
	case laid != "":
		now := time.Now()
		_ = os.Chtimes(d.path(entry), now, now) // when it fails, the entry only looks older than it is
	}
	if err != nil {
		d.failed("compiled code is not kept", digest, err)
	}
	d.note(func(n *CacheStat) {
		if hit {
			n.Hits++
		} else {
			n.Misses++
		}
	})
	d.log.Info("module compiled", "revision", short(digest), "from_cache", hit, "ms", time.Since(start).Milliseconds())
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
		level, counted := slog.LevelWarn, func(n *CacheStat) { n.Refused++ }
		if bad == otherVersion {
			level, counted = slog.LevelInfo, func(n *CacheStat) { n.Removed++ }
		}
		c.log.Log(context.Background(), level, "compiled code is dropped and made anew", "revision", short(digest), "entry", c.path(entry), "reason", bad.Error())
		c.note(counted)
		err = os.RemoveAll(c.path(entry))
	}
	if err != nil {
		c.failed("the cache of compiled code does not work", digest, err)
	}
}

// header is the first line of an entry, but for wazero's name of the file (64
// digits) and the line's end.
func (c *codeCache) header(entry string) string {
	return cacheMagic + c.engine + " " + runtime.Version() + " " + entry + " "
}

func (c *codeCache) mac() hash.Hash { return hmac.New(sha256.New, c.key) }

// lay puts the content of an entry where wazero looks for it, once its MAC has
// been found right. It returns the name that it has there; "" is that there is
// none.
func (d *desk) lay(entry string) (name string, err error) {
	st, err := os.Lstat(d.path(entry))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case !st.Mode().IsRegular():
		return "", badEntry("it is no file")
	case st.Size() > d.most:
		return "", badEntry("it is larger than the whole cache may be")
	}
	f, err := os.Open(d.path(entry))
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	head := make([]byte, len(d.header(entry))+2*sha256.Size+1)
	body := st.Size() - int64(len(head)) - sha256.Size
	if _, err := io.ReadFull(f, head); body < 0 || err != nil {
		return "", badEntry("it is too short")
	}
	if name, err = d.parseHeader(head, entry); err != nil {
		return "", err
	}
	unchecked := filepath.Join(d.work, "unchecked")
	if err := d.copyChecked(unchecked, f, head, body); err != nil {
		return "", errors.Join(err, os.RemoveAll(unchecked))
	}
	return name, os.Rename(unchecked, filepath.Join(d.engine, name))
}

// parseHeader returns wazero's name for the file.
func (c *codeCache) parseHeader(head []byte, entry string) (name string, err error) {
	rest, ours := bytes.CutPrefix(head, []byte(c.header(entry)))
	switch {
	case !bytes.HasPrefix(head, []byte(cacheMagic)):
		return "", badEntry("it is no compiled code")
	case !ours && bytes.Contains(head, []byte(" "+short(entry))):
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
func (d *desk) made(laid string) (name string, err error) {
	files, err := os.ReadDir(d.engine)
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
func (d *desk) keep(entry, made string) error {
	in, err := os.Open(filepath.Join(d.engine, made))
	if err != nil {
		return fmt.Errorf("read compiled code: %w", err)
	}
	defer func() { _ = in.Close() }() // only read
	tmp := filepath.Join(d.work, "sealing")
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write compiled code: %w", err)
	}
	mac := d.mac()
	both := io.MultiWriter(out, mac)
	_, err = io.WriteString(both, d.header(entry)+made+"\n")
	if err == nil {
		_, err = io.Copy(both, in)
	}
	if err == nil {
		_, err = out.Write(mac.Sum(nil))
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = os.Rename(tmp, d.path(entry))
	}
	if err != nil {
		return fmt.Errorf("write compiled code: %w", errors.Join(err, os.RemoveAll(tmp)))
	}
	return d.trim()
}

// sweep removes at the start what no compilation would find or believe: entries of
// other versions, torn ones, files that are none; and counts the others.
func (c *codeCache) sweep() error {
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("list cache: %w", err)
	}
	for _, f := range files {
		if f.Name() == workName {
			continue
		}
		if err := c.glance(f.Name()); err != nil {
			c.reject(f.Name(), "", err)
		}
	}
	return c.trim()
}

// glance looks at what an entry says that it is. Whether that is true its MAC says,
// when it is used.
func (c *codeCache) glance(entry string) error {
	st, err := os.Lstat(c.path(entry))
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return badEntry("it is no file")
	}
	f, err := os.Open(c.path(entry))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	head := make([]byte, len(c.header(entry))+2*sha256.Size+1)
	if _, err := io.ReadFull(f, head); err != nil {
		return badEntry("it is too short")
	}
	_, err = c.parseHeader(head, entry)
	return err
}

// trim removes what was not used for longest until the rest is within its bounds.
func (c *codeCache) trim() error {
	c.mu.Lock()
	defer c.mu.Unlock()
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
	for len(entries) > 0 && (total > c.most || len(entries) > c.entries) {
		if err := os.RemoveAll(c.path(entries[0].Name())); err != nil {
			return fmt.Errorf("make room in the cache: %w", err)
		}
		total -= entries[0].Size()
		entries = entries[1:]
		c.count.Removed++
	}
	c.count.Entries, c.count.Bytes = len(entries), total
	return nil
}

// clear empties the desk.
func (d *desk) clear() {
	files, _ := os.ReadDir(d.engine) // a directory that is gone is empty
	for _, f := range files {
		if err := os.RemoveAll(filepath.Join(d.engine, f.Name())); err != nil {
			d.failed("the cache of compiled code does not work", "", err)
		}
	}
}

func short(digest string) string { return digest[:min(12, len(digest))] }
