package zerobustest

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// rawCodec hands messages through as bytes: *[]byte in both directions.
type rawCodec struct{}

// Marshal returns the bytes of v.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("marshal %T: not bytes", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

// Unmarshal copies data to v.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("unmarshal %T: not bytes", v)
	}
	*b = data.Materialize()
	return nil
}

// Name is the content subtype.
func (rawCodec) Name() string { return "proto" }

// The record types of create_stream.
const (
	typeProto = 1
	typeJSON  = 2
)

// frame is one EphemeralStreamRequest. Exactly one of create and ingest is set.
type frame struct {
	create *create
	ingest *ingest
}

// create is CreateIngestStreamRequest.
type create struct {
	table      string
	descriptor []byte
	recordType uint64
}

// ingest is IngestRecordRequest or IngestRecordBatchRequest. Its records point
// into the message.
type ingest struct {
	offset    int64
	hasOffset bool
	batch     bool // it came as a batch
	json      bool
	records   [][]byte
}

var errFrame = errors.New("malformed message")

// fields calls each for every field of a message.
func fields(b []byte, each func(num protowire.Number, typ protowire.Type, varint uint64, bytes []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", errFrame, protowire.ParseError(n))
		}
		b = b[n:]
		var v uint64
		var data []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return fmt.Errorf("%w: %w", errFrame, protowire.ParseError(n))
		}
		b = b[n:]
		if err := each(num, typ, v, data); err != nil {
			return err
		}
	}
	return nil
}

// parseFrame decodes an EphemeralStreamRequest.
func parseFrame(b []byte) (frame, error) {
	var f frame
	err := fields(b, func(num protowire.Number, typ protowire.Type, _ uint64, data []byte) error {
		if num > 3 {
			return nil
		}
		if typ != protowire.BytesType {
			return fmt.Errorf("%w: payload %d is not a message", errFrame, num)
		}
		var err error
		f = frame{} // a oneof: the last one counts
		switch num {
		case 1:
			f.create, err = parseCreate(data)
		case 2:
			f.ingest, err = parseIngest(data, false)
		case 3:
			f.ingest, err = parseIngest(data, true)
		}
		return err
	})
	if err == nil && f.create == nil && f.ingest == nil {
		err = fmt.Errorf("%w: no payload", errFrame)
	}
	return f, err
}

func parseCreate(b []byte) (*create, error) {
	c := &create{}
	err := fields(b, func(num protowire.Number, typ protowire.Type, v uint64, data []byte) error {
		switch {
		case num == 1 && typ == protowire.BytesType:
			if !utf8.Valid(data) {
				return fmt.Errorf("%w: table name is not UTF-8", errFrame)
			}
			c.table = string(data)
		case num == 3 && typ == protowire.BytesType:
			c.descriptor = append([]byte{}, data...)
		case num == 4 && typ == protowire.VarintType:
			c.recordType = v
		}
		return nil
	})
	return c, err
}

func parseIngest(b []byte, batch bool) (*ingest, error) {
	in := &ingest{batch: batch}
	err := fields(b, func(num protowire.Number, typ protowire.Type, v uint64, data []byte) error {
		switch {
		case num == 1 && typ == protowire.VarintType:
			in.offset, in.hasOffset = int64(v), true
		case (num == 2 || num == 3) && typ == protowire.BytesType:
			in.json = num == 3
			in.records = in.records[:0]
			if !batch {
				in.records = append(in.records, data)
				return nil
			}
			return fields(data, func(num protowire.Number, typ protowire.Type, _ uint64, data []byte) error {
				if num == 1 && typ == protowire.BytesType {
					in.records = append(in.records, data)
				}
				return nil
			})
		}
		return nil
	})
	if err == nil && len(in.records) == 0 {
		err = fmt.Errorf("%w: no records", errFrame)
	}
	return in, err
}

// The responses, as EphemeralStreamResponse.

func createdFrame(streamID string) []byte {
	inner := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), streamID)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), inner)
}

func ackFrame(offset int64) []byte {
	inner := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(offset))
	return protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), inner)
}

// closeFrame is a CloseStreamSignal with a google.protobuf.Duration.
func closeFrame(d time.Duration) []byte {
	duration := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(d/time.Second))
	duration = protowire.AppendVarint(protowire.AppendTag(duration, 2, protowire.VarintType), uint64(d%time.Second))
	inner := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), duration)
	return protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), inner)
}
