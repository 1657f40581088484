package modbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"strings"

	"github.com/simonvetter/modbus"

	"github.com/edgehost/edgehost/sources"
)

// link is one open connection to a device or gateway. It can read the four
// tables and nothing else. One goroutine uses it.
type link interface {
	// read returns count registers (or bits) from start on. Its errors are an
	// exception, which leaves the connection usable, or a failure, after which it
	// must be closed.
	read(slave uint8, t RegisterType, start uint16, count int) (data, error)
	close()
}

// data is what one read returned.
type data struct {
	words []byte // registers as they came, big-endian
	bits  []bool
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
	4: "server device failure", acknowledge: "acknowledge", busy: "server device busy", 8: "memory parity error",
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
	errSilent  = errors.New("no reply within timeout_ms; check slave_id, wiring and the device")
	errGarbled = errors.New("reply was damaged or came from another unit; check baud rate, parity and that no second master is on the line")
	errOdd     = errors.New("reply does not fit the request")
)

// lostError is every other failure: the peer closed the connection, the device
// was pulled out.
type lostError struct{ err error }

func (e lostError) Error() string { return "connection lost: " + e.err.Error() }
func (e lostError) Unwrap() error { return e.err }

// reader is the part of the library's client that reads: nothing else of it is
// within reach once the client is made.
type reader interface {
	Close() error
	SetUnitId(id uint8) error
	ReadCoils(start, count uint16) ([]bool, error)
	ReadDiscreteInputs(start, count uint16) ([]bool, error)
	ReadRawBytes(start, bytes uint16, t modbus.RegType) ([]byte, error)
}

// gatewaySpeed is the baud rate that the library paces RTU over TCP by. The
// gateway paces its own line; waiting for it here as well would only cost time.
const gatewaySpeed = 921_600

// client is the link over the library.
type client struct{ c reader }

// dial opens the connection that s describes. It can block for 5 seconds (TLS:
// 15), which the library sets.
func dial(s settings, logger *slog.Logger) (l link, err error) {
	defer recovered(&err)
	conf := modbus.ClientConfiguration{
		URL: s.key(), Timeout: s.timeout, Logger: log.New(debugWriter{logger}, "", 0),
		Speed: uint(s.serial.BaudRate), DataBits: uint(s.serial.DataBits), StopBits: uint(s.serial.StopBits),
		Parity: map[string]uint{"N": modbus.PARITY_NONE, "E": modbus.PARITY_EVEN, "O": modbus.PARITY_ODD}[s.serial.Parity],
	}
	if s.transport == "rtuovertcp" {
		conf.Speed = gatewaySpeed
	}
	if s.transport == "tcp+tls" {
		if err := setTLS(&conf, s); err != nil {
			return nil, err
		}
	}
	c, err := modbus.NewClient(&conf)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	if err := c.Open(); err != nil {
		return nil, classifyOpen(err)
	}
	return client{c}, nil
}

// setTLS hands certificates to the library. It always verifies the server
// against the endpoint's host.
func setTLS(conf *modbus.ClientConfiguration, s settings) error {
	host, _, err := net.SplitHostPort(s.address)
	if err != nil {
		return fmt.Errorf("read host of %s: %w", s.address, err)
	}
	t, err := s.tls.Build(host)
	if err != nil {
		return err
	}
	conf.TLSRootCAs = t.RootCAs
	if conf.TLSRootCAs == nil {
		if conf.TLSRootCAs, err = x509.SystemCertPool(); err != nil {
			return sources.ConfigError(fmt.Errorf("read the system's certificate authorities (or set tls.ca_cert_path): %w", err))
		}
	}
	conf.TLSClientCert = &tls.Certificate{}
	if t.GetClientCertificate != nil {
		if conf.TLSClientCert, err = t.GetClientCertificate(nil); err != nil {
			return fmt.Errorf("read client certificate: %w", err)
		}
	}
	return nil
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
		return classify(err)
	}
	return err
}

// isAlert reports whether err is the peer's TLS alert. With TLS 1.3 a device
// that refuses our certificate says so in reply to the first read.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

func (l client) close() {
	// The connection is given up: what closing it says changes nothing.
	_ = l.c.Close()
}

func (l client) read(slave uint8, t RegisterType, start uint16, count int) (d data, err error) {
	defer recovered(&err)
	if err := l.c.SetUnitId(slave); err != nil {
		return data{}, lostError{err}
	}
	switch t {
	case Coil:
		d.bits, err = l.c.ReadCoils(start, uint16(count))
	case Discrete:
		d.bits, err = l.c.ReadDiscreteInputs(start, uint16(count))
	case Holding:
		d.words, err = l.c.ReadRawBytes(start, uint16(2*count), modbus.HOLDING_REGISTER)
	case Input:
		d.words, err = l.c.ReadRawBytes(start, uint16(2*count), modbus.INPUT_REGISTER)
	}
	return d, classify(err)
}

// recovered makes an error of a panic in the library, which runs on the
// connection's goroutine where no supervisor catches it.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = lostError{fmt.Errorf("modbus library panicked: %v", p)}
	}
}

var exceptionOf = map[error]exception{
	modbus.ErrIllegalFunction: illegalFunction, modbus.ErrIllegalDataAddress: illegalAddress,
	modbus.ErrIllegalDataValue: illegalValue, modbus.ErrServerDeviceFailure: 4, modbus.ErrAcknowledge: acknowledge,
	modbus.ErrServerDeviceBusy: busy, modbus.ErrMemoryParityError: 8,
	modbus.ErrGWPathUnavailable: gatewayPath, modbus.ErrGWTargetFailedToRespond: gatewaySilent,
}

// classify turns the library's errors into ours.
func classify(err error) error {
	if err == nil {
		return nil
	}
	var known modbus.Error
	if !errors.As(err, &known) {
		var code uint8
		if _, scanErr := fmt.Sscanf(err.Error(), "unknown exception code (%d)", &code); scanErr == nil {
			return exception(code)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return errSilent
		}
		if isAlert(err) {
			return sources.AuthError(fmt.Errorf("device refuses our certificate; check tls.client_cert_path and the device's list of trusted certificates: %w", err))
		}
		return lostError{err}
	}
	if ex, ok := exceptionOf[known]; ok {
		return ex
	}
	switch known {
	case modbus.ErrRequestTimedOut:
		return errSilent
	case modbus.ErrProtocolError:
		return errOdd
	case modbus.ErrBadCRC, modbus.ErrShortFrame, modbus.ErrBadUnitId:
		return errGarbled
	}
	return lostError{known}
}

// debugWriter passes the library's lines to slog, at debug level: what they
// report reaches the user as an error of ours.
type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(line []byte) (int, error) {
	w.log.Debug("modbus library", "line", strings.TrimSpace(string(line)))
	return len(line), nil
}
