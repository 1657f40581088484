//go:build conformance

package opcua

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// TestSmokeAsyncua reads a server by another author, cuts the connection, and
// wants every value, or a gap that is counted.
func TestSmokeAsyncua(t *testing.T) {
	python, err := filepath.Abs("../../.cache/opcua-venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("asyncua is not installed: %s", install)
	}
	port := freePort(t)
	p := &peer{url: fmt.Sprintf("opc.tcp://127.0.0.1:%d/UA/Peer", port)}
	p.launch(t, python, "asyncua_server.py", fmt.Sprint(port), "5", "100")
	t.Cleanup(p.kill)
	u, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := startProxy(t, u.Host)
	r := run(t, "opc.tcp://"+proxy.addr+u.Path, counterConfig(5), &collector{})
	r.awaitState(t, sources.Connected)
	wait(3 * time.Second)
	proxy.cut(true)
	wait(time.Second)
	r.awaitState(t, sources.Connected)
	wait(3 * time.Second)
	last := uint64(p.tell(t, ""))
	eventually(t, "the last value", func() bool { return r.col.numbers()["nsu=urn:edgehost:test;s=Counter0"][last] > 0 })
	lost, s := checkCounters(t, r.col, 5), r.status.Snapshot()
	if lost > 0 && s.Counters[metricGaps] == 0 {
		t.Errorf("%d values lost and no gap counted: %v", lost, s.Counters)
	}
	t.Logf("lost %d, %v", lost, s.Counters)
}
