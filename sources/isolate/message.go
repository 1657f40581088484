package isolate

import (
	"encoding/binary"
	"fmt"
	"log/slog"

	"github.com/edgehost/edgehost/sources"
)

// start is the first frame.
type start struct {
	Name     string     `json:"name"`
	Protocol string     `json:"protocol"`
	Level    slog.Level `json:"level"` // of the log, at least
	Limits   Limits     `json:"limits"`
	Payload  []byte     `json:"payload"`
}

// ended says why a run of the source ended. An empty Text is a nil error.
type ended struct {
	State sources.State `json:"state"`
	Text  string        `json:"text"`
}

// maxResume is the longest resume point that sources.Batch allows, in bytes.
const maxResume = 64 << 10

// The outcomes of a batch.
const (
	outcomeDurable = 0
	outcomeDropped = 1
)

func appendAck(dst []byte, number uint64, dropped bool) []byte {
	outcome := byte(outcomeDurable)
	if dropped {
		outcome = outcomeDropped
	}
	return append(binary.LittleEndian.AppendUint64(dst, number), outcome)
}

func decodeAck(b []byte) (number uint64, dropped bool, err error) {
	if len(b) != 9 || b[8] > outcomeDropped {
		return 0, false, fmt.Errorf("%w: acknowledgement", errFrame)
	}
	return binary.LittleEndian.Uint64(b), b[8] == outcomeDropped, nil
}

func decodeNumber(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("%w: number", errFrame)
	}
	return binary.LittleEndian.Uint64(b), nil
}

// appendBatchHead appends what stands in front of the records of a batch:
//
//	u64 number | i64 time | u32 resume length + 1, 0: none | resume
//
// shape.go says what stands behind.
func appendBatchHead(dst []byte, number uint64, time int64, resume []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, number)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(time))
	if resume == nil {
		return binary.LittleEndian.AppendUint32(dst, 0)
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(resume))+1)
	return append(dst, resume...)
}

// batch reads a batch of the source called name, and what it takes of the window.
// It copies what it keeps.
func (s *shapes) batch(b []byte, name string) (number uint64, out sources.Batch, size int, err error) {
	const head = 20
	if size = len(b); size < head {
		return 0, out, 0, fmt.Errorf("%w: batch cut short", errFrame)
	}
	number = binary.LittleEndian.Uint64(b)
	out.Time = int64(binary.LittleEndian.Uint64(b[8:]))
	n := uint64(binary.LittleEndian.Uint32(b[16:]))
	b = b[head:]
	if n > 0 {
		n--
		if n > maxResume || n > uint64(len(b)) {
			return 0, out, 0, fmt.Errorf("%w: resume point of %d bytes", errFrame, n)
		}
		out.Resume = append(make([]byte, 0, n), b[:n]...)
		b = b[n:]
	}
	recs, shaped, err := s.records(b, name)
	out.Records = recs
	return number, out, size + shaped, err
}

func appendNumber(dst []byte, number uint64) []byte {
	return binary.LittleEndian.AppendUint64(dst, number)
}
