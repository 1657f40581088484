package mqtt

import (
	"slices"
	"sync"

	"github.com/edgehost/edgehost/abi"
)

// message is one PUBLISH that the broker handed over and that is ours until it
// is settled.
type message struct {
	seq      uint64 // order of arrival, over all connections
	conn     uint64 // the connection on which it came, last
	id       uint16 // packet identifier; 0 for QoS 0
	topic    string
	payload  []byte // nil when tooLarge is set
	qos      byte
	retained bool
	dup      bool
	arrived  int64      // microseconds since the Unix epoch
	tooLarge int        // size of the payload when it exceeds max_payload_bytes, else 0
	attrs    []abi.Attr // of the properties of MQTT 5

	// records are kept when they cannot be made a second time (Sparkplug B).
	records []abi.Record

	// The following are guarded by buffer.mu once the message is pushed.
	cost    int // bytes that it is counted with
	settled bool
}

// size is what a message costs in memory.
func (m *message) size() int {
	size := len(m.payload) + len(m.topic) + 160
	for _, a := range m.attrs {
		size += len(a.Key) + len(a.Value.Text()) + 48
	}
	return size
}

// outcome is what became of a message that was offered to the buffer.
type outcome int

const (
	kept    outcome = iota
	known           // sent again by the broker; it is here already
	refused         // not taken, not acknowledged: the broker has it and sends it again
	dropped         // not taken and gone
)

// buffer stands between the broker and the pipeline. It is bounded in messages
// and bytes, and what it holds is counted until it is settled, so that what the
// pipeline has not made durable yet is bounded with it.
//
//	guard ──push─> waiting ─take─> decoder ─emit─> pipeline  ─settle─> acks, in order of arrival
//	                   ▲                                │
//	                   └───────────putBack──────────────┘
//
// What was not acknowledged when a connection ended is remembered: when the
// broker sends it again in the same session, the message that is here is
// acknowledged in its place, and no second record is made.
//
// Any goroutine may call any method; none of them blocks.
type buffer struct {
	maxMessages, maxBytes int

	mu         sync.Mutex
	waiting    []*message          // by seq
	unacked    []*message          // QoS > 0 of the current connection, by seq
	acks       []*message          // to be acknowledged, in order
	owed       map[uint16]*message // of earlier connections, not acknowledged on them, by packet identifier
	messages   int
	bytes      int
	seq        uint64
	conn       uint64
	persistent bool
	full       bool // a persistent session: nothing is taken until the next connection

	ready    chan struct{} // something waits
	ackReady chan struct{} // something is to be acknowledged
	overflow chan struct{} // full was set
	freed    chan struct{} // something was settled
}

func newBuffer(maxMessages, maxBytes int) *buffer {
	return &buffer{maxMessages: maxMessages, maxBytes: maxBytes, owed: map[uint16]*message{},
		ready: make(chan struct{}, 1), ackReady: make(chan struct{}, 1), overflow: make(chan struct{}, 1), freed: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// connect begins a connection and returns its number, with which its messages
// are pushed. What was not acknowledged on the last one cannot be any more,
// until the broker sends it again.
func (b *buffer) connect(persistent bool) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn++
	b.persistent = persistent
	b.full = false
	for _, m := range slices.Concat(b.acks, b.unacked) {
		b.owed[m.id] = m
	}
	b.unacked, b.acks = nil, nil
	select {
	case <-b.overflow:
	default:
	}
	return b.conn
}

// newSession says that the broker did not keep the session: it sends nothing
// again, and its packet identifiers start anew.
func (b *buffer) newSession() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.owed)
}

// adopt finds the message that m repeats. Its identifier cannot have been used
// for another one, since the broker never had its acknowledgement.
func (b *buffer) adopt(m *message) bool {
	old := b.owed[m.id]
	if m.qos == 0 || !m.dup || old == nil || old.topic != m.topic || old.qos != m.qos {
		return false
	}
	delete(b.owed, m.id)
	old.conn = m.conn
	b.unacked = append(b.unacked, old)
	b.collectAcks()
	return true
}

// push takes a message of the connection conn.
func (b *buffer) push(m *message) outcome {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.conn != b.conn {
		return refused
	}
	if !b.full && b.adopt(m) {
		return known
	}
	m.cost = m.size()
	over := b.full || b.messages >= b.maxMessages || (b.messages > 0 && b.bytes+m.cost > b.maxBytes)
	if over && b.persistent {
		// Nothing is taken after the first that is not, so that order holds
		// when the broker sends it again.
		b.full = true
		signal(b.overflow)
		if m.qos > 0 {
			return refused
		}
		return dropped
	}
	b.seq++
	m.seq = b.seq
	if m.qos > 0 {
		b.unacked = append(b.unacked, m)
	}
	if over {
		m.settled = true
		b.collectAcks()
		return dropped
	}
	b.messages++
	b.bytes += m.cost
	b.waiting = append(b.waiting, m)
	signal(b.ready)
	return kept
}

// take takes at most n of the oldest messages that wait; none when none does,
// and then ready tells of the next one.
func (b *buffer) take(n int) []*message {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = min(n, len(b.waiting))
	out := slices.Clone(b.waiting[:n])
	clear(b.waiting[:n])
	b.waiting = b.waiting[n:]
	return out
}

// putBack returns messages that the pipeline did not take, each to its place
// by arrival.
func (b *buffer) putBack(msgs []*message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range msgs {
		at, _ := slices.BinarySearchFunc(b.waiting, m.seq, func(w *message, seq uint64) int {
			if w.seq < seq {
				return -1
			}
			return 1
		})
		b.waiting = slices.Insert(b.waiting, at, m)
	}
	if len(b.waiting) > 0 {
		signal(b.ready)
	}
}

// settle says that msgs are durable or dropped by policy. Those of the current
// connection are acknowledged as soon as all that came before them are.
func (b *buffer) settle(msgs []*message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range msgs {
		m.settled = true
		m.payload, m.records = nil, nil // it may wait long for its acknowledgement
		b.release(m)
	}
	b.collectAcks()
}

// received marks m as acknowledgeable now, although it is not durable.
func (b *buffer) received(m *message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m.settled = true
	b.collectAcks()
}

func (b *buffer) release(m *message) {
	b.messages--
	b.bytes -= m.cost
	signal(b.freed)
}

func (b *buffer) collectAcks() {
	for len(b.unacked) > 0 && b.unacked[0].settled {
		b.acks = append(b.acks, b.unacked[0])
		b.unacked[0] = nil
		b.unacked = b.unacked[1:]
	}
	if len(b.acks) > 0 {
		signal(b.ackReady)
	}
}

// takeAcks takes everything that is to be acknowledged now, in order.
func (b *buffer) takeAcks() []*message {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.acks
	b.acks = nil
	return out
}

// half reports whether the buffer has drained to half its bounds.
func (b *buffer) half() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.messages <= b.maxMessages/2 && b.bytes <= b.maxBytes/2
}

// counts returns how many messages are held, and how many of them the broker
// has no acknowledgement for.
func (b *buffer) counts() (held, unacked int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.messages, len(b.unacked)
}

// inPipeline returns how many messages are with the pipeline.
func (b *buffer) inPipeline() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.messages - len(b.waiting)
}

// waitingQoS0 returns how many messages wait that no broker sends again.
func (b *buffer) waitingQoS0() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, m := range b.waiting {
		if m.qos == 0 {
			n++
		}
	}
	return n
}
