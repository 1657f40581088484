package opcua

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uacp"
	"github.com/gopcua/opcua/uapolicy"
)

const (
	// maxMessage bounds what a server may send as one message, in bytes, and
	// maxChunks in chunks.
	maxMessage = 64 << 20
	maxChunks  = maxMessage / minBuffer
	// tokenLife is how long we ask a security token to live; it is renewed after
	// three quarters of what the server grants (Part 4, 5.5.2.1).
	tokenLife = time.Hour
	// goodbye is how long the end of a channel may take.
	goodbye = 2 * time.Second
	// sequenceWrap is how close to the end a sequence number starts again (Part 6,
	// 6.7.2.4).
	sequenceWrap = 1024
)

// channel is a secure channel with a server, gopcua's types and algorithms on a
// wire of our own: the library's takes a server's certificate only without its
// issuers, and decodes what it has not checked.
//
//	roundTrip ──seal──> server ──chunk──> read ──unseal, match──> roundTrip: decode
//
// Any number of goroutines may call roundTrip. A reply that nobody waits for is
// never decoded. When the connection is lost every caller gets the reason.
type channel struct {
	conn  net.Conn
	in    *bufio.Reader
	guard protection
	wait  time.Duration // most time for one write and for a renewal

	// What the server takes; 0 is no limit.
	maxSend                  int
	maxRequest, maxReqChunks uint32
	// certs is our certificate with as many of its issuers as the server takes;
	// nil without security.
	certs []byte

	write    sync.Mutex // the chunks of one message follow each other
	sequence uint32
	arrived  atomic.Uint64 // bytes of the server's chunks
	lastRead uint32        // sequence number; read's own, 0: none yet

	mu       sync.Mutex
	id       uint32
	request  uint32
	waiting  map[uint32]*waiter
	current  *token
	previous *token // the server may still use it
	err      error  // why the channel is dead
	dead     chan struct{}
	wg       sync.WaitGroup
}

// token is a security token with its keys.
type token struct {
	id      uint32
	algo    *uapolicy.EncryptionAlgorithm
	life    time.Duration
	expires time.Time
}

// waiter is a request without an answer yet.
type waiter struct {
	body   []byte // of the chunks so far
	chunks int
	nonce  []byte // not nil: the request opens the channel
	answer chan answer
}

type answer struct {
	body []byte
	err  error
}

// lostError says why a channel is dead.
type lostError struct{ cause error }

func (e *lostError) Error() string { return e.cause.Error() }
func (e *lostError) Unwrap() error { return e.cause }

// dialChannel connects to address (host:port) and opens a channel there. wait
// bounds later writes and renewals; ctx bounds the dialling.
func dialChannel(ctx context.Context, address, endpoint string, guard protection, wait time.Duration) (*channel, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &channel{conn: conn, in: bufio.NewReaderSize(conn, bufferSize), guard: guard, wait: wait,
		waiting: map[uint32]*waiter{}, dead: make(chan struct{})}
	if err := c.hello(ctx, endpoint); err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	c.wg.Go(c.read)
	if err := c.open(ctx, ua.SecurityTokenRequestTypeIssue); err != nil {
		c.fail(err)
		c.wg.Wait()
		return nil, err
	}
	c.wg.Go(c.renew)
	return c, nil
}

// hello agrees on the sizes of buffers (Part 6, 7.1.2.3).
func (c *channel) hello(ctx context.Context, endpoint string) error {
	defer context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })()
	body, err := ua.Encode(&uacp.Hello{ReceiveBufSize: bufferSize, SendBufSize: bufferSize, MaxMessageSize: maxMessage, MaxChunkCount: maxChunks, EndpointURL: endpoint})
	if err != nil {
		return fmt.Errorf("greet the server: %w", err)
	}
	head := binary.LittleEndian.AppendUint32([]byte("HELF"), uint32(frameHead+len(body)))
	if _, err := c.conn.Write(append(head, body...)); err != nil {
		return err
	}
	frame, err := readChunk(c.in)
	if errors.Is(err, errChunk) {
		return fmt.Errorf("what answers is no OPC UA server: %w", err)
	}
	if err != nil {
		return err
	}
	c.arrived.Add(uint64(len(frame)))
	switch kind := string(frame[:4]); kind {
	case "ACKF":
		var ack uacp.Acknowledge
		if _, err := ack.Decode(frame[frameHead:]); err != nil {
			return fmt.Errorf("%w: acknowledgement: %w", errChunk, err)
		}
		if ack.ReceiveBufSize < minBuffer {
			return fmt.Errorf("server takes chunks of %d bytes at most; OPC UA demands %d", ack.ReceiveBufSize, minBuffer)
		}
		c.maxSend = int(min(ack.ReceiveBufSize, bufferSize))
		c.maxRequest, c.maxReqChunks = ack.MaxMessageSize, ack.MaxChunkCount
		if c.guard.own != nil {
			c.certs = c.guard.own.chain(c.maxSend - openRoom)
		}
		return nil
	case "ERRF":
		return decodeError(frame)
	default:
		return fmt.Errorf("what answers is no OPC UA server: it says %q", kind)
	}
}

// decodeError reads an error message (Part 6, 7.1.2.5).
func decodeError(frame []byte) error {
	e := new(uacp.Error)
	if _, err := e.Decode(frame[frameHead:]); err != nil {
		return fmt.Errorf("%w: error message: %w", errChunk, err)
	}
	if e.Reason != "" {
		return fmt.Errorf("server says %.200q: %w", e.Reason, e)
	}
	return e
}

// open asks for a security token.
func (c *channel) open(ctx context.Context, kind ua.SecurityTokenRequestType) error {
	algo, err := c.guard.asymmetric()
	if err != nil {
		return fmt.Errorf("open the channel: %w", err)
	}
	nonce, err := algo.MakeNonce()
	if err != nil {
		return fmt.Errorf("open the channel: %w", err)
	}
	_, err = c.ask(ctx, &ua.OpenSecureChannelRequest{RequestType: kind, SecurityMode: c.guard.mode, ClientNonce: nonce,
		RequestedLifetime: uint32(tokenLife.Milliseconds())}, nil, nonce)
	return err
}

// opened takes the token that a server grants. read calls it before it reads
// on, since what follows may be protected with the new keys.
func (c *channel) opened(nonce, body []byte) error {
	res, err := decodeAnswer[*ua.OpenSecureChannelResponse](body)
	if err != nil {
		return err
	}
	if res.SecurityToken == nil {
		return fmt.Errorf("%w: no security token", errChunk)
	}
	if c.guard.signs() && len(res.ServerNonce) < len(nonce) {
		return fmt.Errorf("%w: a nonce of %d bytes", errProtection, len(res.ServerNonce))
	}
	algo, err := uapolicy.Symmetric(c.guard.policy, nonce, res.ServerNonce)
	if err != nil {
		return fmt.Errorf("open the channel: %w", err)
	}
	life := time.Duration(res.SecurityToken.RevisedLifetime) * time.Millisecond
	if life <= 0 {
		life = tokenLife
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.id = res.SecurityToken.ChannelID
	c.previous, c.current = c.current, &token{id: res.SecurityToken.TokenID, algo: algo, life: life, expires: time.Now().Add(life * 5 / 4)}
	return nil
}

// renew renews the token until the channel is dead.
func (c *channel) renew() {
	for {
		c.mu.Lock()
		due := time.NewTimer(max(c.current.life*3/4, 100*time.Millisecond))
		c.mu.Unlock()
		select {
		case <-c.dead:
			due.Stop()
			return
		case <-due.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), c.wait)
		err := c.open(ctx, ua.SecurityTokenRequestTypeRenew)
		cancel()
		if err != nil {
			c.fail(fmt.Errorf("renew the keys of the channel: %w", err))
			return
		}
	}
}

// fail ends the channel. The first reason stays.
func (c *channel) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = &lostError{err}
	close(c.dead)
	// Nothing can be done about a connection that does not close.
	_ = c.conn.Close()
}

// close says goodbye and ends the channel. Its goroutines have ended when it
// returns.
func (c *channel) close() {
	c.mu.Lock()
	alive := c.err == nil
	c.mu.Unlock()
	if alive {
		// Also for a write that waits for a peer which does not read.
		_ = c.conn.SetWriteDeadline(time.Now().Add(goodbye))
		// The server learns of the end in any case.
		_ = c.send("CLO", 0, &ua.CloseSecureChannelRequest{RequestHeader: &ua.RequestHeader{AuthenticationToken: ua.NewTwoByteNodeID(0), Timestamp: time.Now()}}, goodbye)
	}
	c.fail(net.ErrClosed)
	c.wg.Wait()
}

// roundTrip sends req for the session auth, nil for none, and returns the answer.
// A service that the server refuses is a ua.StatusCode.
func (c *channel) roundTrip(ctx context.Context, req ua.Request, auth *ua.NodeID) (res ua.Response, err error) {
	defer func() {
		if p := recover(); p != nil {
			res, err = nil, fmt.Errorf("server sends what cannot be decoded: %v", p)
		}
	}()
	body, err := c.ask(ctx, req, auth, nil)
	if err != nil {
		return nil, err
	}
	return decodeService(body, ua.ServiceTypeID(req)+3)
}

// ask sends req and returns the body of the answer. nonce is not nil when req
// opens the channel.
func (c *channel) ask(ctx context.Context, req ua.Request, auth *ua.NodeID, nonce []byte) ([]byte, error) {
	if auth == nil {
		auth = ua.NewTwoByteNodeID(0)
	}
	w := &waiter{answer: make(chan answer, 1), nonce: nonce}
	c.mu.Lock()
	c.request = max(c.request+1, 1)
	id := c.request
	c.waiting[id] = w
	c.mu.Unlock()
	defer c.forget(id)
	head := &ua.RequestHeader{AuthenticationToken: auth, Timestamp: time.Now(), RequestHandle: id}
	if until, ok := ctx.Deadline(); ok {
		head.TimeoutHint = uint32(max(time.Until(until).Milliseconds(), 1))
	}
	req.SetHeader(head)
	kind := "MSG"
	if _, ok := req.(*ua.OpenSecureChannelRequest); ok {
		kind = "OPN"
	}
	if err := c.send(kind, id, req, c.wait); err != nil {
		return nil, err
	}
	select {
	case a := <-w.answer:
		return a.body, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.dead:
		select {
		case a := <-w.answer: // it came before the end
			return a.body, a.err
		default:
			return nil, c.lost()
		}
	}
}

func (c *channel) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *channel) forget(id uint32) {
	c.mu.Lock()
	delete(c.waiting, id)
	c.mu.Unlock()
}

// send writes the chunks of one request.
func (c *channel) send(kind string, id uint32, req ua.Request, wait time.Duration) error {
	body, err := ua.Encode(ua.NewFourByteExpandedNodeID(0, ua.ServiceTypeID(req)))
	if err == nil {
		var service []byte
		service, err = ua.Encode(req)
		body = append(body, service...)
	}
	if err != nil {
		return fmt.Errorf("encode %T: %w", req, err)
	}
	c.write.Lock()
	defer c.write.Unlock()
	c.mu.Lock()
	channelID, current := c.id, c.current
	c.mu.Unlock()
	chunks, err := c.chunks(kind, channelID, current, id, body)
	if err != nil {
		return fmt.Errorf("send %T: %w", req, err)
	}
	// The connection may be closed already, which the write tells.
	_ = c.conn.SetWriteDeadline(time.Now().Add(wait))
	for _, chunk := range chunks {
		if _, err := c.conn.Write(chunk); err != nil {
			c.fail(err)
			return c.lost()
		}
	}
	return nil
}

// chunks cuts body into sealed chunks. The caller holds c.write.
func (c *channel) chunks(kind string, channelID uint32, tok *token, id uint32, body []byte) (out [][]byte, err error) {
	u32 := binary.LittleEndian.AppendUint32
	var head []byte
	var algo *uapolicy.EncryptionAlgorithm
	encrypt, most := c.guard.encrypts(), len(body)
	if kind == "OPN" { // one chunk, always encrypted when there are keys
		if algo, err = c.guard.asymmetric(); err != nil {
			return nil, err
		}
		head, encrypt = c.guard.openHead(channelID, c.certs), c.guard.signs()
	} else {
		algo = tok.algo
		head = u32(u32([]byte(kind+"F\x00\x00\x00\x00"), channelID), tok.id)
		most = room(c.maxSend, algo, c.guard.signs(), encrypt)
		n := (len(body) + most - 1) / most
		if c.maxRequest > 0 && uint64(len(body)) > uint64(c.maxRequest) || c.maxReqChunks > 0 && uint64(n) > uint64(c.maxReqChunks) {
			return nil, fmt.Errorf("%w: %d bytes are more than the server takes", errTooLarge, len(body))
		}
	}
	for first := true; first || len(body) > 0; first = false {
		part := body[:min(len(body), most)]
		body = body[len(part):]
		head[3] = 'F'
		if len(body) > 0 {
			head[3] = 'C'
		}
		if c.sequence++; c.sequence > 1<<32-1-sequenceWrap {
			c.sequence = 1
		}
		plain := append(u32(u32(make([]byte, 0, sequenceSize+len(part)), c.sequence), id), part...)
		chunk, err := seal(head, plain, algo, c.guard.signs(), encrypt)
		if err != nil {
			return nil, err
		}
		out = append(out, chunk)
	}
	return out, nil
}
