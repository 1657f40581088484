package modbus

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// Buses is the connections of a process. Sources on the same host and port, or
// on the same serial device, share one: a serial line has one master, and many
// gateways take one connection. Make one Buses and give it to every Source. Any
// goroutine may use it.
type Buses struct {
	log   *slog.Logger
	dial  func(settings, *slog.Logger) (link, error)
	knock func(ctx context.Context, peer string) error // nil: it accepts connections

	mu    sync.Mutex
	open  map[string]*bus
	looks map[string]*look // by peer
	wg    sync.WaitGroup
}

// look is what was seen of a peer that no connection is open to. Whoever holds
// turn may use the rest.
type look struct {
	turn chan struct{}
	at   time.Time
	err  error
}

// lookFresh is how long a look counts for all sources of a peer.
const lookFresh = 500 * time.Millisecond

// NewBuses makes an empty set of connections.
func NewBuses(log *slog.Logger) *Buses {
	return &Buses{log: log, dial: dial, knock: sources.ReachTCP, open: map[string]*bus{}, looks: map[string]*look{}}
}

// reach returns nil when the connection key is open or peer accepts one. Many
// gateways have one connection to give: their sources look together, and not at
// all while one of them is connected.
func (bs *Buses) reach(ctx context.Context, key, peer string) error {
	bs.mu.Lock()
	b, l := bs.open[key], bs.looks[peer]
	if l == nil {
		l = &look{turn: make(chan struct{}, 1)}
		bs.looks[peer] = l
	}
	bs.mu.Unlock()
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.turn }()
	if b != nil && b.up.Load() {
		return nil
	}
	if l.at.IsZero() || time.Since(l.at) >= lookFresh {
		l.err = bs.knock(ctx, peer)
		l.at = time.Now()
	}
	return l.err
}

// Wait returns when every connection is closed. Call it after the sources have
// stopped; a read or a dial that is under way ends first.
func (bs *Buses) Wait() { bs.wg.Wait() }

// join puts m on the connection that s describes, which is opened when the
// first group is due.
func (bs *Buses) join(s settings, m *member) error {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.open[s.key()]
	if b == nil {
		b = &bus{rtu: s.rtu(), settings: s, buses: bs, log: bs.log.With("endpoint", s.key()), wake: make(chan struct{}, 1), units: map[uint8]*unit{}}
		bs.open[s.key()] = b
		bs.wg.Go(b.run)
	}
	if len(b.members) == 0 {
		b.settings = s
	} else if err := conflict(b.settings, s, b.members[0].source); err != nil {
		return err
	}
	m.bus = b
	b.members = append(b.members, m)
	b.changed.Store(true)
	b.poke()
	return nil
}

// conflict says in what s differs from what holds for the connection since the
// source holder joined it.
func conflict(holds, s settings, holder string) error {
	if key := holds.difference(s); key != "" {
		return fmt.Errorf("%s is shared with source %s, which has another modbus.%s: make them equal", s.key(), holder, key)
	}
	return nil
}

// leave takes m off its connection, which closes with its last member. A read
// for m that is under way ends without m.
func (bs *Buses) leave(m *member) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	m.left.Store(true)
	m.bus.members = slices.DeleteFunc(m.bus.members, func(o *member) bool { return o == m })
	m.bus.changed.Store(true)
	m.bus.poke()
}
