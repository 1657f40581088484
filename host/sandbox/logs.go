package sandbox

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
)

const (
	stderrKept = 1 << 10 // bytes of stderr that explain a trap
	linesKept  = 256     // lines of one call
)

// logs collects what a module writes during one call. flush gives it to the
// logger when the call has succeeded; after a fault it is dropped, since the
// same batch will be tried again.
type logs struct {
	logger  *slog.Logger
	rate    int     // bytes a second
	tokens  float64 // bytes that may be logged now
	last    time.Time
	lines   []line
	dropped int // lines over the rate since the last flush
	partial [3][]byte
	stderr  []byte // the beginning of stderr in this call
	used    bool   // anything was written since begin
}

type line struct {
	level slog.Level
	text  string
}

// begin empties the buffers for another call.
func (l *logs) begin() {
	if !l.used {
		return
	}
	l.used = false
	l.lines = l.lines[:0]
	l.partial[1], l.partial[2], l.stderr = l.partial[1][:0], l.partial[2][:0], l.stderr[:0]
}

// add takes one line. Over the rate it is only counted.
func (l *logs) add(level slog.Level, text []byte) {
	l.used = true
	now := time.Now()
	l.tokens = min(float64(l.rate), l.tokens+now.Sub(l.last).Seconds()*float64(l.rate))
	l.last = now
	text = text[:min(len(text), abi.MaxLogLine)]
	cost := float64(len(text) + 1)
	if cost > l.tokens || len(l.lines) >= linesKept {
		l.dropped++
		return
	}
	l.tokens -= cost
	l.lines = append(l.lines, line{level, strings.ToValidUTF8(string(text), "\uFFFD")})
}

// write takes a piece of stdout (1) or stderr (2) and adds its whole lines.
func (l *logs) write(fd int, b []byte) {
	l.used = true
	if fd == 2 {
		l.stderr = append(l.stderr, b[:min(len(b), stderrKept-len(l.stderr))]...)
	}
	for len(b) > 0 {
		text, rest, whole := bytes.Cut(b, []byte("\n"))
		room := max(0, abi.MaxLogLine-len(l.partial[fd]))
		l.partial[fd] = append(l.partial[fd], text[:min(len(text), room)]...)
		if whole {
			l.endLine(fd)
		}
		b = rest
	}
}

func (l *logs) endLine(fd int) {
	if len(l.partial[fd]) > 0 {
		l.add(map[int]slog.Level{1: slog.LevelInfo, 2: slog.LevelError}[fd], l.partial[fd])
		l.partial[fd] = l.partial[fd][:0]
	}
}

// flush logs what the call wrote.
func (l *logs) flush(ctx context.Context) {
	if !l.used && l.dropped == 0 {
		return
	}
	l.endLine(1)
	l.endLine(2)
	for _, line := range l.lines {
		l.logger.Log(ctx, line.level, line.text)
	}
	if l.dropped > 0 {
		l.logger.WarnContext(ctx, "log lines of the module dropped: it logs too much", "lines", l.dropped, "bytes_per_second", l.rate)
		l.dropped = 0
	}
	l.lines = l.lines[:0]
}
