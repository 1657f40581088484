package opcua

import (
	"io"
	"net"
	"testing"
)

// TestMeter counts to the byte over two connections, one of them closed.
func TestMeter(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var m meter
	d := net.Dialer{ControlContext: m.watch}
	open := func() (ours, theirs net.Conn) {
		ours, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if theirs, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		return ours, theirs
	}
	send := func(ours, theirs net.Conn, n int) {
		go theirs.Write(make([]byte, n))
		if _, err := io.ReadFull(ours, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	a, peerA := open()
	b, peerB := open()
	if n := m.take(); n != 0 {
		t.Errorf("%d bytes before anything was sent", n)
	}
	send(a, peerA, 100_000)
	send(b, peerB, 7)
	if n := m.take(); n != 100_007 {
		t.Errorf("%d bytes, want 100007", n)
	}
	a.Close()
	send(b, peerB, 3)
	if n := m.take(); n != 3 || len(m.conns) != 1 {
		t.Errorf("%d bytes, want 3; %d connections, want 1", n, len(m.conns))
	}
	// What we send does not count.
	if _, err := b.Write(make([]byte, 50)); err != nil {
		t.Fatal(err)
	}
	if n := m.take(); n != 0 {
		t.Errorf("%d bytes, want 0", n)
	}
}
