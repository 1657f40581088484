package opcua

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

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
