package modbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// The MBAP header before each request and reply of Modbus TCP (Modbus Messaging
// on TCP/IP Implementation Guide 1.0b, section 3.1.3): transaction, protocol,
// length of what follows, unit.
const (
	mbapPrefix = 6              // what the length does not count
	mbapHeader = mbapPrefix + 1 // with the unit
	mbapLong   = 254            // length: the unit and a PDU of at most 253 bytes
	mbapShort  = 2              // the unit and a function code
)

// dialTime bounds how long a connection may take to be opened, secured included.
const dialTime = 5 * time.Second

// gatewayUnit is from where a gateway may send exceptions of its own.
const gatewayUnit = 0xff

// errTorn says that the stream holds something else than frames.
var errTorn = errors.New("what came is no Modbus TCP; check that the port is the device's Modbus port, and use modbus+rtutcp:// for a gateway that sends RTU frames")

// mbap is the link over Modbus TCP, plain and secured. A request is one write, a
// reply mostly one read. Frames of other transactions are passed over; a stream
// that holds no frames, and a reply that does not fit its request, are failures.
type mbap struct {
	conn        net.Conn
	timeout     time.Duration
	transaction uint16
	buf         [2 * (mbapPrefix + mbapLong)]byte
	got         int // bytes of buf that were received and not passed over
}

// dialMBAP opens the connection that s describes.
func dialMBAP(s settings) (link, error) {
	dialer := net.Dialer{Timeout: dialTime}
	if s.transport != "tcp+tls" {
		conn, err := dialer.Dial("tcp", s.address)
		if err != nil {
			return nil, err
		}
		return newMBAP(conn, s.timeout), nil
	}
	host, _, err := net.SplitHostPort(s.address)
	if err != nil {
		return nil, fmt.Errorf("read host of %s: %w", s.address, err)
	}
	secure, err := s.tls.Build(host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	conn, err := (&tls.Dialer{NetDialer: &dialer, Config: secure}).DialContext(ctx, "tcp", s.address)
	if err != nil {
		return nil, classifyOpen(err)
	}
	return newMBAP(conn, s.timeout), nil
}

// newMBAP begins with any transaction: what a gateway still holds for another
// master is then hardly ever taken for ours.
func newMBAP(conn net.Conn, timeout time.Duration) *mbap {
	return &mbap{conn: conn, timeout: timeout, transaction: uint16(rand.Uint32())}
}

func (l *mbap) close() {
	// The connection is given up: what closing it says changes nothing.
	_ = l.conn.Close()
}

func (l *mbap) read(slave uint8, t RegisterType, start uint16, count int, room data) (data, error) {
	if err := l.passOver(); err != nil {
		return nil, err
	}
	l.transaction++
	request, err := newReadRequest(l.transaction, slave, t, start, count)
	if err != nil {
		return nil, err
	}
	if err := l.conn.SetDeadline(time.Now().Add(l.timeout)); err != nil {
		return nil, lostError{err}
	}
	if _, err := l.conn.Write(request[:]); err != nil {
		return nil, classifyStream(err)
	}
	early := l.got > 0 // the first frame began before the request
	for {
		f, size, err := cutFrame(l.buf[:l.got])
		switch {
		case err != nil:
			return nil, err
		case size == 0:
			if err := l.receive(); err != nil {
				return nil, err
			}
		case early || f.protocol != 0 || f.transaction != l.transaction:
			l.drop(size)
			early = false
		default:
			d, err := f.answer(slave, t, count, room)
			l.drop(size)
			return d, err
		}
	}
}

// receive waits for more bytes. There is room: a frame that is not whole is at
// most half of the buffer.
func (l *mbap) receive() error {
	n, err := l.conn.Read(l.buf[l.got:])
	l.got += n
	if n > 0 {
		return nil // an error comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return classifyStream(err)
}

// passOver drops the frames that came before the next request is sent: none of
// them answers it, whatever number they carry.
func (l *mbap) passOver() error {
	for l.got > 0 {
		_, size, err := cutFrame(l.buf[:l.got])
		if err != nil || size == 0 {
			return err
		}
		l.drop(size)
	}
	return nil
}

// drop takes the first size bytes out of the buffer.
func (l *mbap) drop(size int) {
	copy(l.buf[:], l.buf[size:l.got])
	l.got -= size
}

// readRequest is a request as it goes over the wire. newReadRequest alone makes
// one, and nothing else is ever written to a device.
type readRequest [12]byte

// newReadRequest fails for what is no read of Modbus: so many registers or bits
// are not in the table, or not in one request.
func newReadRequest(transaction uint16, slave uint8, t RegisterType, start uint16, count int) (readRequest, error) {
	function, most := t.function(), maxRegisters
	if t.bits() {
		most *= bitsPerWord
	}
	if function == 0 || count < 1 || count > most || int(start)+count > tableSize {
		return readRequest{}, fmt.Errorf("%d values of table %q from offset %d on cannot be read in one request", count, string(t), start)
	}
	var r readRequest
	binary.BigEndian.PutUint16(r[0:], transaction)
	binary.BigEndian.PutUint16(r[4:], uint16(len(r)-mbapPrefix))
	r[6], r[7] = slave, function
	binary.BigEndian.PutUint16(r[8:], start)
	binary.BigEndian.PutUint16(r[10:], uint16(count))
	return r, nil
}

// function is the function code that reads the table (Modbus Application
// Protocol 1.1b3, sections 6.1 to 6.4); 0 for what is no table.
func (t RegisterType) function() byte {
	switch t {
	case Coil:
		return 1
	case Discrete:
		return 2
	case Holding:
		return 3
	case Input:
		return 4
	}
	return 0
}

// mbapFrame is one frame. pdu is not empty; it is a part of what was cut.
type mbapFrame struct {
	transaction, protocol uint16
	unit                  uint8
	pdu                   []byte
}

// cutFrame reads the frame that b begins with, and its size; the size is 0 when
// the frame is not whole yet. It fails when there can be none.
func cutFrame(b []byte) (f mbapFrame, size int, err error) {
	if len(b) < mbapPrefix {
		return f, 0, nil
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < mbapShort || length > mbapLong {
		return f, 0, errTorn
	}
	if size = mbapPrefix + length; size > len(b) {
		return f, 0, nil
	}
	return mbapFrame{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[mbapPrefix], b[mbapHeader:size]}, size, nil
}

// answer reads the reply to a request of count registers or bits of t into room.
func (f mbapFrame) answer(slave uint8, t RegisterType, count int, room data) (data, error) {
	function, refusal := t.function(), f.pdu[0]&0x80 != 0
	switch {
	case f.unit != slave && (!refusal || f.unit != gatewayUnit):
		return nil, errOtherUnit
	case f.pdu[0] == function|0x80 && len(f.pdu) == 2:
		return nil, exception(f.pdu[1])
	case f.pdu[0] != function || len(f.pdu) < 2 || int(f.pdu[1]) != len(f.pdu)-2:
		return nil, errOdd
	}
	values := f.pdu[2:]
	if !t.bits() {
		if len(values) != 2*count {
			return nil, errOdd
		}
		return append(room[:0], values...), nil
	}
	if len(values) != (count+7)/8 {
		return nil, errOdd
	}
	bits := slices.Grow(room[:0], count)
	for i := range count {
		bits = append(bits, values[i/8]>>(i%8)&1)
	}
	return bits, nil
}

// classifyStream turns the errors of a connection into ours. With TLS 1.3 a
// device that refuses our certificate says so in reply to the first read.
func classifyStream(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errSilent
	}
	if isAlert(err) {
		return sources.AuthError(fmt.Errorf("device refuses our certificate; check tls.client_cert_path and the device's list of trusted certificates: %w", err))
	}
	return lostError{err}
}

// classifyOpen marks refusals of certificates, so that the source shows as
// auth_failed.
func classifyOpen(err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	if errors.As(err, &unknown) || errors.As(err, &name) || errors.As(err, &invalid) {
		return sources.AuthError(fmt.Errorf("device's certificate is not trusted; check tls.ca_cert_path and the host in the endpoint: %w", err))
	}
	if isAlert(err) {
		return classifyStream(err)
	}
	return err
}

// isAlert reports whether err is the peer's TLS alert.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
