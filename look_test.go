package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/opcua"
)

// command runs edgehost with a configuration of this text.
func command(t *testing.T, config string, args ...string) (code int, out, errs string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	code = run(t.Context(), append(append([]string{"edgehost"}, args...), "--config", file), strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// sourceText is a configuration with one source, plant.
func sourceText(protocol, endpoint, block string) string {
	return fmt.Sprintf("state_dir: STATE\nsources: [{name: plant, protocol: %s, endpoint: %q, %s: {%s}}]\n", protocol, endpoint, protocol, block)
}

// trace is how a stack trace begins.
var trace = regexp.MustCompile(`goroutine \d+ \[`)

// TestLookAtHostileServer: what ends a process that decodes it leaves the
// commands one line to say, and no stack trace.
func TestLookAtHostileServer(t *testing.T) {
	o, err := startOven(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	for name, a := range attacks() {
		for _, args := range [][]string{{"source", "test", "plant", "--wait", "1m"}, {"opcua", "browse"}} {
			t.Run(name+" "+args[0], func(t *testing.T) {
				r := startHostileRelay(t, o.addr, a)
				r.strike(a.first)
				block := "security_policy: None, security_mode: None, request_timeout_seconds: 30, nodes: [{node_id: i=2258}]"
				code, out, errs := command(t, strings.ReplaceAll(sourceText("opcua", "opc.tcp://"+r.addr, block), "STATE", t.TempDir()), args...)
				unhurt := code == exitOK && errs == ""
				told := code == exitFailure && out == "" && strings.Count(errs, "\n") == 1 && regexp.MustCompile(a.opening).MatchString(errs)
				if unhurt != (a.opening == "") || !unhurt && !told || trace.MatchString(errs) {
					t.Errorf("exit code %d, printed %q\n%s", code, out, errs)
				}
				if r.struck.Load() == 0 {
					t.Error("the server was not hostile")
				}
			})
		}
	}
}

// TestLookAtMuteServer: --wait ends the try at a server that says nothing.
func TestLookAtMuteServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	config := strings.ReplaceAll(sourceText("opcua", "opc.tcp://"+l.Addr().String(), "nodes: [{node_id: i=2258}]"), "STATE", t.TempDir())
	begin := time.Now()
	code, out, errs := command(t, config, "source", "test", "plant", "--wait", "500ms")
	if code != exitFailure || out != "" || errs != "edgehost: source plant: the server has not answered within --wait: check host and port, or give it longer\n" {
		t.Errorf("exit code %d, printed %q\n%s", code, out, errs)
	}
	if took := time.Since(begin); took > 9*time.Second {
		t.Errorf("it took %v, as long as the server's own time-out", took)
	}
}

// TestLookerDies: the end of the process that asks is told in one line.
func TestLookerDies(t *testing.T) {
	var exit *exec.ExitError
	err := exec.Command("false").Run()
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := lookError(fmt.Errorf("source process ended: %w", err)).Error(); !strings.HasPrefix(got, "what the server sent ended the process that read it; check that this is the server you mean: source process ended: exit status 1") {
		t.Error(got)
	}
	if got := lookError(io.EOF); !errors.Is(got, io.EOF) || got.Error() != "EOF" {
		t.Error(got)
	}
}

// demoDevices are the devices of the demo, which publish and change.
func demoDevices(t *testing.T) *demoSystem {
	t.Helper()
	var d demoSystem
	if err := d.startDevices(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	d.plant.run()
	t.Cleanup(func() {
		for _, c := range []func() error{d.plant.close, d.press.close, d.oven.close} {
			if err := c(); err != nil {
				t.Error(err)
			}
		}
	})
	return &d
}

// TestBrowsePrintsConfiguration: what browse prints is a configuration that
// reads the nodes that it found.
func TestBrowsePrintsConfiguration(t *testing.T) {
	d := demoDevices(t)
	const connection = "security_policy: None, security_mode: None, mode: poll, "
	config := strings.ReplaceAll(sourceText("opcua", "opc.tcp://"+d.oven.addr, connection+"nodes: [{node_id: i=2258}]"), "STATE", t.TempDir())
	code, out, errs := command(t, config, "opcua", "browse", "--path", "ns=1;i=85")
	if code != exitOK || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{"temperature  Variable   ns=1;s=oven.temperature", "# 3 variables:\nnodes:\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if code, out, _ := command(t, config, "opcua", "browse", "--depth", "1"); code != exitOK || !strings.Contains(out, "no variable is there") {
		t.Errorf("exit code %d of a browse without variables:\n%s", code, out)
	}
	_, pasted, _ := strings.Cut(out, "\n# ")
	pasted = "  " + strings.ReplaceAll(strings.TrimSpace("# "+pasted), "\n", "\n  ")
	full := fmt.Sprintf("state_dir: %s\nsources:\n- name: plant\n  protocol: opcua\n  endpoint: opc.tcp://%s\n  opcua:\n    %s\n  %s\n", t.TempDir(), d.oven.addr,
		strings.ReplaceAll(strings.TrimSuffix(connection, ", "), ", ", "\n    "), strings.ReplaceAll(pasted, "\n", "\n  "))
	code, out, errs = command(t, full, "source", "test", "plant")
	if code != exitOK || errs != "" || strings.Count(out, "  Good  ") != 3 {
		t.Errorf("exit code %d: %s\n%s\nof the configuration\n%s", code, errs, out, full)
	}
}

// TestLookAnswerParts: a long answer crosses in parts.
func TestLookAnswerParts(t *testing.T) {
	var a, got opcuaAnswer
	for i := range 2*nodesAtOnce + 1 {
		a.Nodes = append(a.Nodes, opcua.BrowseEntry{NodeID: fmt.Sprint(i)})
	}
	a.Truncated = true
	parts := 0
	l := &looker{name: "plant"}
	err := l.send(t.Context(), func(_ context.Context, b sources.Batch, _ func(error)) error {
		parts++
		return got.add(b.Records[0].Value.Text())
	}, a)
	if err != nil || parts != 3 || len(got.Nodes) != len(a.Nodes) || got.Nodes[1000].NodeID != "1000" || !got.Truncated || !got.End {
		t.Errorf("%v, %d parts, %d nodes, %v, %v", err, parts, len(got.Nodes), got.Truncated, got.End)
	}
	if err := got.add("{"); err == nil {
		t.Error("half a part is taken")
	}
}

// TestOPCUADocument: the configuration of docs/opcua.md can be read as it stands.
func TestOPCUADocument(t *testing.T) {
	b, err := os.ReadFile("docs/opcua.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "```yaml\n")
	text, _, found := strings.Cut(text, "```")
	if !found {
		t.Fatal("no configuration in docs/opcua.md")
	}
	c := load(t, text)
	if len(c.Sources) != 1 || c.Sources[0].OPCUA == nil || len(c.Sources[0].OPCUA.Nodes) != 2 {
		t.Errorf("%+v", c.Sources)
	}
}
