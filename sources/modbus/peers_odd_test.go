package modbus

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// TestServerThatClosesAfterEachReply: every request gets a connection of its own
// before long, and no value becomes bad.
func TestServerThatClosesAfterEachReply(t *testing.T) {
	script := func(_ int, r wireRequest, s *slave) {
		s.once = true
		s.send(s.numbers(r))
	}
	framings(t, strings.Replace(oneBlock, "timeout_ms: 2000", "timeout_ms: 1000\nretries: 0", 1), script, func(t *testing.T, b *bench, _ *slave) {
		right := 0
		eventually(t, "values", func() bool {
			for _, r := range b.take() {
				if r.Status != 0 {
					t.Fatalf("a bad record: %+v", r)
				}
				right++
			}
			return right > 300
		})
		if n := b.count(MetricReopens); n > 2*briefly {
			t.Errorf("%v requests were lost before the source learned", n)
		}
	})
}

// TestServerThatHasNoConnectionToGive has another master on its only connection:
// what it takes from us, it closes. It is read when the other one has gone.
func TestServerThatHasNoConnectionToGive(t *testing.T) {
	s := newSlave(t, false, func(_ int, r wireRequest, s *slave) { s.send(s.numbers(r)) })
	s.taken.Store(true)
	b := onWire(t, s.endpoint(), oneBlock)
	stop := b.run(t)
	var reason string
	eventually(t, "bad records", func() bool {
		for _, r := range b.take() {
			if v, ok := r.Attr(abi.AttrReason); ok {
				reason = v.Text()
			}
		}
		return reason != ""
	})
	if !strings.Contains(reason, "another master") {
		t.Errorf("reason is %q", reason)
	}
	s.taken.Store(false)
	right := 0
	eventually(t, "values", func() bool { right += checkNumbers(t, b); return right > 20 })
	stop()
}

// TestPeerThatVanishes has a peer whose machine loses power: the connection
// looks open, nothing comes any more, and nothing answers a new one.
func TestPeerThatVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(time.Millisecond)}
		b := newBench(t, line, "modbus+tcp://h", oneRegister)
		stop := b.run(t)
		time.Sleep(3 * time.Second)
		b.take()
		line.set(func(request) (data, error) { time.Sleep(time.Second); return nil, errSilent }, &net.OpError{Op: "dial", Err: errUnplugged})
		time.Sleep(10 * time.Second)
		if got := values(b.take()); len(got) != 2 || got["1:40001"] != "BadNotConnected" {
			t.Errorf("got %v, want bad records", got)
		}
		if s := b.status.Snapshot().State; s != "reconnecting" {
			t.Errorf("state is %s", s)
		}
		line.set(answerAfter(time.Millisecond), nil)
		time.Sleep(30 * time.Second)
		if got := values(b.take()); got["1:40001"] != "0" {
			t.Errorf("got %v after it is back", got)
		}
		stop()
	})
}

// TestExceptionsOfGatewaysAndDevices returns every exception once for each
// request, and then a reply: those that mean "not now" are asked again at once.
func TestExceptionsOfGatewaysAndDevices(t *testing.T) {
	want := map[exception]string{1: "BadServiceUnsupported", 2: "BadNotFound", 3: "BadInvalidArgument", 4: "BadDeviceFailure", 5: "good", 6: "good",
		7: "BadDeviceFailure", 8: "BadDeviceFailure", 9: "BadDeviceFailure", 10: "BadNoCommunication", 11: "good"}
	for code := exception(1); code <= 11; code++ {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				line := &fakeLine{answer: func(r request) (data, error) {
					if n++; n == 1 {
						return nil, code
					}
					return numbered(r), nil
				}}
				b := newBench(t, line, "modbus+tcp://h", "registers: [{address: 40001, register_type: holding}]\npoll_interval_ms: 1000")
				stop := b.run(t)
				time.Sleep(500 * time.Millisecond)
				recs := b.take()
				stop()
				if len(recs) != 1 {
					t.Fatalf("%d records of one poll", len(recs))
				}
				got := show(&recs[0])
				if recs[0].Status == 0 {
					got = "good"
				}
				if got != want[code] || b.count(MetricReopens) != 0 || b.count(MetricExceptions) != 1 {
					t.Errorf("got %s, want %s; %v reopens, %v exceptions", got, want[code], b.count(MetricReopens), b.count(MetricExceptions))
				}
			})
		})
	}
}

// TestGarbageBeforeAnRTUFrame: noise in front of a reply gives no wrong value,
// and costs one read.
func TestGarbageBeforeAnRTUFrame(t *testing.T) {
	for _, noise := range [][]byte{{0}, {0xff}, {0, 0, 0}, {1}, {1, 3}, {1, 3, 20}, {1, 0x83}} {
		t.Run(fmt.Sprintf("% x", noise), func(t *testing.T) {
			s := newSlave(t, true, func(n int, r wireRequest, s *slave) {
				if n%3 == 1 {
					s.send(noise)
				}
				s.send(s.numbers(r))
			})
			b := onWire(t, s.endpoint(), impatient)
			stop := b.run(t)
			right := 0
			eventually(t, "good values between noise", func() bool { right += checkNumbers(t, b); return right >= 50 })
			stop()
		})
	}
}
