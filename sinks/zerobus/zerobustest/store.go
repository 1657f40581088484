package zerobustest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"
)

// tableName is catalog.schema.table.
var tableName = regexp.MustCompile(`^[A-Za-z0-9_]+\.[A-Za-z0-9_]+\.[A-Za-z0-9_]+$`)

func validTable(name string) bool { return len(name) < 250 && tableName.MatchString(name) }

// store is the tables.
type store struct {
	dir, key string

	mu     sync.Mutex
	tables map[string]*table
	closed bool
}

// openStore makes dir when it is missing.
func openStore(dir, key string) (*store, error) {
	if dir == "" {
		return nil, errors.New("open store: no directory given")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return &store{dir: dir, key: key, tables: map[string]*table{}}, nil
}

// table returns the table of that name, opened at its first use.
func (s *store) table(name string) (*table, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("open table: the emulator is closed")
	}
	if t := s.tables[name]; t != nil {
		return t, nil
	}
	t, err := openTable(filepath.Join(s.dir, name+".ndjson"), s.key)
	if err != nil {
		return nil, err
	}
	s.tables[name] = t
	return t, nil
}

// stats returns rows and duplicates by table.
func (s *store) stats() map[string]TableStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]TableStats{}
	for name, t := range s.tables {
		t.mu.Lock()
		all[name] = TableStats{Rows: t.rows, Duplicates: t.duplicates}
		t.mu.Unlock()
	}
	return all
}

func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for _, t := range s.tables {
		errs = append(errs, t.close())
	}
	return errors.Join(errs...)
}

// table is one NDJSON file. Rows that arrive while an fsync runs share the next.
type table struct {
	file *os.File
	wg   sync.WaitGroup

	mu         sync.Mutex
	wake       *sync.Cond // something to write, or closed
	buf, spare []byte
	position   int64         // of what was appended, in bytes
	synced     int64         // of what is durable
	changed    chan struct{} // closed and replaced when synced moves or err is set
	err        error
	closed     bool
	keys       map[string]struct{}
	rows       int64
	duplicates int64
}

// openTable opens the file, cuts a partial last line and learns the keys in it.
func openTable(path, key string) (*table, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open table: %w", err)
	}
	t := &table{file: f, changed: make(chan struct{}), keys: map[string]struct{}{}}
	t.wake = sync.NewCond(&t.mu)
	end := int64(0)
	r := bufio.NewReaderSize(f, 1<<16)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("read table: %w", err)
		}
		end += int64(len(line))
		t.note([]string{jsonKey(line, key)})
	}
	if err := f.Truncate(end); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cut partial row: %w", err)
	}
	if _, err := f.Seek(end, io.SeekStart); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open table: %w", err)
	}
	t.wg.Go(t.commit)
	return t, nil
}

// jsonKey is the text of the key column in a JSON row; "" without one.
func jsonKey(line []byte, key string) string {
	var row map[string]json.RawMessage
	if !bytes.Contains(line, []byte(`"`+key+`"`)) || json.Unmarshal(line, &row) != nil {
		return ""
	}
	return rawText(row[key])
}

// rawText is a JSON scalar as plain text.
func rawText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

// note counts rows and their keys. t.mu is held, or nobody else knows t yet.
func (t *table) note(keys []string) {
	for _, k := range keys {
		t.rows++
		if k == "" {
			continue
		}
		if _, seen := t.keys[k]; seen {
			t.duplicates++
		}
		t.keys[k] = struct{}{}
	}
}

// append takes rows, each ending in a newline, and returns the position at which
// they are durable.
func (t *table) append(rows []byte, keys []string) (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return 0, t.err
	}
	t.buf = append(t.buf, rows...)
	t.position += int64(len(rows))
	t.note(keys)
	t.wake.Signal()
	return t.position, nil
}

// durable returns the durable position and a channel that is closed when it moves.
func (t *table) durable() (position int64, changed <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.synced, t.changed, t.err
}

// commit writes and fsyncs what was appended, until close.
func (t *table) commit() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		for len(t.buf) == 0 && !t.closed {
			t.wake.Wait()
		}
		if len(t.buf) == 0 || t.err != nil {
			return
		}
		out, position := t.buf, t.position
		t.buf, t.spare = t.spare[:0], nil
		t.mu.Unlock()
		_, err := t.file.Write(out)
		if err == nil {
			err = t.file.Sync()
		}
		t.mu.Lock()
		t.spare = out
		if err != nil {
			t.err = fmt.Errorf("write table: %w", err)
		} else {
			t.synced = position
		}
		close(t.changed)
		t.changed = make(chan struct{})
	}
}

func (t *table) close() error {
	t.mu.Lock()
	t.closed = true
	t.wake.Signal()
	t.mu.Unlock()
	t.wg.Wait()
	return t.file.Close()
}
