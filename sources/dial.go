package sources

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
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
	case IsTimeout(err):
		return "nothing answers: " + checks
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.ErrUnexpectedEOF):
		return "the peer closed the connection: look at its log; " + checks
	default:
		return checks
	}
}

// IsTimeout reports whether err says that a peer did not answer in time.
func IsTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &n) && n.Timeout())
}

// Peered is a Source whose Run connects to peers that listen on TCP. While it
// waits between two attempts, its supervisor looks whether one of them is back.
type Peered interface {
	Source
	// Peers returns the addresses, host:port, that Run tries; none when it does
	// not use TCP. It is called before the first Run.
	Peers() []string
}

// Reacher is a Peered source that knows better than a connection of its own
// whether a peer is there, because it shares one with other sources.
type Reacher interface {
	// Reach returns nil when peer, one of Peers, accepts connections. It returns
	// when ctx ends at the latest. The supervisor calls it between two Runs.
	Reach(ctx context.Context, peer string) error
}

const (
	// A look is a connection that is closed at once. The pause between two looks
	// is spread by half, so that a fleet of gateways does not come back as one.
	lookPause   = time.Second
	lookTimeout = time.Second
	// lookSeldom is what the pause grows to while all peers accept connections:
	// they have another reason to fail us, and a log that looks fill.
	lookSeldom = 30 * time.Second
	// lookRest is for devices with few connections to give: they need a moment to
	// see that the look's is closed.
	lookRest = 100 * time.Millisecond
)

// lookout notices that a peer which did not accept connections accepts them
// again. It remembers from one wait to the next who did not: a peer that accepts
// and then fails us is no reason to hurry. One goroutine uses it.
type lookout struct {
	peers []string
	dial  func(ctx context.Context, peer string) error // nil: it accepts
	away  map[string]bool
}

func newLookout(src Source) *lookout {
	l := &lookout{dial: ReachTCP, away: map[string]bool{}}
	if p, ok := src.(Peered); ok {
		l.peers = p.Peers()
	}
	if r, ok := src.(Reacher); ok {
		l.dial = r.Reach
	}
	return l
}

// ReachTCP returns nil when peer, host:port, accepts a TCP connection, which is
// closed at once.
func ReachTCP(ctx context.Context, peer string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", peer)
	if err != nil {
		return err
	}
	return conn.Close()
}

// forget says that what was seen of the peers holds no more.
func (l *lookout) forget() { clear(l.away) }

// wait returns true when a peer is back, but not before least, and false after
// most or when ctx ends.
func (l *lookout) wait(ctx context.Context, least, most time.Duration) (back bool) {
	begin := time.Now()
	looking, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	if len(l.peers) == 0 {
		<-looking.Done()
		return false
	}
	for pause := lookPause; !l.look(looking); {
		if !sleep(looking, pause/2+rand.N(pause)) {
			return false
		}
		pause = min(2*pause, lookSeldom)
		for _, away := range l.away {
			if away {
				pause = lookPause
			}
		}
	}
	return sleep(ctx, max(lookRest, least-time.Since(begin)))
}

// look asks all peers at once and reports whether one is back, as soon as it is:
// others may not answer at all.
func (l *lookout) look(ctx context.Context) bool {
	type answer struct {
		peer string
		err  error
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	limited, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	answers := make(chan answer, len(l.peers))
	for _, peer := range l.peers {
		wg.Go(func() { answers <- answer{peer, l.dial(limited, peer)} })
	}
	for range l.peers {
		a := <-answers
		if ctx.Err() != nil {
			return false // what failed may have failed for that
		}
		back := a.err == nil && l.away[a.peer]
		l.away[a.peer] = a.err != nil
		if back {
			return true
		}
	}
	return false
}

// sleep returns false when ctx ends before d has passed.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
