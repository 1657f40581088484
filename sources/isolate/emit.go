package isolate

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// partSize is where a batch is cut: large values must not need a frame, and
// memory, of their sum.
const partSize = 1 << 20

// emit is the sources.Emit of the source in the child. It returns when the batch
// is in the window, and blocks while the window is full.
func (w *worker) emit(ctx context.Context, b sources.Batch, done func(error)) error {
	if len(b.Resume) > maxResume {
		return fmt.Errorf("emit: resume point of %d bytes, at most %d fit", len(b.Resume), maxResume)
	}
	recs := b.Records
	for {
		n, frame, shaped, err := w.part(b.Time, recs, b.Resume)
		if err != nil {
			return err
		}
		recs = recs[n:]
		last := len(recs) == 0
		p := sentPart{size: len(frame) - headerSize + shaped}
		if last {
			p.done = done
		}
		if err := w.sendPart(ctx, frame, p); err != nil {
			return err
		}
		if w.shapes.crossed(); last {
			return nil
		}
	}
}

// part makes a frame of the first n of recs; the resume point goes with the
// last. shaped is how many bytes their shapes saved. The number is entered by
// sendPart. The frame is valid until the next call: one goroutine emits.
func (w *worker) part(time int64, recs []abi.Record, resume []byte) (n int, frame []byte, shaped int, err error) {
	u32 := binary.LittleEndian.AppendUint32
	body, numbers := w.body[:0], w.numbers[:0]
	for n < len(recs) && n < partRecords && len(body)+shaped < partSize {
		sh := w.shapes.fit(&recs[n])
		r, number := sh.without(recs[n]), uint32(0)
		if sh != nil {
			number, shaped = sh.number, shaped+sh.size
		}
		numbers, body = u32(numbers, number), abi.AppendRecord(body, &r)
		n++
	}
	if n < len(recs) {
		resume = nil
	}
	frame = appendBatchHead(beginFrame(w.frame, kindBatch), 0, time, resume)
	frame = append(u32(frame, w.shapes.freshCount), w.shapes.fresh...)
	frame = append(append(u32(frame, uint32(n)), numbers...), body...)
	w.body, w.numbers, w.frame = body, numbers, frame
	if cap(frame) > 4*partSize { // a value like that is rare
		w.body, w.frame = nil, nil
	}
	if frame, err = endFrame(frame); err != nil {
		return 0, nil, 0, fmt.Errorf("emit %d records, the last of address %.200q: %w", n, recs[n-1].Address, err)
	}
	return n, frame, shaped, nil
}

// sendPart waits for room in the window and sends.
func (w *worker) sendPart(ctx context.Context, frame []byte, p sentPart) error {
	for {
		w.mu.Lock()
		if w.room == 0 || w.room+p.size <= window {
			break
		}
		freed := w.freed
		w.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if ctx.Err() != nil {
		w.mu.Unlock()
		return ctx.Err()
	}
	w.number++
	p.number = w.number
	w.room += p.size
	w.sent = append(w.sent, p)
	appendNumber(frame[headerSize:headerSize], p.number)
	w.mu.Unlock()
	if err := w.send(frame); err != nil {
		// The parent is gone, and the process ends.
		return fmt.Errorf("emit: %w", err)
	}
	return nil
}

// free gives the window what a part took of it.
func (w *worker) free(number uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.sent {
		if p := &w.sent[i]; p.number == number && !p.queued {
			p.queued = true
			w.room -= p.size
			close(w.freed)
			w.freed = make(chan struct{})
			return
		}
	}
}

// settled takes the oldest part, which number must be, and returns its done.
func (w *worker) settled(number uint64) (func(error), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.sent) == 0 || w.sent[0].number != number {
		return nil, fmt.Errorf("%w: batch %d acknowledged out of order", errFrame, number)
	}
	p := w.sent[0]
	w.sent[0] = sentPart{}
	w.sent = w.sent[1:]
	if !p.queued {
		w.room -= p.size
		close(w.freed)
		w.freed = make(chan struct{})
	}
	return p.done, nil
}
