package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/spool"
)

// A frame's payload, before the spool seals it:
//
//	u8 version | 16 B pipeline | uvarint len | { uvarint batch, uvarint index }* | records
//
// len is that of the ids, records are in the canonical encoding of package abi.
// The ids travel with the records because one frame may hold the outputs of
// several batches.
const frameVersion = 1

var errFrame = errors.New("frame is damaged")

// packer collects records of one pipeline into a payload.
type packer struct {
	pipeline         [16]byte
	count            int
	minTime, maxTime int64
	ids, records     []byte
}

// fits reports whether one more record of the pipeline belongs into p.
func (p *packer) fits(pipeline [16]byte) bool {
	return p.pipeline == pipeline && p.count < maxFrameRecords && len(p.records) < maxFrameBytes
}

func (p *packer) add(id sinks.ID, r *abi.Record) {
	if p.count == 0 {
		p.pipeline, p.minTime, p.maxTime = id.Pipeline, r.EventTime, r.EventTime
	}
	p.count++
	p.minTime, p.maxTime = min(p.minTime, r.EventTime), max(p.maxTime, r.EventTime)
	p.ids = binary.AppendUvarint(p.ids, id.Batch)
	p.ids = binary.AppendUvarint(p.ids, uint64(id.Index))
	p.records = abi.AppendRecord(p.records, r)
}

func (p *packer) payload() []byte {
	b := make([]byte, 0, 1+16+binary.MaxVarintLen64+len(p.ids)+len(p.records))
	b = append(b, frameVersion)
	b = append(b, p.pipeline[:]...)
	b = binary.AppendUvarint(b, uint64(len(p.ids)))
	b = append(b, p.ids...)
	return append(b, p.records...)
}

func (p *packer) frame(owner spool.Owner) spool.Frame {
	return spool.Frame{Owner: owner, Count: p.count, MinTime: p.minTime, MaxTime: p.maxTime, Payload: p.payload()}
}

// decodeFrame reads a payload of count records; the first has sequence number
// base in its queue.
func decodeFrame(payload []byte, base uint64, count int) ([]sinks.Record, error) {
	if len(payload) < 17 || payload[0] != frameVersion {
		return nil, fmt.Errorf("decode frame header: %w", errFrame)
	}
	id := sinks.ID{Pipeline: [16]byte(payload[1:17])}
	n, w := binary.Uvarint(payload[17:])
	rest := payload[17+max(w, 0):]
	if w <= 0 || n > uint64(len(rest)) {
		return nil, fmt.Errorf("decode record ids: %w", errFrame)
	}
	ids, encoded := rest[:n], rest[n:]
	recs, err := abi.DecodeRecords(encoded)
	if err != nil {
		return nil, fmt.Errorf("decode frame: %w", err)
	}
	if len(recs) != count {
		return nil, fmt.Errorf("decode frame: %d records, its key says %d: %w", len(recs), count, errFrame)
	}
	out := make([]sinks.Record, len(recs))
	for i := range recs {
		batch, w := binary.Uvarint(ids)
		if w <= 0 {
			return nil, fmt.Errorf("decode record id %d: %w", i, errFrame)
		}
		index, v := binary.Uvarint(ids[w:])
		if v <= 0 || index > 1<<32-1 {
			return nil, fmt.Errorf("decode record id %d: %w", i, errFrame)
		}
		ids = ids[w+v:]
		id.Batch, id.Index = batch, uint32(index)
		out[i] = sinks.Record{Seq: base + uint64(i), ID: id, Record: recs[i]}
	}
	return out, nil
}

// heldBatch is one batch as it came, sealed until its pipeline can go on:
//
//	u8 version | varint batch time | uvarint len, source | records
type heldBatch struct {
	source  string
	time    int64
	records []abi.Record
}

const (
	heldVersion  = 1
	maxHeldBytes = 1 << 20 // a frame is full beyond it
)

// frames packs the batch: into one frame, unless its records are large.
func (b *heldBatch) frames(owner spool.Owner) []spool.Frame {
	head := []byte{heldVersion}
	head = binary.AppendVarint(head, b.time)
	head = binary.AppendUvarint(head, uint64(len(b.source)))
	head = append(head, b.source...)
	var out []spool.Frame
	for i := range b.records {
		r := &b.records[i]
		if n := len(out); n == 0 || len(out[n-1].Payload) >= maxHeldBytes {
			out = append(out, spool.Frame{Owner: owner, MinTime: r.EventTime, MaxTime: r.EventTime, Payload: slices.Clone(head)})
		}
		f := &out[len(out)-1]
		f.Count++
		f.MinTime, f.MaxTime = min(f.MinTime, r.EventTime), max(f.MaxTime, r.EventTime)
		f.Payload = abi.AppendRecord(f.Payload, r)
	}
	return out
}

func decodeHeld(p []byte, count int) (heldBatch, error) {
	var b heldBatch
	if len(p) == 0 || p[0] != heldVersion {
		return b, fmt.Errorf("decode held batch: %w", errFrame)
	}
	p = p[1:]
	t, n := binary.Varint(p)
	if n <= 0 {
		return b, fmt.Errorf("decode time of held batch: %w", errFrame)
	}
	p = p[n:]
	l, n := binary.Uvarint(p)
	if n <= 0 || l > uint64(len(p)-n) {
		return b, fmt.Errorf("decode source of held batch: %w", errFrame)
	}
	b.time, b.source = t, string(p[n:n+int(l)])
	var err error
	if b.records, err = abi.DecodeRecords(p[n+int(l):]); err != nil {
		return b, fmt.Errorf("decode held batch: %w", err)
	}
	if len(b.records) != count {
		return b, fmt.Errorf("decode held batch: %d records, its key says %d: %w", len(b.records), count, errFrame)
	}
	return b, nil
}
