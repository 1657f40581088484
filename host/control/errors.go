package control

import (
	"errors"
	"fmt"
)

// Code classifies an error of a host for the program that asked.
type Code string

// The codes of errors.
const (
	Invalid    Code = "invalid"     // the request makes no sense as it stands
	NotFound   Code = "not_found"   // no such module, destination or entry
	Refused    Code = "refused"     // a module was not admitted
	Busy       Code = "busy"        // not now: another of these is under way, or the queue is full
	Stopping   Code = "stopping"    // the host is shutting down
	Internal   Code = "internal"    // the host failed
	NotRunning Code = "not_running" // made by the client: nothing listens on the socket
	NotAllowed Code = "not_allowed" // made by the client: the socket is not for this user
)

// Error is an error that crosses the wire.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"` // what is wrong and what to do next
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Errorf makes an Error. Like fmt.Errorf it takes %w, of which only the text
// crosses the wire.
func Errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Errorf(format, args...).Error()}
}

// CodeOf returns the code of err, Internal when it carries none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}
