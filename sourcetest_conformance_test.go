//go:build conformance

package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources/sourcetest"
)

// tryCase is a `source test` and what it says.
type tryCase struct {
	endpoint, block string // of source plant
	code            int
	out, errs       []string // all of these, besides "edgehost: source plant: "
}

func try(t *testing.T, protocol string, cases map[string]tryCase) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			config := strings.ReplaceAll(sourceText(protocol, c.endpoint, c.block), "STATE", t.TempDir())
			code, out, errs := command(t, config, "source", "test", "plant", "--wait", "5s")
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.out {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not printed", want)
				}
			}
			last := strings.TrimSpace(errs)
			last = last[strings.LastIndexByte(last, '\n')+1:]
			for _, want := range c.errs {
				if !strings.Contains(last, want) {
					t.Errorf("%q is not in the last line of the errors", want)
				}
			}
			if (code == exitOK) != (errs == "") || code != exitOK && !strings.HasPrefix(last, "edgehost: source plant: ") {
				t.Error("errors and exit code do not agree")
			}
			if t.Failed() {
				t.Logf("%s\nerrors: %s", out, errs)
			}
		})
	}
}

// TestTryOPCUA: `source test` against node-opcua.
func TestTryOPCUA(t *testing.T) {
	endpoint, _ := opcuaPeerWith(t, `,"secure":true`)
	strict, _ := opcuaPeerWith(t, `,"secure":true,"autoAccept":false`)
	const (
		none    = "security_policy: None, security_mode: None, "
		secured = "trust: {mode: tofu}, "
		node    = "nodes: [{node_id: 'nsu=urn:edgehost:test;s=Level'}]"
	)
	try(t, "opcua", map[string]tryCase{
		"values": {endpoint, none + node, exitOK, []string{"plant: connected, None/None\n", "nsu=urn:edgehost:test;s=Level  100    Good     20"}, nil},
		"user": {endpoint, secured + "username: operator, password: correct horse, " + node, exitOK,
			[]string{"plant: connected, Aes256_Sha256_RsaPss/SignAndEncrypt\n", "s=Level  100    Good "}, nil},
		"some": {endpoint, none + "nodes: [{node_id: 'ns=2;s=Level'}, {node_id: 'ns=2;s=Absent'}, {browse_path: 'Objects/2:Plant/2:Absent'}, {node_id: 'ns=2;s=Gone'}]", exitOK,
			[]string{"missing: Objects/2:Plant/2:Absent: browse path: BadNoMatch", "ns=2;s=Level   100    Good ", "ns=2;s=Absent  -      not good: The node id refers to a node that does not exist", "ns=2;s=Gone    -      not good: "}, nil},
		"no such node":       {endpoint, none + "nodes: [{node_id: 'ns=2;s=Absent'}]", exitFailure, []string{"plant: connected"}, []string{"not one value is good", "The node id refers to a node that does not exist"}},
		"no such path":       {endpoint, none + "nodes: [{browse_path: 'Objects/2:Absent'}]", exitFailure, []string{"missing: Objects/2:Absent: browse path: BadNoMatch"}, []string{"nothing of what is configured", "edgehost opcua browse"}},
		"no data":            {endpoint, none + "nodes: [{node_id: 'ns=2;s=Gone'}]", exitFailure, []string{"ns=2;s=Gone"}, []string{"not one value is good", "failure"}},
		"nobody there":       {"opc.tcp://" + closedPort(t), none + node, exitFailure, nil, []string{"nothing listens at", "correct host and port"}},
		"wrong host":         {"opc.tcp://no-such-host.invalid:4840", none + node, exitFailure, nil, []string{"no-such-host.invalid does not resolve", "correct the endpoint or DNS"}},
		"wrong password":     {endpoint, secured + "username: operator, password: wrong, " + node, exitFailure, nil, []string{"check opcua.username and opcua.password"}},
		"untrusted":          {endpoint, "trust: {mode: list}, " + node, exitFailure, nil, []string{"is not trusted", "edgehost opcua certs trust "}},
		"we are refused":     {strict, secured + node, exitFailure, nil, []string{"trust our certificate ", " on the server"}},
		"password to nobody": {endpoint, none + "username: operator, password: correct horse, " + node, exitFailure, nil, []string{"is not trusted"}},
	})
}

// TestBrowseIsConfiguration pastes what `opcua browse` prints of node-opcua into
// a configuration, by the trust list that a person fills, and reads it.
func TestBrowseIsConfiguration(t *testing.T) {
	endpoint, _ := opcuaPeerWith(t, `,"secure":true,"types":true`)
	state := t.TempDir()
	config := func(nodes string) string {
		return strings.ReplaceAll(sourceText("opcua", endpoint, nodes), "STATE", state)
	}
	before := config("nodes: [{node_id: i=2258}]")
	code, _, errs := command(t, before, "opcua", "browse", "--path", "Objects/3:Plant")
	_, print, told := strings.Cut(errs, "edgehost opcua certs trust ")
	if code != exitFailure || !told {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	print, _, _ = strings.Cut(print, "`")
	if code, _, errs := command(t, before, "opcua", "certs", "trust", print); code != exitOK {
		t.Fatalf("trust: %s", errs)
	}
	code, out, errs := command(t, before, "opcua", "browse", "--path", "Objects/3:Plant")
	if code != exitOK || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	tree, pasted, _ := strings.Cut(out, "\n# ")
	var count int
	if _, err := fmt.Sscanf(pasted, "%d variables:", &count); err != nil || count < 60 || strings.Count(tree, " Variable ") < count {
		t.Fatalf("%d variables, %v:\n%s", count, err, tree)
	}
	_, nodes, _ := strings.Cut(pasted, "\nnodes:\n")
	after := strings.ReplaceAll(config("PASTED"), "{PASTED}", "\n    nodes:\n    "+strings.ReplaceAll(strings.TrimSpace(nodes), "\n", "\n    "))
	after = strings.ReplaceAll(strings.ReplaceAll(after, "sources: [{", "sources:\n- "), "}]\n", "\n")
	after = strings.ReplaceAll(strings.ReplaceAll(after, ", protocol", "\n  protocol"), ", endpoint", "\n  endpoint")
	after = strings.ReplaceAll(after, ", opcua:", "\n  opcua:")
	code, out, errs = command(t, after, "source", "test", "plant")
	if code != exitOK || errs != "" || strings.Count(out, "\n") != count+2 || strings.Count(out, "  Good  ") < count-1 {
		t.Errorf("exit code %d: %s\n%s\nof\n%s", code, errs, out, after)
	}
	if code, _, errs := command(t, before, "opcua", "browse", "--path", "Objects/3:Absent"); code != exitFailure || !strings.Contains(errs, "BadNoMatch") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

// TestTryMQTT: `source test` against mosquitto.
func TestTryMQTT(t *testing.T) {
	dir, addr, secure := t.TempDir(), freePort(t), freePort(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := sourcetest.NewCA(t)
	cert, key := ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour))
	users := filepath.Join(dir, "users")
	if out, err := exec.Command("mosquitto_passwd", "-c", "-b", users, "operator", "correct horse").CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd (conformance/install-mqtt.sh installs it): %v: %s", err, out)
	}
	conf := filepath.Join(dir, "mosquitto.conf")
	text := fmt.Sprintf("user root\nallow_anonymous false\npassword_file %s\nlistener %s 127.0.0.1\nlistener %s 127.0.0.1\ncertfile %s\nkeyfile %s\n", users, port(addr), port(secure), cert, key)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	startProcess(t, io.Discard, nil, "mosquitto", "-c", conf)
	waitFor(t, "mosquitto", func() bool { c, err := net.Dial("tcp", addr); return err == nil && c.Close() == nil })
	pub := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port(addr), "-u", "operator", "-P", "correct horse", "-t", "plant/t1", "-r", "-q", "1", "-m", `{"value": 21.5}`)
	if out, err := pub.CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
	const user = "username: operator, password: correct horse, "
	topics := func(topic string) string { return "topics: [{topic: '" + topic + "', qos: 1}]" }
	try(t, "mqtt", map[string]tryCase{
		"values":         {"mqtt://" + addr, user + topics("plant/#"), exitOK, []string{"plant: connected\n", "plant/t1  21.5   Good     20"}, nil},
		"TLS":            {"mqtts://" + secure, user + "tls: {ca_cert_path: " + ca.CertFile + "}, " + topics("plant/#"), exitOK, []string{"plant/t1  21.5   Good "}, nil},
		"no data":        {"mqtt://" + addr, user + topics("other/#"), exitFailure, nil, []string{"connected, but nothing came within --wait"}},
		"nobody there":   {"mqtt://" + closedPort(t), user + topics("plant/#"), exitFailure, nil, []string{"nothing listens there"}},
		"wrong host":     {"mqtt://no-such-host.invalid", user + topics("plant/#"), exitFailure, nil, []string{"no-such-host.invalid", "name"}},
		"wrong password": {"mqtt://" + addr, "username: operator, password: wrong, " + topics("plant/#"), exitFailure, nil, []string{"mqtt.username and mqtt.password"}},
		"untrusted":      {"mqtts://" + secure, user + topics("plant/#"), exitFailure, nil, []string{"set mqtt.tls.ca_cert_path"}},
	})
}

// TestTryModbus: `source test` against libmodbus.
func TestTryModbus(t *testing.T) {
	addr := modbusPeer(t, []float32{1.5, -2.25})
	ca := sourcetest.NewCA(t)
	cert, key := ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour))
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	// libmodbus has no TLS; the handshake is all that this device gets to.
	secure, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	defer secure.Close()
	go func() {
		for {
			conn, err := secure.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); _, _ = io.Copy(io.Discard, conn) }()
		}
	}()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	registers := func(from int) string {
		return "slave_id: 1, registers: [{address: " + strconv.Itoa(from) + ", count: 4, register_type: holding, data_type: float32}]"
	}
	try(t, "modbus", map[string]tryCase{
		"values":           {"modbus+tcp://" + addr, registers(40001), exitOK, []string{"plant: connected\n", "1:40001  1.5    Good     20", "1:40003  -2.25  Good "}, nil},
		"no such register": {"modbus+tcp://" + addr, registers(49000), exitFailure, []string{"1:49000"}, []string{"not one value is good", "illegal"}},
		"no data":          {"modbus+tcp://" + mute.Addr().String(), registers(40001), exitFailure, []string{"plant: degraded, no point can be read"}, []string{"no reply within timeout_ms", "check slave_id, wiring"}},
		"nobody there":     {"modbus+tcp://" + closedPort(t), registers(40001), exitFailure, nil, []string{"nothing listens there"}},
		"wrong host":       {"modbus+tcp://no-such-host.invalid:502", registers(40001), exitFailure, nil, []string{"no-such-host.invalid", "name"}},
		"untrusted":        {"modbus+tls://" + secure.Addr().String(), registers(40001), exitFailure, nil, []string{"certificate"}},
	})
}
