package mqtt

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"

	"github.com/edgehost/edgehost/sources"
)

// endpoint is one broker address as it is dialled.
type endpoint struct {
	url       string // as configured: what messages name
	host      string // host:port
	name      string // host: what the certificate must name
	path      string // WebSocket only
	tls       bool
	websocket bool
	upgraded  bool // the scheme is a plaintext one, and tls.enabled overruled it
}

// String is the endpoint in the scheme that is really used.
func (e endpoint) String() string {
	scheme := map[[2]bool]string{{false, false}: "mqtt", {true, false}: "mqtts", {false, true}: "ws", {true, true}: "wss"}
	return scheme[[2]bool{e.tls, e.websocket}] + "://" + e.host + e.path
}

// parseEndpoint reads mqtt://, mqtts://, ws:// and wss:// (and the usual other
// names of the first two). tls.enabled true wins over a plaintext scheme, and a
// TLS scheme over tls.enabled false: whoever asks for TLS once gets it.
func parseEndpoint(raw string, tls sources.TLSConfig) (endpoint, error) {
	if raw == "" {
		return endpoint{}, errors.New("is empty: give the broker's address, for example mqtts://broker.example:8883")
	}
	u, err := url.Parse(raw)
	if err != nil {
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err
		}
		return endpoint{}, fmt.Errorf("is not a URL: %w", err)
	}
	if u.User != nil {
		return endpoint{}, errors.New("holds a user name or password, which would show in logs: put them into mqtt.username and mqtt.password")
	}
	if u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return endpoint{}, fmt.Errorf("%q is not of the form mqtt://host:port, mqtts://host:port, ws://host:port/path or wss://host:port/path", raw)
	}
	e := endpoint{url: raw, name: u.Hostname()}
	port := 1883
	switch u.Scheme {
	case "mqtt", "tcp":
	case "mqtts", "ssl", "tls":
		e.tls, port = true, 8883
	case "ws":
		e.websocket, port = true, 80
	case "wss":
		e.websocket, e.tls, port = true, true, 443
	default:
		return endpoint{}, fmt.Errorf("scheme %q is none of mqtt, mqtts, ws, wss", u.Scheme)
	}
	if tls.Enabled && !e.tls {
		e.tls, e.upgraded = true, true
	}
	if u.Port() != "" {
		if port, err = strconv.Atoi(u.Port()); err != nil || port < 1 || port > 65535 {
			return endpoint{}, fmt.Errorf("port %q is not between 1 and 65535", u.Port())
		}
	}
	e.host = net.JoinHostPort(e.name, strconv.Itoa(port))
	switch {
	case e.websocket && (u.Path == "" || u.Path == "/"):
		e.path = "/mqtt"
	case e.websocket:
		e.path = u.EscapedPath()
	case u.Path != "" && u.Path != "/":
		return endpoint{}, fmt.Errorf("path %q means nothing to MQTT: topics belong into mqtt.topics", u.Path)
	}
	return e, nil
}
