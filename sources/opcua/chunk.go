package opcua

import (
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// The wire of Part 6: a chunk is one frame of a TCP connection (7.1.2), and a
// message is one or more chunks (6.7.2).
const (
	// bufferSize is the largest chunk that we take and send, in bytes; the least
	// that a server must support is minBuffer.
	bufferSize = 65535
	minBuffer  = 8192

	frameHead    = 8  // kind, chunk type, size
	symmetric    = 16 // and channel, token
	sequenceSize = 8  // sequence number, request
)

var (
	// errChunk is a chunk that cannot be: too short, too long, without meaning.
	errChunk = errors.New("server sends a malformed chunk")
	// errProtection is a chunk whose signature or encryption is wrong.
	errProtection = errors.New("server sends a chunk whose protection is broken: another machine may be in between")
	// errTooLarge is a message that is larger than we take, or than the server does.
	errTooLarge = errors.New("message too large")
)

// readChunk reads one frame. It allocates as much as the frame says, at most
// bufferSize.
func readChunk(r io.Reader) ([]byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(head[4:])
	if size < frameHead || size > bufferSize {
		return nil, fmt.Errorf("%w: %d bytes of kind %q", errChunk, size, head[:4])
	}
	frame := make([]byte, size)
	copy(frame, head[:])
	if _, err := io.ReadFull(r, frame[frameHead:]); err != nil {
		return nil, err
	}
	return frame, nil
}

// protection is what a channel does to its chunks.
type protection struct {
	policy string // its URI
	mode   ua.MessageSecurityMode
	own    *identity // nil without security
	// remote is the server's certificate, which is trusted, without its issuers.
	remote []byte
}

func (p protection) signs() bool    { return p.mode != ua.MessageSecurityModeNone }
func (p protection) encrypts() bool { return p.mode == ua.MessageSecurityModeSignAndEncrypt }

// asymmetric returns the algorithms that protect the opening of a channel.
func (p protection) asymmetric() (*uapolicy.EncryptionAlgorithm, error) {
	if !p.signs() {
		return uapolicy.Asymmetric(ua.SecurityPolicyURINone, nil, nil)
	}
	key, err := publicKey(p.remote)
	if err != nil {
		return nil, err
	}
	return uapolicy.Asymmetric(p.policy, p.own.key, key)
}

// publicKey returns the key in a DER certificate.
func publicKey(der []byte) (*rsa.PublicKey, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the server's certificate: %w", err)
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("server's certificate has a key of type %T; OPC UA needs RSA", cert.PublicKey)
	}
	return key, nil
}

// openRoom is how much of a chunk that opens a channel is not certificates, at
// most: its head, and its body in blocks of keys of 4096 bits.
const openRoom = 2560

// openHead begins a chunk that opens or renews a channel. certs are ours.
func (p protection) openHead(channel uint32, certs []byte) []byte {
	head := binary.LittleEndian.AppendUint32([]byte("OPNF\x00\x00\x00\x00"), channel)
	head = appendBytes(head, []byte(p.policy))
	if !p.signs() {
		return appendBytes(appendBytes(head, nil), nil)
	}
	thumbprint := sha1.Sum(p.remote)
	return appendBytes(appendBytes(head, certs), thumbprint[:])
}

// splitOpen cuts the head of a chunk that opens a channel into what the server
// says of its policy and certificate; size is that of the head.
func splitOpen(frame []byte) (policy string, cert []byte, size int, err error) {
	rest := frame[min(len(frame), frameHead+4):]
	var fields [3][]byte // policy, certificate of the sender, thumbprint of ours
	for i := range fields {
		if fields[i], rest, err = cutBytes(rest); err != nil {
			return "", nil, 0, err
		}
	}
	return string(fields[0]), fields[1], len(frame) - len(rest), nil
}

// appendBytes appends a ByteString (Part 6, 5.2.2.7); nil is null.
func appendBytes(b, s []byte) []byte {
	if s == nil {
		return binary.LittleEndian.AppendUint32(b, 0xffffffff)
	}
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
}

func cutBytes(b []byte) (s, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, fmt.Errorf("%w: it ends in its head", errChunk)
	}
	n := binary.LittleEndian.Uint32(b)
	if b = b[4:]; n == 0xffffffff {
		return nil, b, nil
	}
	if uint64(n) > uint64(len(b)) {
		return nil, nil, fmt.Errorf("%w: a field of its head has %d bytes of %d", errChunk, n, len(b))
	}
	return b[:n], b[n:], nil
}

// room is how many bytes of a message fit into one chunk of size bytes.
func room(size int, algo *uapolicy.EncryptionAlgorithm, sign, encrypt bool) int {
	size -= symmetric
	if encrypt {
		size = size/algo.BlockSize()*algo.PlaintextBlockSize() - 1 // the length of the padding
	}
	if sign {
		size -= algo.SignatureLength()
	}
	return size - sequenceSize
}

// seal makes a chunk: head is what stays readable, body begins with the sequence
// header (Part 6, 6.7.2.5).
func seal(head, body []byte, algo *uapolicy.EncryptionAlgorithm, sign, encrypt bool) ([]byte, error) {
	b := make([]byte, 0, len(head)+len(body)+1024)
	b = append(append(b, head...), body...)
	size := len(b)
	if encrypt {
		// Keys of more than 2048 bits need a second byte for the padding's length.
		extra := algo.BlockSize() > 256
		used := len(body) + 1 + algo.SignatureLength()
		if extra {
			used++
		}
		block := algo.PlaintextBlockSize()
		padding := (block - used%block) % block
		for range padding + 1 {
			b = append(b, byte(padding))
		}
		if extra {
			b = append(b, byte(padding>>8))
		}
		size = len(head) + (used+padding)/block*algo.BlockSize()
	} else if sign {
		size += algo.SignatureLength()
	}
	binary.LittleEndian.PutUint32(b[4:], uint32(size))
	if sign {
		signature, err := algo.Signature(b)
		if err != nil {
			return nil, fmt.Errorf("sign a message: %w", err)
		}
		b = append(b, signature...)
	}
	if encrypt {
		sealed, err := algo.Encrypt(b[len(head):])
		if err != nil {
			return nil, fmt.Errorf("encrypt a message: %w", err)
		}
		b = append(b[:len(head)], sealed...)
	}
	return b, nil
}

// unseal checks the protection of a chunk whose head has size bytes, and returns
// its sequence header and body. It changes frame.
func unseal(frame []byte, size int, algo *uapolicy.EncryptionAlgorithm, sign, encrypt bool) ([]byte, error) {
	if encrypt {
		plain, err := algo.Decrypt(frame[size:])
		if err != nil || len(plain) > len(frame)-size {
			return nil, errProtection
		}
		frame = frame[:size+copy(frame[size:], plain)]
	}
	if sign {
		at := len(frame) - algo.RemoteSignatureLength()
		if at < size || algo.VerifySignature(frame[:at], frame[at:]) != nil {
			return nil, errProtection
		}
		frame = frame[:at]
	}
	if encrypt {
		padding, lengths := 0, 1
		if algo.SignatureLength() > 256 {
			lengths = 2
		}
		if len(frame) < size+lengths {
			return nil, errProtection
		}
		for i := range lengths {
			padding = padding<<8 | int(frame[len(frame)-1-i])
		}
		if len(frame)-size < padding+lengths {
			return nil, errProtection
		}
		frame = frame[:len(frame)-padding-lengths]
	}
	if len(frame) < size+sequenceSize {
		return nil, fmt.Errorf("%w: it ends in its head", errChunk)
	}
	return frame[size:], nil
}
