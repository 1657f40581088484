package isolate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// halves are a child's encoder and a parent's decoder, without a socket.
type halves struct {
	w     *worker
	known shapes
}

func newHalves() *halves { return &halves{w: newWorker(nil, start{Name: "m"})} }

// cross sends b in as many frames as it takes; lost of them are not sent.
func (h *halves) cross(t testing.TB, b sources.Batch, lost bool) (out []abi.Record, wire int) {
	t.Helper()
	for recs := b.Records; len(recs) > 0; {
		n, frame, shaped, err := h.w.part(b.Time, recs, nil)
		if err != nil {
			t.Fatal(err)
		}
		recs = recs[n:]
		if lost {
			continue
		}
		h.w.shapes.crossed()
		_, got, size, err := h.known.batch(frame[headerSize:], "m")
		if err != nil {
			t.Fatal(err)
		}
		if want := len(frame) - headerSize + shaped; size != want {
			t.Errorf("the child takes %d of the window, the parent %d", want, size)
		}
		out, wire = append(out, got.Records...), wire+len(frame)
	}
	return out, wire
}

// shapedBatch is the body of the number-th of two batches; the second needs the
// shapes of the first.
func shapedBatch(t testing.TB, number int) []byte {
	h := newHalves()
	for n := 1; ; n++ {
		_, frame, _, err := h.w.part(1, floodBatch("m").Records[:3], nil)
		if err != nil {
			t.Fatal(err)
		}
		appendNumber(frame[headerSize:headerSize], uint64(n))
		if h.w.shapes.crossed(); n == number {
			return append([]byte(nil), frame[headerSize:]...)
		}
	}
}

func same(a, b []abi.Record) bool {
	return bytes.Equal(abi.AppendRecords(nil, a), abi.AppendRecords(nil, b))
}

// randomBatch is values of a few points, as sources make them: attributes of the
// point, and at times others behind or instead.
func randomBatch(rnd *rand.Rand) (b sources.Batch) {
	for range rnd.IntN(40) {
		point := rnd.IntN(6)
		r := abi.Record{EventTime: rnd.Int64N(1e15), IngestTime: rnd.Int64N(1e15), Source: "m", Address: fmt.Sprint("p", point), Protocol: abi.ProtocolOPCUA, Value: abi.Int(rnd.Int64())}
		for i := range point {
			r.Attrs = append(r.Attrs, abi.Attr{Key: fmt.Sprint("k", i), Value: abi.String(fmt.Sprint("v", i))})
		}
		switch rnd.IntN(5) {
		case 0:
			r.Attrs = append(r.Attrs, abi.Attr{Key: abi.AttrServerTime, Value: abi.Int(rnd.Int64())})
		case 1:
			r.Status, r.Attrs = 0x80000000, r.Attrs[:len(r.Attrs)/2]
		case 2:
			r.Attrs = nil
		}
		b.Records = append(b.Records, r)
	}
	return b
}

// TestShapesKeepRecords: whatever a source emits arrives as it is, whether or not a
// frame with shapes was held back in between.
func TestShapesKeepRecords(t *testing.T) {
	for seed := range uint64(100) {
		rnd, h := rand.New(rand.NewPCG(seed, 0)), newHalves()
		for range 20 {
			b := randomBatch(rnd)
			if rnd.IntN(5) == 0 {
				h.cross(t, b, true)
			}
			got, _ := h.cross(t, b, false)
			if !same(b.Records, got) {
				t.Fatalf("seed %d: %s", seed, cmp.Diff(b.Records, got, cmp.AllowUnexported(abi.Value{}), cmpopts.EquateEmpty()))
			}
			for i := range got {
				if len(got[i].Attrs) != cap(got[i].Attrs) {
					t.Fatal("appending to a record's attributes would change another's")
				}
			}
		}
	}
}

// TestShapesSave: from the second value of a point on its names stay at home.
func TestShapesSave(t *testing.T) {
	h := newHalves()
	h.cross(t, floodBatch("m"), false)
	b := floodBatch("m")
	_, wire := h.cross(t, b, false)
	if whole := len(abi.AppendRecords(nil, b.Records)); wire > whole/3 {
		t.Errorf("%d bytes cross of %d", wire, whole)
	}
}

// TestShapesAreBounded: neither half keeps more than its bounds; what is beyond
// crosses whole.
func TestShapesAreBounded(t *testing.T) {
	h := newHalves()
	large := abi.String(string(make([]byte, 1<<20)))
	for i := range 20 {
		r := abi.Record{Source: "m", Address: fmt.Sprint(i), Protocol: abi.ProtocolOPCUA, Attrs: []abi.Attr{{Key: "k", Value: large}}}
		twice := []abi.Record{r, r}
		if got, _ := h.cross(t, sources.Batch{Records: twice}, false); !same(twice, got) {
			t.Fatalf("the records of point %d changed", i)
		}
	}
	if h.known.bytes > maxShapeBytes || len(h.known.list) != maxShapeBytes>>20-1 {
		t.Errorf("%d shapes of %d bytes are kept", len(h.known.list), h.known.bytes)
	}
	many := abi.Record{Source: "m", Address: "many", Attrs: make([]abi.Attr, 3*maxShared)}
	if got, _ := h.cross(t, sources.Batch{Records: []abi.Record{many, many}}, false); !same([]abi.Record{many, many}, got) {
		t.Error("a record of many attributes changed")
	}
}

// TestShapesRefused: what no child of ours sends is an error about the frame.
func TestShapesRefused(t *testing.T) {
	u32 := binary.LittleEndian.AppendUint32
	plain := abi.AppendRecord(nil, &abi.Record{Source: "m", Address: "a"})
	foreign := abi.AppendRecord(nil, &abi.Record{Source: "other", Address: "a"})
	slim := abi.AppendRecord(nil, &abi.Record{Value: abi.Int(1)})
	wide := abi.AppendRecord(nil, &abi.Record{Source: "m", Attrs: make([]abi.Attr, maxShared+1)})
	with := func(shape []byte) []byte { return append(u32(u32(nil, 1), uint32(len(shape))), shape...) }
	one := func(b []byte, number uint32, rec []byte) []byte { return append(u32(u32(b, 1), number), rec...) }
	for name, body := range map[string][]byte{
		"a shape of another source": one(with(foreign), 1, slim),
		"a shape of two records":    one(with(append(plain, plain...)), 1, slim),
		"a shape cut short":         u32(u32(nil, 1), 99),
		"a shape too wide":          one(with(wide), 1, slim),
		"an unknown shape":          one(with(plain), 2, slim),
		"a whole record with one":   one(with(plain), 1, plain),
		"a slim record without":     one(u32(nil, 0), 0, slim),
		"too many shapes":           u32(nil, 1<<31),
		"fewer records":             u32(u32(u32(nil, 0), 2), 0),
		"too many records":          u32(u32(nil, 0), partRecords+1),
		"nothing":                   nil,
	} {
		if _, _, err := new(shapes).records(body, "m"); !errors.Is(err, errFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if recs, size, err := new(shapes).records(one(with(plain), 1, slim), "m"); err != nil || len(recs) != 1 || recs[0].Address != "a" || size != len(plain) {
		t.Errorf("a good one: %v, %d, %v", recs, size, err)
	}
}
