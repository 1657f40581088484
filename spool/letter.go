package spool

import (
	"encoding/binary"
	"fmt"
)

// Letter is what could not be delivered or transformed, with what is known
// about why. Times are µs since 1970.
type Letter struct {
	ID    uint64 // given by Put, ascending, never used twice
	Owner Owner  // the commit that it belongs to; a zero ID: none

	// Origin and Key say what the letter is about (a pipeline and a record, say).
	// A letter with the same two takes the place of the older one, so that a
	// repeated Put after a crash changes nothing.
	Origin, Key string

	Time, FirstTime int64
	Attempts        int
	Count           int // records inside, >= 1

	Reason      string // a short constant: schema, too_large, rejected, …
	Error       string // in words
	Source      string
	Pipeline    string
	Module      string
	Revision    string
	Destination string

	Payload []byte
}

const letterVersion = 1

func (l *Letter) texts() []*string {
	return []*string{&l.Origin, &l.Key, &l.Reason, &l.Error, &l.Source, &l.Pipeline, &l.Module, &l.Revision, &l.Destination}
}

func (l *Letter) check() error {
	if l.Count < 1 || l.Attempts < 0 {
		return fmt.Errorf("dead letter: count is %d and attempts %d, they must be at least 1 and 0", l.Count, l.Attempts)
	}
	if l.Origin == "" && l.Key == "" {
		return fmt.Errorf("dead letter: origin and key are empty, so that a repeated one cannot be told")
	}
	return nil
}

// encodeLetter is the form inside the seal; the ID is in the key.
//
//	version u8 | owner 16 | owner seq | time | first time (u64 BE) |
//	uvarint attempts | uvarint count | 9 texts, each uvarint length and bytes | payload
func encodeLetter(l Letter) []byte {
	b := append([]byte{letterVersion}, l.Owner.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, l.Owner.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Time))
	b = binary.BigEndian.AppendUint64(b, uint64(l.FirstTime))
	b = binary.AppendUvarint(b, uint64(l.Attempts))
	b = binary.AppendUvarint(b, uint64(l.Count))
	for _, t := range l.texts() {
		b = binary.AppendUvarint(b, uint64(len(*t)))
		b = append(b, *t...)
	}
	return append(b, l.Payload...)
}

// decodeLetter reads what encodeLetter writes, and nothing else.
func decodeLetter(b []byte) (l Letter, err error) {
	const fixed = 1 + 16 + 3*8
	if len(b) < fixed || b[0] != letterVersion {
		return l, fmt.Errorf("%w: dead letter", ErrDamaged)
	}
	copy(l.Owner.ID[:], b[1:])
	l.Owner.Seq = binary.BigEndian.Uint64(b[17:])
	l.Time = int64(binary.BigEndian.Uint64(b[25:]))
	l.FirstTime = int64(binary.BigEndian.Uint64(b[33:]))
	b = b[fixed:]
	var attempts, count uint64
	for _, n := range []*uint64{&attempts, &count} {
		if *n, b, err = cutUvarint(b); err != nil {
			return l, err
		}
	}
	const most = 1<<31 - 1
	if attempts > most || count > most || count == 0 {
		return l, fmt.Errorf("%w: dead letter with %d records after %d attempts", ErrDamaged, count, attempts)
	}
	l.Attempts, l.Count = int(attempts), int(count)
	for _, t := range l.texts() {
		var n uint64
		if n, b, err = cutUvarint(b); err != nil {
			return l, err
		}
		if n > uint64(len(b)) {
			return l, fmt.Errorf("%w: dead letter ends early", ErrDamaged)
		}
		*t, b = string(b[:n]), b[n:]
	}
	if len(b) > 0 {
		l.Payload = append([]byte(nil), b...)
	}
	return l, nil
}

// cutUvarint reads a number in its shortest form from the front of b.
func cutUvarint(b []byte) (n uint64, rest []byte, err error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || w > 1 && b[w-1] == 0 {
		return 0, nil, fmt.Errorf("%w: dead letter: bad number", ErrDamaged)
	}
	return n, b[w:], nil
}
