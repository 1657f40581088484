package mqtt

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// next takes one message, nil when none waits.
func (b *buffer) next() *message {
	if msgs := b.take(1); len(msgs) == 1 {
		return msgs[0]
	}
	return nil
}

func newMessage(conn uint64, qos byte, size int) *message {
	return &message{conn: conn, topic: "t", qos: qos, payload: make([]byte, size)}
}

func TestBufferAcksInOrderOfArrival(t *testing.T) {
	b := newBuffer(100, 1<<20)
	conn := b.connect(true)
	var msgs []*message
	for range 4 {
		m := newMessage(conn, 1, 1)
		if b.push(m) != kept {
			t.Fatal("not kept")
		}
		msgs = append(msgs, b.next())
	}
	b.settle(msgs[2:3])
	b.settle(msgs[1:2])
	if acks := b.takeAcks(); len(acks) != 0 {
		t.Errorf("%d acknowledged before the first is settled", len(acks))
	}
	b.settle(msgs[0:1])
	if acks := b.takeAcks(); !slices.Equal(acks, msgs[:3]) {
		t.Errorf("%d acknowledged, want the first three in order", len(acks))
	}
	b.connect(true)
	b.settle(msgs[3:])
	if acks := b.takeAcks(); len(acks) != 0 {
		t.Error("a message of an earlier connection is acknowledged on this one")
	}
	if held, unacked := b.counts(); held != 0 || unacked != 0 {
		t.Errorf("%d held, %d without acknowledgement in the end", held, unacked)
	}
}

func TestBufferRefusesWhenFullAndPersistent(t *testing.T) {
	for name, bound := range map[string]*buffer{"messages": newBuffer(2, 1<<20), "bytes": newBuffer(100, 2*newMessage(0, 1, 500).size())} {
		conn := bound.connect(true)
		for i, want := range []outcome{kept, kept, refused} {
			if got := bound.push(newMessage(conn, 1, 500)); got != want {
				t.Errorf("%s: message %d: %v, want %v", name, i, got, want)
			}
		}
		select {
		case <-bound.overflow:
		default:
			t.Errorf("%s: the overflow is not told", name)
		}
		bound.settle([]*message{bound.next(), bound.next()})
		if got := bound.push(newMessage(conn, 1, 1)); got != refused {
			t.Errorf("%s: taken out of order after one was refused", name)
		}
		if got := bound.push(newMessage(conn, 0, 1)); got != dropped {
			t.Errorf("%s: QoS 0 on a full persistent session: %v, want dropped", name, got)
		}
		if !bound.half() {
			t.Errorf("%s: empty, but not half empty", name)
		}
		if got := bound.push(newMessage(bound.connect(true), 1, 1)); got != kept {
			t.Errorf("%s: the next connection begins full", name)
		}
	}
}

func TestBufferDropsWhenFullWithoutSession(t *testing.T) {
	b := newBuffer(1, 1<<20)
	conn := b.connect(false)
	first, second, third := newMessage(conn, 1, 1), newMessage(conn, 1, 1), newMessage(conn, 0, 1)
	if got := []outcome{b.push(first), b.push(second), b.push(third)}; !slices.Equal(got, []outcome{kept, dropped, dropped}) {
		t.Errorf("%v", got)
	}
	b.settle([]*message{b.next()})
	if acks := b.takeAcks(); !slices.Equal(acks, []*message{first, second}) {
		t.Errorf("%d acknowledged: a dropped message is acknowledged in its turn", len(acks))
	}
}

func TestBufferTakesOneMessageAboveItsBytes(t *testing.T) {
	b := newBuffer(10, 100)
	if got := b.push(newMessage(b.connect(true), 1, 1000)); got != kept {
		t.Errorf("an empty buffer does not take a message above its bound: %v; it would never come through", got)
	}
}

// again is m as the broker sends it on the next connection.
func again(m *message, conn uint64) *message {
	return &message{conn: conn, id: m.id, topic: m.topic, qos: m.qos, dup: true, payload: make([]byte, 1)}
}

func TestBufferKnowsWhatTheBrokerSendsAgain(t *testing.T) {
	b := newBuffer(100, 1<<20)
	conn := b.connect(true)
	var msgs []*message
	for i := range 4 {
		m := newMessage(conn, 1, 1)
		m.id = uint16(i + 1)
		b.push(m)
		msgs = append(msgs, m)
	}
	b.settle([]*message{b.next()})
	if acked := b.takeAcks(); len(acked) != 1 { // perhaps in vain
		t.Fatalf("%d acknowledged, want 1", len(acked))
	}
	inPipeline := b.next() // 2; 3 and 4 wait
	conn = b.connect(true)
	if got := b.push(again(msgs[0], conn)); got != kept {
		t.Errorf("1: %v, want it kept: its identifier may stand for another message by now", got)
	}
	for i, m := range msgs[1:] {
		if got := b.push(again(m, conn)); got != known {
			t.Errorf("%d: %v, want it known", i+2, got)
		}
	}
	if got := b.push(again(msgs[1], conn)); got != kept {
		t.Errorf("2 once more: %v, want kept", got)
	}
	b.settle([]*message{inPipeline})
	if got := b.takeAcks(); len(got) != 0 {
		t.Error("2 is acknowledged before 1, which came first")
	}
	b.settle([]*message{b.next(), b.next(), b.next()}) // 3, 4, and 1 as it came again
	if got := b.takeAcks(); len(got) != 4 || got[0].id != 1 || got[3] != msgs[3] {
		t.Errorf("%d acknowledged on the new connection, want 1 to 4", len(got))
	}
}

func TestBufferAcksWhatSettledBetweenConnections(t *testing.T) {
	b := newBuffer(100, 1<<20)
	m := newMessage(b.connect(true), 1, 1)
	m.id = 9
	b.push(m)
	conn := b.connect(true)
	b.settle([]*message{b.next()})
	if got := b.push(again(m, conn)); got != known {
		t.Errorf("%v, want known", got)
	}
	if got := b.takeAcks(); !slices.Equal(got, []*message{m}) {
		t.Error("a message that is durable is acknowledged as soon as the broker sends it again")
	}
}

func TestBufferForgetsWithTheSession(t *testing.T) {
	b := newBuffer(100, 1<<20)
	m := newMessage(b.connect(true), 1, 1)
	m.id = 9
	b.push(m)
	conn := b.connect(true)
	b.newSession()
	if got := b.push(again(m, conn)); got != kept {
		t.Errorf("%v, want kept: identifiers of a new session say nothing about the old one", got)
	}
	if b.next() != m {
		t.Error("the message of the old session is lost; nobody sends it again")
	}
}

// TestBufferKeepsOrder drives a buffer at random against a model: what comes
// out and is not settled is always in order of arrival, counts are exact, and
// acknowledgements are the settled prefix of what arrived.
func TestBufferKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBuffer(1000, 1<<30)
		conn := b.connect(true)
		var arrived, taken, acked []*message
		settled := 0
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				m := newMessage(conn, 1, rapid.IntRange(0, 10).Draw(t, "size"))
				if b.push(m) == kept {
					arrived = append(arrived, m)
				}
			},
			"next": func(*rapid.T) {
				if m := b.next(); m != nil {
					taken = append(taken, m)
				}
			},
			"put back": func(t *rapid.T) {
				n := rapid.IntRange(0, len(taken)).Draw(t, "n")
				b.putBack(taken[n:])
				taken = taken[:n]
			},
			"settle": func(t *rapid.T) {
				n := rapid.IntRange(0, len(taken)).Draw(t, "n")
				b.settle(taken[:n])
				taken = taken[n:]
				settled += n
			},
			"acks": func(*rapid.T) { acked = append(acked, b.takeAcks()...) },
			"": func(t *rapid.T) {
				if !slices.IsSortedFunc(taken, func(a, b *message) int { return int(a.seq) - int(b.seq) }) {
					t.Fatal("messages come out of order")
				}
				if held, unacked := b.counts(); held != len(arrived)-settled || unacked > len(arrived) {
					t.Fatalf("%d held, want %d", held, len(arrived)-settled)
				}
				if len(acked) > settled || !slices.Equal(acked, arrived[:len(acked)]) {
					t.Fatal("acknowledgements are not the settled prefix of what arrived")
				}
			},
		})
	})
}
