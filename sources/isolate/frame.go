package isolate

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// A frame is a version, a kind, the length of the body (32 bits, little endian)
// and the body.
const (
	frameVersion = 1
	headerSize   = 6
	maxFrame     = 64 << 20 // bytes of a body
)

// kind says what a frame holds.
type kind byte

// The parent sends the first group, the child the second.
const (
	kindStart  kind = 'S' // JSON of start: the first frame
	kindRun    kind = 'R' // resume point: run the source
	kindQueued kind = 'Q' // number: this batch left the window
	kindAck    kind = 'A' // number, outcome: this batch is settled
	kindStop   kind = 'X' // end the run and the process

	kindBatch  kind = 'B' // see appendBatch
	kindStatus kind = 'T' // JSON of sources.Snapshot
	kindLog    kind = 'L' // JSON line of log/slog
	kindEnded  kind = 'E' // JSON of ended: Run returned
)

// errFrame is wrapped by every error about bytes that are no frame.
var errFrame = errors.New("malformed frame")

// beginFrame starts a frame in dst, which is reused.
func beginFrame(dst []byte, k kind) []byte {
	return append(dst[:0], frameVersion, byte(k), 0, 0, 0, 0)
}

// endFrame enters the length of the body that was appended.
func endFrame(frame []byte) ([]byte, error) {
	n := len(frame) - headerSize
	if n > maxFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d fit", errFrame, n, maxFrame)
	}
	binary.LittleEndian.PutUint32(frame[2:], uint32(n))
	return frame, nil
}

// frameReader reads frames. Memory grows with what arrives and not with what a
// header promises.
type frameReader struct {
	r   *bufio.Reader
	buf []byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// next returns the next frame; body is valid until the call after. io.EOF means
// that the other side ended between two frames.
func (f *frameReader) next() (k kind, body []byte, err error) {
	const chunk = 1 << 20
	var head [headerSize]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.LittleEndian.Uint32(head[2:]))
	if head[0] != frameVersion || n > maxFrame {
		return 0, nil, fmt.Errorf("%w: version %d, %d bytes", errFrame, head[0], n)
	}
	if f.buf = f.buf[:0]; cap(f.buf) > 4*chunk {
		f.buf = nil
	}
	for len(f.buf) < n {
		have := len(f.buf)
		f.buf = slices.Grow(f.buf, min(n-have, chunk))[:have+min(n-have, chunk)]
		if _, err := io.ReadFull(f.r, f.buf[have:]); err != nil {
			return 0, nil, fmt.Errorf("%w: cut short: %w", errFrame, err)
		}
	}
	return kind(head[1]), f.buf, nil
}
