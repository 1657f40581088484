package sources

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errRefused = errors.New("refused")

// plant is a world of peers for a lookout and a source that connects to them.
type plant struct {
	mute bool // a peer that is not up does not refuse: nothing answers

	mu    sync.Mutex
	up    map[string]bool
	looks int
}

func (p *plant) dial(ctx context.Context, peer string) error {
	p.mu.Lock()
	p.looks++
	up := p.up[peer]
	p.mu.Unlock()
	switch {
	case up:
		return nil
	case p.mute:
		<-ctx.Done()
		return ctx.Err()
	}
	return errRefused
}

func (p *plant) turn(peer string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up[peer] = !p.up[peer]
}

// attempts supervises a source with these peers for d and returns when it was
// run, from the start. Every run ends at once with what run returns.
func (p *plant) attempts(t *testing.T, d time.Duration, cfg ReconnectConfig, peers []string, run func(at time.Duration, st *Status) error) []time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var at []time.Duration
	begin, st := time.Now(), NewStatus("s", "mqtt")
	src := sourceFunc(func(context.Context, Emit) error {
		at = append(at, time.Since(begin))
		return run(at[len(at)-1], st)
	})
	superviseWith(ctx, src, nil, st, cfg, slog.New(slog.DiscardHandler), &lookout{peers: peers, dial: p.dial, away: map[string]bool{}})
	return at
}

// after returns the first of times that is not before d.
func after(t *testing.T, times []time.Duration, d time.Duration) time.Duration {
	t.Helper()
	i, _ := slices.BinarySearch(times, d)
	if i == len(times) {
		t.Fatalf("no attempt after %v: %v", d, times)
	}
	return times[i]
}

func TestAttemptSoonAfterPeerIsBack(t *testing.T) {
	for name, mute := range map[string]bool{"refused": false, "nothing answers": true} {
		t.Run(name, func(t *testing.T) {
			for _, outage := range []time.Duration{3 * time.Second, 40 * time.Second, 7*time.Minute + 123*time.Millisecond, 5 * time.Hour} {
				synctest.Test(t, func(t *testing.T) {
					p := &plant{up: map[string]bool{}, mute: mute}
					time.AfterFunc(outage, func() { p.turn("a:1") })
					at := p.attempts(t, outage+time.Minute, ReconnectConfig{}, []string{"a:1"}, func(time.Duration, *Status) error { return errRefused })
					if late := after(t, at, outage) - outage; late > 3*time.Second {
						t.Errorf("after an outage of %v the first attempt comes %v late", outage, late)
					}
					// 1+2+4+…+256 s, then every 300 s, each 20 % shorter at most.
					if most := 10 + int(outage/(240*time.Second)); len(at) > most+7 {
						t.Errorf("%d attempts in an outage of %v", len(at), outage)
					}
					if most := 2 * int((outage+time.Minute)/time.Second); p.looks > most {
						t.Errorf("%d looks in %v", p.looks, outage)
					}
				})
			}
		})
	}
}

func TestPeerThatListensIsNotHurried(t *testing.T) {
	cases := map[string]struct {
		err   error
		looks bool
	}{
		"fails us":      {errRefused, true},
		"refuses us":    {AuthError(errRefused), false},
		"configuration": {ConfigError(errRefused), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &plant{up: map[string]bool{"a:1": true}}
				at := p.attempts(t, 100*time.Second, noJitter(), []string{"a:1"}, func(time.Duration, *Status) error { return c.err })
				want := []time.Duration{0, 1 * time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second, 31 * time.Second, 63 * time.Second}
				if !slices.Equal(at, want) || (p.looks > 0) != c.looks || p.looks > 40 {
					t.Errorf("attempts at %v with %d looks, want %v and few looks", at, p.looks, want)
				}
			})
		})
	}
}

// TestPeerThatComesUpSlowly accepts connections ten seconds before it serves:
// attempts begin anew at the initial delay.
func TestPeerThatComesUpSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const back = 20 * time.Minute
		p := &plant{up: map[string]bool{}}
		time.AfterFunc(back, func() { p.turn("a:1") })
		at := p.attempts(t, back+time.Minute, noJitter(), []string{"a:1"}, func(time.Duration, *Status) error { return errRefused })
		i, _ := slices.BinarySearch(at, back)
		for n, want := range []time.Duration{1, 2, 4, 8} {
			if pause := at[i+n+1] - at[i+n]; pause != want*time.Second {
				t.Errorf("pause %d after the peer is back is %v, want %v", n, pause, want*time.Second)
			}
		}
	})
}

// TestFlappingPeerKeepsInitialDelay: a peer whose port opens and closes all the
// time is tried no faster than configured.
func TestFlappingPeerKeepsInitialDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := noJitter()
		cfg.InitialDelaySeconds = 10
		p := &plant{up: map[string]bool{}}
		flap := time.NewTicker(700 * time.Millisecond)
		defer flap.Stop()
		go func() {
			for range 1000 {
				select {
				case <-flap.C:
					p.turn("a:1")
				case <-t.Context().Done():
					return
				}
			}
		}()
		at := p.attempts(t, 5*time.Minute, cfg, []string{"a:1"}, func(time.Duration, *Status) error { return errRefused })
		for i := range at[1:] {
			if pause := at[i+1] - at[i]; pause < 10*time.Second {
				t.Errorf("pause %d is %v, want at least 10 s", i, pause)
			}
		}
	})
}

// TestSecondPeerIsBack: of two brokers one is away for good and does not keep
// the other from being noticed, which counts once.
func TestSecondPeerIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const back = 10 * time.Minute
		p := &plant{up: map[string]bool{}, mute: true}
		time.AfterFunc(back, func() { p.turn("b:1") })
		connected := false
		at := p.attempts(t, back+time.Hour, noJitter(), []string{"a:1", "b:1"}, func(at time.Duration, st *Status) error {
			if at >= back && !connected {
				connected = true
				st.Set(Connected, "")
				<-time.After(time.Second)
			}
			return errRefused
		})
		if late := after(t, at, back) - back; late > 3*time.Second {
			t.Errorf("the attempt comes %v late", late)
		}
		if n := len(at); n > 35 {
			t.Errorf("%d attempts in 70 minutes: the peer that is away hurries us", n)
		}
	})
}

func TestReachTCP(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := ReachTCP(t.Context(), lis.Addr().String()); err != nil {
		t.Error(err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ReachTCP(t.Context(), lis.Addr().String()); err == nil {
		t.Error("a closed port accepts")
	}
}
