package opcua

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
)

// answerer listens and answers each connection's first message with what reply
// returns, then keeps the connection open until the test ends.
func answerer(t *testing.T, reply func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { close(done); l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.ReadFull(c, make([]byte, 8))
				reply(c)
			}()
			go func() { <-done; c.Close() }()
		}
	}()
	return "opc.tcp://" + l.Addr().String()
}

func errorMessage(code uint32, reason string) []byte {
	b := append([]byte("ERRF"), 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, code)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(reason)))
	b = append(b, reason...)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	return b
}

// TestBadPeers: whatever answers at the port, connecting ends in time with words
// that say what is wrong.
func TestBadPeers(t *testing.T) {
	for name, tc := range map[string]struct {
		reply func(c net.Conn)
		says  string
	}{
		"silence":     {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, "does not answer in time"},
		"hangs up":    {func(net.Conn) {}, "closed the connection during the handshake"},
		"another url": {func(c net.Conn) { _, _ = c.Write(errorMessage(0x80830000, "no")); _, _ = io.Copy(io.Discard, c) }, "does not serve"},
		"http":        {func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "no OPC UA server"},
		"short header": {func(c net.Conn) {
			_, _ = c.Write([]byte{'A', 'C', 'K', 'F', 8, 0, 0, 0})
			_, _ = io.Copy(io.Discard, c)
		}, "opc.tcp://"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := nodes("i=85")
			cfg.SecurityPolicy, cfg.SecurityMode, cfg.RequestTimeoutSeconds = "None", "None", 1
			status := sources.NewStatus("s", protocol)
			src, err := New("s", answerer(t, tc.reply), nil, cfg, Deps{Logger: quiet, Status: status})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			err = src.Run(t.Context(), func(context.Context, sources.Batch, func(error)) error { return nil })
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("want %q, got %v", tc.says, err)
			}
			if took := time.Since(start); took > 8*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestPasswordInClearIsRefused(t *testing.T) {
	d := &dialer{cfg: Config{Username: "u", Password: "p", SecurityPolicy: "None", SecurityMode: "None"}.withDefaults(), log: quiet}
	e := endpoints("None/None")[0]
	e.UserIdentityTokens = []*ua.UserTokenPolicy{{PolicyID: "user", TokenType: ua.UserTokenTypeUserName}}
	if _, err := d.user(e); err == nil || !strings.Contains(err.Error(), "in clear") {
		t.Errorf("password over None: %v", err)
	}
	d.cfg.AllowPlaintextPassword = true
	if _, err := d.user(e); err != nil {
		t.Errorf("allowed, but refused: %v", err)
	}
}
