package modbus

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// The default ports: 502 for Modbus, 802 for Modbus/TCP Security
// (IANA mbap, mbap-s).
const (
	portTCP = "502"
	portTLS = "802"
)

// transports maps the schemes of endpoints to the library's.
var transports = map[string]string{
	"modbus": "tcp", "modbus+tcp": "tcp", "modbus+tls": "tcp+tls", "modbus+udp": "udp",
	"modbus+rtu": "rtu", "modbusrtu": "rtu", "modbus+rtutcp": "rtuovertcp", "modbus+rtuovertcp": "rtuovertcp",
}

// settings is all that belongs to a connection. Sources that share one must
// agree on every field; the struct is comparable for that reason.
type settings struct {
	transport    string // tcp, tcp+tls, udp, rtu, rtuovertcp
	address      string // host:port, or the path of the tty
	timeout      time.Duration
	pauseBetween time.Duration
	pauseConnect time.Duration
	serial       SerialConfig
	tls          sources.TLSConfig
}

// key names the connection.
func (s settings) key() string { return s.transport + "://" + s.address }

// rtu reports whether frames carry no transaction number, so that a late reply
// cannot be told from the one that is awaited.
func (s settings) rtu() bool { return s.transport == "rtu" || s.transport == "rtuovertcp" }

// stream reports whether the connection is one that the peer can close.
func (s settings) stream() bool { return s.transport != "rtu" && s.transport != "udp" }

// openError words why the connection could not be opened, and what to do.
func openError(s settings, err error) error {
	switch {
	case sources.ErrorState(err) != sources.Reconnecting:
		return fmt.Errorf("open %s: %w", s.key(), err)
	case s.transport != "rtu":
		return sources.DialError(s.key(), err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open %s: %w: let the user that runs edgehost use it (group dialout on many systems)", s.key(), err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open %s: %w: plug the adapter in; /dev/serial/by-id names one wherever it is plugged in", s.key(), err)
	}
	return fmt.Errorf("open %s: %w", s.key(), err)
}

// difference names the first configuration key in which s and o differ.
func (s settings) difference(o settings) string {
	switch {
	case s.timeout != o.timeout:
		return "timeout_ms"
	case s.pauseBetween != o.pauseBetween:
		return "pause_between_requests_ms"
	case s.pauseConnect != o.pauseConnect:
		return "pause_after_connect_ms"
	case s.serial != o.serial:
		return "serial"
	case s.tls != o.tls:
		return "tls"
	}
	return ""
}

// parseEndpoint reads the endpoint of a source. It does not touch the network
// or the disk, but for the links in the path of a tty.
func parseEndpoint(endpoint string) (transport, address string, err error) {
	const forms = "modbus+tcp://host:502, modbus+tls://host:802, modbus+udp://host:502, modbus+rtutcp://host:502 or modbus+rtu:///dev/ttyUSB0"
	u, err := url.Parse(endpoint)
	if err != nil {
		return "", "", fmt.Errorf("%q cannot be read as a URL; use %s", endpoint, forms)
	}
	transport, ok := transports[strings.ToLower(u.Scheme)]
	if !ok {
		return "", "", fmt.Errorf("%q has no scheme that the modbus source knows; use %s", endpoint, forms)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", "", fmt.Errorf("%s endpoints take no user, query or fragment; settings stand under the key modbus", u.Scheme)
	}
	if transport == "rtu" {
		if u.Host != "" || !filepath.IsAbs(u.Path) || u.Path == "/" {
			return "", "", fmt.Errorf("%q names no serial device; write three slashes: modbus+rtu:///dev/ttyUSB0", endpoint)
		}
		return transport, filepath.Clean(u.Path), nil
	}
	if u.Hostname() == "" || (u.Path != "" && u.Path != "/") {
		return "", "", fmt.Errorf("%q names no host; use %s", endpoint, forms)
	}
	port := u.Port()
	if port == "" {
		port = portTCP
		if transport == "tcp+tls" {
			port = portTLS
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("%q has no port between 1 and 65535", endpoint)
	}
	return transport, net.JoinHostPort(u.Hostname(), port), nil
}

// device resolves links, so that /dev/serial/by-id/… and /dev/ttyUSB0 are one
// connection. A device that is not there keeps its name.
func device(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}
