package mqtt

import (
	"slices"
	"sync"
)

// message is one PUBLISH that the broker handed over and that is ours until it
// is settled.
type message struct {
	seq      uint64 // order of arrival, over all connections
	conn     uint64 // the connection on which it came
	topic    string
	payload  []byte // nil when tooLarge is set
	qos      byte
	retained bool
	dup      bool
	arrived  int64 // microseconds since the Unix epoch
	tooLarge int   // size of the payload when it exceeds max_payload_bytes, else 0
	ack      func()

	settled bool // guarded by buffer.mu
}

// size is what a message costs in memory.
func (m *message) size() int { return len(m.payload) + len(m.topic) + 160 }

// outcome is what became of a message that was offered to the buffer.
type outcome int

const (
	kept    outcome = iota
	refused         // not taken, not acknowledged: the broker has it and sends it again
	dropped         // not taken and gone
)

// buffer stands between the broker and the pipeline. It is bounded in messages
// and bytes, and what it holds is counted until it is settled, so that what the
// pipeline has not made durable yet is bounded with it.
//
//	handler ─push─> waiting ─next─> decoder ─emit─> pipeline ─settle─> acks, in order of arrival
//	                   ▲                                │
//	                   └───────────putBack──────────────┘
//
// Any goroutine may call any method; none of them blocks.
type buffer struct {
	maxMessages, maxBytes int

	mu       sync.Mutex
	waiting  []*message // by seq
	unacked  []*message // QoS > 0 of the current connection, by seq
	acks     []*message // to be acknowledged, in order
	messages int
	bytes    int
	seq      uint64
	conn     uint64
	// redelivered: messages of QoS > 0 from connections before this one are the
	// broker's again, because it kept the session and sends them once more.
	redelivered uint64
	persistent  bool
	full        bool // a persistent session: nothing is taken until the next connection

	ready    chan struct{} // something waits
	ackReady chan struct{} // something is to be acknowledged
	overflow chan struct{} // full was set
	freed    chan struct{} // something was settled
}

func newBuffer(maxMessages, maxBytes int) *buffer {
	return &buffer{maxMessages: maxMessages, maxBytes: maxBytes,
		ready: make(chan struct{}, 1), ackReady: make(chan struct{}, 1), overflow: make(chan struct{}, 1), freed: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// connect begins a connection and returns its number, with which its messages
// are pushed. What was not acknowledged on the last one cannot be any more.
func (b *buffer) connect(persistent bool) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn++
	b.persistent = persistent
	b.full = false
	b.unacked, b.acks = nil, nil
	select {
	case <-b.overflow:
	default:
	}
	return b.conn
}

// resumed says that the broker kept the session into the current connection:
// what it will send again is forgotten here unless the pipeline has it.
func (b *buffer) resumed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.redelivered = b.conn
	b.waiting = slices.DeleteFunc(b.waiting, func(m *message) bool {
		if !b.isBrokers(m) {
			return false
		}
		b.release(m)
		return true
	})
}

func (b *buffer) isBrokers(m *message) bool { return m.qos > 0 && m.conn < b.redelivered }

// push takes a message of the connection conn.
func (b *buffer) push(m *message) outcome {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.conn != b.conn {
		return refused
	}
	over := b.full || b.messages >= b.maxMessages || (b.messages > 0 && b.bytes+m.size() > b.maxBytes)
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
	b.bytes += m.size()
	b.waiting = append(b.waiting, m)
	signal(b.ready)
	return kept
}

// next takes the oldest message that waits; nil when none does, and then ready
// tells of the next one.
func (b *buffer) next() *message {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		return nil
	}
	m := b.waiting[0]
	b.waiting[0] = nil
	b.waiting = b.waiting[1:]
	return m
}

// putBack returns messages that the pipeline did not take, each to its place
// by arrival.
func (b *buffer) putBack(msgs []*message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range msgs {
		if b.isBrokers(m) {
			b.release(m)
			continue
		}
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
	b.bytes -= m.size()
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

// takeAcks returns what is to be acknowledged now, in order.
func (b *buffer) takeAcks() []*message {
	b.mu.Lock()
	defer b.mu.Unlock()
	acks := b.acks
	b.acks = nil
	return acks
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

// acker acknowledges to the broker what settles, until stop closes. It has a
// goroutine of its own because an acknowledgement waits for the network.
func (b *buffer) acker(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-b.ackReady:
			for _, m := range b.takeAcks() {
				m.ack()
			}
		}
	}
}
