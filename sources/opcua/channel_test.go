package opcua

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
	"go.uber.org/goleak"
)

var allPolicies = []string{ua.SecurityPolicyURIBasic256, ua.SecurityPolicyURIBasic256Sha256, ua.SecurityPolicyURIAes128Sha256RsaOaep, ua.SecurityPolicyURIAes256Sha256RsaPss}

// TestChannel opens a channel with every policy and mode, keys of several sizes
// and a certificate with its issuers, and sends messages of one and of many
// chunks over it.
func TestChannel(t *testing.T) {
	small, large := identities()[0], identities()[3]
	guards := map[string]protection{"None": {policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone}}
	servers := map[string]*identity{}
	for i, policy := range allPolicies {
		for _, mode := range []ua.MessageSecurityMode{ua.MessageSecurityModeSign, ua.MessageSecurityModeSignAndEncrypt} {
			name := policyName(policy) + "/" + modeName(mode)
			own, server := small, large
			switch {
			case policy == ua.SecurityPolicyURIBasic256: // no longer keys
				server = small
			case i%2 == 0:
				own, server = large, small
			}
			guards[name], servers[name] = protection{policy: policy, mode: mode, own: own, remote: server.cert.Raw}, server
		}
	}
	leaks := goleak.IgnoreCurrent()
	for name, guard := range guards {
		t.Run(name, func(t *testing.T) {
			secret := []byte("ns=1;s=a")
			var mu sync.Mutex
			clear, length := false, 0
			address := serve(t, guard, servers[name], func(s *wireServer) {
				s.issuers, s.values = small.cert.Raw, 4_000
				s.spoil = func(_ string, frames [][]byte) [][]byte {
					mu.Lock()
					defer mu.Unlock()
					for _, f := range frames {
						clear, length = clear || bytes.Contains(f, secret), max(length, len(f))
					}
					return frames
				}
			})
			c, err := dialChannel(t.Context(), address, "opc.tcp://x", guard, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			for _, more := range []int{0, 1, 2, 3, 5, 3_500} { // every length of padding, and many chunks
				res, err := readOver(t.Context(), c, more)
				if err != nil {
					t.Fatal(err)
				}
				want := 1
				if more == 3_500 {
					want = 4_000
				}
				if n := len(res.Results); n != want || res.Results[n-1].Value.Value() != fmt.Sprint("ns=1;s=a ", want-1) {
					t.Errorf("%d results for %d more nodes, the last %v", n, more, res.Results[n-1].Value.Value())
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if clear == guard.encrypts() || length < bufferSize-1000 {
				t.Errorf("in clear: %v; longest chunk %d bytes", clear, length)
			}
		})
	}
	goleak.VerifyNone(t, leaks)
}

// TestChannelRenews: requests go on while keys are renewed again and again, and
// an answer with the keys before is taken.
func TestChannelRenews(t *testing.T) {
	own, server := identities()[0], identities()[1]
	guard := protection{policy: ua.SecurityPolicyURIBasic256Sha256, mode: ua.MessageSecurityModeSignAndEncrypt, own: own, remote: server.cert.Raw}
	var s *wireServer
	address := serve(t, guard, server, func(w *wireServer) { s, w.life = w, 200*time.Millisecond })
	c, err := dialChannel(t.Context(), address, "opc.tcp://x", guard, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for n := 0; n < 5; {
		if _, err := readOver(t.Context(), c, 0); err != nil {
			t.Fatal(err)
		}
		select {
		case <-s.renewed:
			n++
		default:
		}
	}
}

// TestChannelRefuses: whatever a server sends, the caller gets words and the
// channel ends or goes on; nothing is decoded whose protection is broken.
func TestChannelRefuses(t *testing.T) {
	own, server, other := identities()[0], identities()[1], identities()[2]
	none := protection{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone}
	signed := protection{policy: ua.SecurityPolicyURIBasic256Sha256, mode: ua.MessageSecurityModeSign, own: own, remote: server.cert.Raw}
	sealed := protection{policy: ua.SecurityPolicyURIBasic256Sha256, mode: ua.MessageSecurityModeSignAndEncrypt, own: own, remote: server.cert.Raw}
	cut := func(kind string, size int) func(*wireServer) {
		return func(s *wireServer) {
			s.spoil = func(k string, f [][]byte) [][]byte {
				if k == kind {
					f[0] = f[0][:min(size, len(f[0]))]
					binary.LittleEndian.PutUint32(f[0][4:], uint32(len(f[0])))
				}
				return f
			}
		}
	}
	flip := func(kind string, at int) func(*wireServer) {
		return func(s *wireServer) {
			s.spoil = func(k string, f [][]byte) [][]byte {
				if k == kind {
					f[0][(at+len(f[0]))%len(f[0])] ^= 1
				}
				return f
			}
		}
	}
	buffer := func(n uint32) func(*wireServer) { return func(s *wireServer) { s.ack = n } }
	for name, tc := range map[string]struct {
		guard  protection
		change func(*wireServer)
		says   string
	}{
		"no buffer":          {none, buffer(0), "chunks of 0 bytes"},
		"huge buffer":        {none, buffer(1<<32 - 1), ""},
		"huge chunk":         {none, func(s *wireServer) { s.spoil = huge }, "malformed chunk: 2147483647 bytes"},
		"tiny chunk":         {none, func(s *wireServer) { s.spoil = tiny }, "malformed chunk: 3 bytes"},
		"cut open":           {none, cut("OPN", 12), "ends in its head"},
		"cut message":        {none, cut("MSG", 16), "ends in its head"},
		"no channel":         {none, cut("MSG", 8), "ends in its head"},
		"short signature":    {signed, cut("MSG", 16), "protection is broken"},
		"short ciphertext":   {sealed, cut("MSG", 32), "protection is broken"},
		"no ciphertext":      {sealed, cut("MSG", 16), "protection is broken"},
		"odd ciphertext":     {sealed, cut("MSG", 50), "protection is broken"},
		"cut signed open":    {signed, cut("OPN", 1200), "protection is broken"},
		"another signature":  {signed, flip("MSG", -1), "protection is broken"},
		"another text":       {signed, flip("MSG", 40), "protection is broken"},
		"another ciphertext": {sealed, flip("MSG", 40), "protection is broken"},
		"another token":      {signed, flip("MSG", 12), "are not ours"},
		"another channel":    {signed, flip("MSG", 8), "are not ours"},
		"another policy":     {signed, func(s *wireServer) { s.shown = &none }, "with policy None instead of Basic256Sha256: another machine"},
		"another server": {signed, func(s *wireServer) {
			s.shown = &protection{policy: signed.policy, mode: signed.mode, own: other, remote: own.cert.Raw}
		}, "another certificate than the trusted one: another machine"},
		"twice":           {signed, func(s *wireServer) { s.spoil = twice }, "protection is broken"},
		"too many chunks": {none, func(s *wireServer) { s.before = endless }, "message too large"},
		"an abort":        {none, func(s *wireServer) { s.before = abort }, "BadResponseTooLarge|0x80B90000"},
		"another service": {none, func(s *wireServer) { s.before = anotherService }, "answers with service i=528 instead of i=634"},
		"an error":        {none, func(s *wireServer) { s.before = lastWords }, "too busy to talk"},
		"a goodbye": {none, func(s *wireServer) {
			s.before = func(*wireServer, uint32) [][]byte { return [][]byte{[]byte("CLOF\x08\x00\x00\x00")} }
		}, "EOF"},
		"nonsense": {none, func(s *wireServer) {
			s.before = func(*wireServer, uint32) [][]byte { return [][]byte{[]byte("XYZF\x08\x00\x00\x00")} }
		}, "kind"},
		"a panic of the library": {none, func(s *wireServer) { s.before = negativeArray }, "cannot be decoded"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := serve(t, tc.guard, server, tc.change)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			c, err := dialChannel(ctx, address, "opc.tcp://x", tc.guard, time.Minute)
			for n := 0; err == nil && n < 2; n++ {
				_, err = readOver(ctx, c, 0)
			}
			if c != nil {
				c.close()
			}
			if ctx.Err() != nil {
				t.Fatal("it took two minutes")
			}
			if tc.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !slices.ContainsFunc(strings.Split(tc.says, "|"), func(s string) bool { return strings.Contains(err.Error(), s) }) {
				t.Errorf("want %q, got %v", tc.says, err)
			}
		})
	}
}

func huge(kind string, f [][]byte) [][]byte {
	if kind == "MSG" {
		binary.LittleEndian.PutUint32(f[0][4:], 1<<31-1)
	}
	return f
}

func tiny(kind string, f [][]byte) [][]byte {
	if kind == "MSG" {
		binary.LittleEndian.PutUint32(f[0][4:], 3)
	}
	return f
}

func twice(kind string, f [][]byte) [][]byte {
	if kind == "MSG" {
		return append(f, f...)
	}
	return f
}

// raw is an unsecured frame of the server.
func raw(chunkType byte, id uint32, body []byte) []byte {
	u32 := binary.LittleEndian.AppendUint32
	frame := u32(u32(u32(u32(u32([]byte{'M', 'S', 'G', chunkType}, uint32(24+len(body))), 7), 1), 1), id)
	return append(frame, body...)
}

func endless(_ *wireServer, id uint32) (out [][]byte) {
	part := make([]byte, 60_000)
	for range maxMessage/len(part) + 1 {
		out = append(out, raw('C', id, part))
	}
	return out
}

func abort(_ *wireServer, id uint32) [][]byte {
	return [][]byte{raw('A', id, append(binary.LittleEndian.AppendUint32(nil, uint32(ua.StatusBadResponseTooLarge)), 0xff, 0xff, 0xff, 0xff))}
}

func anotherService(s *wireServer, id uint32) [][]byte {
	body, _ := ua.Encode(ua.NewFourByteExpandedNodeID(0, 528)) // unknown
	return [][]byte{raw('F', id, body)}
}

func lastWords(*wireServer, uint32) [][]byte {
	return [][]byte{errorMessage(0x80040000, "too busy to talk")}
}

// negativeArray is a ReadResponse whose header holds an array of -2 Int32, on
// which the library panics.
func negativeArray(_ *wireServer, id uint32) [][]byte {
	body := append([]byte{1, 0, 0x7a, 0x02}, make([]byte, 8+4+4+1)...)
	body = append(body, 0xff, 0xff, 0xff, 0xff, 1, 0, 0x55, 0x02, 1, 5, 0, 0, 0, 0x86, 0xfe, 0xff, 0xff, 0xff)
	return [][]byte{raw('F', id, body)}
}

// TestUnwantedAnswer: what nobody waits for is dropped without being decoded.
func TestUnwantedAnswer(t *testing.T) {
	guard := protection{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone}
	address := serve(t, guard, nil, func(s *wireServer) {
		s.before = func(s *wireServer, id uint32) [][]byte {
			return append(negativeArray(s, id+1), raw('C', id+1, make([]byte, 60_000)))
		}
	})
	c, err := dialChannel(t.Context(), address, "opc.tcp://x", guard, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for range 3 {
		if _, err := readOver(t.Context(), c, 0); err != nil {
			t.Error(err)
		}
	}
}

// TestRequestTooLarge: a request beyond what the server takes is refused here,
// in a way that makes callers ask for less.
func TestRequestTooLarge(t *testing.T) {
	guard := protection{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone}
	address := serve(t, guard, nil, func(*wireServer) {})
	c, err := dialChannel(t.Context(), address, "opc.tcp://x", guard, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.maxRequest = 1000
	if _, err := readOver(t.Context(), c, 1000); !tooMuch(err) || dead(err) {
		t.Errorf("got %v", err)
	}
	if _, err := readOver(t.Context(), c, 0); err != nil {
		t.Error(err)
	}
}

// FuzzChunk takes any frames as a client with one request open.
func FuzzChunk(f *testing.F) {
	own := identities()[0]
	f.Add(raw('F', 1, []byte{1, 0, 0x8d, 1}), false)
	f.Add(raw('A', 1, []byte{0, 0, 4, 0x80}), true)
	f.Add(raw('C', 1, nil), false)
	f.Add(errorMessage(1, "x"), false)
	f.Add(protection{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone}.openHead(7, nil), false)
	f.Add([]byte("OPNF\x10\x00\x00\x00\x07\x00\x00\x00\xff\xff\xff\x7f"), true)
	f.Fuzz(func(t *testing.T, b []byte, secured bool) {
		guard := protection{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone}
		if secured {
			guard = protection{policy: ua.SecurityPolicyURIBasic256Sha256, mode: ua.MessageSecurityModeSignAndEncrypt, own: own, remote: own.cert.Raw}
		}
		algo, err := uapolicy.Symmetric(guard.policy, make([]byte, 32), make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		c := &channel{guard: guard, id: 7, current: &token{id: 1, algo: algo}, waiting: map[uint32]*waiter{1: {answer: make(chan answer, 1)}}}
		for in := bytes.NewReader(b); ; {
			frame, err := readChunk(in)
			if err != nil {
				return
			}
			if err := c.take(frame); err != nil && errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
	})
}
