package host

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/spool"
)

// The bounds of a frame and of a group of batches that are committed together.
const (
	maxFrameRecords = 512
	maxFrameBytes   = 128 << 10
	maxGroup        = 64   // batches
	maxGroupRecords = 4096 // outputs
)

// effect is what one batch does when it is committed. Nothing of it is visible
// before, all of it is afterwards.
type effect struct {
	seq     uint64
	counts  counts
	outputs []output
	letters []spool.Letter
	rejects map[string]uint64 // letters by reason, in records

	// hold appends the batch to the pipeline's held queue instead of outputs.
	hold *heldBatch
	// heldHead, when not 0, moves the cursor of the held queue there; heldRecords
	// left the queue by it.
	heldHead, heldRecords uint64

	source string
	resume []byte
	points []spool.Set // what is to be known of points after a restart
	kv     []spool.Set // what the modules wrote

	replayed map[string]uint64 // records delivered again, by destination

	done func(error) // nil: nobody waits
}

// output is one record for one destination. Its id is the pipeline's own, or,
// when it left the dead-letter queue, the one that it had before.
type output struct {
	destination string
	id          sinks.ID
	record      abi.Record
}

func newCommitter(h *Host, log *slog.Logger, held *spool.Queue, m *memo, b *book) *committer {
	return &committer{h: h, log: log, held: held, memo: m, id: b.id, book: b}
}

// committer makes the effects of one pipeline durable, in order. run is its one
// goroutine.
type committer struct {
	h    *Host
	log  *slog.Logger
	held *spool.Queue // nil for the requeue book
	memo *memo        // nil for the requeue book
	id   [16]byte     // the pipeline's; never changes
	book *book        // changed by the committing goroutine, under Host.books

	mu      sync.Mutex
	problem string // why nothing can be committed now; "": it can
}

// run commits what arrives until in is closed, collecting what is there while a
// commit is in flight, so that a slow disk makes larger groups and not a queue.
func (c *committer) run(ctx context.Context, in <-chan *effect) {
	var failed error // once a batch was given back, those behind it are too: order holds
	for e := range in {
		group, n := []*effect{e}, len(e.outputs)
	collect:
		for len(group) < maxGroup && n < maxGroupRecords {
			select {
			case e, ok := <-in:
				if !ok {
					break collect
				}
				group, n = append(group, e), n+len(e.outputs)
			default:
				break collect
			}
		}
		if failed == nil {
			failed = c.retry(ctx, group)
		}
		for _, e := range group {
			if e.done != nil {
				e.done(failed)
			}
		}
	}
}

// retry commits a group until it succeeds or ctx ends. A failed attempt leaves
// nothing visible, so the next one starts from the beginning.
func (c *committer) retry(ctx context.Context, group []*effect) error {
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 10*time.Second) {
		// A stop lets a commit that has begun end; only waiting ends.
		err := c.commit(context.WithoutCancel(ctx), group)
		if err == nil {
			c.setProblem("")
			return nil
		}
		c.setProblem(err.Error())
		c.log.Error("batch cannot be committed; nothing is acknowledged until it can", "error", err, "retry_in", delay)
		select {
		case <-ctx.Done():
			return fmt.Errorf("commit batch: %w", err)
		case <-time.After(delay):
		}
	}
}

func (c *committer) setProblem(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problem = s
}

func (c *committer) getProblem() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.problem
}

// commit makes one attempt: dead letters, frames, commit record, then the books.
func (c *committer) commit(ctx context.Context, group []*effect) error {
	if err := c.h.roomFor(group); err != nil {
		return err
	}
	owner := spool.Owner{ID: c.id, Seq: group[len(group)-1].seq}
	var letters []spool.Letter
	for _, e := range group {
		letters = append(letters, e.letters...)
	}
	if len(letters) > 0 {
		if err := c.h.dlq.Put(ctx, letters...); err != nil {
			return fmt.Errorf("write dead letters: %w", err)
		}
	}
	used, err := c.appendFrames(owner, group)
	if err == nil {
		err = c.writeBook(owner, group, used)
	}
	if err == nil {
		return nil
	}
	for q := range used {
		if verr := q.Void(owner.ID, c.book.Seq+1); verr != nil {
			return fmt.Errorf("%w; void its frames: %w", err, verr)
		}
	}
	return err
}

// roomFor holds the queues to the cap of the spool: what would go beyond it is
// not committed, so the devices wait and nothing is lost. Batches that append
// nothing are always committed; those that drain the held queue are too, since
// they make room.
func (h *Host) roomFor(group []*effect) error {
	if h.cfg.Spooled.Cap == 0 {
		return nil
	}
	grows := false
	for _, e := range group {
		grows = grows || e.hold != nil || (len(e.outputs) > 0 && e.heldHead == 0)
	}
	if !grows {
		return nil
	}
	var used uint64
	for _, d := range h.destinations {
		used += d.queue.Stat().DiskBytes
	}
	for _, p := range h.pipelines {
		used += p.held.Stat().DiskBytes
	}
	if used >= h.cfg.Spooled.Cap {
		return fmt.Errorf("the spool is full: %d of %d bytes; the sources wait until destinations take records: mend what holds them, or raise backpressure.disk_spool.max_size_mb", used, h.cfg.Spooled.Cap)
	}
	return nil
}

// appendFrames appends the group's frames to every queue and waits for all of
// them to be synced. It returns the queues that it touched, also on error.
func (c *committer) appendFrames(owner spool.Owner, group []*effect) (map[*spool.Queue]bool, error) {
	used := map[*spool.Queue]bool{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	send := func(q *spool.Queue, f spool.Frame) {
		used[q] = true
		wg.Add(1)
		q.Append(f, func(_ uint64, err error) {
			mu.Lock()
			if err != nil && first == nil {
				first = err
			}
			mu.Unlock()
			wg.Done()
		})
	}
	for name, frames := range framesOf(owner, group) {
		d := c.h.destinations[name]
		if d == nil {
			wg.Wait()
			return used, fmt.Errorf("append to %s: no such destination is configured", name)
		}
		for _, f := range frames {
			send(d.queue, f)
		}
	}
	for _, e := range group {
		if e.hold != nil {
			for _, f := range e.hold.frames(owner) {
				send(c.held, f)
			}
		}
	}
	wg.Wait()
	if first != nil {
		return used, fmt.Errorf("append frames: %w", first)
	}
	return used, nil
}

// framesOf packs the outputs of a group into frames, by destination, in order.
func framesOf(owner spool.Owner, group []*effect) map[string][]spool.Frame {
	packers := map[string][]*packer{}
	for _, e := range group {
		for i := range e.outputs {
			o := &e.outputs[i]
			list := packers[o.destination]
			if n := len(list); n == 0 || !list[n-1].fits(o.id.Pipeline) {
				list = append(list, &packer{})
				packers[o.destination] = list
			}
			list[len(list)-1].add(o.id, &o.record)
		}
	}
	out := make(map[string][]spool.Frame, len(packers))
	for name, list := range packers {
		for _, p := range list {
			out[name] = append(out[name], p.frame(owner))
		}
	}
	return out
}

// enter adds what the effects of a group change to the book, and returns how many
// records left the held queue by them.
func (b *book) enter(group []*effect) (fromHeld uint64) {
	for _, e := range group {
		b.Counts.add(e.counts)
		for i := range e.outputs {
			b.Appended[e.outputs[i].destination]++
		}
		b.Rejects = addCounts(b.Rejects, e.rejects)
		b.Replayed = addCounts(b.Replayed, e.replayed)
		if e.heldHead != 0 {
			b.HeldHead = e.heldHead
			fromHeld += e.heldRecords
		}
	}
	return fromHeld
}

// addCounts adds more to counts, and makes the map when it is needed.
func addCounts(counts, more map[string]uint64) map[string]uint64 {
	for name, n := range more {
		if counts == nil {
			counts = map[string]uint64{}
		}
		counts[name] += n
	}
	return counts
}

// setsOf is the commit record of a group: the book, and what the effects change
// beside it, in their order.
func setsOf(b *book, group []*effect) ([]spool.Set, error) {
	set, err := b.encode()
	if err != nil {
		return nil, err
	}
	sets, resume := []spool.Set{set}, map[string][]byte{}
	for _, e := range group {
		sets = append(append(sets, e.kv...), e.points...)
		if e.resume != nil {
			resume[e.source] = e.resume
		}
	}
	for source, v := range resume {
		sets = append(sets, spool.Set{Space: spaceResume, Key: source, Value: v})
	}
	return sets, nil
}

// writeBook writes the commit record, and then makes frames, cursor and counters
// visible together.
func (c *committer) writeBook(owner spool.Owner, group []*effect, used map[*spool.Queue]bool) error {
	next := c.book.clone()
	next.Seq = owner.Seq
	heldRecords := next.enter(group)
	sets, err := setsOf(next, group)
	if err != nil {
		return err
	}
	if err := c.h.state.Commit(sets); err != nil {
		return fmt.Errorf("write commit record: %w", err)
	}
	if c.memo != nil {
		c.memo.written(owner.Seq)
	}
	c.h.books.RLock()
	defer c.h.books.RUnlock()
	c.book = next
	for q := range used {
		q.Commit(owner.ID, owner.Seq)
	}
	if heldRecords > 0 {
		if err := c.held.Advance(next.HeldHead, spool.Settled{Delivered: heldRecords}); err != nil {
			// The commit record holds the cursor; opening moves the queue there.
			c.log.Warn("cursor of the held queue is behind its commit record", "error", err)
		}
	}
	return nil
}

// owner covers what is durable by itself, such as a refused record's letter.
func (c *committer) owner() spool.Owner { return spool.Owner{ID: c.id} }
