package sources

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// DialError words a failure to reach endpoint for the person who has to mend
// it: the endpoint, the system's own error, and what to check. It wraps err.
func DialError(endpoint string, err error) error {
	return fmt.Errorf("connect to %s: %w: %s", endpoint, err, dialHint(err))
}

func dialHint(err error) string {
	const checks = "check the endpoint in the configuration, that this machine reaches that address, " +
		"that no firewall stands between, and in a container try host networking"
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "the name does not resolve here: " + checks
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: " + checks
	case errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return "nothing answers: " + checks
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.ErrUnexpectedEOF):
		return "the peer closed the connection: look at its log; " + checks
	default:
		return checks
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
