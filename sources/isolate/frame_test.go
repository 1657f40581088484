package isolate

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

func frameOf(t testing.TB, k kind, body []byte) []byte {
	t.Helper()
	frame, err := endFrame(append(beginFrame(nil, k), body...))
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func TestFrames(t *testing.T) {
	large := bytes.Repeat([]byte("x"), 5<<20)
	in := newFrameReader(bytes.NewReader(bytes.Join([][]byte{frameOf(t, kindStop, nil), frameOf(t, kindBatch, large), frameOf(t, kindAck, []byte("a"))}, nil)))
	for i, want := range [][]byte{nil, large, []byte("a")} {
		if _, body, err := in.next(); err != nil || !bytes.Equal(body, want) {
			t.Errorf("frame %d: %d bytes, %v", i, len(body), err)
		}
	}
	if _, _, err := in.next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if _, err := endFrame(make([]byte, headerSize+maxFrame+1)); !errors.Is(err, errFrame) {
		t.Errorf("a frame that is too large: %v", err)
	}
}

// TestFramePromise: a header that promises much allocates little.
func TestFramePromise(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err := newFrameReader(strings.NewReader("\x01B\x00\x00\x00\x04 short")).next()
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, errFrame) || grown > 4<<20 {
		t.Errorf("%v after %d bytes", err, grown)
	}
}

// plainBatch is a batch without shapes.
func plainBatch(number uint64, b sources.Batch) []byte {
	u32 := binary.LittleEndian.AppendUint32
	out := u32(u32(appendBatchHead(nil, number, b.Time, b.Resume), 0), uint32(len(b.Records)))
	return abi.AppendRecords(append(out, make([]byte, 4*len(b.Records))...), b.Records)
}

func decodeBatch(b []byte, name string) (uint64, sources.Batch, error) {
	number, out, _, err := new(shapes).batch(b, name)
	return number, out, err
}

func TestBatchRefused(t *testing.T) {
	b := numbered("m", []int{1, 2})
	good := plainBatch(7, b)
	number, got, err := decodeBatch(good, "m")
	if err != nil || number != 7 || !cmp.Equal(got, b, cmp.AllowUnexported(abi.Value{})) {
		t.Errorf("%d %v, %v", number, got, err)
	}
	if _, _, err := decodeBatch(good, "other"); err == nil || !strings.Contains(err.Error(), "record of another source") {
		t.Errorf("records of another source: %v", err)
	}
	for n := range good {
		if _, got, err := decodeBatch(good[:n], "m"); err == nil && len(got.Records) == 2 {
			t.Errorf("%d bytes of %d are a batch", n, len(good))
		}
	}
	for _, resume := range [][]byte{nil, {}} {
		if _, got, err := decodeBatch(plainBatch(1, sources.Batch{Time: 1, Resume: resume}), "m"); err != nil || (got.Resume == nil) != (resume == nil) {
			t.Errorf("resume point %v became %v, %v", resume, got.Resume, err)
		}
	}
}

// FuzzFrame feeds the parent what a child that was taken over may send, and the
// child's own decoders too.
func FuzzFrame(f *testing.F) {
	b := numbered("m", []int{1, 2})
	batch := plainBatch(1, b)
	status, err := json.Marshal(sources.NewStatus("m", "opcua").Snapshot())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(frameOf(f, kindBatch, batch), frameOf(f, kindStatus, status)...))
	f.Add(append(frameOf(f, kindLog, []byte(`{"time":"2026-01-01T00:00:00Z","level":"WARN","msg":"m","a":{"b":[1]}}`)), frameOf(f, kindEnded, []byte(`{"state":"failed","text":"t"}`))...))
	f.Add(frameOf(f, kindAck, appendAck(nil, 1, true)))
	f.Add(append(frameOf(f, kindBatch, shapedBatch(f, 1)), frameOf(f, kindBatch, shapedBatch(f, 2))...))
	f.Add([]byte("\x01B\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		st := sources.NewStatus("m", "opcua")
		p := &process{src: New(Config{Name: "m", Status: st, Logger: slog.New(slog.DiscardHandler)}), ended: make(chan error, 1)}
		in := newFrameReader(bytes.NewReader(data))
		for {
			k, body, err := in.next()
			if err != nil {
				return
			}
			_, _, _ = decodeAck(body)
			if err := p.take(k, body); err != nil {
				if !errors.Is(err, errFrame) {
					t.Fatalf("%v is not about the frame", err)
				}
				return
			}
		}
	})
}

// TestViolations: a child that does not keep to the protocol is refused.
func TestViolations(t *testing.T) {
	b := numbered("m", []int{1})
	batch := func(number uint64) []byte {
		return plainBatch(number, b)
	}
	for name, frames := range map[string][][]byte{
		"number":  {batch(2)},
		"again":   {batch(1), batch(1)},
		"records": {append(batch(1), 9)},
	} {
		p := &process{src: New(Config{Name: "m", Logger: slog.New(slog.DiscardHandler)})}
		var err error
		for _, body := range frames {
			err = p.take(kindBatch, body)
		}
		if !errors.Is(err, errFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := &process{src: New(Config{Name: "m", Logger: slog.New(slog.DiscardHandler)})}
	large := sources.Batch{Records: []abi.Record{{Source: "m", Value: abi.Bytes(make([]byte, window+1))}}}
	body := plainBatch(1, large)
	if err := p.take(kindBatch, body); err != nil {
		t.Errorf("one batch more than the window is allowed: %v", err)
	}
	if err := p.take(kindBatch, batch(2)); !errors.Is(err, errFrame) {
		t.Errorf("a full window: %v", err)
	}
	if err := p.take('?', nil); !errors.Is(err, errFrame) {
		t.Errorf("an unknown kind: %v", err)
	}
}

// TestParts: a batch with large values travels in parts, and is done once.
func TestParts(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	w := newWorker(theirs, start{Name: "m"})
	value := abi.Bytes(make([]byte, 700_000))
	b := sources.Batch{Time: 3, Resume: []byte("r")}
	for range 5 {
		b.Records = append(b.Records, abi.Record{Source: "m", Value: value})
	}
	dones := make(chan error, 9)
	var emitting sync.WaitGroup
	emitting.Go(func() {
		if err := w.emit(t.Context(), b, func(err error) { dones <- err }); err != nil {
			t.Error(err)
		}
	})
	in, total, known := newFrameReader(ours), 0, new(shapes)
	for number := uint64(1); total < 5; number++ {
		_, body, err := in.next()
		if err != nil {
			t.Fatal(err)
		}
		n, part, _, err := known.batch(body, "m")
		if err != nil || n != number || part.Time != 3 {
			t.Fatalf("part %d is %d of time %d: %v", number, n, part.Time, err)
		}
		if total += len(part.Records); (part.Resume != nil) != (total == 5) {
			t.Errorf("the resume point comes with %d of 5 records", total)
		}
	}
	emitting.Wait()
	for number := uint64(1); number <= 3; number++ {
		if _, err := w.settled(number + 1); err == nil && number < 3 {
			t.Error("outcomes out of order are taken")
		}
		done, err := w.settled(number)
		if err != nil || (done != nil) != (number == 3) {
			t.Errorf("part %d: done is there: %v, %v", number, done != nil, err)
		}
	}
	huge := sources.Batch{Records: []abi.Record{{Source: "m", Value: abi.Bytes(make([]byte, maxFrame))}}}
	if err := w.emit(t.Context(), huge, nil); !errors.Is(err, errFrame) {
		t.Errorf("a record that fits nowhere: %v", err)
	}
	if err := w.emit(t.Context(), sources.Batch{Resume: make([]byte, maxResume+1)}, nil); err == nil {
		t.Error("a resume point that is too long is taken")
	}
}
