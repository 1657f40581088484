//go:build conformance

package opcua

import (
	"flag"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

func behindProxy(t *testing.T, p *peer) (*faultProxy, string) {
	t.Helper()
	u, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := startProxy(t, u.Host)
	return proxy, "opc.tcp://" + proxy.addr + u.Path
}

func wait(d time.Duration) { <-time.After(d) }

// outage runs a source over ten counters at ten changes a second, does the
// fault, and returns how many values were lost.
func outage(t *testing.T, cfg Config, fault func(p *peer, proxy *faultProxy, r *rig)) (lost int, r *rig) {
	t.Helper()
	return outageWith(t, map[string]any{"counters": 10, "everyMs": 100}, cfg, fault)
}

// outageWith is outage over a server with opts.
func outageWith(t *testing.T, opts map[string]any, cfg Config, fault func(p *peer, proxy *faultProxy, r *rig)) (lost int, r *rig) {
	t.Helper()
	p := startPeer(t, opts)
	proxy, url := behindProxy(t, p)
	r = run(t, url, cfg, &collector{})
	r.awaitState(t, sources.Connected)
	wait(2 * time.Second)
	fault(p, proxy, r)
	r.awaitState(t, sources.Connected)
	wait(4 * time.Second)
	last := uint64(p.tell(t, "freeze"))
	eventually(t, "the last value", func() bool { return r.col.numbers()["nsu=urn:edgehost:test;s=Counter0"][last] > 0 })
	r.stop()
	lost = checkCounters(t, r.col, len(cfg.Nodes))
	repeats := 0
	for _, numbers := range r.col.numbers() {
		for _, times := range numbers {
			repeats += times - 1
		}
	}
	c := r.status.Snapshot().Counters
	t.Logf("up to %d of %d counters: lost %d, twice %d; republished %v, gaps %v, overflows %v, resumes %v", last, len(cfg.Nodes), lost, repeats,
		c[metricRepublished], c[metricGaps], c[metricOverflow], c[metricResumes])
	return lost, r
}

func wantNothingLost(t *testing.T, lost int, r *rig) {
	t.Helper()
	if lost != 0 {
		t.Errorf("%d values lost; counters %v", lost, r.status.Snapshot().Counters)
	}
	if gaps := r.status.Snapshot().Counters[metricGaps]; gaps != 0 {
		t.Errorf("%v gaps counted although nothing was lost", gaps)
	}
}

func TestSmokeOutageKill(t *testing.T) {
	lost, r := outage(t, counterConfig(10), func(_ *peer, proxy *faultProxy, _ *rig) { proxy.cut(false) })
	wantNothingLost(t, lost, r)
}

func TestOutageReset(t *testing.T) {
	lost, r := outage(t, counterConfig(10), func(_ *peer, proxy *faultProxy, _ *rig) { proxy.cut(true) })
	wantNothingLost(t, lost, r)
}

func TestOutageRefused11s(t *testing.T) {
	lost, r := outage(t, counterConfig(10), func(_ *peer, proxy *faultProxy, _ *rig) {
		proxy.refuseAll()
		wait(11 * time.Second)
		proxy.listen(t)
	})
	wantNothingLost(t, lost, r)
	if r.status.Snapshot().Counters[metricRepublished] == 0 {
		t.Error("nothing was republished: the outage missed")
	}
}

func TestOutageStalled25s(t *testing.T) {
	lost, r := outage(t, counterConfig(10), func(_ *peer, proxy *faultProxy, r *rig) {
		proxy.stall.Store(true)
		wait(10 * time.Second)
		if s := r.status.Snapshot(); s.State == sources.Connected {
			t.Error("connected although nothing came for 10 s")
		}
		wait(15 * time.Second)
		proxy.stall.Store(false)
	})
	wantNothingLost(t, lost, r)
}

func TestOutageSessionExpired(t *testing.T) {
	cfg := counterConfig(10)
	cfg.SessionTimeoutSeconds = 10
	lost, r := outage(t, cfg, func(_ *peer, proxy *faultProxy, _ *rig) {
		proxy.refuseAll()
		wait(20 * time.Second)
		proxy.listen(t)
	})
	wantNothingLost(t, lost, r)
}

// ownKill drops a running source as kill -9 does; six seconds later a new one
// starts with the committed resume point.
func ownKill(t *testing.T, opts map[string]any, change func(*Config)) {
	t.Helper()
	p := startPeer(t, opts)
	proxy, url := behindProxy(t, p)
	cfg := counterConfig(10)
	change(&cfg)
	col := &collector{}
	first := run(t, url, cfg, col)
	first.awaitState(t, sources.Connected)
	wait(3 * time.Second)
	// No farewell reaches the server: the connection is cut while nothing is
	// accepted any more.
	proxy.refuseAll()
	first.stop()
	wait(6 * time.Second)
	proxy.listen(t)
	second := run(t, url, cfg, col)
	second.awaitState(t, sources.Connected)
	wait(3 * time.Second)
	wantTakenOver(t, p, second, col)
}

// wantTakenOver ends the counters of p and then second, which must have gone on
// with the subscription of the source before it.
func wantTakenOver(t *testing.T, p *peer, second *rig, col *collector) {
	t.Helper()
	last := uint64(p.tell(t, "freeze"))
	eventually(t, "the last value", func() bool { return col.numbers()["nsu=urn:edgehost:test;s=Counter0"][last] > 0 })
	second.stop()
	wantNothingLost(t, checkCounters(t, col, 10), second)
	if second.status.Snapshot().Counters[metricResumes] == 0 {
		t.Errorf("subscription was not taken over: %v", second.status.Snapshot().Counters)
	}
}

func TestSmokeOwnKill(t *testing.T) {
	ownKill(t, map[string]any{"counters": 10, "everyMs": 100}, func(*Config) {})
}

// TestOwnKillSecured: the same over an encrypted channel, with a user, over
// several subscriptions.
func TestOwnKillSecured(t *testing.T) {
	dir := t.TempDir()
	ownKill(t, map[string]any{"counters": 10, "everyMs": 100, "secure": true, "limits": map[string]int{"perSubscription": 4}}, func(c *Config) {
		c.SecurityPolicy, c.SecurityMode = "Aes256_Sha256_RsaPss", "SignAndEncrypt"
		c.Username, c.Password = "operator", "correct horse"
		c.Trust = TrustConfig{Mode: "tofu", Dir: filepath.Join(dir, "trusted")}
		c.CertificatePath, c.PrivateKeyPath = filepath.Join(dir, "own.der"), filepath.Join(dir, "own.pem")
	})
}

// TestRenewedCertificate renews our certificate while values flow: the source
// connects again with it and loses nothing.
func TestRenewedCertificate(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 10, "everyMs": 100, "secure": true})
	dir := t.TempDir()
	cfg := counterConfig(10)
	cfg.SecurityPolicy, cfg.SecurityMode, cfg.Trust = "Basic256Sha256", "SignAndEncrypt", TrustConfig{Mode: "tofu", Dir: filepath.Join(dir, "trusted")}
	cfg.CertificatePath, cfg.PrivateKeyPath = filepath.Join(dir, "own.der"), filepath.Join(dir, "own.pem")
	r := run(t, p.url, cfg, &collector{})
	r.awaitState(t, sources.Connected)
	due := cfg.withDefaults()
	due.CertificateRenewDays = ownYears * 400
	if _, err := ownIdentity(due, due.ownPaths(dir), quiet); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a connection with the new certificate", func() bool { return r.status.Snapshot().Counters[metricResumes] > 0 })
	r.awaitState(t, sources.Connected)
	wait(2 * time.Second)
	last := uint64(p.tell(t, "freeze"))
	eventually(t, "the last value", func() bool { return r.col.numbers()["nsu=urn:edgehost:test;s=Counter0"][last] > 0 })
	r.stop()
	wantNothingLost(t, checkCounters(t, r.col, 10), r)
}

// restarts is how often TestSmokeServerRestartedOften restarts the server: few
// in a smoke run, -restarts=50 by hand.
var restarts = flag.Int("restarts", 3, "restarts of the server in TestSmokeServerRestartedOften")

// TestSmokeServerRestartedOften: after each restart, with the namespaces in
// turns and in every other round without a node, the values of all nodes that
// are there flow again without help, and the one that is not is named.
func TestSmokeServerRestartedOften(t *testing.T) {
	const gone = "nsu=urn:edgehost:test;s=Counter2"
	p := startPeer(t, map[string]any{"counters": 3})
	r := run(t, p.url, counterConfig(3), &collector{})
	r.awaitState(t, sources.Connected)
	round, got := 0, map[string]int{}
	defer func() { t.Logf("round %d of %d, values %v, status %+v", round, *restarts, got, r.status.Snapshot()) }()
	for i := range *restarts {
		round = i + 1
		p.kill()
		r.awaitState(t, sources.Reconnecting)
		want, state := 3, sources.Connected
		p.opts["namespaces"], p.opts["without"] = []string{"urn:edgehost:test", "urn:b"}, []string{}
		if i%2 == 0 {
			want, state = 2, sources.Degraded
			p.opts["namespaces"], p.opts["without"] = []string{"urn:b", "urn:edgehost:test"}, []string{"Counter2"}
		}
		// What the last connection left to the pipeline still comes.
		since := time.Now().UnixMicro()
		p.start(t)
		r.awaitState(t, state)
		eventually(t, "new values of all nodes that are there", func() bool {
			clear(got)
			for _, rec := range r.col.all() {
				if rec.Status == 0 && rec.IngestTime > since {
					got[rec.Address]++
				}
			}
			return len(got) == want
		})
		if want == 2 && (got[gone] > 0 || !strings.Contains(r.status.Snapshot().Detail, "Counter2")) {
			t.Errorf("round %d: the removed node delivered %d values; status %+v", round, got[gone], r.status.Snapshot())
		}
	}
}

// TestOutageServerRestart kills the server and starts it again with its
// namespaces in another order and one node gone: ids are resolved anew, the
// missing node fails alone, and the hole is counted.
func TestOutageServerRestart(t *testing.T) {
	p := startPeer(t, map[string]any{"counters": 10, "everyMs": 100, "namespaces": []string{"urn:edgehost:test", "urn:edgehost:other"}})
	col := &collector{}
	r := run(t, p.url, counterConfig(10), col)
	r.awaitState(t, sources.Connected)
	eventually(t, "a value", func() bool { return len(col.all()) > 0 })
	before := col.all()[0]
	p.kill()
	r.awaitState(t, sources.Reconnecting)
	p.opts["namespaces"] = []string{"urn:edgehost:other", "urn:edgehost:test"}
	p.opts["without"] = []string{"Counter3"}
	restart := time.Now().UnixMicro() // what the old server sent before may still come
	p.start(t)
	r.awaitState(t, sources.Degraded)
	got := map[string]bool{}
	eventually(t, "values of the other nine", func() bool {
		for _, rec := range col.all() {
			if rec.Status == 0 && rec.EventTime > restart {
				got[rec.Address] = true
			}
		}
		return len(got) == 9
	})
	after := col.all()[len(col.all())-1]
	a, _ := before.Attr(abi.AttrNamespace)
	b, _ := after.Attr(abi.AttrNamespace)
	if a == b {
		t.Errorf("namespace index is %v before and after, although the order changed", a.AsInt())
	}
	if got["nsu=urn:edgehost:test;s=Counter3"] {
		t.Error("the removed node still delivers")
	}
	if d := r.status.Snapshot(); d.Counters[metricGaps] == 0 || !strings.Contains(d.Detail, "Counter3") {
		t.Errorf("want a gap counted and Counter3 named: %+v", d)
	}
	// The node comes back: it is tried again alone.
	p.tell(t, "add Counter3")
	eventually(t, "the node that came back", func() bool { return r.status.Snapshot().State == sources.Connected })
}

// overflow runs an outage that is longer than the queue of the server, and
// returns how many values are missing, in how many holes, and how many of the
// holes have no flagged value behind them. Flagged values without a hole in front
// of them count too.
func overflow(t *testing.T, opts map[string]any, change func(*Config)) (lost, holes, unflagged int, r *rig) {
	t.Helper()
	cfg := counterConfig(opts["counters"].(int))
	cfg.Defaults.QueueSize = new(20)
	cfg.KeepaliveCount, cfg.PublishRequests = 30, 1
	change(&cfg)
	lost, r = outageWith(t, opts, cfg, func(_ *peer, proxy *faultProxy, _ *rig) {
		proxy.refuseAll()
		wait(8 * time.Second)
		proxy.listen(t)
	})
	last, flagged := map[string]uint64{}, map[string]map[uint64]bool{}
	for _, rec := range r.col.all() {
		if v, ok := rec.Attr(abi.AttrOverflow); ok && v.AsBool() {
			if flagged[rec.Address] == nil {
				flagged[rec.Address] = map[uint64]bool{}
			}
			flagged[rec.Address][rec.Value.AsUint()] = true
		}
		if v, ok := rec.Attr(abi.AttrBackfilled); ok && v.AsBool() {
			continue
		}
		n, before := rec.Value.AsUint(), last[rec.Address]
		last[rec.Address] = max(n, before)
		if before == 0 || n <= before+1 {
			continue
		}
		holes++
		if !flagged[rec.Address][n] {
			unflagged++
			t.Logf("%s: %d after %d without a flag", rec.Address, n, before)
		}
		delete(flagged[rec.Address], n)
	}
	for address, rest := range flagged {
		for n := range rest {
			unflagged++
			t.Logf("%s: %d is flagged although nothing is missing in front of it", address, n)
		}
	}
	return lost, holes, unflagged, r
}

// TestOutageQueueTooSmall: what does not fit the server's queue is lost; the
// value behind each hole, and no other, is flagged and counted.
func TestOutageQueueTooSmall(t *testing.T) {
	lost, holes, unflagged, r := overflow(t, map[string]any{"counters": 10, "everyMs": 100}, func(*Config) {})
	counters := r.status.Snapshot().Counters
	if lost == 0 || unflagged > 0 || counters[metricOverflow] != float64(holes) || counters[metricGaps] != 0 {
		t.Errorf("lost %d in %d holes, %d flags wrong, counters %v", lost, holes, unflagged, counters)
	}
	t.Logf("lost %d, holes %d, overflows counted %v, gaps %v", lost, holes, counters[metricOverflow], counters[metricGaps])
}

// TestOutageOverflowBackfilled: the same with history: nothing is lost, and what
// was missing is marked.
func TestOutageOverflowBackfilled(t *testing.T) {
	lost, holes, unflagged, r := overflow(t, map[string]any{"counters": 3, "everyMs": 100, "history": true}, func(c *Config) { c.HistoryBackfill = true })
	back := 0
	for _, rec := range r.col.all() {
		if v, ok := rec.Attr(abi.AttrBackfilled); ok && v.AsBool() {
			back++
		}
	}
	counters := r.status.Snapshot().Counters
	if lost > 0 || holes == 0 || unflagged > 0 || back == 0 || counters[metricBackfilled] != float64(back) || counters[metricOverflow] != float64(holes) {
		t.Errorf("lost %d in %d holes, %d flags wrong, %d back, counters %v", lost, holes, unflagged, back, counters)
	}
	t.Logf("lost %d, holes %d, read from history %d, counted %v", lost, holes, back, counters[metricBackfilled])
}
