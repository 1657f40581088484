package modbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// fakeLine stands in for the network: its answer decides every read, and it
// keeps what was asked and when. It runs on the clock of synctest.
type fakeLine struct {
	answer func(request) (data, error)
	refuse error // dial fails with it

	mu    sync.Mutex
	asked []request
	opens []time.Time
	open  int
	looks int
}

// request is one read that a fakeLine got.
type request struct {
	at    time.Time
	slave uint8
	table RegisterType
	start uint16
	count int
}

func (r request) String() string {
	return fmt.Sprintf("%d %s %d+%d", r.slave, r.table, r.start, r.count)
}

func (l *fakeLine) dial(settings, *slog.Logger) (link, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opens = append(l.opens, time.Now())
	if l.refuse != nil {
		return nil, l.refuse
	}
	if l.open++; l.open > 1 {
		panic("a second connection was opened beside the first")
	}
	return l, nil
}

// knock finds a device that has one connection to give.
func (l *fakeLine) knock(context.Context, string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looks++
	if l.refuse == nil && l.open > 0 {
		return errors.New("no more connections")
	}
	return l.refuse
}

func (l *fakeLine) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
}

func (l *fakeLine) read(slave uint8, t RegisterType, start uint16, count int, room data) (data, error) {
	r := request{time.Now(), slave, t, start, count}
	l.mu.Lock()
	l.asked = append(l.asked, r)
	answer := l.answer
	l.mu.Unlock()
	d, err := answer(r)
	return append(room[:0], d...), err
}

// set changes what the line does from now on; refuse nil lets it be opened.
func (l *fakeLine) set(answer func(request) (data, error), refuse error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answer, l.refuse = answer, refuse
}

// opened returns when the connection was opened, or tried to be.
func (l *fakeLine) opened() []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.opens)
}

func (l *fakeLine) requests() []request {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.asked)
}

// forget drops what was asked so far.
func (l *fakeLine) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked, l.opens = nil, nil
}

// numbered answers every register with its own offset, and every bit with
// whether its offset is odd.
func numbered(r request) data {
	var d data
	for i := range r.count {
		at := int(r.start) + i
		if r.table.bits() {
			d = append(d, byte(at%2))
		} else {
			d = append(d, byte(at>>8), byte(at))
		}
	}
	return d
}

// bench is a source on a fakeLine, with what it emitted.
type bench struct {
	*Source
	line   *fakeLine
	status *sources.Status
	buses  *Buses

	mu      sync.Mutex
	records []abi.Record
	batches int
	block   chan struct{} // not nil: Emit waits for it
	verdict error         // of done
}

func newBench(t *testing.T, line *fakeLine, endpoint, text string) *bench {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	buses := NewBuses(log)
	buses.dial, buses.knock = line.dial, line.knock
	return joinBench(t, line, buses, "plc", endpoint, text)
}

func joinBench(t *testing.T, line *fakeLine, buses *Buses, name, endpoint, text string) *bench {
	t.Helper()
	b := &bench{line: line, status: sources.NewStatus(name, "modbus"), buses: buses}
	var err error
	b.Source, err = New(name, endpoint, map[string]string{"industry": "mining"}, read(t, text), Deps{buses.log, b.status, buses})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) emit(ctx context.Context, batch sources.Batch, done func(error)) error {
	b.mu.Lock()
	block, verdict := b.block, b.verdict
	b.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b.mu.Lock()
	b.records = append(b.records, batch.Records...)
	b.batches++
	b.mu.Unlock()
	done(verdict)
	return nil
}

// take returns what was emitted since the last call.
func (b *bench) take() []abi.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.records
	b.records = nil
	return out
}

// run starts the source under its supervisor; stop ends it and waits.
func (b *bench) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	none := 0.0
	wg.Go(func() {
		sources.Supervise(ctx, b.Source, b.emit, b.status, sources.ReconnectConfig{Jitter: &none}, b.buses.log)
	})
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			wg.Wait()
			b.buses.Wait()
		})
	}
	t.Cleanup(stop)
	return stop
}

func (b *bench) count(metric string) float64 { return b.status.Snapshot().Counters[metric] }

// values maps addresses to the values of records; bad ones to their status name.
func values(recs []abi.Record) map[string]string {
	out := map[string]string{}
	for i := range recs {
		out[recs[i].Address] = show(&recs[i])
	}
	return out
}

func show(r *abi.Record) string {
	if r.Status != 0 {
		name, _ := r.Attr(abi.AttrStatus)
		return name.Text()
	}
	switch r.Value.Kind() {
	case abi.KindBool:
		return fmt.Sprint(r.Value.AsBool())
	case abi.KindString:
		return r.Value.Text()
	case abi.KindInt:
		return fmt.Sprint(r.Value.AsInt())
	case abi.KindUint:
		return fmt.Sprint(r.Value.AsUint())
	}
	return fmt.Sprint(r.Value.AsFloat())
}

var errUnplugged = lostError{errors.New("unplugged")}
