package mqtt

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/edgehost/edgehost/sources"
)

// client3 is the session of MQTT 3.1.1. The library's client is made anew for
// each connection: the broker, not the library's store, sends again what was
// not acknowledged.
type client3 struct{ paho.Client }

const subackFailure = 0x80 // MQTT 3.1.1, section 3.9.3

// begin3 begins a session on the connection c, which dies with ctx.
func (s *Source) begin3(c *connection) error {
	client := paho.NewClient(s.options3(c))
	c.client = client3{client}
	token := client.Connect().(*paho.ConnectToken)
	// The connection dies with its context, and with it the token completes.
	<-token.Done()
	if err := token.Error(); err != nil {
		if worded := s.connackError3(c.to, token.ReturnCode()); worded != nil {
			return worded
		}
		return s.connectError(c.to, true, firstError(c.guard.readErr(), err))
	}
	c.resumed = token.SessionPresent()
	return nil
}

func (s *Source) options3(c *connection) *paho.ClientOptions {
	opts := paho.NewClientOptions()
	opts.AddBroker("tcp://" + c.to.host)
	opts.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return c.guard, nil })
	opts.SetClientID(s.clientID)
	// Pinned, or the library tries a wrong password a second time with MQTT 3.1.
	opts.SetProtocolVersion(4)
	opts.SetUsername(s.cfg.Username)
	opts.SetPassword(s.cfg.Password)
	opts.SetCleanSession(!s.cfg.persistent())
	opts.SetKeepAlive(time.Duration(s.cfg.KeepAliveSeconds) * time.Second)
	opts.SetPingTimeout(10 * time.Second)
	opts.SetConnectTimeout(s.cfg.connectTimeout())
	opts.SetWriteTimeout(s.cfg.connectTimeout())
	opts.SetAutoReconnect(false)
	opts.SetConnectRetry(false)
	opts.SetStore(noStore{})
	opts.SetConnectionLostHandler(func(_ paho.Client, err error) { c.lose(firstError(c.guard.readErr(), err)) })
	return opts
}

func (s *Source) connackError3(to endpoint, code byte) error {
	switch code {
	case packets.ErrRefusedBadUsernameOrPassword:
		return sources.AuthError(fmt.Errorf("broker %s refuses the user name or password (CONNACK 4): check mqtt.username and mqtt.password", to.url))
	case packets.ErrRefusedNotAuthorised:
		return sources.AuthError(fmt.Errorf("broker %s does not authorise us (CONNACK 5): check mqtt.username and mqtt.password, "+
			"the client certificate, and what the broker allows client id %q", to.url, s.clientID))
	case packets.ErrRefusedIDRejected:
		return sources.ConfigError(fmt.Errorf("broker %s rejects client id %q (CONNACK 2): set mqtt.client_id to one that it allows", to.url, s.clientID))
	case packets.ErrRefusedServerUnavailable:
		return fmt.Errorf("broker %s says that it is unavailable (CONNACK 3): look at its log", to.url)
	case packets.ErrRefusedBadProtocolVersion:
		return sources.ConfigError(fmt.Errorf("broker %s does not speak MQTT 3.1.1 (CONNACK 1)", to.url))
	}
	return nil
}

// subscribe sends one SUBSCRIBE for each filter, all of them before the first
// answer is due.
func (c client3) subscribe(ctx context.Context, subs []subscription) ([]grant, error) {
	var tokens []paho.Token
	for _, sub := range subs {
		tokens = append(tokens, c.Subscribe(sub.filter, sub.qos, nil))
	}
	grants := make([]grant, len(subs))
	for i, token := range tokens {
		if err := awaitToken(ctx, token); err != nil {
			return nil, fmt.Errorf("subscribe to %s: %w", subs[i].filter, err)
		}
		for _, code := range token.(*paho.SubscribeToken).Result() {
			grants[i] = grant{qos: code, refused: code == subackFailure}
		}
	}
	return grants, nil
}

func (c client3) unsubscribe(ctx context.Context, filters []string) error {
	return awaitToken(ctx, c.Unsubscribe(filters...))
}

func awaitToken(ctx context.Context, token paho.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c client3) open() bool { return c.IsConnectionOpen() }

func (c client3) disconnect() { c.Disconnect(250) }

// noStore is the library's message store: nothing is published with it, and the
// broker keeps what was not acknowledged.
type noStore struct{}

func (noStore) Open()                             {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Close()                            {}
func (noStore) Reset()                            {}
