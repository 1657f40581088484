package mqtt

import (
	"bufio"
	"net"
	"time"
)

// readBytes is how much is read from a connection at once, at most, but for
// payloads that are larger.
const readBytes = 32 << 10

// gatherTime is how long messages may gather in the kernel while many arrive.
// It is short beside what a message waits for others to share its batch.
const gatherTime = time.Millisecond

// gatherer is a TCP connection that is read with pauses. While something arrives
// more than about a thousand times a second it reads once a gatherTime and not
// once a message: to be woken costs more than all else that is done for a
// message. What comes seldom, or in bulk, is read when it comes.
//
// It stands below TLS, whose records, one for each message, are read from what it
// has gathered without pauses. Read is for one goroutine.
type gatherer struct {
	net.Conn
	r *bufio.Reader
}

func newGatherer(conn net.Conn) *gatherer {
	return &gatherer{conn, bufio.NewReaderSize(&pauser{conn: conn}, readBytes)}
}

// Read implements net.Conn.
func (g *gatherer) Read(p []byte) (int, error) { return g.r.Read(p) }

// pauser reads from the kernel.
type pauser struct {
	conn net.Conn
	last time.Time // when the last read returned
	busy bool      // it brought little, soon after the one before
}

func (r *pauser) Read(p []byte) (int, error) {
	if r.busy {
		time.Sleep(gatherTime)
	}
	n, err := r.conn.Read(p)
	now := time.Now()
	r.busy = now.Sub(r.last) < 2*gatherTime && n < readBytes/2
	r.last = now
	return n, err
}
