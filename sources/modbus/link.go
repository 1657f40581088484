package modbus

import (
	"errors"
	"fmt"
	"log/slog"
)

// dial opens the connection that s describes, with a link of our own over Modbus
// TCP and with the library's for serial framing and datagrams. It can block for
// 5 seconds.
func dial(s settings, log *slog.Logger) (link, error) {
	if s.transport == "tcp" || s.transport == "tcp+tls" {
		return dialMBAP(s)
	}
	return dialLibrary(s, log)
}

// link is one open connection to a device or gateway. It can read the four
// tables and nothing else. One goroutine uses it.
type link interface {
	// read returns count registers (or bits) from start on, which it may put into
	// room: that is the caller's to give, and may be nil. Its errors are an
	// exception, which leaves the connection usable, or a failure, after which it
	// must be closed.
	read(slave uint8, t RegisterType, start uint16, count int, room data) (data, error)
	close()
}

// data is what one read returned: registers as they came, big-endian, or a byte
// that is 0 or 1 for each bit.
type data []byte

// step is how many bytes of data one register (or bit) of the table takes.
func (t RegisterType) step() int {
	if t.bits() {
		return 1
	}
	return 2
}

// exception is a device's or gateway's refusal of one request (Modbus
// Application Protocol 1.1b3, section 7).
type exception uint8

// The exceptions that the source treats in ways of their own.
const (
	illegalFunction exception = 1
	illegalAddress  exception = 2
	illegalValue    exception = 3
	acknowledge     exception = 5
	busy            exception = 6
	gatewayPath     exception = 10
	gatewaySilent   exception = 11
)

var exceptionWords = map[exception]string{
	illegalFunction: "illegal function", illegalAddress: "illegal data address", illegalValue: "illegal data value",
	4: "server device failure", acknowledge: "acknowledge", busy: "server device busy", 7: "negative acknowledge", 8: "memory parity error",
	gatewayPath: "gateway path unavailable", gatewaySilent: "gateway target device failed to respond",
}

func (e exception) Error() string {
	if words, ok := exceptionWords[e]; ok {
		return fmt.Sprintf("%s (Modbus exception %d)", words, uint8(e))
	}
	return fmt.Sprintf("Modbus exception %d", uint8(e))
}

// The failures of a connection.
var (
	errSilent    = errors.New("no reply within timeout_ms; check slave_id, wiring and the device")
	errGarbled   = errors.New("reply was damaged or came from another unit; check baud rate, parity and that no second master is on the line")
	errOdd       = errors.New("reply does not fit the request")
	errTaken     = errors.New("device closes the connection instead of replying; another master may hold the only one that it gives")
	errOtherUnit = errors.New("reply came from another unit; check slave_id, and that the gateway passes unit ids through")
)

// lostError is every other failure: the peer closed the connection, the device
// was pulled out.
type lostError struct{ err error }

func (e lostError) Error() string { return "connection lost: " + e.err.Error() }
func (e lostError) Unwrap() error { return e.err }
