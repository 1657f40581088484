package host

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/spool"
)

// The spaces of the state store.
const (
	spaceCommit = "commit" // key: pipeline; value: record
	spaceResume = "resume" // key: source; value: the source's resume point
	spacePoints = "points" // key: source; value: SourceConfig.Points of when its points were noted
)

// requeueName is the ledger entry of records that left the dead-letter queue for
// a destination: they are appended by nobody's pipeline.
const requeueName = "(dead letters)"

// counts are the terms of a pipeline's ledger, in records. Each is counted where
// it happens, none is the remainder of the others.
type counts struct {
	Read        uint64 `json:"read"`        // arrived, counted at intake
	Transformed uint64 `json:"transformed"` // at least one output stands for it
	Filtered    uint64 `json:"filtered"`    // the modules let it fall
	Rejected    uint64 `json:"rejected"`    // dead-lettered by a module or for its fault
	Dropped     uint64 `json:"dropped"`     // lost to a configured policy
	Emitted     uint64 `json:"emitted"`     // outputs, fan-out included
}

func (c *counts) add(d counts) {
	c.Read += d.Read
	c.Transformed += d.Transformed
	c.Filtered += d.Filtered
	c.Rejected += d.Rejected
	c.Dropped += d.Dropped
	c.Emitted += d.Emitted
}

// book is the commit record of one pipeline: all that a restart must know. It is
// written whole with every commit.
type book struct {
	UUID     string            `json:"uuid"`     // 16 bytes in hex; part of every record id
	Seq      uint64            `json:"seq"`      // the last committed sequence number
	HeldHead uint64            `json:"heldHead"` // cursor in the queue held/<pipeline>
	Counts   counts            `json:"counts"`
	Appended map[string]uint64 `json:"appended"` // by destination
	// Rejects counts dead letters of the pipeline by reason.
	Rejects map[string]uint64 `json:"rejects,omitempty"`
	// Replayed counts, by destination, deliveries that were repeated on purpose;
	// only the requeue book has any.
	Replayed map[string]uint64 `json:"replayed,omitempty"`

	name string
	id   [16]byte
}

// clone returns a copy that can be changed and committed.
func (b *book) clone() *book {
	c := *b
	c.Appended = maps.Clone(b.Appended)
	c.Rejects = maps.Clone(b.Rejects)
	c.Replayed = maps.Clone(b.Replayed)
	return &c
}

func (b *book) encode() (spool.Set, error) {
	v, err := json.Marshal(b)
	if err != nil {
		return spool.Set{}, fmt.Errorf("encode commit record: %w", err)
	}
	return spool.Set{Space: spaceCommit, Key: b.name, Value: v}, nil
}

// books are all commit records in the state store, those of pipelines that are
// no longer configured included: their frames may still wait in the queues.
type books struct {
	state  *spool.State
	byName map[string]*book
	seqs   map[[16]byte]uint64
}

func loadBooks(st *spool.State) (*books, error) {
	bs := &books{state: st, byName: map[string]*book{}, seqs: map[[16]byte]uint64{}}
	err := st.Scan(spaceCommit, func(name string, v []byte) error {
		b := &book{name: name}
		if err := json.Unmarshal(v, b); err != nil {
			return fmt.Errorf("commit record of %s: %w", name, err)
		}
		if n, err := hex.Decode(b.id[:], []byte(b.UUID)); err != nil || n != len(b.id) {
			return fmt.Errorf("commit record of %s: bad pipeline id %q", name, b.UUID)
		}
		bs.byName[name] = b
		bs.seqs[b.id] = b.Seq
		return nil
	})
	return bs, err
}

// committed reports whether a commit record covers what owner appended.
func (bs *books) committed(o spool.Owner) bool {
	seq, ok := bs.seqs[o.ID]
	return ok && o.Seq <= seq
}

// book returns the commit record of a pipeline and makes the first one, durably,
// when there is none: the pipeline's id must not change after a crash.
func (bs *books) book(name string) (*book, error) {
	if b, ok := bs.byName[name]; ok {
		if b.Appended == nil {
			b.Appended = map[string]uint64{}
		}
		return b, nil
	}
	b := &book{name: name, Appended: map[string]uint64{}}
	if _, err := rand.Read(b.id[:]); err != nil {
		return nil, fmt.Errorf("make pipeline id: %w", err)
	}
	b.UUID = hex.EncodeToString(b.id[:])
	set, err := b.encode()
	if err != nil {
		return nil, err
	}
	if err := bs.state.Commit([]spool.Set{set}); err != nil {
		return nil, fmt.Errorf("write first commit record of %s: %w", name, err)
	}
	bs.byName[name], bs.seqs[b.id] = b, 0
	return b, nil
}

// ledger reads all books and queues at one moment and checks the two equations.
func (h *Host) ledger() control.Ledger {
	h.books.Lock()
	defer h.books.Unlock()
	l := control.Ledger{Balanced: true}
	appended := map[string]uint64{}
	var emitted, appendedTotal uint64
	sum := func(b *book) {
		emitted += b.Counts.Emitted
		for dest, n := range b.Appended {
			appended[dest] += n
			appendedTotal += n
		}
	}
	for _, p := range h.pipelines {
		sum(p.commit.book)
		pl := pipelineLedger(p.commit.book, p.held.Stat().WaitingRecords)
		l.Pipelines = append(l.Pipelines, pl)
		l.Read += pl.Read
		l.Filtered += pl.Filtered
		l.DeadLettered += pl.Rejected
		l.Dropped += pl.Dropped
		l.Held += pl.Held
		l.Balanced = l.Balanced && pl.Balanced
	}
	sum(h.requeue.book)
	for _, b := range h.retired {
		sum(b)
	}
	for _, name := range h.order {
		d := h.destinations[name]
		dl := destinationLedger(name, appended[name], d.queue.Stat(), h.requeue.book.Replayed[name])
		l.Destinations = append(l.Destinations, dl)
		l.Delivered += dl.Delivered
		l.Waiting += dl.Waiting
		l.DeadLettered += dl.DeadLettered
		l.Dropped += dl.Dropped
		l.Balanced = l.Balanced && dl.Balanced
	}
	l.Balanced = l.Balanced && emitted == appendedTotal
	return l
}

func pipelineLedger(b *book, held uint64) control.PipelineLedger {
	c := b.Counts
	return control.PipelineLedger{Name: b.name, Read: c.Read, Transformed: c.Transformed, Filtered: c.Filtered,
		Rejected: c.Rejected, Held: held, Dropped: c.Dropped, Emitted: c.Emitted,
		Balanced: c.Read == c.Transformed+c.Filtered+c.Rejected+held+c.Dropped}
}

func destinationLedger(name string, appended uint64, st spool.Stat, replayed uint64) control.DestinationLedger {
	s := st.Settled
	return control.DestinationLedger{Name: name, Appended: appended, Delivered: s.Delivered, Waiting: st.WaitingRecords,
		DeadLettered: s.DeadLettered, Dropped: s.Dropped, Replayed: replayed,
		Balanced: appended == s.Delivered+st.WaitingRecords+s.DeadLettered+s.Dropped}
}
