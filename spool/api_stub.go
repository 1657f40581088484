package spool

import (
	"context"
	"time"
)

// Spool is a directory of queues, open and locked. Its methods may be called from any goroutine.
type Spool struct{}

func Open(o Options) (*Spool, error)                                      { panic("soon") }
func (s *Spool) GeneratedKey() string                                     { panic("soon") }
func (s *Spool) Queue(name string, keep func(Owner) bool) (*Queue, error) { panic("soon") }
func (s *Spool) Queues() []string                                         { panic("soon") }
func (s *Spool) State(name string) (*State, error)                        { panic("soon") }
func (s *Spool) DeadLetters(keep func(Owner) bool) (*DeadLetters, error)  { panic("soon") }
func (s *Spool) Usage() (Usage, error)                                    { panic("soon") }
func (s *Spool) Close() error                                             { panic("soon") }

type Queue struct{}

func (q *Queue) Append(f Frame, done func(base uint64, err error)) { panic("soon") }
func (q *Queue) Commit(id [16]byte, seq uint64)                    { panic("soon") }
func (q *Queue) Void(id [16]byte, seq uint64) error                { panic("soon") }
func (q *Queue) Reader(from uint64) *Reader                        { panic("soon") }
func (q *Queue) Advance(to uint64, settled Settled) error          { panic("soon") }
func (q *Queue) Head() uint64                                      { panic("soon") }
func (q *Queue) Oldest() uint64                                    { panic("soon") }
func (q *Queue) Stat() Stat                                        { panic("soon") }
func (q *Queue) CountWaiting() (uint64, error)                     { panic("soon") }
func (q *Queue) Retain(d time.Duration)                            { panic("soon") }

type Reader struct{}

func (r *Reader) Next(ctx context.Context) (Stored, error) { panic("soon") }
func (r *Reader) Close()                                   { panic("soon") }

// DamagedFrame is the error of Reader.Next for records that cannot be read any
// more: [Base, Base+Count). The next call goes on behind them; Advance counts
// them like other records, so the caller settles them (as dropped, or dead-lettered).
type DamagedFrame struct {
	Base  uint64
	Count uint64
	Raw   []byte // the sealed bytes as found; nil when the frame is missing
	Err   error
}

func (d *DamagedFrame) Error() string { panic("soon") }
func (d *DamagedFrame) Unwrap() error { return d.Err }

type State struct{}

// Set is one change of a State: Value replaces what is stored under Space and Key; nil deletes it.
type Set struct {
	Space, Key string
	Value      []byte
}

func (s *State) Get(space, key string) ([]byte, error)                              { panic("soon") }
func (s *State) Scan(space string, fn func(key string, value []byte) error) error { panic("soon") }
func (s *State) Commit(sets []Set) error                                            { panic("soon") }

type Letter struct {
	ID              uint64
	Owner           Owner
	Origin, Key     string
	Time, FirstTime int64
	Attempts        int
	Count           int

	Reason, Error, Source, Pipeline, Module, Revision, Destination string

	Payload []byte
}
type Filter struct {
	Reason, Destination string
	Since               int64
	After               uint64
	Limit               int
}
type LetterStat struct {
	Letters, Records, Bytes uint64
	ByReason                map[string]uint64
}
type DeadLetters struct{}

func (d *DeadLetters) Put(ctx context.Context, letters ...Letter) error { panic("soon") }
func (d *DeadLetters) Get(id uint64) (Letter, error)                    { panic("soon") }
func (d *DeadLetters) List(f Filter) ([]Letter, error)                  { panic("soon") }
func (d *DeadLetters) Delete(ids ...uint64) error                       { panic("soon") }
func (d *DeadLetters) Stat() LetterStat                                 { panic("soon") }
