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

	"github.com/edgehost/edgehost/sources"
)

// grant is a broker's answer to one subscription.
type grant struct {
	qos     byte // that it will send with, when it does not refuse
	refused bool
	reason  string // why it refuses, when it says so
}

// subscribe asks for all filters and returns what is to be told of the answers,
// "" when there is nothing. When the broker refuses all of them, that is an error
// of authorisation.
func (s *Source) subscribe(ctx context.Context, c *connection) (complaint string, err error) {
	if s.cfg.persistent() {
		if err := s.unsubscribeOld(ctx, c); err != nil {
			return "", err
		}
	}
	grants, err := ask(ctx, c, s.cfg.connectTimeout(), func(ctx context.Context) ([]grant, error) { return c.client.subscribe(ctx, s.subs) })
	if err != nil {
		return "", err
	}
	var refused, lowered []string
	for i, g := range grants {
		filter, asked := s.subs[i].filter, s.subs[i].qos
		switch {
		case g.refused && g.reason != "":
			refused = append(refused, filter+" ["+g.reason+"]")
		case g.refused:
			refused = append(refused, filter)
		case g.qos == 0 && asked > 0:
			lowered = append(lowered, filter)
		case g.qos < asked:
			// Of 2 and 1 we make the same: at least once, to the disk.
			s.log.Info("mqtt: the broker grants a lower quality of service", "topic", filter, "asked", asked, "granted", g.qos)
		}
	}
	if len(refused) == len(s.subs) {
		return "", sources.AuthError(fmt.Errorf("broker %s refuses every subscription (%s): check what its access control list allows user %q, client id %q",
			c.to.url, strings.Join(refused, ", "), s.cfg.Username, s.clientID))
	}
	var complaints []string
	if len(refused) > 0 {
		complaints = append(complaints, "the broker refuses "+strings.Join(refused, ", ")+": check its access control list")
	}
	if len(lowered) > 0 {
		complaints = append(complaints, "the broker grants only QoS 0 to "+strings.Join(lowered, ", ")+
			": what is published there while edgehost is away is lost; raise its limit, or write qos: 0")
	}
	return strings.Join(complaints, "; "), nil
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
		_, err := ask(ctx, c, s.cfg.connectTimeout(), func(ctx context.Context) (struct{}, error) { return struct{}{}, c.client.unsubscribe(ctx, gone) })
		if err != nil {
			return fmt.Errorf("unsubscribe from %s: %w", strings.Join(gone, ", "), err)
		}
		s.log.Info("mqtt: unsubscribed from topics that left the configuration", "topics", gone)
	}
	if !c.resumed && (len(old) > 0 || s.hadSession) {
		s.status.Add(metricSessionsLost, 1)
		s.log.Warn("mqtt: the broker no longer has the session that it kept for us: what was published since the connection was lost is lost, "+
			"unless it was retained; let it keep sessions on its disk (mosquitto: persistence true)", "broker", c.to.url, "client_id", s.clientID)
	}
	s.hadSession = true
	if slices.Equal(old, current) {
		return nil
	}
	return s.filters.write(current)
}

// ask runs request while the connection stands. The libraries wait without end
// when they hand a packet to the network, so it has a goroutine of its own,
// which ends with the connection at the latest.
func ask[T any](ctx context.Context, c *connection, timeout time.Duration, request func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answered := make(chan answer, 1)
	go func() {
		value, err := request(limited)
		answered <- answer{value, err}
	}()
	var zero T
	select {
	case a := <-answered:
		if a.err != nil && limited.Err() == nil {
			// The loss of the connection is the reason when there is one.
			select {
			case err := <-c.lost:
				return zero, fmt.Errorf("lost the connection to %s: %w", c.to.url, err)
			case <-time.After(lossTime):
			}
		}
		return a.value, a.err
	case err := <-c.lost:
		return zero, fmt.Errorf("lost the connection to %s: %w", c.to.url, err)
	case <-limited.Done():
		if ctx.Err() != nil {
			return zero, ctx.Err()
		}
		return zero, fmt.Errorf("broker %s did not answer within %s", c.to.url, timeout)
	}
}

// lossTime is how long the loss of a connection may be told after a request
// that failed by it.
const lossTime = 200 * time.Millisecond

// report sets the state of a connection that stands: the complaint that
// subscribe returned, and topics that the broker granted but is silent about, as
// brokers are that grant what their access control list forbids.
func (s *Source) report(complaint string, c *connection) {
	var details []string
	state := sources.Connected
	if complaint != "" {
		state = sources.Degraded
		details = append(details, complaint)
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
	return filterFile(statePath(dir, clientID) + ".json")
}

// tablesDir is where the tables of Sparkplug edge nodes are kept; "" keeps none.
func tablesDir(dir, clientID string) string {
	if dir == "" {
		return ""
	}
	return statePath(dir, clientID) + "-sparkplug"
}

func statePath(dir, clientID string) string {
	sum := sha256.Sum256([]byte(clientID))
	return filepath.Join(dir, "mqtt-"+hex.EncodeToString(sum[:8]))
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
