package sourcetest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// A fault is a way in which the model source breaks the contract.
const (
	sound        = ""
	losesRefused = "loses what the consumer refuses"
	acksEarly    = "acknowledges what is not safe"
	acksNever    = "never acknowledges"
	repeats      = "emits what was dropped again"
	reorders     = "emits out of order"
	neverEnds    = "does not end with its context"
	leaks        = "leaves a goroutine behind"
	silent       = "says nothing of what it cannot read"
	unexplained  = "gives no reason for a bad record"
	pretends     = "passes what it cannot read for a number"
	untagged     = "forgets the tags of its configuration"
)

const faultVariable = "SOURCETEST_FAULT"

// TestSuite runs the suite against the model source: the sound one, or in a
// child of this test the one with the fault that the environment names.
func TestSuite(t *testing.T) {
	Run(t, modelHarness(os.Getenv(faultVariable)))
}

// TestSuiteFindsFaults holds the suite to its word: every fault fails it.
func TestSuiteFindsFaults(t *testing.T) {
	cases := map[string]string{ // fault: the part that must find it
		losesRefused: "fails_once", acksEarly: "withholds", acksNever: "accepts", repeats: "drops",
		reorders: "accepts", neverEnds: "ends_idle", leaks: "ends_idle",
		silent: "spoils", unexplained: "spoils", pretends: "spoils", untagged: "accepts",
	}
	for fault, part := range cases {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestSuite$/^"+part+"$", "-test.v")
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestSuite/"+part) {
				t.Errorf("the suite passes a source that %s: %v\n%s", fault, err, out)
			}
		})
	}
}

// model is a source and its peer in one: numbers go into a list, and are
// emitted from it in batches of 10.
type model struct {
	fault  string
	status *sources.Status

	mu     sync.Mutex
	todo   []int
	acked  []int
	wakeUp chan struct{}
}

func modelHarness(fault string) Harness {
	patience := 2 * time.Minute
	if fault != "" { // what a sound source does in no time
		patience = 3 * time.Second
	}
	return Harness{Patience: patience, Spoils: true, New: func(*testing.T) Rig {
		m := &model{fault: fault, status: sources.NewStatus("model", "mqtt"), wakeUp: make(chan struct{}, 1)}
		return Rig{Source: m, Status: m.status, Publish: m.publish, Tags: map[string]string{"line": "1"},
			Spoil:  func() { m.publish(spoilt, spoilt) },
			Number: func(r abi.Record) (int, bool) { return int(r.Value.AsInt()), r.Value.AsInt() > 0 },
			Acked: func() []int {
				m.mu.Lock()
				defer m.mu.Unlock()
				return append([]int(nil), m.acked...)
			}}
	}}
}

func (m *model) publish(first, last int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := first; n <= last; n++ {
		m.todo = append(m.todo, n)
	}
	m.wake()
}

func (m *model) wake() {
	select {
	case m.wakeUp <- struct{}{}:
	default:
	}
}

func (m *model) take() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	numbers := m.todo[:min(10, len(m.todo))]
	m.todo = m.todo[len(numbers):]
	numbers = append([]int(nil), numbers...)
	if m.fault == reorders && len(numbers) > 1 {
		numbers[0], numbers[1] = numbers[1], numbers[0]
	}
	return numbers
}

func (m *model) Run(ctx context.Context, emit sources.Emit) error {
	m.status.Set(sources.Connected, "")
	if m.fault == leaks {
		go func() { <-time.After(time.Hour) }()
	}
	for {
		numbers := m.take()
		if len(numbers) == 0 {
			select {
			case <-ctx.Done():
				if m.fault == neverEnds {
					<-time.After(time.Hour)
				}
				return ctx.Err()
			case <-m.wakeUp:
			}
			continue
		}
		done := make(chan error, 1)
		b := sources.Batch{Time: 1}
		for _, n := range numbers {
			b.Records = append(b.Records, m.record(n))
		}
		if m.fault == acksEarly {
			m.ack(numbers)
		}
		if err := emit(ctx, b, func(err error) { done <- err }); err != nil {
			return err
		}
		select {
		case err := <-done:
			m.settle(numbers, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// spoilt is published in place of a number, and cannot be read.
const spoilt = 0

func (m *model) record(n int) abi.Record {
	r := abi.Record{EventTime: 1, IngestTime: 1, Source: "model", Address: "a", Protocol: abi.ProtocolMQTT, Value: abi.Int(int64(n))}
	if m.fault != untagged {
		r.Attrs = sources.TagAttrs(map[string]string{"line": "1"})
	}
	if n != spoilt {
		return r
	}
	reason := "not a number"
	r.Value = abi.Value{}
	switch m.fault {
	case silent:
		return r
	case unexplained:
		reason = ""
	case pretends:
		r.Value = abi.Int(3)
	}
	sources.NotGood(&r, sources.StatusBadDecoding, "", reason)
	return r
}

func (m *model) settle(numbers []int, err error) {
	safe := err == nil || errors.Is(err, sources.ErrDropped) && m.fault != repeats
	switch {
	case safe && m.fault != acksNever && m.fault != acksEarly:
		m.ack(numbers)
	case !safe && m.fault != losesRefused:
		m.mu.Lock()
		defer m.mu.Unlock()
		m.todo = append(append([]int(nil), numbers...), m.todo...)
	}
}

func (m *model) ack(numbers []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.acked = append(m.acked, numbers...)
}

func TestCheckRecord(t *testing.T) {
	good := abi.Record{EventTime: 1, IngestTime: 1, Source: "s", Address: "a", Protocol: abi.ProtocolMQTT, Value: abi.Int(1)}
	for name, c := range map[string]struct {
		change func(*abi.Record)
		want   string // "": nothing is wrong
	}{
		"good":        {func(*abi.Record) {}, ""},
		"good, named": {func(r *abi.Record) { r.Attrs = append(r.Attrs, abi.Attr{Key: "quality", Value: abi.String("Good")}) }, ""},
		"no address":  {func(r *abi.Record) { r.Address = "" }, "address"},
		"no time":     {func(r *abi.Record) { r.IngestTime = 0 }, "times"},
		"bad":         {func(r *abi.Record) { sources.NotGood(r, sources.StatusBad, "", "because") }, ""},
		"only a code": {func(r *abi.Record) { r.Status = sources.StatusUncertain }, "a record that is Uncertain has no attribute reason"},
		"two words":   {func(r *abi.Record) { sources.NotGood(r, sources.StatusBad, "", "because"); r.Status = 0 }, `quality is "Bad", and the status code 0x00000000 says Good`},
		"twice":       {func(r *abi.Record) { r.Attrs = make([]abi.Attr, 2); r.Attrs[0].Key, r.Attrs[1].Key = "k", "k" }, `attribute "k" is nameless or there twice`},
		"stale": {func(r *abi.Record) {
			sources.NotGood(r, sources.StatusBad, "", "stale")
			r.Attrs = append(r.Attrs, abi.Attr{Key: "stale", Value: abi.Bool(true)})
		}, "a stale record is Bad and holds a int64"},
	} {
		r := good
		c.change(&r)
		err := CheckRecord(r)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
