package modbus

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// illegal answers with exception 2 when the request touches one of bad.
func illegal(bad ...int) func(request) (data, error) {
	return func(r request) (data, error) {
		for _, at := range bad {
			if at >= int(r.start) && at < int(r.start)+r.count {
				return data{}, illegalAddress
			}
		}
		return numbered(r), nil
	}
}

func TestRefusedPointIsFoundAndRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: illegal(37)}
		b := newBench(t, line, "modbus+tcp://h", "addressing: zero_based\nregisters: [{address: 0, count: 100, register_type: holding}]")
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		recs := b.take()
		if len(recs) != 100 {
			t.Fatalf("got %d records", len(recs))
		}
		for i := range recs {
			want := strings.TrimPrefix(recs[i].Address, "1:holding:")
			if want == "37" {
				want = "BadNotFound"
			}
			if got := show(&recs[i]); got != want {
				t.Errorf("%s is %s", recs[i].Address, got)
			}
		}
		line.forget()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := fmt.Sprint(line.requests()); got != "[1 holding 0+37 1 holding 38+62]" {
			t.Errorf("the second poll sent %s", got)
		}
		if n := len(b.take()); n != 99 {
			t.Errorf("the second poll made %d records, want 99: the bad point is not repeated", n)
		}
		if s := b.status.Snapshot(); s.State != sources.Degraded || !strings.Contains(s.Detail, "1:holding:37: illegal data address") {
			t.Errorf("state %s: %s", s.State, s.Detail)
		}
		line.set(illegal(), nil)
		time.Sleep(65 * time.Second)
		synctest.Wait()
		line.forget()
		b.take()
		time.Sleep(time.Second)
		stop()
		if got := fmt.Sprint(line.requests()); got != "[1 holding 0+100]" || len(b.take()) != 100 {
			t.Errorf("after the address came back, polls send %s", got)
		}
	})
}

func TestHoleBetweenPointsIsFoundAndRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: illegal(11, 12)}
		b := newBench(t, line, "modbus+tcp://h", `
addressing: zero_based
registers:
  - {address: 0, count: 10, register_type: holding}
  - {address: 14, count: 10, register_type: holding}
`)
		stop := b.run(t)
		time.Sleep(2500 * time.Millisecond)
		line.forget()
		time.Sleep(time.Second)
		stop()
		if got := fmt.Sprint(line.requests()); got != "[1 holding 0+10 1 holding 14+10]" {
			t.Errorf("later polls send %s", got)
		}
		for _, r := range b.take() {
			if r.Status != 0 {
				t.Errorf("%s is bad although the device has it", r.Address)
			}
		}
	})
}

func TestOldDeviceWithFewRegistersPerRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: func(r request) (data, error) {
			if r.count > 20 {
				return data{}, illegalValue
			}
			return numbered(r), nil
		}}
		b := newBench(t, line, "modbus+tcp://h", "addressing: zero_based\nregisters: [{address: 0, count: 125, register_type: holding}]")
		stop := b.run(t)
		time.Sleep(3*time.Second + 500*time.Millisecond)
		line.forget()
		b.take()
		time.Sleep(time.Second)
		stop()
		if n := len(line.requests()); n != 8 || len(b.take()) != 125 {
			t.Errorf("%d requests for 125 registers, want 8 of 15 and 16", n)
		}
	})
}

func TestDeviceThatRefusesEverythingIsNotFlooded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := make([]int, 125)
		for i := range all {
			all[i] = i
		}
		line := &fakeLine{answer: illegal(all...)}
		b := newBench(t, line, "modbus+tcp://h", "addressing: zero_based\nregisters: [{address: 0, count: 125, register_type: holding}]")
		stop := b.run(t)
		time.Sleep(30*time.Second + 500*time.Millisecond)
		for _, r := range line.requests() {
			if n := countAt(line.requests(), r.at); n > 2*splitsPerPoll+8 {
				t.Fatalf("%d requests in one poll", n)
			}
		}
		line.forget()
		time.Sleep(20 * time.Second)
		if n := len(line.requests()); n > 21 {
			t.Errorf("%d requests in 20 polls of points that are all refused", n)
		}
		line.set(illegal(), nil)
		time.Sleep(70 * time.Second)
		b.take()
		time.Sleep(time.Second)
		stop()
		if n := len(b.take()); n != 125 {
			t.Errorf("%d records a poll after the device has its addresses back", n)
		}
	})
}

func countAt(all []request, at time.Time) (n int) {
	for _, r := range all {
		if r.at.Equal(at) {
			n++
		}
	}
	return n
}

func TestMalformedExceptionIsARefusalOnTheSecondTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: func(r request) (data, error) {
			if r.start <= 3 && int(r.start)+r.count > 3 {
				return data{}, errOdd
			}
			return numbered(r), nil
		}}
		b := newBench(t, line, "modbus+tcp://h", "addressing: zero_based\nregisters: [{address: 0, count: 8, register_type: holding}]")
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		stop()
		got := values(b.take())
		if len(got) != 8 || got["1:holding:3"] != "BadCommunicationError" || got["1:holding:4"] != "4" {
			t.Errorf("got %v", got)
		}
	})
}
