package mqtt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// waitAcked is how long a message of QoS 1 or 2 waits for others to share its
// batch: brokers send only a window of them before they wait for the
// acknowledgement, so the wait bounds the rate.
const waitAcked = 5 * time.Millisecond

// drainTime is how long what is in memory may go on into the pipeline after
// its connection has ended.
const drainTime = 2 * time.Second

// pump moves messages from the buffer into the pipeline, in order, on one
// goroutine: the only one that calls emit.
type pump struct {
	s      *Source
	emit   sources.Emit
	cancel context.CancelFunc
	finish chan struct{} // closed: stop when nothing waits
	ended  chan struct{} // closed when the goroutine has ended
	err    error         // why; to be read after ended

	failOnce sync.Once
	failed   chan struct{} // closed when the pipeline gave a batch back
	failure  error
}

func (s *Source) startPump(ctx context.Context, emit sources.Emit) *pump {
	ctx, cancel := context.WithCancel(ctx)
	p := &pump{s: s, emit: emit, cancel: cancel,
		finish: make(chan struct{}), ended: make(chan struct{}), failed: make(chan struct{})}
	go func() {
		defer close(p.ended)
		defer func() {
			if r := recover(); r != nil {
				s.log.Error("mqtt decoder panicked", "panic", r)
				p.err = fmt.Errorf("decode message: panic: %v", r)
			}
		}()
		p.err = p.run(ctx)
	}()
	return p
}

// stop ends the pump. Unless ctx has ended, what waits still goes into the
// pipeline, for drainTime at most.
func (p *pump) stop(ctx context.Context) {
	close(p.finish)
	if ctx.Err() != nil {
		p.cancel()
	}
	timer := time.AfterFunc(drainTime, p.cancel)
	<-p.ended
	timer.Stop()
	p.cancel()
}

// load is the batch that is being gathered: records, and the messages that
// they came from.
type load struct {
	batch *sources.Batcher
	msgs  []*message
	todo  []*message // taken from the buffer, not decoded yet
	bytes int
}

func (p *pump) run(ctx context.Context) error {
	l := &load{batch: sources.NewBatcher(sources.BatchRecords, sources.BatchWait)}
	err := p.gather(ctx, l)
	p.s.buf.putBack(append(l.msgs, l.todo...))
	return err
}

func (p *pump) gather(ctx context.Context, l *load) error {
	finish := p.finish
	for {
		select {
		case <-p.failed:
			return p.failure
		default:
		}
		if len(l.todo) == 0 {
			l.todo = p.s.buf.take(sources.BatchRecords)
		}
		if len(l.todo) > 0 {
			msg := l.todo[0]
			l.todo = l.todo[1:]
			if p.add(l, msg) {
				if err := p.send(ctx, l); err != nil {
					return err
				}
			}
			continue
		}
		if finish == nil {
			return p.send(ctx, l)
		}
		select {
		case <-p.s.buf.ready:
		case <-l.batch.Due():
			if err := p.send(ctx, l); err != nil {
				return err
			}
		case <-finish:
			finish = nil
		case <-p.failed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// add puts the records of msg into the load and reports whether it is full.
func (p *pump) add(l *load, msg *message) (full bool) {
	l.msgs = append(l.msgs, msg)
	l.bytes += len(msg.payload)
	recs, ok := p.s.mapper.records(msg)
	if !ok {
		reason := reasonDecode
		if msg.tooLarge > 0 {
			reason = reasonTooLarge
		}
		p.s.status.Fail(reason, 1)
		p.s.status.Add(metricDecodeErrors, 1)
	}
	if len(recs) == 0 {
		// There is nothing to be made durable.
		l.msgs = l.msgs[:len(l.msgs)-1]
		p.s.status.Add(metricMessages, 1)
		p.s.buf.settle([]*message{msg})
		return false
	}
	for _, r := range recs {
		full = l.batch.Add(r)
	}
	if msg.qos > 0 {
		l.batch.Hurry(waitAcked)
		if p.s.cfg.Ack == "received" {
			p.s.buf.received(msg)
		}
	}
	return full
}

// send emits the load and starts an empty one. After an error the load is as
// it was.
func (p *pump) send(ctx context.Context, l *load) error {
	if l.batch.Len() == 0 {
		return nil
	}
	if err := p.s.mapper.save(); err != nil {
		return err
	}
	msgs, bytes := l.msgs, l.bytes
	recs := l.batch.Take()
	p.s.status.Read(len(recs), bytes)
	p.s.status.Add(metricMessages, float64(len(msgs)))
	done := func(err error) {
		if err != nil && !errors.Is(err, sources.ErrDropped) {
			p.s.buf.putBack(msgs)
			p.fail(fmt.Errorf("the pipeline did not take a batch of %d messages: %w", len(msgs), err))
			return
		}
		p.s.buf.settle(msgs)
	}
	if err := p.emit(ctx, sources.Batch{Time: sources.Micros(p.s.now()), Records: recs}, done); err != nil {
		return fmt.Errorf("emit batch: %w", err)
	}
	l.msgs, l.bytes = nil, 0
	_, unacked := p.s.buf.counts()
	p.s.status.Gauge(metricUnacked, float64(unacked))
	return nil
}

func (p *pump) fail(err error) {
	p.failOnce.Do(func() {
		p.failure = err
		close(p.failed)
	})
}
