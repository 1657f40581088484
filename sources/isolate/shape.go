package isolate

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/edgehost/edgehost/abi"
)

// Most of a record is the same from one value of a point to the next: source,
// address, protocol and the first attributes. That part, its shape, crosses once;
// shapes are numbered from 1 in the order in which they cross. Behind the head of a
// batch come
//
//	u32 shapes  | of each: u32 length, a record without time, value and status
//	u32 records | of each: u32 number of its shape, 0: none
//	the records, without what their shape holds
const (
	// maxShapes and maxShapeBytes bound what one child may have the parent keep.
	maxShapes     = 100_000
	maxShapeBytes = 16 << 20
	// maxShared is the most attributes of a shape, and partRecords the most records
	// of a frame: together they bound what a frame may grow to.
	maxShared   = 64
	partRecords = 5000
)

// shape is what the records of one point have in common.
type shape struct {
	number uint32 // 0: it was not sent, its point had one record only
	size   int    // bytes of its encoding
	record abi.Record
}

// shaper is the child's half: the goroutine that emits owns it.
type shaper struct {
	of    map[string]*shape // by address
	sent  uint32
	bytes int
	// fresh are shapes that did not cross yet, encoded, and how many there are.
	fresh      []byte
	freshCount uint32
}

// fit returns the shape of r, nil when r crosses whole: the first of a point, of
// which it is not known what will change, and a bad one among good ones.
func (s *shaper) fit(r *abi.Record) *shape {
	sh := s.of[r.Address]
	if sh == nil {
		if len(s.of) < maxShapes {
			s.of[r.Address] = &shape{record: head(r, len(r.Attrs))}
		}
		return nil
	}
	if sh.record.Source != r.Source || sh.record.Protocol != r.Protocol {
		return nil
	}
	n := 0
	for shared := sh.record.Attrs; n < len(shared) && n < len(r.Attrs) && shared[n] == r.Attrs[n]; n++ {
	}
	switch {
	case sh.number > 0 && n == len(sh.record.Attrs):
		return sh
	case sh.number > 0 && r.Status != sh.record.Status:
		return nil
	}
	next := &shape{number: s.sent + 1, record: head(r, n)}
	plain := next.record
	plain.Status = 0
	start := len(s.fresh)
	s.fresh = abi.AppendRecord(append(s.fresh, 0, 0, 0, 0), &plain)
	next.size = len(s.fresh) - start - 4
	if s.sent == maxShapes || s.bytes+next.size > maxShapeBytes {
		s.fresh = s.fresh[:start]
		return nil
	}
	binary.LittleEndian.PutUint32(s.fresh[start:], uint32(next.size))
	s.of[r.Address] = next
	s.sent, s.bytes, s.freshCount = s.sent+1, s.bytes+next.size, s.freshCount+1
	return next
}

// crossed says that the fresh shapes were sent.
func (s *shaper) crossed() { s.fresh, s.freshCount = s.fresh[:0], 0 }

// head is r without time and value, with the first n of its attributes, at most
// maxShared.
func head(r *abi.Record, n int) abi.Record {
	return abi.Record{Source: r.Source, Address: r.Address, Protocol: r.Protocol, Status: r.Status, Attrs: slices.Clone(r.Attrs[:min(n, maxShared)])}
}

// without is r without what sh holds; nil holds nothing.
func (sh *shape) without(r abi.Record) abi.Record {
	if sh != nil {
		r.Source, r.Address, r.Protocol, r.Attrs = "", "", 0, r.Attrs[len(sh.record.Attrs):]
	}
	return r
}

// shapes is the parent's half: the goroutine that reads owns it.
type shapes struct {
	list  []shape
	bytes int
}

// records reads what stands behind the head of a batch of the source called name.
// size is what the batch takes of the window: the bytes that it would have without
// shapes, about. It copies what it keeps.
func (s *shapes) records(b []byte, name string) (recs []abi.Record, size int, err error) {
	if b, err = s.learn(b, name); err != nil {
		return nil, 0, err
	}
	n, b, err := cutCount(b)
	if err != nil {
		return nil, 0, err
	}
	if n > partRecords || len(b) < 4*n {
		return nil, 0, fmt.Errorf("%w: %d records", errFrame, n)
	}
	numbers := b[:4*n]
	if recs, err = abi.DecodeRecords(b[4*n:]); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errFrame, err)
	}
	if len(recs) != n {
		return nil, 0, fmt.Errorf("%w: %d records instead of %d", errFrame, len(recs), n)
	}
	var arena []abi.Attr
	for i := range recs {
		r, number := &recs[i], binary.LittleEndian.Uint32(numbers[4*i:])
		if number == 0 {
			if r.Source != name {
				return nil, 0, fmt.Errorf("%w: record of another source %.64q", errFrame, r.Source)
			}
			continue
		}
		if uint64(number) > uint64(len(s.list)) || r.Source != "" || r.Address != "" || r.Protocol != 0 {
			return nil, 0, fmt.Errorf("%w: record of shape %d", errFrame, number)
		}
		sh := &s.list[number-1]
		size += sh.size
		arena = sh.complete(r, arena, n-i)
	}
	return recs, size, nil
}

// complete gives r what sh holds. Records without attributes of their own share
// those of sh; others take room of arena, which is made for left records.
func (sh *shape) complete(r *abi.Record, arena []abi.Attr, left int) []abi.Attr {
	shared := sh.record.Attrs
	r.Source, r.Address, r.Protocol = sh.record.Source, sh.record.Address, sh.record.Protocol
	switch n := len(shared) + len(r.Attrs); {
	case len(r.Attrs) == 0:
		r.Attrs = shared
	case len(shared) > 0:
		if len(arena) < n {
			arena = make([]abi.Attr, n*min(left, 64))
		}
		copy(arena[copy(arena, shared):], r.Attrs)
		r.Attrs, arena = arena[:n:n], arena[n:]
	}
	return arena
}

// learn takes the shapes in front of b and returns what is behind them.
func (s *shapes) learn(b []byte, name string) (rest []byte, err error) {
	n, b, err := cutCount(b)
	if err != nil {
		return nil, err
	}
	for range n {
		size, after, err := cutCount(b)
		if err != nil || size > len(after) || len(s.list) == maxShapes || s.bytes+size > maxShapeBytes {
			return nil, fmt.Errorf("%w: shape %d of %d bytes", errFrame, len(s.list)+1, size)
		}
		recs, err := abi.DecodeRecords(after[:size])
		if err != nil {
			return nil, fmt.Errorf("%w: shape: %w", errFrame, err)
		}
		if len(recs) != 1 || recs[0].Source != name || len(recs[0].Attrs) > maxShared {
			return nil, fmt.Errorf("%w: shape of %d records", errFrame, len(recs))
		}
		recs[0].Attrs = slices.Clip(recs[0].Attrs) // many records will share them: none appends to them in place
		s.list = append(s.list, shape{size: size, record: recs[0]})
		s.bytes += size
		b = after[size:]
	}
	return b, nil
}

func cutCount(b []byte) (n int, rest []byte, err error) {
	if len(b) < 4 {
		return 0, nil, fmt.Errorf("%w: batch cut short", errFrame)
	}
	return int(binary.LittleEndian.Uint32(b)), b[4:], nil
}
