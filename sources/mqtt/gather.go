package mqtt

import (
	"net"
	"time"
)

// readBytes is how much is read from a connection at once, at most, but for
// payloads that are larger.
const readBytes = 32 << 10

// gatherTime is how long messages may gather in the kernel while many arrive.
// It is short beside what a message waits for others to share its batch.
const gatherTime = time.Millisecond

// gatherer is a connection that is read with pauses. While something arrives more than about a
// thousand times a second it reads once a gatherTime and not once a message: to
// be woken costs more than all else that is done for a message. What comes
// seldom, or in bulk, is read when it comes.
//
// Read is for one goroutine.
type gatherer struct {
	net.Conn
	last time.Time // when the last read returned
	busy bool      // it brought little, soon after the one before
}

// Read implements net.Conn.
func (g *gatherer) Read(p []byte) (int, error) {
	if g.busy {
		time.Sleep(gatherTime)
	}
	n, err := g.Conn.Read(p)
	now := time.Now()
	g.busy = now.Sub(g.last) < 2*gatherTime && n < readBytes/2
	g.last = now
	return n, err
}
