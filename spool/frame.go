package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/klauspost/compress/s2"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// A stored value is: version, codec, the rest of its clear header, and what
// tink sealed. The seal covers the store's UUID, the key and the clear header
// too, so that a value cannot be moved, renumbered or put into another store.
//
//	frame   key   base u64 | count u32, top bit: voided          (big endian)
//	        value version u8 | codec u8 | owner 16 | owner seq u64 |
//	              min time i64 | max time i64 | sealed payload
const (
	valueVersion = 1
	codecRaw     = 0
	codecS2      = 1

	smallHeader = 2 // version, codec
	frameHeader = smallHeader + 16 + 8 + 8 + 8
	frameKeyLen = 12
	voidBit     = 1 << 31

	minCompress = 1 << 10  // smaller payloads do not shrink
	maxPayload  = 64 << 20 // of a frame, a letter, or a state value
)

// sealer seals the values of one store.
type sealer struct {
	aead  tink.AEAD
	magic string // what kind of store: "ehs1" queue, "ehv1" state, "ehd1" dead letters
	uuid  [16]byte
}

func (s sealer) bound(key, header []byte) []byte {
	b := make([]byte, 0, len(s.magic)+len(s.uuid)+len(key)+len(header))
	b = append(b, s.magic...)
	b = append(b, s.uuid[:]...)
	b = append(b, key...)
	return append(b, header...)
}

// seal returns header followed by the sealed body.
func (s sealer) seal(key, header, body []byte) ([]byte, error) {
	sealed, err := s.aead.Encrypt(body, s.bound(key, header))
	if err != nil {
		return nil, fmt.Errorf("seal value: %w", err)
	}
	value := make([]byte, 0, len(header)+len(sealed))
	value = append(value, header...)
	return append(value, sealed...), nil
}

// open returns the body of a value whose clear header has headerLen bytes,
// decompressed.
func (s sealer) open(key, value []byte, headerLen int) ([]byte, error) {
	if len(value) < headerLen {
		return nil, fmt.Errorf("%w: value of %d bytes is too short", ErrDamaged, len(value))
	}
	if value[0] != valueVersion {
		return nil, fmt.Errorf("%w: value version %d is not known here", ErrDamaged, value[0])
	}
	body, err := s.aead.Decrypt(value[headerLen:], s.bound(key, value[:headerLen]))
	if err != nil {
		return nil, fmt.Errorf("%w: the seal does not match: changed on disk, or sealed by another keyring", ErrDamaged)
	}
	return decompress(value[1], body)
}

// compress returns the smaller form of payload and its codec.
func compress(payload []byte) (codec byte, body []byte) {
	if len(payload) < minCompress {
		return codecRaw, payload
	}
	if small := s2.Encode(nil, payload); len(small) < len(payload) {
		return codecS2, small
	}
	return codecRaw, payload
}

func decompress(codec byte, body []byte) ([]byte, error) {
	switch codec {
	case codecRaw:
		return body, nil
	case codecS2:
		if n, err := s2.DecodedLen(body); err != nil || n > maxPayload {
			return nil, fmt.Errorf("%w: compressed value of %d bytes", ErrDamaged, n)
		}
		out, err := s2.Decode(nil, body)
		if err != nil {
			return nil, fmt.Errorf("%w: decompress value: %w", ErrDamaged, err)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%w: codec %d is not known here", ErrDamaged, codec)
}

// frameKey makes the key of a frame; count carries voidBit when it is voided.
func frameKey(base uint64, count uint32) []byte {
	k := make([]byte, frameKeyLen)
	binary.BigEndian.PutUint64(k, base)
	binary.BigEndian.PutUint32(k[8:], count)
	return k
}

func parseFrameKey(k []byte) (base, count uint64, void bool, err error) {
	if len(k) != frameKeyLen {
		return 0, 0, false, fmt.Errorf("%w: frame key of %d bytes", ErrDamaged, len(k))
	}
	base = binary.BigEndian.Uint64(k)
	n := binary.BigEndian.Uint32(k[8:])
	void, count = n&voidBit != 0, uint64(n&^voidBit)
	if count == 0 || base > math.MaxUint64-count {
		return 0, 0, false, fmt.Errorf("%w: frame key %x", ErrDamaged, k)
	}
	return base, count, void, nil
}

func frameHeaderOf(f Frame, codec byte) []byte {
	h := make([]byte, 0, frameHeader)
	h = append(h, valueVersion, codec)
	h = append(h, f.Owner.ID[:]...)
	h = binary.BigEndian.AppendUint64(h, f.Owner.Seq)
	h = binary.BigEndian.AppendUint64(h, uint64(f.MinTime))
	return binary.BigEndian.AppendUint64(h, uint64(f.MaxTime))
}

// parseFrameHeader reads what a stored frame says of itself in the clear. Only
// opening the seal proves it.
func parseFrameHeader(value []byte) (f Frame, err error) {
	if len(value) < frameHeader || value[0] != valueVersion {
		return Frame{}, fmt.Errorf("%w: frame header", ErrDamaged)
	}
	copy(f.Owner.ID[:], value[2:18])
	f.Owner.Seq = binary.BigEndian.Uint64(value[18:])
	f.MinTime = int64(binary.BigEndian.Uint64(value[26:]))
	f.MaxTime = int64(binary.BigEndian.Uint64(value[34:]))
	return f, nil
}

// openFrame returns the frame stored under key.
func (s sealer) openFrame(key, value []byte) (Stored, error) {
	base, count, _, err := parseFrameKey(key)
	if err != nil {
		return Stored{}, err
	}
	f, err := parseFrameHeader(value)
	if err != nil {
		return Stored{}, err
	}
	if f.Payload, err = s.open(key, value, frameHeader); err != nil {
		return Stored{}, err
	}
	f.Count = int(count)
	return Stored{Base: base, Frame: f}, nil
}

func (f Frame) check() error {
	if f.Count < 1 || uint64(f.Count) >= voidBit {
		return fmt.Errorf("append frame: count is %d, it must be 1 to 2^31-1", f.Count)
	}
	if len(f.Payload) > maxPayload {
		return fmt.Errorf("append frame: payload of %d bytes is over %d", len(f.Payload), maxPayload)
	}
	return nil
}

var errSequenceEnd = errors.New("append frame: the sequence numbers of this queue are used up")
