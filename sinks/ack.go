package sinks

// AckQueue is the sending side of Stream.Acks. Acks are cumulative, so a reader
// that is slow or gone costs nothing: acks that wait are merged into one, and
// Put never blocks. Put and Close are called by one goroutine at a time; the
// zero value is not ready, use NewAckQueue.
type AckQueue struct{ ch chan Ack }

// NewAckQueue makes an empty queue.
func NewAckQueue() *AckQueue { return &AckQueue{ch: make(chan Ack, 1)} }

// C is what Stream.Acks returns.
func (q *AckQueue) C() <-chan Ack { return q.ch }

// Put adds a, whose Seq is not below that of the ack before it.
func (q *AckQueue) Put(a Ack) {
	select {
	case waiting := <-q.ch:
		a.Refused = append(waiting.Refused, a.Refused...)
	default:
	}
	q.ch <- a // has room: nobody else sends
}

// Close closes C. An ack that still waits there can be read.
func (q *AckQueue) Close() { close(q.ch) }
