package opcua

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gopcua/opcua/ua"
)

// read takes chunks until the connection is lost.
func (c *channel) read() {
	defer func() {
		if p := recover(); p != nil {
			c.fail(fmt.Errorf("server sends what cannot be decoded: %v", p))
		}
	}()
	for {
		frame, err := readChunk(c.in)
		if err == nil {
			c.arrived.Add(uint64(len(frame)))
			err = c.take(frame)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// take takes one chunk of the server.
func (c *channel) take(frame []byte) error {
	var plain []byte
	var err error
	switch string(frame[:3]) {
	case "MSG":
		plain, err = c.takeMessage(frame)
	case "OPN":
		plain, err = c.takeOpen(frame)
	case "ERR":
		return decodeError(frame)
	case "CLO":
		return io.EOF
	default:
		return fmt.Errorf("%w: kind %q", errChunk, frame[:4])
	}
	if err != nil {
		return err
	}
	sequence, id := binary.LittleEndian.Uint32(plain), binary.LittleEndian.Uint32(plain[4:])
	if last := c.lastRead; c.guard.signs() && last != 0 && sequence != last+1 && !(last > 1<<32-1-sequenceWrap && sequence < sequenceWrap) {
		return fmt.Errorf("%w: chunk %d after %d", errProtection, sequence, last)
	}
	c.lastRead = sequence
	c.mu.Lock()
	w := c.waiting[id]
	c.mu.Unlock()
	if w == nil {
		return nil // nobody waits any more
	}
	return c.collect(w, id, frame[3], plain[sequenceSize:], string(frame[:3]) == "OPN")
}

// collect adds a chunk to the answer to a request, and delivers it when it is
// whole.
func (c *channel) collect(w *waiter, id uint32, chunkType byte, part []byte, opens bool) error {
	if opens != (w.nonce != nil) {
		return fmt.Errorf("%w: an answer of the wrong kind", errChunk)
	}
	done := func(a answer) {
		c.forget(id)
		w.answer <- a
	}
	switch chunkType {
	case 'A':
		if len(part) < 4 {
			return fmt.Errorf("%w: an abort without a reason", errChunk)
		}
		done(answer{err: ua.StatusCode(binary.LittleEndian.Uint32(part))})
		return nil
	case 'C', 'F':
	default:
		return fmt.Errorf("%w: chunk type %q", errChunk, chunkType)
	}
	if w.chunks++; w.chunks > maxChunks || len(w.body)+len(part) > maxMessage {
		done(answer{err: fmt.Errorf("%w: an answer of more than %d MiB", errTooLarge, maxMessage>>20)})
		return nil
	}
	if w.body == nil && chunkType == 'F' {
		w.body = part
	} else {
		w.body = append(w.body, part...)
	}
	if chunkType == 'C' {
		return nil
	}
	a := answer{body: w.body}
	if opens {
		a.err = c.opened(w.nonce, w.body)
	}
	done(a)
	return nil
}

func (c *channel) takeMessage(frame []byte) ([]byte, error) {
	if len(frame) < symmetric {
		return nil, fmt.Errorf("%w: it ends in its head", errChunk)
	}
	id, tokenID := binary.LittleEndian.Uint32(frame[8:]), binary.LittleEndian.Uint32(frame[12:])
	c.mu.Lock()
	ours, current, previous := c.id, c.current, c.previous
	c.mu.Unlock()
	tok := current
	if previous != nil && tokenID == previous.id && time.Now().Before(previous.expires) {
		tok = previous
	}
	if tok == nil || id != ours || c.guard.signs() && tokenID != tok.id {
		return nil, fmt.Errorf("%w: channel %d and token %d are not ours", errChunk, id, tokenID)
	}
	return unseal(frame, symmetric, tok.algo, c.guard.signs(), c.guard.encrypts())
}

// takeOpen checks that the server answers with the policy and the certificate
// that we asked for: a man in the middle could answer with less.
func (c *channel) takeOpen(frame []byte) ([]byte, error) {
	policy, cert, size, err := splitOpen(frame)
	if err != nil {
		return nil, err
	}
	if policy != c.guard.policy {
		return nil, &refusal{kind: refusedTrust, msg: fmt.Sprintf("channel was answered with policy %s instead of %s: another machine may be answering for the server",
			policyName(policy), policyName(c.guard.policy))}
	}
	if leaf, _ := splitChain(cert); c.guard.signs() && !bytes.Equal(leaf, c.guard.remote) {
		return nil, &refusal{kind: refusedTrust, msg: "channel was answered with another certificate than the trusted one: another machine may be answering for the server"}
	}
	algo, err := c.guard.asymmetric()
	if err != nil {
		return nil, err
	}
	return unseal(frame, size, algo, c.guard.signs(), c.guard.signs())
}

// serviceFault is the encoding of ServiceFault (Part 6, Annex A).
const serviceFault = 397

// decodeService decodes an answer of the type that was asked for, or a fault: no
// other is decoded.
func decodeService(body []byte, want uint16) (ua.Response, error) {
	var id ua.ExpandedNodeID
	if _, err := id.Decode(body); err != nil || id.NodeID == nil {
		return nil, errors.Join(errors.New("server sends an answer without a type"), err)
	}
	if got := id.NodeID.IntID(); id.NodeID.Namespace() != 0 || got != uint32(want) && got != serviceFault {
		return nil, fmt.Errorf("server answers with service %s instead of i=%d", id.NodeID, want)
	}
	_, v, err := ua.DecodeService(body)
	if err != nil {
		return nil, fmt.Errorf("decode an answer: %w", err)
	}
	res, ok := v.(ua.Response)
	if !ok {
		return nil, fmt.Errorf("server answers with %T", v)
	}
	if h := res.Header(); h != nil && h.ServiceResult>>30 != 0 {
		return nil, h.ServiceResult
	}
	return res, nil
}

// decodeAnswer is decodeService for one type of answer.
func decodeAnswer[T ua.Response](body []byte) (T, error) {
	var none T
	res, err := decodeService(body, ua.ServiceTypeID(none))
	if err != nil {
		return none, err
	}
	v, ok := res.(T)
	if !ok {
		return none, fmt.Errorf("server answers with %T", res)
	}
	return v, nil
}
