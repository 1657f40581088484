package modbus

import (
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"strings"

	"github.com/simonvetter/modbus"
)

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

// dialLibrary opens the connection that s describes. It can block for 5 seconds,
// which the library sets.
func dialLibrary(s settings, logger *slog.Logger) (l link, err error) {
	defer recovered(&err)
	conf := modbus.ClientConfiguration{
		URL: s.key(), Timeout: s.timeout, Logger: log.New(debugWriter{logger}, "", 0),
		Speed: uint(s.serial.BaudRate), DataBits: uint(s.serial.DataBits), StopBits: uint(s.serial.StopBits),
		Parity: map[string]uint{"N": modbus.PARITY_NONE, "E": modbus.PARITY_EVEN, "O": modbus.PARITY_ODD}[s.serial.Parity],
	}
	if s.transport == "rtuovertcp" {
		conf.Speed = gatewaySpeed
	}
	c, err := modbus.NewClient(&conf)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	if err := c.Open(); err != nil {
		return nil, err
	}
	return client{c}, nil
}

func (l client) close() {
	// The connection is given up: what closing it says changes nothing.
	_ = l.c.Close()
}

func (l client) read(slave uint8, t RegisterType, start uint16, count int, room data) (d data, err error) {
	defer recovered(&err)
	if err := l.c.SetUnitId(slave); err != nil {
		return nil, lostError{err}
	}
	var bits []bool
	switch t {
	case Coil:
		bits, err = l.c.ReadCoils(start, uint16(count))
	case Discrete:
		bits, err = l.c.ReadDiscreteInputs(start, uint16(count))
	case Holding:
		d, err = l.c.ReadRawBytes(start, uint16(2*count), modbus.HOLDING_REGISTER)
	case Input:
		d, err = l.c.ReadRawBytes(start, uint16(2*count), modbus.INPUT_REGISTER)
	}
	if err != nil {
		return nil, classify(err)
	}
	if !t.bits() {
		return d, nil
	}
	d = room[:0]
	for _, set := range bits {
		d = append(d, bit(set))
	}
	return d, nil
}

func bit(set bool) byte {
	if set {
		return 1
	}
	return 0
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
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errSilent
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
