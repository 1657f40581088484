package opcua

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uacp"
	"github.com/gopcua/opcua/uapolicy"
)

// newIdentity makes a certificate and its key of so many bits.
func newIdentity(bits int) (*identity, error) {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, err
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(int64(bits)), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &identity{cert: cert, key: key}, err
}

// identities are made once, since that takes long: three with keys of 2048 bits
// and one of 3072.
var identities = sync.OnceValue(func() (ids [4]*identity) {
	for i, bits := range []int{2048, 2048, 2048, 3072} {
		var err error
		if ids[i], err = newIdentity(bits); err != nil {
			panic(err)
		}
	}
	return ids
})

func emptyHeader() *ua.ResponseHeader {
	return &ua.ResponseHeader{ServiceDiagnostics: &ua.DiagnosticInfo{}, AdditionalHeader: ua.NewExtensionObject(nil)}
}

// wireServer is the other end of a channel. It answers a Read with values and
// does what spoil makes of each frame before it is sent.
type wireServer struct {
	*channel
	issuers []byte        // shown after the certificate
	shown   *protection   // with which it answers the opening, when not its own
	ack     uint32        // the receive buffer that it announces
	life    time.Duration // of its tokens
	values  int           // in the answer to a Read of many nodes; of few, one
	// spoil changes the frames of an answer; kind is that of the answer.
	spoil func(kind string, frames [][]byte) [][]byte
	// before is sent in front of the answer to a Read.
	before func(s *wireServer, id uint32) [][]byte

	tokens  uint32
	renewed chan struct{}
}

// serve listens and serves one channel with the guard of the client's view.
func serve(t *testing.T, guard protection, own *identity, change func(*wireServer)) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mirror := protection{policy: guard.policy, mode: guard.mode, own: own}
	if guard.own != nil {
		mirror.remote = guard.own.cert.Raw
	}
	s := &wireServer{channel: &channel{guard: mirror, wait: time.Second, maxSend: bufferSize, id: 7}, ack: bufferSize, life: time.Hour, values: 1,
		spoil: func(_ string, f [][]byte) [][]byte { return f }, before: func(*wireServer, uint32) [][]byte { return nil }, renewed: make(chan struct{}, 100)}
	change(s)
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		s.conn, s.in = conn, bufio.NewReader(conn)
		for err == nil {
			err = s.answer()
		}
		_, _ = io.Copy(io.Discard, conn)
	})
	t.Cleanup(func() { lis.Close(); wg.Wait() })
	return lis.Addr().String()
}

func (s *wireServer) write(frames [][]byte) error {
	for _, f := range frames {
		if _, err := s.conn.Write(f); err != nil {
			return err
		}
	}
	return nil
}

// answer reads one request, of any number of chunks, and answers it.
func (s *wireServer) answer() error {
	var body []byte
	for {
		frame, err := readChunk(s.in)
		if err != nil {
			return err
		}
		switch kind := string(frame[:3]); kind {
		case "HEL":
			ack, err := ua.Encode(&uacp.Acknowledge{ReceiveBufSize: s.ack, SendBufSize: s.ack})
			if err != nil {
				return err
			}
			head := binary.LittleEndian.AppendUint32([]byte("ACKF"), uint32(frameHead+len(ack)))
			return s.write(s.spoil("ACK", [][]byte{append(head, ack...)}))
		case "OPN":
			return s.answerOpen(frame)
		case "MSG":
			plain, err := s.takeMessage(frame)
			if err != nil {
				return err
			}
			if body = append(body, plain[sequenceSize:]...); frame[3] == 'F' {
				return s.answerRead(binary.LittleEndian.Uint32(plain[4:]), body)
			}
		default:
			return io.EOF
		}
	}
}

func (s *wireServer) answerOpen(frame []byte) error {
	_, _, size, err := splitOpen(frame)
	if err != nil {
		return err
	}
	algo, err := s.guard.asymmetric()
	if err != nil {
		return err
	}
	plain, err := unseal(frame, size, algo, s.guard.signs(), s.guard.signs())
	if err != nil {
		return err
	}
	_, v, err := ua.DecodeService(plain[sequenceSize:])
	if err != nil {
		return err
	}
	req := v.(*ua.OpenSecureChannelRequest)
	nonce, err := algo.MakeNonce()
	if err != nil {
		return err
	}
	keys, err := uapolicy.Symmetric(s.guard.policy, nonce, req.ClientNonce)
	if err != nil {
		return err
	}
	s.tokens++
	res := &ua.OpenSecureChannelResponse{ResponseHeader: emptyHeader(), ServerNonce: nonce,
		SecurityToken: &ua.ChannelSecurityToken{ChannelID: 7, TokenID: s.tokens, RevisedLifetime: uint32(s.life.Milliseconds())}}
	frames, err := s.sealed("OPN", binary.LittleEndian.Uint32(plain[4:]), res)
	if err != nil {
		return err
	}
	// As servers do: the old keys until the client uses the new ones.
	s.previous, s.current = s.current, &token{id: s.tokens, algo: keys, expires: time.Now().Add(time.Hour)}
	if s.tokens > 1 {
		s.renewed <- struct{}{}
	}
	return s.write(s.spoil("OPN", frames))
}

// sealed makes the frames of an answer.
func (s *wireServer) sealed(kind string, id uint32, res any) ([][]byte, error) {
	body, err := ua.Encode(ua.NewFourByteExpandedNodeID(0, ua.ServiceTypeID(res)))
	if err != nil {
		return nil, err
	}
	service, err := ua.Encode(res)
	if err != nil {
		return nil, err
	}
	if kind == "OPN" && s.guard.signs() {
		with := s.guard
		if s.shown != nil {
			with = *s.shown
		}
		c := &channel{guard: with, sequence: s.sequence}
		if with.own != nil {
			c.certs = slices.Concat(with.own.cert.Raw, s.issuers)
		}
		frames, err := c.chunks(kind, 7, nil, id, append(body, service...))
		s.sequence = c.sequence
		return frames, err
	}
	return s.chunks(kind, 7, s.current, id, append(body, service...))
}

func (s *wireServer) answerRead(id uint32, body []byte) error {
	_, v, err := ua.DecodeService(body)
	if err != nil {
		return err
	}
	res := &ua.ReadResponse{ResponseHeader: emptyHeader()}
	values := s.values
	if len(v.(*ua.ReadRequest).NodesToRead) < 1000 {
		values = 1
	}
	for i := range values {
		res.Results = append(res.Results, &ua.DataValue{EncodingMask: ua.DataValueValue, Value: ua.MustVariant(fmt.Sprintf("%s %d", v.(*ua.ReadRequest).NodesToRead[0].NodeID, i))})
	}
	if err := s.write(s.before(s, id)); err != nil {
		return err
	}
	frames, err := s.sealed("MSG", id, res)
	if err != nil {
		return err
	}
	return s.write(s.spoil("MSG", frames))
}

// readOver reads one node, with so many more behind it.
func readOver(ctx context.Context, c *channel, more int) (*ua.ReadResponse, error) {
	req := &ua.ReadRequest{NodesToRead: []*ua.ReadValueID{valueOf(ua.NewStringNodeID(1, "a"))}}
	for i := range more {
		req.NodesToRead = append(req.NodesToRead, valueOf(ua.NewStringNodeID(1, fmt.Sprint("node", i))))
	}
	return call[*ua.ReadResponse](ctx, sessionTransport{c: c}, req)
}

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
