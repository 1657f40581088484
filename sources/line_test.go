package sources

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
)

// line is a pipeline that keeps what it gets, and a Watch in front of it.
type line struct {
	t      *testing.T
	w      *Watch
	status *Status
	emit   Emit // the source's

	mu      sync.Mutex
	batches []Batch
	outcome error             // what done receives
	refuse  error             // what Emit returns
	block   chan struct{}     // Emit waits for it; nil: it does not
	notes   map[string][]byte // of the batches that were stored
	end     func()
}

func newLine(t *testing.T, cfg WatchConfig) *line { return newLineOf(t, cfg, map[string][]byte{}) }

// newLineOf makes a line whose disk holds notes of before.
func newLineOf(t *testing.T, cfg WatchConfig, notes map[string][]byte) *line {
	t.Helper()
	l := &line{t: t, status: NewStatus("s", "mqtt"), notes: notes}
	l.w = NewWatch(cfg, l.status, slog.New(slog.DiscardHandler))
	forget, err := l.w.Recall(func(fn func(string, []byte) error) error {
		for key, value := range notes {
			if err := fn(key, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	l.store(forget)
	l.emit = l.w.Emit(l.pipeline)
	l.status.Set(Connected, "")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.w.Run(ctx, l.pipeline) })
	l.end = func() { cancel(); wg.Wait() }
	t.Cleanup(l.end)
	return l
}

// store makes notes durable.
func (l *line) store(notes []PointNote) {
	for _, n := range notes {
		if l.notes[n.Key] = n.Value; n.Value == nil {
			delete(l.notes, n.Key)
		}
	}
}

func (l *line) pipeline(ctx context.Context, b Batch, done func(error)) error {
	l.mu.Lock()
	block, refuse, outcome := l.block, l.refuse, l.outcome
	l.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if refuse != nil {
		return refuse
	}
	l.mu.Lock()
	l.batches = append(l.batches, b)
	if outcome == nil {
		l.store(b.Points)
	}
	l.mu.Unlock()
	done(outcome)
	return nil
}

func (l *line) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func (l *line) say(recs ...abi.Record) {
	l.t.Helper()
	if err := l.emit(l.t.Context(), Batch{Time: Micros(time.Now()), Records: recs}, func(error) {}); err != nil {
		l.t.Error(err)
	}
}

// stale returns the addresses of stale records since the last call, after
// checking what they hold.
func (l *line) stale() []string {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []string{}
	for _, b := range l.batches {
		for _, r := range b.Records {
			if v, ok := r.Attr(abi.AttrStale); !ok || !v.AsBool() {
				continue
			}
			out = append(out, r.Address)
			quality, _ := r.Attr(abi.AttrQuality)
			reason, _ := r.Attr(abi.AttrReason)
			name, _ := r.Attr(abi.AttrStatus)
			if r.Source != "s" || r.Status != StatusBadNoCommunication || quality.Text() != Bad || name.Text() != "BadNoCommunication" ||
				!strings.HasPrefix(reason.Text(), "stale: ") || !r.Value.IsNone() || r.Protocol != abi.ProtocolMQTT || b.Time != r.EventTime || b.Resume != nil {
				l.t.Errorf("stale record %+v", r)
			}
		}
	}
	l.batches = nil
	return out
}

// want checks which points were reported as silent since the last call.
func (l *line) want(addresses ...string) {
	l.t.Helper()
	if diff := cmp.Diff(append([]string{}, addresses...), l.stale()); diff != "" {
		l.t.Errorf("%v: stale points (-want +got):\n%s", time.Now().Format(time.TimeOnly), diff)
	}
}

func good(address string, attrs ...abi.Attr) abi.Record {
	now := Micros(time.Now())
	return abi.Record{EventTime: now, IngestTime: now, Source: "s", Address: address, Protocol: abi.ProtocolMQTT, Value: abi.Float(1), Attrs: attrs}
}

func flag(key string) abi.Attr { return abi.Attr{Key: key, Value: abi.Bool(true)} }

func text(key, v string) abi.Attr { return abi.Attr{Key: key, Value: abi.String(v)} }

// seconds lets time pass while the points named go on speaking.
func (l *line) seconds(n int, speaking ...string) {
	l.t.Helper()
	for range n {
		time.Sleep(time.Second)
		for _, address := range speaking {
			l.say(good(address))
		}
	}
	synctest.Wait()
}

// inBubble runs f in a bubble of time with a Watch that waits ten seconds.
func inBubble(t *testing.T, cfg WatchConfig, f func(t *testing.T, l *line)) {
	synctest.Test(t, func(t *testing.T) { f(t, newLine(t, cfg)) })
}

var tenSeconds = WatchConfig{StaleAfter: 10 * time.Second}
