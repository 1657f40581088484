package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources/opcua"
)

// TestCerts walks a certificate from refused to trusted and back, by the
// beginning of its thumbprint.
func TestCerts(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	text := fmt.Sprintf("state_dir: %s\nsources: [{name: a, protocol: opcua, endpoint: 'opc.tcp://h:4840', opcua: {nodes: [{node_id: i=1}]}}]\n", dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	certs := func(args ...string) string {
		t.Helper()
		var out, errs strings.Builder
		args = append(append([]string{"edgehost", "opcua", "certs"}, args...), "--config", file)
		if code := run(context.Background(), args, strings.NewReader(""), &out, &errs); code != exitOK {
			t.Fatalf("%v: code %d, %s", args, code, errs.String())
		}
		return out.String()
	}
	var own opcua.CertInfo
	if err := json.Unmarshal([]byte(certs("show", "--json")), &own); err != nil {
		t.Fatal(err)
	}
	der, err := os.ReadFile(own.Path)
	if err != nil {
		t.Fatal(err)
	}
	rejected := filepath.Join(dir, "certs", "opcua", "rejected")
	if err := os.MkdirAll(rejected, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rejected, "server.der"), der, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ command, list string }{{"", "rejected"}, {"trust", "trusted"}, {"reject", "rejected"}} {
		if step.command != "" {
			if out := certs(step.command, strings.ToLower(own.Thumbprint[:8])); !strings.HasPrefix(out, step.list+" "+own.Thumbprint) {
				t.Errorf("%s says %q", step.command, out)
			}
		}
		if out := certs("list"); !strings.Contains(out, own.Thumbprint+"  "+step.list) {
			t.Errorf("after %q the list is\n%s", step.command, out)
		}
	}
	if out := certs("show", own.Thumbprint[:8]); !strings.Contains(out, "-----BEGIN CERTIFICATE-----") {
		t.Errorf("show says\n%s", out)
	}
}

// TestTree: nodes stand below their parents, and what is printed below reads
// them.
func TestTree(t *testing.T) {
	var out strings.Builder
	printTree(&out, []opcua.BrowseEntry{
		{NodeID: "ns=2;i=1", BrowsePath: "0:Root/0:Objects/2:Line", Name: "Line", Class: "Object", Depth: 1},
		{NodeID: "ns=2;i=2", BrowsePath: "0:Root/0:Objects/2:a&/b", Name: "a/b\x1b[31m", Class: "Variable", DataType: "Int32", Depth: 1},
		{NodeID: `ns=2;s="x"`, BrowsePath: "0:Root/0:Objects/2:Line/2:T", Name: "T: hot", Class: "Variable", DataType: "Double", Depth: 2},
	}, true)
	tree, config, _ := strings.Cut(out.String(), "\n\n")
	want := "Line  Object   ns=2;i=1\n  T: hot  Variable Double  ns=2;s=\"x\"\na/b [31m  Variable Int32  ns=2;i=2\n" +
		"… there is more: give --path, or a larger --max-nodes"
	if diff := cmp.Diff(want, tree); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	var read struct {
		Nodes []struct {
			NodeID string `yaml:"node_id"`
			Name   string `yaml:"name"`
		} `yaml:"nodes"`
	}
	if err := yaml.Unmarshal([]byte(config), &read); err != nil || len(read.Nodes) != 2 || read.Nodes[0].NodeID != `ns=2;s="x"` || read.Nodes[1].Name != "a/b\x1b[31m" {
		t.Errorf("%v, %+v of\n%s", err, read, config)
	}
}

func TestShown(t *testing.T) {
	for want, v := range map[string]abi.Value{
		"-": {}, "true": abi.Bool(true), "-7": abi.Int(-7), "8": abi.Uint(8), "0.1": abi.Float(0.1), "ff00": abi.Bytes([]byte{255, 0}), "x": abi.String("x"),
	} {
		if got := shown(v); got != want {
			t.Errorf("%v is shown as %q, want %q", v, got, want)
		}
	}
}

// TestSourceTest reads a device that answers.
func TestSourceTest(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			var request [12]byte // MODBUS TCP: header of 7, function, address, count
			if _, err := io.ReadFull(conn, request[:]); err != nil {
				return
			}
			// One register that holds 42.
			conn.Write(append(request[:4:4], 0, 5, request[6], request[7], 2, 0, 42))
		}
	})
	defer wg.Wait()
	defer lis.Close()
	file := filepath.Join(t.TempDir(), "c.yaml")
	text := fmt.Sprintf("sources: [{name: plc, protocol: modbus, endpoint: 'modbus+tcp://%s', modbus: {registers: [{address: 40001, register_type: holding}]}}]\n", lis.Addr())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	code := run(t.Context(), []string{"edgehost", "source", "test", "plc", "--config", file}, strings.NewReader(""), &out, &errs)
	if code != exitOK || !strings.HasPrefix(out.String(), "plc: connected\n") || !strings.Contains(out.String(), "1:40001  42     Good") {
		t.Errorf("code %d, %s\n%s", code, errs.String(), out.String())
	}
}
