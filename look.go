package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/isolate"
	"github.com/edgehost/edgehost/sources/opcua"
)

// opcuaLook is what a command asks a server once. The question is put in a
// process of its own, as a source of serve is run: what a server sends can end
// that process and no other.
//
//	command ── job with a look ──> process ── browse or read ──> server
//	   ^                              │
//	   └── records: an answer's parts ┘
type opcuaLook struct {
	// Browse lists the address space; nil reads once what is configured.
	Browse *opcua.BrowseOptions
}

// opcuaAnswer is the answer to a look. It crosses to the command in parts, each
// the value of one record; the last has End.
type opcuaAnswer struct {
	Nodes     []opcua.BrowseEntry
	Truncated bool
	Found     opcua.Found // without the records, which are sent as they are
	End       bool
}

const (
	// lookPart is the address of a record that is a part of an answer; those of
	// values are node ids.
	lookPart = "part"
	// nodesAtOnce is how many nodes a part of an answer has.
	nodesAtOnce = 500
)

// looker is a look as a source of the process: it sends the answer and waits to
// be stopped.
type looker struct {
	src  *opcua.Source
	name string
	look opcuaLook
}

// Run implements sources.Source.
func (l *looker) Run(ctx context.Context, emit sources.Emit) error {
	var a opcuaAnswer
	var err error
	if o := l.look.Browse; o != nil {
		a.Nodes, a.Truncated, err = l.src.Browse(ctx, *o)
	} else {
		a.Found, err = l.src.ReadOnce(ctx)
	}
	if err != nil {
		return err
	}
	if err := l.send(ctx, emit, a); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (l *looker) send(ctx context.Context, emit sources.Emit, a opcuaAnswer) error {
	settled := func(error) {}
	batch := func(recs []abi.Record) sources.Batch {
		return sources.Batch{Time: sources.Micros(time.Now()), Records: recs}
	}
	if values := a.Found.Records; len(values) > 0 {
		if err := emit(ctx, batch(values), settled); err != nil {
			return fmt.Errorf("send values: %w", err)
		}
	}
	for {
		part := a
		n := min(nodesAtOnce, len(a.Nodes))
		part.Nodes, a.Nodes = a.Nodes[:n], a.Nodes[n:]
		part.End = len(a.Nodes) == 0
		text, err := json.Marshal(part)
		if err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
		rec := abi.Record{Source: l.name, Protocol: abi.ProtocolOPCUA, Address: lookPart, Value: abi.JSON(string(text))}
		if err := emit(ctx, batch([]abi.Record{rec}), settled); err != nil || part.End {
			return err
		}
	}
}

// ask puts a question to the server of s in a process of its own.
func (c *config) ask(ctx context.Context, s *sourceConfig, look opcuaLook, log *slog.Logger) (a opcuaAnswer, err error) {
	job := c.opcuaJob(s)
	job.Look = &look
	payload, err := job.encode()
	if err != nil {
		return a, err
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	src := isolate.New(isolate.Config{Name: s.Name, Payload: payload, Status: sources.NewStatus(s.Name, s.Protocol), Logger: log})
	var wrong error
	err = src.Run(asking, func(_ context.Context, b sources.Batch, done func(error)) error {
		for _, r := range b.Records {
			if r.Address != lookPart {
				a.Found.Records = append(a.Found.Records, r)
			} else if wrong = a.add(r.Value.Text()); wrong != nil || a.End {
				cancel()
			}
		}
		done(nil)
		return nil
	})
	switch {
	case wrong != nil:
		return a, wrong
	case a.End:
		return a, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return a, errors.New("the server has not answered within --wait: check host and port, or give it longer")
	case err == nil:
		return a, errors.New("the process that asks the server ended without an answer")
	}
	return a, lookError(err)
}

// lookError says more of the death of the process that asks.
func lookError(err error) error {
	if died := new(exec.ExitError); errors.As(err, &died) {
		return fmt.Errorf("what the server sent ended the process that read it; check that this is the server you mean: %w", err)
	}
	return err
}

// add takes the next part.
func (a *opcuaAnswer) add(text string) error {
	var part opcuaAnswer
	if err := json.Unmarshal([]byte(text), &part); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	a.Nodes = append(a.Nodes, part.Nodes...)
	part.Found.Records = a.Found.Records
	a.Truncated, a.Found, a.End = part.Truncated, part.Found, part.End
	return nil
}
