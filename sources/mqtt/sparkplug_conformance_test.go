//go:build conformance

package mqtt

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// edgeNode is testdata/sparkplug_edge.js.
type edgeNode struct {
	t     *testing.T
	in    io.WriteCloser
	lines chan string
}

func startEdgeNode(t *testing.T, m *mosquitto) *edgeNode {
	t.Helper()
	cmd := exec.Command("node", "testdata/sparkplug_edge.js", m.url())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the edge node (conformance/install-mqtt.sh installs it): %v", err)
	}
	e := &edgeNode{t: t, in: in, lines: make(chan string, 1000)}
	go func() {
		defer close(e.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			e.lines <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		for range e.lines {
		}
	})
	if line := e.line(); line != "ready" {
		t.Fatalf("the edge node says %q", line)
	}
	return e
}

func (e *edgeNode) line() string {
	e.t.Helper()
	select {
	case line, ok := <-e.lines:
		if !ok {
			e.t.Fatal("the edge node has ended")
		}
		return line
	case <-time.After(20 * time.Second):
		e.t.Fatal("the edge node says nothing")
		return ""
	}
}

// publish sends what sparkplug-payload makes of a payload in its own JSON.
func (e *edgeNode) publish(topic, payload string) {
	e.t.Helper()
	if _, err := fmt.Fprintf(e.in, "{\"topic\":%q,\"payload\":%s}\n", topic, strings.ReplaceAll(payload, "\n", " ")); err != nil {
		e.t.Fatal(err)
	}
}

func sparkplugSource(t *testing.T, url, dir string) (*Source, *sources.Status) {
	t.Helper()
	st := sources.NewStatus("m", "mqtt")
	s, err := New("m", url, nil, sparkplugConfig(), Deps{Status: st, Logger: slog.New(slog.DiscardHandler), HostID: "h", StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s, st
}

// last returns the newest record of an address.
func last(k *sink, address string) abi.Record {
	var out abi.Record
	for _, r := range k.records() {
		if r.Address == address {
			out = r
		}
	}
	return out
}

func TestSmokeSparkplugValues(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true").start()
	e := startEdgeNode(t, m)
	s, st := sparkplugSource(t, m.url(), "")
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	e.publish("spBv1.0/g/NBIRTH/n", `{"timestamp": 1767225600123, "seq": 0, "metrics": [
		{"name": "bdSeq", "type": "UInt64", "value": 0},
		{"name": "int8", "type": "Int8", "value": -128}, {"name": "int16", "type": "Int16", "value": -32768},
		{"name": "int32", "type": "Int32", "value": -2147483648}, {"name": "int64", "type": "Int64", "value": "-9223372036854775808"},
		{"name": "uint8", "type": "UInt8", "value": 255}, {"name": "uint16", "type": "UInt16", "value": 65535},
		{"name": "uint32", "type": "UInt32", "value": 4294967295}, {"name": "uint64", "type": "UInt64", "value": "18446744073709551615"},
		{"name": "float", "type": "Float", "value": 1.5}, {"name": "double", "type": "Double", "value": -0.1},
		{"name": "true", "type": "Boolean", "value": true}, {"name": "false", "type": "Boolean", "value": false},
		{"name": "string", "type": "String", "value": "Grüße"}, {"name": "text", "type": "Text", "value": ""}, {"name": "uuid", "type": "UUID", "value": "u-1"},
		{"name": "datetime", "type": "DateTime", "value": 1767225600123},
		{"name": "bytes", "type": "Bytes", "value": {"$bytes": "AP8="}}, {"name": "file", "type": "File", "value": {"$bytes": "Zg=="}},
		{"name": "null", "type": "Int32", "value": null},
		{"name": "unit/deep", "type": "Double", "value": 7, "timestamp": 1767225600000, "properties": {"engUnit": {"type": "String", "value": "bar"}}},
		{"name": "dataset", "type": "DataSet", "value": {"numOfColumns": 3, "columns": ["a", "b", "c"], "types": ["Int8", "String", "Boolean"],
			"rows": [[-1, "x", true], [2, "", false]]}},
		{"name": "template", "type": "Template", "value": {"version": "v1", "templateRef": "motor", "isDefinition": false,
			"metrics": [{"name": "rpm", "type": "Int32", "value": -5}],
			"parameters": [{"name": "size", "type": "UInt32", "value": 9}]}}
	]}`)
	want := map[string]abi.Value{
		"int8": abi.Int(-128), "int16": abi.Int(-32768), "int32": abi.Int(-2147483648), "int64": abi.Int(-9223372036854775808),
		"uint8": abi.Uint(255), "uint16": abi.Uint(65535), "uint32": abi.Uint(4294967295), "uint64": abi.Uint(18446744073709551615),
		"float": abi.Float(1.5), "double": abi.Float(-0.1), "true": abi.Bool(true), "false": abi.Bool(false),
		"string": abi.String("Grüße"), "text": abi.String(""), "uuid": abi.String("u-1"), "datetime": abi.Int(1767225600123),
		"bytes": abi.Bytes([]byte{0, 255}), "file": abi.Bytes([]byte("f")), "null": {}, "unit/deep": abi.Float(7),
		"dataset": abi.JSON(`{"columns":["a","b","c"],"types":["Int8","String","Boolean"],"rows":[[-1,"x",true],[2,"",false]]}`),
		"template": abi.JSON(`{"version":"v1","template_ref":"motor","is_definition":false,"metrics":[{"name":"rpm","type":"Int32","value":-5}],` +
			`"parameters":[{"name":"size","type":"UInt32","value":9}]}`),
	}
	eventually(t, "the birth", func() bool { return len(k.records()) == len(want)+1 })
	for name, value := range want {
		r := last(&k, "g/n/"+name)
		if r.Value != value || (r.Status != 0) != (name == "null") {
			t.Errorf("%s: %v %q with status %#x, want %v %q", name, r.Value.Kind(), r.Value.Text(), r.Status, value.Kind(), value.Text())
		}
	}
	r := last(&k, "g/n/unit/deep")
	if unit, _ := r.Attr(abi.AttrUnit); unit.Text() != "bar" || r.EventTime != 1767225600_000_000 {
		t.Errorf("%+v", r)
	}
}

// TestSmokeSparkplugRebirth goes through the life of an edge node: birth, data
// by alias, our restart with and without the aliases, lost messages, death.
func TestSmokeSparkplugRebirth(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true").start()
	e := startEdgeNode(t, m)
	dir := t.TempDir()
	s, st := sparkplugSource(t, m.url(), dir)
	var k sink
	stop := run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	const nbirth = `{"timestamp": 1767225600123, "seq": 0, "metrics": [{"name": "bdSeq", "type": "UInt64", "value": 7},
		{"name": "speed", "alias": 1, "type": "Int32", "value": 100}]}`
	data := func(seq, value int) string {
		return fmt.Sprintf(`{"timestamp": 1767225600124, "seq": %d, "metrics": [{"alias": 1, "type": "Int32", "value": %d}]}`, seq, value)
	}
	seen := 0
	expect := func(address string, value int64, status uint32) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s = %d with status %#x", address, value, status), func() bool {
			for i, r := range k.records()[seen:] {
				if r.Address == address && r.Value == abi.Int(value) && r.Status == status {
					seen += i + 1
					return true
				}
			}
			return false
		})
	}
	rebirth := func() {
		t.Helper()
		var got struct {
			Topic   string
			Payload struct{ Metrics []struct{ Name string } }
		}
		if line := e.line(); json.Unmarshal([]byte(line), &got) != nil || got.Topic != "spBv1.0/g/NCMD/n" || got.Payload.Metrics[0].Name != "Node Control/Rebirth" {
			t.Errorf("the edge node got %s", line)
		}
	}
	e.publish("spBv1.0/g/NBIRTH/n", nbirth)
	expect("g/n/speed", 100, 0)
	e.publish("spBv1.0/g/DBIRTH/n/d", `{"timestamp": 1, "seq": 1, "metrics": [{"name": "temp", "alias": 2, "type": "Double", "value": 1}]}`)
	e.publish("spBv1.0/g/NDATA/n", data(2, 101))
	expect("g/n/speed", 101, 0)

	// Two messages are lost: the name is doubted, the node is born again.
	e.publish("spBv1.0/g/NDATA/n", data(5, 102))
	expect("g/n/speed", 102, sources.StatusUncertain)
	rebirth()
	expect("g/n/speed", 100, 0)
	e.publish("spBv1.0/g/NDATA/n", data(2, 103))
	expect("g/n/speed", 103, 0)

	// A restart keeps the aliases.
	stop()
	s, st = sparkplugSource(t, m.url(), dir)
	stop = run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	e.publish("spBv1.0/g/NDATA/n", data(3, 104))
	expect("g/n/speed", 104, sources.StatusUncertain)
	rebirth()
	expect("g/n/speed", 100, 0)

	// The aliases are lost: nothing is guessed.
	stop()
	s, st = sparkplugSource(t, m.url(), t.TempDir())
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	e.publish("spBv1.0/g/NDATA/n", data(2, 105))
	rebirth()
	expect("g/n/speed", 100, 0)
	if r := last(&k, "spBv1.0/g/NDATA/n"); r.Status != sources.StatusBadDecoding {
		t.Errorf("%+v", r)
	}
	e.publish("spBv1.0/g/NDATA/n", data(2, 106))
	expect("g/n/speed", 106, 0)

	// The death, with the device's.
	e.publish("spBv1.0/g/NDEATH/n", `{"metrics": [{"name": "bdSeq", "type": "UInt64", "value": 7}]}`)
	eventually(t, "the death of everything", func() bool {
		return last(&k, "g/n/speed").Status == sources.StatusBadNoCommunication && last(&k, "g/n/d/temp").Status == sources.StatusBadNoCommunication
	})
}
