package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestJob: the process of a source gets the configuration that was read, to the
// type of each number, and the same resume points fit.
func TestJob(t *testing.T) {
	c := load(t, `
sources:
- name: a
  protocol: opcua
  endpoint: opc.tcp://h:4840
  tags: {line: "1"}
  stale_after_seconds: 2.5
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
	want := opcuaJob{Name: s.Name, Endpoint: s.Endpoint, Tags: s.Tags, Config: *s.OPCUA, Dir: "d", StaleAfter: 2500 * time.Millisecond}
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
