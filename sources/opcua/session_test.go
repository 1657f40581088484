package opcua

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopcua/opcua/ua"

	"github.com/edgehost/edgehost/sources"
)

// TestSessionOutlivesSlowPublishing: a publish request that waits on the server does
// not keep the session, and the server may give less time than was asked for.
func TestSessionOutlivesSlowPublishing(t *testing.T) {
	for name, mode := range map[string]string{"subscribed": "subscribe", "polled": "poll"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeServer()
				f.values["ns=1;s=n"], f.idle = uint32(0), 10*time.Second
				cfg := nodes("ns=1;s=n")
				cfg.Mode, cfg.PublishingIntervalMS, cfg.LifetimeSeconds = mode, 60_000, 3600
				cfg.Defaults.SamplingIntervalMS = new(60_000)
				src, _ := fakeSource(t, f, cfg, nil)
				p := &pipe{}
				_ = play(t, src, p.emit, func() { time.Sleep(5 * time.Minute) })
				if f.expired > 0 || len(p.all()) == 0 {
					t.Errorf("session expired %d times, %d records", f.expired, len(p.all()))
				}
			})
		})
	}
}

// TestBackfillByTheServersClock: a hole is read from history whatever the server's
// clock says, before and after a restart of ours, and nothing from before it.
func TestBackfillByTheServersClock(t *testing.T) {
	for _, skew := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour} {
		for _, timestamp := range []string{"source", "ingest"} {
			t.Run(fmt.Sprintf("%s by %s", skew, timestamp), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { backfillSkewed(t, skew, timestamp) })
			})
		}
	}
}

func backfillSkewed(t *testing.T, skew time.Duration, timestamp string) {
	f := newFakeServer()
	f.values["ns=1;s=n"], f.history, f.skew = uint32(0), map[string][]*ua.DataValue{"ns=1;s=n": {}}, skew
	cfg := nodes("ns=1;s=n")
	cfg.HistoryBackfill, cfg.Timestamp = true, timestamp
	p := &pipe{}
	src, _ := fakeSource(t, f, cfg, nil)
	n := uint32(0)
	tell := func(count int) {
		for range count {
			time.Sleep(time.Second)
			n++
			f.set("ns=1;s=n", n)
		}
	}
	lose := func() { // what was published meanwhile
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, s := range f.subs {
			s.queue = nil
			s.seq++ // a notification that nobody gets
		}
	}
	_ = play(t, src, p.emit, func() {
		tell(200)
		time.Sleep(2 * time.Second)
		f.mu.Lock()
		f.mute = true
		f.mu.Unlock()
		tell(5)
		lose()
		f.mu.Lock()
		f.mute = false
		f.mu.Unlock()
		tell(3)
		time.Sleep(10 * time.Second)
	})
	tell(5)
	f.mu.Lock()
	clear(f.subs) // with them what waited there
	f.mu.Unlock()
	next, status := fakeSource(t, f, cfg, p.point)
	_ = play(t, next, p.emit, func() { time.Sleep(20 * time.Second); tell(3); time.Sleep(5 * time.Second) })
	times := map[uint64]int{}
	for _, r := range p.all() {
		times[r.Value.AsUint()]++
	}
	for i := uint64(1); i <= uint64(n); i++ {
		if times[i] == 0 {
			t.Errorf("%d is missing", i)
		}
	}
	if times[100] != 1 {
		t.Errorf("a value from long before the hole came %d times", times[100])
	}
	if status.Snapshot().Counters[metricBackfilled] == 0 {
		t.Error("nothing was back-filled after the restart")
	}
}

// TestRevisionsAreTold: what a server grants less of than was asked for, and loses
// values by, is told once for all items.
func TestRevisionsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		f := newFakeServer()
		cfg := nodes()
		for i := range 50 {
			id := fmt.Sprintf("ns=1;s=n%d", i)
			f.values[id] = uint32(0)
			cfg.Nodes = append(cfg.Nodes, NodeConfig{NodeID: id})
		}
		f.queues = 5
		src, _ := fakeSource(t, f, cfg, nil)
		src.log = slog.New(slog.NewTextHandler(&said, nil))
		_ = play(t, src, (&pipe{}).emit, func() { time.Sleep(3 * time.Second) })
		if s := said.String(); strings.Count(s, "smaller queues") != 1 || !strings.Contains(s, "items=50") || !strings.Contains(s, "smallest=5") || strings.Contains(s, "samples slower") {
			t.Errorf("said %s", s)
		}
	})
}

// TestSlowServer: a server that needs longer than the time-out for so many items is
// asked for fewer at once by the next connections, until it answers.
func TestSlowServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		cfg := nodes()
		for i := range 400 {
			id := fmt.Sprintf("ns=1;s=n%d", i)
			f.values[id] = uint32(0)
			cfg.Nodes = append(cfg.Nodes, NodeConfig{NodeID: id})
		}
		f.slow = 120
		src, status := fakeSource(t, f, cfg, nil)
		p := &pipe{}
		runs := 0
		for ; runs < 10 && len(p.all()) == 0; runs++ {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_ = src.Run(ctx, p.emit)
			cancel()
		}
		if runs != 3 || len(p.all()) != 400 || src.most != 100 {
			t.Errorf("after %d connections %d values, at most %d at once; want 3, 400 and 100: %+v", runs, len(p.all()), src.most, status.Snapshot())
		}
	})
}

// TestLostAnswerToCreation: items that the server made without our hearing of it are
// deleted, by their numbers where the server tells them and with their subscription
// where not; no value comes twice.
func TestLostAnswerToCreation(t *testing.T) {
	for name, lists := range map[string]bool{"listed": true, "not listed": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeServer()
				f.values["ns=1;s=a"], f.values["ns=1;s=b"], f.lists, f.loseAnswer = uint32(0), uint32(0), lists, true
				src, _ := fakeSource(t, f, nodes("ns=1;s=a", "ns=1;s=b"), nil)
				p := &pipe{}
				if err := src.Run(t.Context(), p.emit); err == nil {
					t.Fatal("the lost connection is not noticed")
				}
				_ = play(t, src, p.emit, func() {
					time.Sleep(3 * time.Second)
					f.set("ns=1;s=a", uint32(7))
					time.Sleep(3 * time.Second)
				})
				sevens := 0
				for _, r := range p.all() {
					if r.Value.AsUint() == 7 {
						sevens++
					}
				}
				if deleted := f.count("DeleteItem"); sevens != 1 || lists != (deleted == 2) || len(f.subs) != 1 {
					t.Errorf("the value came %d times, %d items deleted, %d subscriptions", sevens, deleted, len(f.subs))
				}
			})
		})
	}
}

// TestNoFreeSubscription: the words say what to do.
func TestNoFreeSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		f.values["ns=1;s=n"], f.subsRefused = uint32(0), ua.StatusBadTooManySubscriptions
		src, _ := fakeSource(t, f, nodes("ns=1;s=n"), nil)
		err := src.Run(t.Context(), (&pipe{}).emit)
		if err == nil || !strings.Contains(err.Error(), "no free subscription: raise its limit") || sources.ErrorState(err) != sources.Reconnecting {
			t.Errorf("got %v", err)
		}
	})
}

// TestCertificateIsWatchedQuietly: what is wrong with our certificate is said when it
// is read, not every minute; another file is another certificate.
func TestCertificateIsWatchedQuietly(t *testing.T) {
	ca := plants()[0]
	paths := writeIdentity(t, ca.key, pemOf(ca.leaf, ca.root))
	var said bytes.Buffer
	cfg := Config{CertificatePath: paths.cert, PrivateKeyPath: paths.key, ApplicationURI: "urn:another"}.withDefaults()
	d := &dialer{cfg: cfg, status: sources.NewStatus("s", protocol), log: slog.New(slog.NewTextHandler(&said, nil))}
	used, err := ownIdentity(cfg, paths, d.log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"not sent", "application_uri differs", "expires soon"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("want %q in %s", want, said.String())
		}
	}
	said.Reset()
	if d.renewed(used) || said.Len() > 0 {
		t.Errorf("the same file: said %s", said.String())
	}
	if err := writeFile(paths.cert, pemOf(ca.leaf, ca.issuer), 0o600); err != nil {
		t.Fatal(err)
	}
	if !d.renewed(used) {
		t.Error("a file with the issuer is not noticed")
	}
	if err := writeFile(paths.cert, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d.renewed(used) || !strings.Contains(said.String(), "goes on with the old one") {
		t.Errorf("a torn file: %s", said.String())
	}
	// One that we made is renewed when it is due.
	own := ownPaths{cert: filepath.Join(t.TempDir(), "own.der"), key: filepath.Join(t.TempDir(), "own.pem")}
	mine := Config{CertificatePath: own.cert, PrivateKeyPath: own.key}.withDefaults()
	d.cfg = mine
	if used, err = ownIdentity(mine, own, quiet); err != nil || d.renewed(used) {
		t.Fatalf("a fresh one is renewed at once, or %v", err)
	}
	d.cfg.CertificateRenewDays = ownYears*366 + 1
	if !d.renewed(used) {
		t.Error("one that is due is not renewed")
	}
}
