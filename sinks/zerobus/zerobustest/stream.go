package zerobustest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// session is one EphemeralStream RPC. receive and acknowledge run on goroutines of
// their own; the handler returns what ended first.
type session struct {
	e       *Emulator
	rpc     grpc.ServerStream
	id      string
	table   *table
	decoder *decoder
	json    bool
	fault   streamFault

	end    chan error         // cap 2: why the RPC ends
	signal chan time.Duration // cap 1: send a CloseStreamSignal
	eof    chan struct{}      // the client has half-closed
	got    chan struct{}      // cap 1: pending has grown

	mu      sync.Mutex
	pending []receipt
}

// receipt is one message that waits to become durable.
type receipt struct{ offset, position int64 }

// ephemeralStream is the handler of the RPC.
func (e *Emulator) ephemeralStream(_ any, rpc grpc.ServerStream) error {
	// The official clients wait for the headers before they send anything.
	if err := rpc.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	s := &session{
		e: e, rpc: rpc, id: newStreamID(), end: make(chan error, 2), signal: make(chan time.Duration, 1),
		eof: make(chan struct{}), got: make(chan struct{}, 1),
	}
	if err := s.create(); err != nil {
		e.count.streamsRefused.Add(1)
		return err
	}
	if err := rpc.SendMsg(new(createdFrame(s.id))); err != nil {
		return err
	}
	e.count.streams.Add(1)
	e.knobs.add(s)
	defer e.knobs.remove(s)
	ctx, cancel := context.WithCancel(rpc.Context())
	defer cancel()
	e.wg.Go(func() { s.end <- s.receive() })
	e.wg.Go(func() { s.end <- s.acknowledge(ctx) })
	select {
	case err := <-s.end:
		return err
	case <-e.ctx.Done():
		return status.Error(codes.Unavailable, "the emulator stops")
	}
}

func newStreamID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// create reads and checks the first message.
func (s *session) create() error {
	var msg []byte
	if err := s.rpc.RecvMsg(&msg); err != nil {
		return err
	}
	f, err := parseFrame(msg)
	if err != nil || f.create == nil {
		return s.violation(codes.InvalidArgument, "the first message is not create_stream")
	}
	c := f.create
	if code, ok := s.e.knobs.takeCreate(); ok {
		return status.Error(code, "injected at create")
	}
	if !validTable(c.table) {
		return s.violation(codes.InvalidArgument, "table name is not catalog.schema.table")
	}
	if err := s.authorize(c.table); err != nil {
		return err
	}
	if err := s.compile(c); err != nil {
		return err
	}
	if s.table, err = s.e.store.table(c.table); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	s.fault = s.e.knobs.takeStream()
	s.decoder.reject = s.e.knobs.rejects(c.table)
	return nil
}

// authorize compares the token with the table in the header and in the message.
func (s *session) authorize(table string) error {
	md, _ := metadata.FromIncomingContext(s.rpc.Context())
	header := strings.Join(md.Get("x-databricks-zerobus-table-name"), ",")
	if header != table {
		return s.violation(codes.InvalidArgument, "table header and create_stream name different tables")
	}
	token, ok := strings.CutPrefix(strings.Join(md.Get("authorization"), ","), "Bearer ")
	if !ok {
		return s.violation(codes.Unauthenticated, "no bearer token")
	}
	if why, known := s.e.issued.check(token, table); why != "" {
		if known {
			return s.violation(codes.PermissionDenied, why)
		}
		return status.Error(codes.Unauthenticated, why)
	}
	return nil
}

// compile checks record type and descriptor.
func (s *session) compile(c *create) error {
	switch {
	case c.recordType == typeJSON && len(c.descriptor) > 0:
		return s.violation(codes.InvalidArgument, "a JSON stream has no descriptor")
	case c.recordType == typeJSON:
		s.json, s.decoder = true, &decoder{key: s.e.cfg.KeyColumn}
		return nil
	case c.recordType != typeProto:
		return s.violation(codes.InvalidArgument, fmt.Sprintf("record type %d is not supported", c.recordType))
	case len(c.descriptor) == 0:
		return s.violation(codes.InvalidArgument, "a protobuf stream needs a descriptor")
	}
	var err error
	if s.decoder, err = newDecoder(c.descriptor, s.e.cfg.KeyColumn); err != nil {
		return s.violation(codes.InvalidArgument, err.Error())
	}
	return nil
}

// violation ends the RPC and remembers that the client broke the protocol.
func (s *session) violation(code codes.Code, why string) error {
	s.e.count.violation(why)
	return status.Error(code, why)
}

// receive reads messages until the client half-closes or breaks a rule.
func (s *session) receive() error {
	var buf []byte
	for next := int64(0); ; next++ {
		var msg []byte
		if err := s.rpc.RecvMsg(&msg); errors.Is(err, io.EOF) {
			close(s.eof)
			<-s.rpc.Context().Done() // acknowledge ends the RPC
			return nil
		} else if err != nil {
			return err
		}
		if s.fault.code != codes.OK && next >= s.fault.after {
			return status.Error(s.fault.code, "injected mid-stream")
		}
		f, err := parseFrame(msg)
		switch {
		case err != nil:
			return s.violation(codes.InvalidArgument, err.Error())
		case f.ingest == nil:
			return s.violation(codes.InvalidArgument, "create_stream came twice")
		case !f.ingest.hasOffset || f.ingest.offset != next:
			return s.violation(codes.InvalidArgument, fmt.Sprintf("offset is not %d", next))
		case f.ingest.json != s.json:
			return s.violation(codes.InvalidArgument, "record type differs from that of the stream")
		}
		if buf, err = s.ingest(buf[:0], f.ingest); err != nil {
			return err
		}
	}
}

// ingest decodes the rows of a message; all of them are kept or none.
func (s *session) ingest(buf []byte, in *ingest) ([]byte, error) {
	keys := make([]string, 0, len(in.records))
	for _, record := range in.records {
		var key string
		var err error
		if buf, key, err = s.decoder.row(buf, record); err != nil {
			s.e.count.rejected.Add(1)
			return buf, status.Error(codes.InvalidArgument, err.Error())
		}
		keys = append(keys, key)
	}
	position, err := s.table.append(buf, keys)
	if err != nil {
		return buf, status.Error(codes.Internal, err.Error())
	}
	s.e.count.messages.Add(1)
	s.e.count.records.Add(uint64(len(in.records)))
	s.mu.Lock()
	s.pending = append(s.pending, receipt{in.offset, position})
	s.mu.Unlock()
	select {
	case s.got <- struct{}{}:
	default:
	}
	return buf, nil
}

// acknowledge sends everything that the client gets after create.
func (s *session) acknowledge(ctx context.Context) error {
	rotate := s.e.knobs.rotation()
	defer rotate.stop()
	acked, ready, eof := int64(-1), int64(-1), s.eof
	closed := false
	for {
		position, changed, err := s.table.durable()
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		var left int
		ready, left = s.durable(position, ready)
		acks := s.e.knobs.acks()
		if ready > acked && !acks.withhold {
			if err := sleep(ctx, acks.delay); err != nil {
				return err
			}
			if err := s.rpc.SendMsg(new(ackFrame(ready + acks.over))); err != nil {
				return err
			}
			s.e.count.acks.Add(1)
			acked = ready
		}
		if closed && left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-s.got:
		case <-acks.changed:
		case <-eof:
			closed, eof = true, nil
		case d := <-s.signal:
			err = s.rpc.SendMsg(new(closeFrame(d)))
		case <-rotate.due:
			if err = s.rpc.SendMsg(new(closeFrame(rotate.notice))); err == nil {
				rotate.announced()
			}
		case <-rotate.over:
			return status.Errorf(codes.Unavailable, "Stream timeout reached. Closing the stream (ID: %s). Error Code: 6002, Error State: 0.", s.id)
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// durable returns the greatest offset that is durable, last when none became so,
// and how many messages are not.
func (s *session) durable(position, last int64) (offset int64, left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.pending) > 0 && s.pending[0].position <= position {
		last = s.pending[0].offset
		s.pending = s.pending[1:]
	}
	return last, len(s.pending)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
