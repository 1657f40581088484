package isolate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/edgehost/edgehost/sources"
)

const (
	maxDetail  = 2000 // bytes of a state's detail or of an error
	maxLogLine = 64 << 10
	maxMetrics = 256 // names of one child
)

// states are those that a source reports; the others are its supervisor's.
var states = []sources.State{sources.Starting, sources.Connecting, sources.Connected, sources.Degraded, sources.Stalled,
	sources.Reconnecting, sources.AuthFailed, sources.Failed}

func known(s sources.State) bool { return slices.Contains(states, s) }

// counted is what one child has counted so far. The parent's Status gets the
// differences, so that nothing goes backwards or twice when a child dies.
type counted struct {
	emitted        uint64 // records of its batches
	records, bytes uint64
	failed         map[string]uint64
	counters       map[string]float64
}

// apply adds to st what s counts more than the snapshot before. Metrics that end
// in _total are counters, the others gauges, as on /metrics.
func (c *counted) apply(st *sources.Status, s sources.Snapshot) {
	if c.failed == nil {
		c.failed, c.counters = map[string]uint64{}, map[string]float64{}
	}
	st.Received(more(c.bytes, s.Bytes))
	c.bytes = max(c.bytes, s.Bytes)
	if s.Records > c.records {
		st.Read(more(c.records, s.Records), 0)
		c.records = s.Records
	}
	for _, reason := range slices.Sorted(maps.Keys(s.Failed)) {
		n := s.Failed[reason]
		if before, seen := c.failed[reason]; n > before && (seen || len(c.failed) < maxMetrics) {
			st.Fail(reason, more(before, n))
			c.failed[reason] = n
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		v := s.Counters[name]
		before, seen := c.counters[name]
		switch {
		case !seen && len(c.counters) >= maxMetrics, math.IsNaN(v):
			continue
		case !strings.HasSuffix(name, "_total"):
			st.Gauge(name, v)
		case v > before:
			st.Add(name, v-before)
		}
		c.counters[name] = max(before, v)
	}
}

// close counts what the child emitted and did not live to count; of its other
// counters at most statusEvery is lost.
func (c *counted) close(st *sources.Status) {
	if c.emitted > c.records {
		st.Read(more(c.records, c.emitted), 0)
	}
}

func more(before, now uint64) int {
	if now <= before {
		return 0
	}
	return int(min(now-before, math.MaxInt32))
}

// relay writes a line of the child's log into ours. Lines that tell a change of
// state are left out: the parent tells it.
func relay(log *slog.Logger, line []byte) {
	d := json.NewDecoder(bytes.NewReader(line))
	var r slog.Record
	var attrs []slog.Attr
	if _, err := d.Token(); err != nil {
		return
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return
		}
		var v any
		if err := d.Decode(&v); err != nil {
			return
		}
		text, _ := v.(string)
		switch key {
		case slog.TimeKey:
			r.Time, _ = time.Parse(time.RFC3339Nano, text)
		case slog.LevelKey:
			_ = r.Level.UnmarshalText([]byte(text)) // an unknown level is INFO
		case slog.MessageKey:
			r.Message = text
		default:
			attrs = append(attrs, slog.Any(fmt.Sprint(key), v))
		}
	}
	state, told := strings.CutPrefix(r.Message, "source ")
	if told && known(sources.State(state)) || !log.Enabled(context.Background(), r.Level) {
		return
	}
	out := slog.NewRecord(r.Time, r.Level, r.Message, 0)
	out.AddAttrs(attrs...)
	// The log has nobody to tell its errors to.
	_ = log.Handler().Handle(context.Background(), out)
}

// headTail keeps the beginning and the end of what is written: a dying Go
// program says first why, and other programs last.
type headTail struct {
	mu   sync.Mutex
	head []byte
	tail []byte
	cut  bool
}

const keepText = 4 << 10 // bytes of each end

// Write implements io.Writer; it never fails.
func (h *headTail) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(b)
	room := min(keepText-len(h.head), n)
	h.head, b = append(h.head, b[:room]...), b[room:]
	h.tail = append(h.tail, b...)
	if over := len(h.tail) - keepText; over > 0 {
		h.cut = true
		h.tail = append(h.tail[:0], h.tail[over:]...)
	}
	return n, nil
}

func (h *headTail) text() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cut {
		return string(h.head) + "\n…\n" + string(h.tail)
	}
	return string(h.head) + string(h.tail)
}

// deathError words the end of a child: what happened in plain words, why we
// killed it or how it exited, and the lines of stderr that say why, else the
// last ones.
func deathError(reason string, exit error, stderr string) error {
	plain := ""
	if reason == "" {
		reason = "exit status 0"
		if exit != nil {
			reason = exit.Error()
		}
		plain = plainWords(reason, stderr)
	}
	var why, last []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		last = append(last, line)
		for _, mark := range []string{"panic: ", "fatal error: ", "runtime: "} {
			if strings.HasPrefix(line, mark) && len(why) < 3 {
				why = append(why, line)
			}
		}
	}
	if len(why) == 0 {
		why = last[max(0, len(last)-3):]
	}
	text := plain + reason
	if len(why) > 0 {
		text += ": " + strings.Join(why, "; ")
	}
	return &processError{oneLine(text, 600), exit}
}

// plainWords says what the end of a Go program means for the one who looks after
// it, "" when that cannot be told.
func plainWords(exit, stderr string) string {
	const act = "; it is started again, and if that repeats, see what answers at the endpoint: "
	switch {
	case strings.Contains(stderr, "out of memory"), strings.Contains(stderr, "cannot allocate"),
		strings.Contains(stderr, "address space collisions"), strings.Contains(stderr, "failed to allocate"): // the race detector's words
		return "out of memory, which one message of the peer that claims to be huge can do" + act
	case strings.Contains(stderr, "stack overflow"), strings.Contains(stderr, "stack exceeds"):
		return "its stack is used up, which one message of the peer that is nested too deeply can do" + act
	case strings.Contains(stderr, "panic: "), strings.Contains(stderr, "fatal error: "):
		return "a fault in decoding or elsewhere, which one malformed message of the peer can do" + act
	case exit == "signal: killed":
		return "it was killed, by a person or by the system for want of memory; it is started again: "
	default:
		return ""
	}
}

// processError is the death of a child.
type processError struct {
	text string
	exit error // of exec.Cmd.Wait, may be nil
}

// Error implements error.
func (e *processError) Error() string { return "source process ended: " + e.text }

// Unwrap returns the *exec.ExitError, if there is one.
func (e *processError) Unwrap() error { return e.exit }

// oneLine makes text of a child safe for a terminal, and short.
func oneLine(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
