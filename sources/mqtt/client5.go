package mqtt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	paho5 "github.com/eclipse/paho.golang/paho"

	"github.com/edgehost/edgehost/sources"
)

// subscribeAtOnce is the number of filters in one SUBSCRIBE.
const subscribeAtOnce = 100

// client5 is the session of MQTT 5.
type client5 struct {
	*paho5.Client
	closed *atomic.Bool
}

// begin5 begins a session on the connection c, which dies with ctx.
func (s *Source) begin5(ctx context.Context, c *connection) error {
	client := client5{closed: new(atomic.Bool)}
	client.Client = paho5.NewClient(paho5.ClientConfig{
		ClientID: s.clientID, Conn: c.guard, AuthHandler: noAuth{}, PacketTimeout: s.cfg.connectTimeout(),
		OnClientError: func(err error) {
			client.closed.Store(true)
			c.lose(firstError(c.guard.readErr(), err))
		},
		OnServerDisconnect: func(d *paho5.Disconnect) {
			client.closed.Store(true)
			c.lose(s.disconnectError5(d))
		},
	})
	c.client = client
	ca, err := client.Connect(ctx, s.connect5())
	if err != nil {
		// The library has closed the connection. Its error says less than ours.
		if ca != nil && ca.ReasonCode >= 0x80 {
			reason := ""
			if ca.Properties != nil {
				reason = ca.Properties.ReasonString
			}
			return s.connackError5(c.to, ca.ReasonCode, reason)
		}
		if errors.Is(c.guard.readErr(), errOldBroker) {
			return sources.ConfigError(fmt.Errorf("broker %s does not speak MQTT 5: set mqtt.protocol_version to \"3.1.1\" (%w)", c.to.url, errOldBroker))
		}
		return s.connectError(c.to, true, firstError(c.guard.readErr(), err))
	}
	c.resumed = ca.SessionPresent
	return nil
}

func (s *Source) connect5() *paho5.Connect {
	cp := &paho5.Connect{ClientID: s.clientID, KeepAlive: uint16(s.cfg.KeepAliveSeconds), CleanStart: !s.cfg.persistent(),
		Properties: &paho5.ConnectProperties{ReceiveMaximum: paho5.Uint16(uint16(s.cfg.ReceiveMaximum)), RequestProblemInfo: true}}
	if s.cfg.persistent() {
		cp.Properties.SessionExpiryInterval = paho5.Uint32(s.cfg.sessionExpiry())
	}
	if s.cfg.Username != "" {
		cp.Username, cp.UsernameFlag = s.cfg.Username, true
	}
	if s.cfg.Password != "" {
		cp.Password, cp.PasswordFlag = []byte(s.cfg.Password), true
	}
	return cp
}

// Reason codes of MQTT 5, section 2.4.
const (
	reasonProtocolVersion = 0x84
	reasonClientID        = 0x85
	reasonBadUser         = 0x86
	reasonNotAuthorised   = 0x87
	reasonBanned          = 0x8a
	reasonBadAuthMethod   = 0x8c
	reasonTakenOver       = 0x8e
)

// reasons are the words of the reason codes that a broker may give us.
var reasons = map[byte]string{
	0x80: "unspecified error", 0x81: "malformed packet", 0x82: "protocol error", 0x83: "implementation specific error",
	reasonProtocolVersion: "unsupported protocol version", reasonClientID: "client identifier not valid", reasonBadUser: "bad user name or password",
	reasonNotAuthorised: "not authorised", 0x88: "server unavailable", 0x89: "server busy", reasonBanned: "banned", 0x8b: "server shutting down",
	reasonBadAuthMethod: "bad authentication method", 0x8d: "keep alive timeout", reasonTakenOver: "session taken over", 0x8f: "topic filter invalid",
	0x90: "topic name invalid", 0x91: "packet identifier in use", 0x93: "receive maximum exceeded", 0x94: "topic alias invalid", 0x95: "packet too large",
	0x96: "message rate too high", 0x97: "quota exceeded", 0x98: "administrative action", 0x99: "payload format invalid", 0x9a: "retain not supported",
	0x9b: "QoS not supported", 0x9c: "use another server", 0x9d: "server moved", 0x9e: "shared subscriptions not supported",
	0x9f: "connection rate exceeded", 0xa0: "maximum connect time", 0xa1: "subscription identifiers not supported", 0xa2: "wildcard subscriptions not supported",
}

// reasonText is a reason code in words, with those of the broker when it has
// some.
func reasonText(code byte, broker string) string {
	text, ok := reasons[code]
	if !ok {
		text = "unknown reason"
	}
	if broker != "" {
		text += ": " + broker
	}
	return fmt.Sprintf("%s (%#02x)", text, code)
}

func (s *Source) connackError5(to endpoint, code byte, broker string) error {
	err := fmt.Errorf("broker %s refuses the connection: %s", to.url, reasonText(code, broker))
	switch code {
	case reasonBadUser, reasonNotAuthorised, reasonBanned, reasonBadAuthMethod:
		return sources.AuthError(fmt.Errorf("%w: check mqtt.username and mqtt.password, the client certificate, and what the broker allows client id %q", err, s.clientID))
	case reasonClientID:
		return sources.ConfigError(fmt.Errorf("%w: set mqtt.client_id to one that it allows (now %q)", err, s.clientID))
	case reasonProtocolVersion:
		return sources.ConfigError(fmt.Errorf("%w: set mqtt.protocol_version to \"3.1.1\"", err))
	}
	return fmt.Errorf("%w: look at its log", err)
}

// disconnectError5 words a DISCONNECT of the broker.
func (s *Source) disconnectError5(d *paho5.Disconnect) error {
	broker := ""
	if d.Properties != nil {
		broker = d.Properties.ReasonString
	}
	err := fmt.Errorf("the broker ended the connection: %s", reasonText(d.ReasonCode, broker))
	switch d.ReasonCode {
	case reasonTakenOver:
		return fmt.Errorf("%w: another client uses client id %q (two hosts with one configuration?): give each its own mqtt.client_id", err, s.clientID)
	case reasonNotAuthorised, reasonBanned:
		return sources.AuthError(fmt.Errorf("%w: check what the broker allows user %q, client id %q", err, s.cfg.Username, s.clientID))
	}
	return err
}

func (c client5) subscribe(ctx context.Context, subs []subscription) ([]grant, error) {
	var grants []grant
	for part := range slices.Chunk(subs, subscribeAtOnce) {
		packet := &paho5.Subscribe{}
		for _, sub := range part {
			packet.Subscriptions = append(packet.Subscriptions, paho5.SubscribeOptions{Topic: sub.filter, QoS: sub.qos})
		}
		ack, err := c.Subscribe(ctx, packet)
		switch {
		case errors.Is(err, paho5.ErrInvalidArguments):
			return nil, sources.ConfigError(err) // the CONNACK forbids wildcards or shared subscriptions
		case ack == nil:
			return nil, fmt.Errorf("subscribe: %w", err)
		case len(ack.Reasons) != len(part):
			return nil, fmt.Errorf("subscribe: the broker answered %d of %d filters", len(ack.Reasons), len(part))
		}
		for _, code := range ack.Reasons {
			g := grant{qos: code, refused: code >= 0x80}
			if g.refused {
				g.reason = reasonText(code, ack.Properties.ReasonString)
			}
			grants = append(grants, g)
		}
	}
	return grants, nil
}

func (c client5) unsubscribe(ctx context.Context, filters []string) error {
	_, err := c.Unsubscribe(ctx, &paho5.Unsubscribe{Topics: filters})
	return err
}

func (c client5) open() bool { return !c.closed.Load() }

func (c client5) disconnect() {
	c.closed.Store(true)
	_ = c.Disconnect(&paho5.Disconnect{}) // the connection is closed whatever comes of it
}

// noAuth is there because the library calls it when a broker says that it
// authenticated us in ways that we did not ask for.
type noAuth struct{}

func (noAuth) Authenticate(*paho5.Auth) *paho5.Auth { return &paho5.Auth{ReasonCode: 0x80} }
func (noAuth) Authenticated()                       {}
