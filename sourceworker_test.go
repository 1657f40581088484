package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/sources"
)

// hostileServer answers every OPC UA connection with reply as the body of the
// answer to OpenSecureChannel: before anybody authenticated anything.
func hostileServer(t *testing.T, reply []byte) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(t.Context(), func() { conn.Close() })()
				answerHostile(conn, reply)
			})
		}
	})
	t.Cleanup(func() { lis.Close(); wg.Wait() })
	return "opc.tcp://" + lis.Addr().String()
}

// answerHostile speaks Part 6, 7.1 and 6.7 as far as the first answer.
func answerHostile(conn net.Conn, reply []byte) {
	u32 := binary.LittleEndian.AppendUint32
	message := func(kind string, body []byte) {
		conn.Write(append(u32([]byte(kind), uint32(8+len(body))), body...))
	}
	readMessage := func() bool {
		var head [8]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return false
		}
		_, err := io.CopyN(io.Discard, conn, int64(binary.LittleEndian.Uint32(head[4:]))-8)
		return err == nil
	}
	if !readMessage() { // HEL
		return
	}
	message("ACKF", u32(u32(u32(u32(u32(nil, 0), 65535), 65535), 0), 0))
	if !readMessage() { // OPN
		return
	}
	const none = "http://opcfoundation.org/UA/SecurityPolicy#None"
	body := append(u32(u32(nil, 1), uint32(len(none))), none...)
	body = u32(u32(body, 0xffffffff), 0xffffffff) // no certificate, no thumbprint
	body = u32(u32(body, 1), 1)                   // sequence number, request id
	body = append(body, 1, 0, 0xc1, 0x01)         // OpenSecureChannelResponse, i=449
	body = append(body, make([]byte, 8+4+4+1)...) // timestamp, handle, result, diagnostics
	message("OPNF", append(body, reply...))
	io.Copy(io.Discard, conn)
}

// hostileReplies are the rest of a ResponseHeader: string table and additional
// header.
var hostileReplies = map[string]struct {
	reply []byte
	want  string
}{
	// An array of 2^31-1 strings: 32 GiB.
	"allocation": {[]byte{0xff, 0xff, 0xff, 0x7f}, "allocat|address space collisions for -race"},
	// A LiteralOperand (i=597) with a Variant that is an array of -2 Int32.
	"panic": {[]byte{0xff, 0xff, 0xff, 0xff, 1, 0, 0x55, 0x02, 1, 5, 0, 0, 0, 0x86, 0xfe, 0xff, 0xff, 0xff}, "panic: "},
}

// TestHostileServer runs the host against servers that end a process: it is one
// of its own each time, the status says how it ended, and the host goes on.
func TestHostileServer(t *testing.T) {
	dir := t.TempDir()
	var list strings.Builder
	for name, h := range hostileReplies {
		fmt.Fprintf(&list, "- {name: %s, protocol: opcua, endpoint: %q, opcua: {nodes: [{node_id: i=2258}]}}\n", name, hostileServer(t, h.reply))
	}
	cfg := load(t, "state_dir: "+filepath.Join(dir, "state")+"\nresilience: {reconnect: {initial_delay_seconds: 0.05, max_delay_seconds: 0.05}}\n"+
		"sinks: {file: {dir: "+filepath.Join(dir, "rows")+"}}\nsources:\n"+list.String())
	cfg.Spool.KeyEnv = ""
	ctx, cancel := context.WithCancel(t.Context())
	h, err := newHost(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the host ended with %v", err)
		}
	}()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for told := map[string]bool{}; len(told) < len(hostileReplies); {
		select {
		case <-deadline:
			t.Fatalf("waited 30 s; told so far: %v", told)
		case <-tick.C:
		}
		st, err := h.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range st.Sources {
			if strings.HasPrefix(s.Detail, "source process ended: ") && regexp.MustCompile(hostileReplies[s.Name].want).MatchString(s.Detail) &&
				s.Counters[sources.MetricReconnects] > 1 {
				told[s.Name] = true
			}
		}
	}
}

// TestJob: the process of a source gets the configuration that was read, to the
// type of each number, and the same resume points fit.
func TestJob(t *testing.T) {
	c := load(t, `
sources:
- name: a
  protocol: opcua
  endpoint: opc.tcp://h:4840
  tags: {line: "1"}
  opcua:
    username: u
    password: ${PASSWORD}
    resume_on_restart: false
    defaults: {skip_first: false, heartbeat_seconds: 0}
    nodes: [{node_id: i=1, queue_size: 1, deadband: {type: absolute, value: 0.5}}]
    events:
    - {node_id: i=2253, where: [{field: A, op: eq, value: 500}, {field: B, op: eq, value: 500.0}, {field: C, op: eq, value: true}, {field: D, op: eq, value: "5"}]}
`)
	s := &c.Sources[0]
	want := opcuaJob{Name: s.Name, Endpoint: s.Endpoint, Tags: s.Tags, Config: *s.OPCUA, Dir: "d"}
	b, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeJob(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the process gets another configuration (-want +got):\n%s", diff)
	}
	if v := s.OPCUA.Events[0].Where[1].Value; v != 500.0 {
		t.Errorf("encoding changed the configuration: %T", v)
	}
	if _, err := decodeJob([]byte("{")); err == nil {
		t.Error("half a configuration is decoded")
	}
}
