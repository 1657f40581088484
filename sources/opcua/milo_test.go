//go:build conformance

package opcua

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// startMilo starts testdata/milo/MiloServer.java with options name=value.
func startMilo(t *testing.T, opts ...string) *peer {
	t.Helper()
	dir, err := filepath.Abs("../../.cache/milo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "MiloServer.class")); err != nil {
		t.Fatalf("Eclipse Milo is not installed: %s", install)
	}
	port := freePort(t)
	p := &peer{url: fmt.Sprintf("opc.tcp://127.0.0.1:%d/UA/Peer", port)}
	// A machine that starts is not worth the better of its compilers.
	args := []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-cp", dir + ":" + dir + "/lib/*", "MiloServer", fmt.Sprintf("port=%d", port)}
	p.launch(t, "java", append(args, opts...)...)
	t.Cleanup(p.kill)
	return p
}

// TestMilo is the core of this suite against a server by a third author: what
// the others showed must not be theirs alone.
func TestMilo(t *testing.T) {
	p := startMilo(t, "counters=10", "idle=300", "read=50", "items=100", "browse=7", "translate=20")
	t.Run("security", func(t *testing.T) { miloSecurity(t, p) })
	t.Run("limits", func(t *testing.T) { miloLimits(t, p) })
	t.Run("one bad node", func(t *testing.T) { miloBadNode(t, p) })
	t.Run("deadband", func(t *testing.T) { miloDeadband(t, p) })
	t.Run("structures", func(t *testing.T) { miloStructures(t, p) })
	t.Run("outage", func(t *testing.T) { miloOutage(t, p) })
	t.Run("take-over", func(t *testing.T) { miloTakeOver(t, p) }) // stops the counters
}

func miloSecurity(t *testing.T, p *peer) {
	dir := t.TempDir()
	cert, key := userCertificate(t)
	for _, policy := range []string{"None", "Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"} {
		mode := "SignAndEncrypt"
		if policy == "None" {
			mode = "None"
		}
		for user, set := range map[string]func(*Config){
			"anonymous": func(*Config) {},
			"user":      func(c *Config) { c.Username, c.Password = "operator", "correct horse" },
			"x509":      func(c *Config) { c.UserCertificatePath, c.UserPrivateKeyPath = cert, key },
		} {
			cfg := secured(policy, mode)
			set(&cfg)
			if err := readOnce(t, p.url, cfg, dir); err != nil {
				t.Errorf("%s, %s: %v", policy, user, err)
			}
		}
	}
	cfg := secured("Basic256Sha256", "SignAndEncrypt")
	cfg.Username, cfg.Password = "operator", "wrong"
	if err := readOnce(t, p.url, cfg, dir); err == nil || sources.ErrorState(marked(err)) != sources.AuthFailed {
		t.Errorf("wrong password: %v", err)
	} else {
		t.Logf("wrong password: %v", err)
	}
}

// miloLimits finds and subscribes to 310 variables by calls of 7, 20, 50 and 100.
func miloLimits(t *testing.T, p *peer) {
	cfg := plain(NodeConfig{BrowsePath: "Objects/2:Plant", Recursive: true, Include: []string{"Counter*", "Idle*"}})
	r := run(t, p.url, cfg, &collector{})
	got := map[string]bool{}
	eventually(t, "310 values", func() bool {
		for _, rec := range r.col.all() {
			got[rec.Address] = rec.Status == 0
		}
		return len(got) == 310
	})
	r.awaitState(t, sources.Connected)
	for address, good := range got {
		if !good {
			t.Errorf("%s is not good", address)
		}
	}
	if n := r.status.Snapshot().Counters[metricItems]; n != 310 {
		t.Errorf("%v items, want 310", n)
	}
}

func miloBadNode(t *testing.T, p *peer) {
	cfg := counterConfig(10)
	cfg.Nodes = append(cfg.Nodes, NodeConfig{NodeID: "nsu=urn:edgehost:test;s=Missing"})
	r := run(t, p.url, cfg, &collector{})
	r.awaitState(t, sources.Degraded)
	eventually(t, "ten counters", func() bool { return len(r.col.numbers()) == 10 })
	if d := r.status.Snapshot().Detail; !strings.Contains(d, "1 of 11") || !strings.Contains(d, "Missing (BadNodeIdUnknown)") {
		t.Errorf("detail %q", d)
	}
}

func miloDeadband(t *testing.T, p *peer) {
	percent := &DeadbandConfig{Type: "percent", Value: 10}
	absolute := &DeadbandConfig{Type: "absolute", Value: 20}
	for _, band := range []*DeadbandConfig{percent, absolute} {
		p.tell(t, "set Level 100")
		p.tell(t, "set Set 0")
		cfg := plain(NodeConfig{NodeID: "nsu=urn:edgehost:test;s=Level"}, NodeConfig{NodeID: "nsu=urn:edgehost:test;s=Set"})
		cfg.Nodes[0].Deadband, cfg.Nodes[1].Deadband = band, percent
		r := run(t, p.url, cfg, &collector{})
		r.awaitState(t, sources.Connected)
		eventually(t, "both values", func() bool { return len(r.col.all()) == 2 })
		raiseLevel(t, p, r)
		got := floats(r.col)
		if s := fmt.Sprint(got["nsu=urn:edgehost:test;s=Level"]); s != "[100 125 160]" {
			t.Errorf("%s: analog item %s, want 100, 125 and 160", band.Type, s)
		}
		if s := fmt.Sprint(got["nsu=urn:edgehost:test;s=Set"]); s != "[0 1 2 3 4 5]" {
			t.Errorf("item without EURange %s, want every change", s)
		}
		if d := r.status.Snapshot().Detail; !strings.Contains(d, "1 of 2 items come at every change") {
			t.Errorf("detail %q", d)
		}
		r.stop()
	}
}

// miloStructures: optional fields and unions by the server's own definitions,
// and the bytes of a structure that it does not define.
func miloStructures(t *testing.T, p *peer) {
	r := run(t, p.url, plain(NodeConfig{BrowsePath: "Objects/2:Plant/2:Types", Recursive: true}), &collector{})
	want := map[string]string{
		"OptionalNone": `{"x":1.5}`, "OptionalSecond": `{"x":1.5,"count":7}`, "OptionalBoth": `{"x":-2.5,"note":"ok","count":8}`,
		"ChoiceNumber": `{"number":42}`, "ChoiceText": `{"text":""}`, "ChoiceNone": "null",
		"Opaque": "", // only its bytes
	}
	got := map[string]string{}
	eventually(t, "seven structures", func() bool { return len(r.col.all()) >= len(want) })
	for _, rec := range r.col.all() {
		_, name, _ := strings.Cut(rec.Address, ";s=")
		got[name] = rec.Value.Text()
		raw, _ := rec.Attr(abi.AttrRaw)
		if reason, _ := rec.Attr(abi.AttrReason); (name == "Opaque") != (raw.Text() == "\x04\x03\x02\x01") || (name == "Opaque") != (reason.Text() != "") {
			t.Errorf("%s: raw bytes %x, %s", name, raw.Text(), reason.Text())
		}
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s is %s, want %s", name, got[name], text)
		}
	}
}

// miloOutage refuses connections for a while and loses nothing.
func miloOutage(t *testing.T, p *peer) {
	proxy, url := behindProxy(t, p)
	r := run(t, url, counterConfig(10), &collector{})
	r.awaitState(t, sources.Connected)
	wait(2 * time.Second)
	proxy.cut(true)
	wait(2 * time.Second)
	proxy.refuseAll()
	wait(6 * time.Second)
	proxy.listen(t)
	r.awaitState(t, sources.Connected)
	n := uint64(p.tell(t, "now"))
	eventually(t, "the present value", func() bool { return r.col.numbers()["nsu=urn:edgehost:test;s=Counter0"][n] > 0 })
	r.stop()
	wantNothingLost(t, checkCounters(t, r.col, 10), r)
	if r.status.Snapshot().Counters[metricResumes] == 0 {
		t.Errorf("nothing was resumed: %v", r.status.Snapshot().Counters)
	}
}

// miloTakeOver stops the source, and another takes its subscription over: on a
// secured channel and with a user, as Part 4, 5.13.7 asks for.
func miloTakeOver(t *testing.T, p *peer) {
	dir := t.TempDir()
	cfg := counterConfig(10)
	cfg.SecurityPolicy, cfg.SecurityMode, cfg.Username, cfg.Password = "Basic256Sha256", "SignAndEncrypt", "operator", "correct horse"
	cfg.Trust = TrustConfig{Mode: "tofu", Dir: filepath.Join(dir, "trusted")}
	cfg.CertificatePath, cfg.PrivateKeyPath = filepath.Join(dir, "own.der"), filepath.Join(dir, "own.pem")
	col := &collector{}
	first := run(t, p.url, cfg, col)
	first.awaitState(t, sources.Connected)
	wait(3 * time.Second)
	first.stop()
	wait(3 * time.Second)
	second := run(t, p.url, cfg, col)
	second.awaitState(t, sources.Connected)
	wait(2 * time.Second)
	wantTakenOver(t, p, second, col)
}
