package mqtt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/edgehost/edgehost/sources"
)

const subackFailure = 0x80 // MQTT 3.1.1, section 3.9.3

// subscribe asks for all filters and returns those that the broker refuses.
// When it refuses all of them, that is an error of authorisation.
func (s *Source) subscribe(ctx context.Context, c *connection) (refused []string, err error) {
	if s.cfg.persistent() {
		if err := s.unsubscribeOld(ctx, c); err != nil {
			return nil, err
		}
	}
	// The library waits when it hands a packet to the network, so asking has a
	// goroutine of its own.
	asked := make(chan []paho.Token, 1)
	go func() {
		var tokens []paho.Token
		for _, sub := range s.subs {
			tokens = append(tokens, c.client.Subscribe(sub.filter, sub.qos, nil))
		}
		asked <- tokens
	}()
	tokens, err := await(ctx, c, s.cfg.connectTimeout(), asked)
	if err != nil {
		return nil, err
	}
	for i, token := range tokens {
		if err := awaitToken(ctx, c, s.cfg.connectTimeout(), token); err != nil {
			return nil, fmt.Errorf("subscribe to %s: %w", s.subs[i].filter, err)
		}
		for _, granted := range token.(*paho.SubscribeToken).Result() {
			if granted == subackFailure {
				refused = append(refused, s.subs[i].filter)
			}
		}
	}
	if len(refused) == len(s.subs) {
		return nil, sources.AuthError(fmt.Errorf("broker %s refuses every subscription (%s): check what its access control list allows user %q, client id %q",
			c.to.url, strings.Join(refused, ", "), s.cfg.Username, s.clientID))
	}
	return refused, nil
}

// unsubscribeOld ends the subscriptions that our session still has from an
// earlier configuration, and remembers those of this one.
func (s *Source) unsubscribeOld(ctx context.Context, c *connection) error {
	var current []string
	for _, sub := range s.subs {
		current = append(current, sub.filter)
	}
	old, err := s.filters.read()
	if err != nil {
		return fmt.Errorf("read subscriptions of the session: %w", err)
	}
	gone := slices.DeleteFunc(slices.Clone(old), func(f string) bool { return slices.Contains(current, f) })
	if c.resumed && len(gone) > 0 {
		asked := make(chan paho.Token, 1)
		go func() { asked <- c.client.Unsubscribe(gone...) }()
		token, err := await(ctx, c, s.cfg.connectTimeout(), asked)
		if err == nil {
			err = awaitToken(ctx, c, s.cfg.connectTimeout(), token)
		}
		if err != nil {
			return fmt.Errorf("unsubscribe from %s: %w", strings.Join(gone, ", "), err)
		}
		s.log.Info("mqtt: unsubscribed from topics that left the configuration", "topics", gone)
	}
	if slices.Equal(old, current) {
		return nil
	}
	return s.filters.write(current)
}

func awaitToken(ctx context.Context, c *connection, timeout time.Duration, token paho.Token) error {
	if _, err := await(ctx, c, timeout, token.Done()); err != nil {
		return err
	}
	return token.Error()
}

// await receives from ch while the connection stands.
func await[T any](ctx context.Context, c *connection, timeout time.Duration, ch <-chan T) (T, error) {
	var zero T
	select {
	case v := <-ch:
		return v, nil
	case <-ctx.Done():
		return zero, ctx.Err()
	case err := <-c.lost:
		return zero, fmt.Errorf("lost the connection to %s: %w", c.to.url, err)
	case <-time.After(timeout):
		return zero, fmt.Errorf("broker %s did not answer within %s", c.to.url, timeout)
	}
}

// report sets the state of a connection that stands: topics that the broker
// refused, and topics that it granted but is silent about, as brokers are that
// grant what their access control list forbids.
func (s *Source) report(refused []string, c *connection) {
	var details []string
	state := sources.Connected
	if len(refused) > 0 {
		state = sources.Degraded
		details = append(details, "the broker refuses "+strings.Join(refused, ", ")+": check its access control list")
	}
	if stale := s.stale(c); len(stale) > 0 {
		state = sources.Degraded
		if len(stale) == len(s.mapper.rules) {
			state = sources.Stalled
		}
		details = append(details, fmt.Sprintf("nothing for %v s on %s although the broker granted it: check the topic, its publisher, and the broker's access control list",
			s.cfg.StaleAfterSeconds, strings.Join(stale, ", ")))
	}
	s.status.Report(s.log, state, strings.Join(details, "; "))
}

// stale returns the topics that have been silent for too long.
func (s *Source) stale(c *connection) []string {
	if s.cfg.StaleAfterSeconds == 0 {
		return nil
	}
	limit := time.Duration(s.cfg.StaleAfterSeconds * float64(time.Second))
	if time.Since(c.since) < limit {
		return nil
	}
	oldest := sources.Micros(s.now().Add(-limit))
	var out []string
	for _, r := range s.mapper.rules {
		if r.lastSeen.Load() < oldest {
			out = append(out, r.topic)
		}
	}
	return out
}

// filterFile remembers the filters of a persistent session; "" remembers
// nothing.
type filterFile string

func newFilterFile(dir, clientID string) filterFile {
	if dir == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(clientID))
	return filterFile(filepath.Join(dir, "mqtt-"+hex.EncodeToString(sum[:8])+".json"))
}

func (f filterFile) read() ([]string, error) {
	if f == "" {
		return nil, nil
	}
	data, err := os.ReadFile(string(f))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var filters []string
	if err := json.Unmarshal(data, &filters); err != nil {
		return nil, fmt.Errorf("parse %s (delete it to start without): %w", string(f), err)
	}
	return filters, nil
}

// write replaces the file as a whole: it is written before the subscriptions
// are, so that none is forgotten.
func (f filterFile) write(filters []string) error {
	if f == "" {
		return nil
	}
	data, err := json.Marshal(filters)
	if err != nil {
		return fmt.Errorf("encode subscriptions: %w", err)
	}
	if err := writeSynced(string(f)+".new", data); err != nil {
		return fmt.Errorf("write subscriptions of the session: %w", err)
	}
	if err := os.Rename(string(f)+".new", string(f)); err != nil {
		return fmt.Errorf("write subscriptions of the session: %w", err)
	}
	return nil
}

// writeSynced writes a file that is whole on the disk when it returns, so that
// a rename after it cannot leave an empty one.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
