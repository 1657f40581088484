// Package file is the sink that writes NDJSON: one file a table, one JSON object
// a row, fsynced before the ack. It is for tests, for a site without a cloud and
// for looking at what would be sent.
//
//	Send ──rows──> DIR/<catalog.schema.table>.ndjson ──fsync──> Acks
//
// A crash may leave a partial last line; Open cuts it. Rows that were written but
// not acknowledged before a crash are written again, with the same record_id.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/edgehost/edgehost/sinks"
)

// Config is the file section of the configuration.
type Config struct {
	// Dir is where the files are. It is made when missing.
	Dir string `yaml:"dir"`
	// MaxSizeMB bounds the file of each table, in 1,000,000 bytes; a full file
	// holds the destination until a person makes room. 0 is 1024.
	MaxSizeMB int `yaml:"max_size_mb"`
}

const (
	defaultMaxSizeMB = 1024
	// window bounds the rows that are written and not yet fsynced.
	window = 8 << 20
	// tailBlock is how much is read at a time to find the last line.
	tailBlock = 64 << 10
)

// Sink writes one table.
type Sink struct {
	path  string
	limit int64
}

// tableName is catalog.schema.table, as in package zerobus.
var tableName = regexp.MustCompile(`^[A-Za-z0-9_]+\.[A-Za-z0-9_]+\.[A-Za-z0-9_]+$`)

// New makes the sink of table, a three-part name.
func New(cfg Config, table string) (*Sink, error) {
	if cfg.Dir == "" {
		return nil, errors.New("configure file sink: dir is missing: name a directory outside state_dir")
	}
	if !tableName.MatchString(table) || len(table) > 240 {
		return nil, fmt.Errorf("configure file sink: table %q is not catalog.schema.table", table)
	}
	if cfg.MaxSizeMB < 0 {
		return nil, fmt.Errorf("configure file sink: max_size_mb is %d: write 1 or more", cfg.MaxSizeMB)
	}
	if cfg.MaxSizeMB == 0 {
		cfg.MaxSizeMB = defaultMaxSizeMB
	}
	return &Sink{path: filepath.Join(cfg.Dir, table+".ndjson"), limit: int64(cfg.MaxSizeMB) * 1_000_000}, nil
}

// Path is the file.
func (s *Sink) Path() string { return s.path }

// Open opens the file and cuts a partial last line. See sinks.Sink.
func (s *Sink) Open(ctx context.Context) (sinks.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open %s: %w", s.path, err)
	}
	f, size, err := openFile(s.path)
	if err != nil {
		return nil, fmt.Errorf("open file sink: %w", err)
	}
	if size >= s.limit {
		_ = f.Close() // nothing was written
		return nil, s.full(size)
	}
	st := &stream{sink: s, file: f, size: size, good: size, acks: sinks.NewAckQueue(), done: make(chan struct{})}
	st.change = sync.NewCond(&st.mu)
	go st.sync()
	return st, nil
}

// full holds the destination.
func (s *Sink) full(size int64) error {
	return sinks.Hold(fmt.Errorf("%s is full: it has %d of %d bytes: move it away or raise max_size_mb", s.path, size, s.limit))
}

// openFile opens path for appending, made when missing together with its
// directory, and returns its size after the last complete line.
func openFile(path string) (f *os.File, size int64, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, 0, err
	}
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, 0, err
	}
	if size, err = cutTail(f); err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = f.Close() // err says more
		return nil, 0, err
	}
	return f, size, nil
}

// cutTail truncates f after its last newline and leaves the offset there.
func cutTail(f *os.File) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	good := end
	block := make([]byte, tailBlock)
search:
	for good > 0 {
		b := block[:min(good, tailBlock)]
		if _, err := f.ReadAt(b, good-int64(len(b))); err != nil {
			return 0, err
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] == '\n' {
				break search
			}
			good--
		}
	}
	if good < end {
		if err := f.Truncate(good); err != nil {
			return 0, err
		}
	}
	_, err = f.Seek(good, io.SeekStart)
	return good, err
}

// syncDir makes a new file's name durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// stream is one open file. Send and Close run on the drain's goroutine, sync on
// one of its own; rows that are written while an fsync runs share the next.
type stream struct {
	sink *Sink
	file *os.File
	acks *sinks.AckQueue
	done chan struct{} // closed after acks
	buf  []byte        // of Send

	mu      sync.Mutex
	change  *sync.Cond      // anything below
	size    int64           // written
	good    int64           // durable
	next    uint64          // sequence after that of the last record written or refused
	acked   uint64          // next of the last ack
	refused []sinks.Refusal // below next, not acknowledged yet
	closing bool
	ended   bool
	err     error
}

// Acks returns the acks.
func (s *stream) Acks() <-chan sinks.Ack { return s.acks.C() }

// Err says why the stream ended.
func (s *stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// errClosed is what Send returns after Close.
var errClosed = errors.New("the stream is closed")

// Send writes recs and returns; their acks follow the fsync.
func (s *stream) Send(ctx context.Context, recs []sinks.Record) error {
	var refused []sinks.Refusal
	s.buf = s.buf[:0]
	for i := range recs {
		row, err := appendRow(s.buf, &recs[i])
		if err != nil {
			refused = append(refused, sinks.Refusal{Seq: recs[i].Seq, Reason: sinks.ReasonSchema, Err: sinks.Permanent(err)})
			continue
		}
		s.buf = row
	}
	if len(recs) == 0 {
		return nil
	}
	if err := s.room(ctx); err != nil {
		return err
	}
	if size := s.size + int64(len(s.buf)); size > s.sink.limit {
		return s.fail(s.sink.full(s.size))
	}
	if _, err := s.file.Write(s.buf); err != nil {
		return s.fail(fmt.Errorf("write %s: %w", s.sink.path, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size += int64(len(s.buf))
	s.next = recs[len(recs)-1].Seq + 1
	s.refused = append(s.refused, refused...)
	s.change.Broadcast()
	return nil
}

// room waits until what is not durable is less than the window.
func (s *stream) room(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.change.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	for s.size-s.good > window && ctx.Err() == nil && !s.ended {
		s.change.Wait()
	}
	ended, err := s.ended || s.closing, s.err
	s.mu.Unlock()
	switch {
	case err != nil:
		return err
	case ended:
		return errClosed
	case ctx.Err() != nil:
		return s.fail(fmt.Errorf("write %s: %w", s.sink.path, ctx.Err()))
	}
	return nil
}

// fail ends the stream from Send's side and returns why it has ended.
func (s *stream) fail(err error) error {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	err = s.err
	s.change.Broadcast()
	s.mu.Unlock()
	<-s.done
	return err
}

// sync fsyncs and acknowledges until the stream is closed or has failed.
func (s *stream) sync() {
	s.mu.Lock()
	for {
		for s.next == s.acked && !s.closing && s.err == nil {
			s.change.Wait()
		}
		if s.err != nil || s.next == s.acked {
			break
		}
		size, next, refused := s.size, s.next, s.refused
		s.refused = nil
		s.mu.Unlock()
		err := s.file.Sync()
		s.mu.Lock()
		if err != nil {
			s.err = fmt.Errorf("fsync %s: %w", s.sink.path, err)
			break
		}
		s.good, s.acked = size, next
		s.acks.Put(sinks.Ack{Seq: next - 1, Refused: refused})
		s.change.Broadcast()
	}
	s.end()
	s.mu.Unlock()
	close(s.done)
}

// end closes the file. After a failure it first takes back what was written and
// not acknowledged, since the drain sends that again. s.mu is held.
func (s *stream) end() {
	if s.err != nil {
		_ = s.file.Truncate(s.good) // Open cuts what is left of a line
	}
	if err := s.file.Close(); err != nil && s.err == nil {
		s.err = fmt.Errorf("close %s: %w", s.sink.path, err)
	}
	s.ended = true
	s.acks.Close()
	s.change.Broadcast()
}

// Close waits for the last fsync and closes the file.
func (s *stream) Close(context.Context) error {
	s.mu.Lock()
	s.closing = true
	s.change.Broadcast()
	s.mu.Unlock()
	<-s.done
	return s.Err()
}
