package spool

import (
	"bytes"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
)

// FuzzCursorSlot: only what encodeSlot wrote under the same key is taken.
func FuzzCursorSlot(f *testing.F) {
	key := bytes.Repeat([]byte{7}, keySize)
	good := encodeSlot(3, [16]byte{1}, position{head: 1, tail: 2, settled: Settled{1, 2, 3}, written: 9}, key)
	f.Add(good)
	f.Add(good[:slotLen])
	f.Add(good[:slotLen-1])
	f.Add(flip(good, 40))
	f.Add(encodeSlot(1, [16]byte{}, position{head: 2, tail: 1}, key))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		gen, uuid, p, err := decodeSlot(b, key)
		if err != nil {
			return
		}
		if again := encodeSlot(gen, uuid, p, key); !bytes.Equal(again[:slotLen], b[:slotLen]) {
			t.Fatalf("another encoding was taken: %x", b[:slotLen])
		}
		if p.head > p.tail {
			t.Fatal(p)
		}
	})
}

// FuzzIdentity: only what was written under the same key is taken.
func FuzzIdentity(f *testing.F) {
	key := bytes.Repeat([]byte{7}, keySize)
	good := append([]byte(identityMagic), make([]byte, 16)...)
	good = append(good, identityMAC(good, key)...)
	f.Add(good)
	f.Add(good[:20])
	f.Add(flip(good, 10))
	f.Fuzz(func(t *testing.T, b []byte) {
		if uuid, err := decodeIdentity(b, key); err == nil && !bytes.Equal(uuid[:], b[4:20]) {
			t.Fatal(uuid)
		}
	})
}

// FuzzFrame: no key or value makes the readers panic, and none that was not
// sealed for this place opens.
func FuzzFrame(f *testing.F) {
	handle, err := keyset.NewHandle(aead.XAES256GCM192BitNonceKeyTemplate())
	if err != nil {
		f.Fatal(err)
	}
	primitive, err := aead.New(handle)
	if err != nil {
		f.Fatal(err)
	}
	s := sealer{aead: primitive, magic: "ehs1", uuid: [16]byte{1}}
	fr := frame(alice, 9, 5, "payload")
	key := frameKey(100, 5)
	value, err := s.seal(key, frameHeaderOf(fr, codecRaw), fr.Payload)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key, value)
	f.Add(frameKey(100, 5|voidBit), value)
	f.Add(frameKey(1<<64-1, 1), value)
	f.Add(frameKey(0, 0), value[:frameHeader])
	f.Add([]byte{}, []byte{})
	f.Add(key, flip(value, 3))
	f.Fuzz(func(t *testing.T, k, v []byte) {
		if base, count, _, err := parseFrameKey(k); err == nil && (count == 0 || base+count <= base) {
			t.Fatalf("key %x covers nothing", k)
		}
		if h, err := parseFrameHeader(v); err == nil && !bytes.Equal(frameHeaderOf(h, v[1]), v[:frameHeader]) {
			t.Fatalf("header %x is not what it was read as", v[:frameHeader])
		}
		if _, err := s.openFrame(k, v); err == nil && !(bytes.Equal(k, key) && bytes.Equal(v, value)) {
			t.Fatalf("a frame that nobody sealed opens: %x %x", k, v)
		}
	})
}

// FuzzDecompress: no body makes it panic or fill the memory.
func FuzzDecompress(f *testing.F) {
	codec, body := compress(bytes.Repeat([]byte("ratio"), 1000))
	f.Add(codec, body)
	f.Add(codec, body[:len(body)/2])
	f.Add(codec, []byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add(byte(2), []byte{})
	f.Fuzz(func(t *testing.T, codec byte, body []byte) {
		if out, err := decompress(codec, body); err == nil && len(out) > max(maxPayload, len(body)) {
			t.Fatal(len(out))
		}
	})
}

// FuzzLetter: what decodes is what encodes to the same bytes.
func FuzzLetter(f *testing.F) {
	good := encodeLetter(letter("k", "schema", 3))
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(encodeLetter(Letter{Count: 1}))
	f.Add(append(bytes.Clone(good[:41]), 0x80, 0x00, 0x01))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLetter(b)
		if err != nil {
			return
		}
		if again := encodeLetter(l); !bytes.Equal(again, b) {
			t.Fatalf("another encoding was taken:\n%x\n%x", b, again)
		}
	})
}
