package opcua

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/gopcua/opcua/ua"
)

// transport is an open session with a server, as the engine needs it. Send may
// be called from several goroutines; it returns when the answer is there, when
// ctx ends, or when the connection is lost. A service that the server refuses
// is an error that is a ua.StatusCode.
type transport interface {
	Send(ctx context.Context, req ua.Request) (ua.Response, error)
}

// link is a transport with its life.
type link struct {
	transport
	// security is the policy and mode in force, for a person.
	security string
	// resumed says that the session of the last link lives on, with its
	// subscriptions.
	resumed bool
	// renewed, when not nil, reports whether our certificate on disk is another
	// than the one in use: renewed by us because it was due, or replaced.
	renewed func() bool
	// idle is how long the server keeps the session without a request; 0: as
	// configured.
	idle time.Duration
	// arrived, when not nil, is how many bytes came over the connection so far.
	arrived func() uint64
	// close ends the connection. keep leaves session and subscriptions to the
	// server, for the next link; otherwise both are deleted. It is called once.
	close func(ctx context.Context, keep bool)
}

// sessionTransport is a channel with a session; token is nil without one.
type sessionTransport struct {
	c     *channel
	token *ua.NodeID
}

// Send implements transport.
func (t sessionTransport) Send(ctx context.Context, req ua.Request) (ua.Response, error) {
	return t.c.roundTrip(ctx, req, t.token)
}

// call sends req and returns the answer as T.
func call[T ua.Response](ctx context.Context, t transport, req ua.Request) (T, error) {
	var none T
	res, err := t.Send(ctx, req)
	if err != nil {
		return none, err
	}
	v, ok := res.(T)
	if !ok {
		return none, fmt.Errorf("server answers %T with %T", req, res)
	}
	return v, nil
}

// dead reports whether err means that the connection or the session is gone, as
// opposed to one service refused or one answer that cannot be decoded.
func dead(err error) bool {
	var s ua.StatusCode
	if lost := new(lostError); errors.As(err, &lost) {
		return true
	}
	if !errors.As(err, &s) {
		var op *net.OpError
		return errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
			errors.Is(err, net.ErrClosed) || errors.As(err, &op)
	}
	switch s {
	case ua.StatusBadSessionIDInvalid, ua.StatusBadSessionClosed, ua.StatusBadSessionNotActivated, ua.StatusBadSecureChannelIDInvalid,
		ua.StatusBadSecureChannelClosed, ua.StatusBadServerNotConnected, ua.StatusBadConnectionClosed, ua.StatusBadNotConnected,
		ua.StatusBadCommunicationError, ua.StatusBadServerHalted, ua.StatusBadShutdown, ua.StatusBadTCPSecureChannelUnknown,
		ua.StatusBadSecureChannelTokenUnknown, ua.StatusBadSecurityChecksFailed:
		return true
	}
	return false
}

// unreadable reports whether err is an answer that cannot be decoded.
func unreadable(err error) bool {
	var s ua.StatusCode
	if errors.As(err, &s) {
		return s == ua.StatusBadDecodingError || s == ua.StatusBadEncodingError
	}
	return err != nil && !dead(err) && !tooMuch(err)
}

// tooMuch reports whether the server wants smaller requests.
func tooMuch(err error) bool {
	return errors.Is(err, ua.StatusBadTooManyOperations) || errors.Is(err, ua.StatusBadRequestTooLarge) ||
		errors.Is(err, ua.StatusBadResponseTooLarge) || errors.Is(err, ua.StatusBadEncodingLimitsExceeded) ||
		errors.Is(err, ua.StatusBadTooManyMonitoredItems) || errors.Is(err, errTooLarge)
}
