package zerobus_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sinks/sinktest"
	"github.com/edgehost/edgehost/sinks/zerobus"
	"github.com/edgehost/edgehost/sinks/zerobus/zerobustest"
)

// The names of the real service. Only the proxy knows where they are.
const (
	realEndpoint  = "1234567890123456.zerobus.us-west-2.cloud.databricks.com"
	realWorkspace = "dbc-a1b2c3d4-e5f6.cloud.databricks.com"
)

// A24: everything goes through an HTTP CONNECT proxy that the environment names,
// under the production names, with TLS from end to end. The environment is read
// once per process, so that the sink runs in a process of its own.
func TestProxy(t *testing.T) {
	if os.Getenv("EDGEHOST_TEST_PROXY_CA") != "" {
		deliverThroughProxy(t)
		return
	}
	b := newBench(t, zerobustest.Config{Hosts: []string{realEndpoint, realWorkspace}})
	p := newProxy(t, map[string]string{realEndpoint + ":443": b.Addr(), realWorkspace + ":443": b.TokenAddr()})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxy$", "-test.count=1")
	cmd.Env = append(os.Environ(), "EDGEHOST_TEST_PROXY_CA="+b.ca, "HTTPS_PROXY=http://"+p.addr, "https_proxy=", "NO_PROXY=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.delivered(t, 300)
	if got := p.targets(); !slices.Contains(got, realEndpoint+":443") || !slices.Contains(got, realWorkspace+":443") {
		t.Errorf("through the proxy: %v", got)
	}
	if v := b.Stats().Violations; len(v) > 0 {
		t.Errorf("violations: %v", v)
	}
}

func deliverThroughProxy(t *testing.T) {
	b := &bench{id: "client", pass: "secret", ca: os.Getenv("EDGEHOST_TEST_PROXY_CA")}
	o := zerobus.Options{
		Config: zerobus.Config{WorkspaceHost: realWorkspace, ZerobusEndpoint: realEndpoint, CACertPath: b.ca, Target: target},
		Schema: mqttSchema(), Credentials: b.credentials, Log: quiet(),
	}
	s, err := zerobus.New(o)
	if err != nil {
		t.Fatal(err)
	}
	sinktest.Drain(t, s, records(1, 300))
}

// proxy is an HTTP CONNECT proxy that maps names to addresses.
type proxy struct {
	addr string
	wg   sync.WaitGroup
	mu   sync.Mutex
	seen []string
}

func newProxy(t *testing.T, hosts map[string]string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c, hosts) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		p.wg.Wait()
	})
	return p
}

func (p *proxy) serve(c net.Conn, hosts map[string]string) {
	defer c.Close()
	r := bufio.NewReader(c)
	req, err := http.ReadRequest(r)
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	p.mu.Lock()
	p.seen = append(p.seen, req.Host)
	p.mu.Unlock()
	up, err := net.DialTimeout("tcp", hosts[req.Host], 5*time.Second)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n") // the client is told or gone
		return
	}
	defer up.Close()
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, r) // ends with the connection
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, up)
	_ = c.Close()
	<-done
}

func (p *proxy) targets() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

// A proxy that is down is an error that names it.
func TestProxyDown(t *testing.T) {
	if os.Getenv("EDGEHOST_TEST_PROXY_DOWN") != "" {
		o := zerobus.Options{
			Config: zerobus.Config{WorkspaceHost: realWorkspace, ZerobusEndpoint: realEndpoint, Target: target},
			Schema: mqttSchema(), Credentials: (&bench{id: "a", pass: "b"}).credentials, Log: quiet(),
		}
		s, err := zerobus.New(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "proxyconnect") {
			t.Errorf("Open: %v", err)
		}
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyDown$", "-test.count=1")
	cmd.Env = append(os.Environ(), "EDGEHOST_TEST_PROXY_DOWN=1", "HTTPS_PROXY=http://"+addr, "https_proxy=", "NO_PROXY=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
