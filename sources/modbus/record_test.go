package modbus

import (
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// register answers every register of every read with one value.
func register(v *atomic.Int64) func(request) (data, error) {
	return func(r request) (data, error) {
		var d data
		for range r.count {
			d = append(d, byte(v.Load()>>8), byte(v.Load()))
		}
		return d, nil
	}
}

func TestRecordHoldsWhatTheBronzeTableNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v atomic.Int64
		v.Store(215)
		answer := register(&v)
		line := &fakeLine{answer: func(r request) (data, error) { time.Sleep(20 * time.Millisecond); return answer(r) }}
		b := newBench(t, line, "modbus+tcp://h", `
slave_id: 5
registers:
  - {address: 40007, register_type: holding, data_type: int16, scale: 0.1, offset: 1, scale_factor: 10, unit: C, name: t1, tags: {plc_name: P, sensor_type: PT100}}
`)
		begin := time.Now()
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		stop()
		recs := b.take()
		want := abi.Record{
			EventTime: begin.Add(10 * time.Millisecond).UnixMicro(), IngestTime: begin.Add(20 * time.Millisecond).UnixMicro(),
			Source: "plc", Address: "5:40007", Protocol: abi.ProtocolModbus, Value: abi.Float(22.5),
			Attrs: []abi.Attr{
				{Key: abi.AttrSlaveID, Value: abi.Int(5)}, {Key: abi.AttrRegisterAddress, Value: abi.Int(40007)},
				{Key: abi.AttrRegisterType, Value: abi.String("holding")}, {Key: abi.AttrScaleFactor, Value: abi.Int(10)},
				{Key: abi.AttrIndustry, Value: abi.String("mining")}, {Key: abi.AttrPLCName, Value: abi.String("P")},
				{Key: abi.AttrSensorType, Value: abi.String("PT100")}, {Key: abi.AttrUnit, Value: abi.String("C")},
				{Key: abi.AttrSensorName, Value: abi.String("t1")},
				{Key: abi.AttrRawValue, Value: abi.Float(215)}, {Key: abi.AttrScaledValue, Value: abi.Int(225)},
			}}
		if d := cmp.Diff([]abi.Record{want}, recs, cmp.AllowUnexported(abi.Value{})); d != "" {
			t.Error(d)
		}
	})
}

func TestEngineeringValues(t *testing.T) {
	for _, c := range []struct {
		p      Point
		raw    abi.Value
		want   abi.Value
		scaled int64
		has    bool
	}{
		{Point{DataType: TypeUint64, Scale: 1, ScaleFactor: 1}, abi.Uint(math.MaxUint64), abi.Uint(math.MaxUint64), math.MaxInt32, true},
		{Point{DataType: TypeInt64, Scale: 1, ScaleFactor: 1}, abi.Int(math.MinInt64), abi.Int(math.MinInt64), math.MinInt32, true},
		{Point{DataType: TypeInt16, Scale: -2, ScaleFactor: 1}, abi.Int(-3), abi.Float(6), 6, true},
		{Point{DataType: TypeUint16, Scale: 1, ValueOffset: 0.5, ScaleFactor: 10}, abi.Uint(1), abi.Float(1.5), 15, true},
		{Point{DataType: TypeFloat32, Scale: 1, ScaleFactor: 100}, abi.Float(-0.126), abi.Float(-0.126), -13, true},
		{Point{DataType: TypeFloat64, Scale: 1, ScaleFactor: 1}, abi.Float(math.Inf(1)), abi.Float(math.Inf(1)), math.MaxInt32, true},
		{Point{DataType: TypeFloat64, Scale: 1, ScaleFactor: 1}, abi.Float(math.NaN()), abi.Float(math.NaN()), 0, false},
		{Point{DataType: TypeBool, Scale: 1, ScaleFactor: 1}, abi.Bool(true), abi.Bool(true), 1, true},
		{Point{DataType: TypeString, Scale: 1, ScaleFactor: 1}, abi.String("7"), abi.String("7"), 0, false},
	} {
		got := c.p.engineering(c.raw)
		scaled, _, ok := c.p.scaled(got)
		if got != c.want || scaled != c.scaled || ok != c.has {
			t.Errorf("%+v: got %v, scaled %d %v; want %v, %d %v", c.p, got, scaled, ok, c.want, c.scaled, c.has)
		}
	}
}

func TestScaledValueIsClampedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v atomic.Int64
		v.Store(60000)
		b := newBench(t, &fakeLine{answer: register(&v)}, "modbus+tcp://h", "registers: [{address: 40001, register_type: holding, scale_factor: 100000}]")
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		stop()
		scaled, _ := b.take()[0].Attr(abi.AttrScaledValue)
		if scaled.AsInt() != math.MaxInt32 || b.count(MetricClamped) != 1 {
			t.Errorf("got %d, %v clamped", scaled.AsInt(), b.count(MetricClamped))
		}
	})
}

func TestReportOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v atomic.Int64
		line := &fakeLine{answer: register(&v)}
		b := newBench(t, line, "modbus+tcp://h", `
report: on_change
deadband: 2
registers:
  - {address: 40001, register_type: holding}
  - {address: 40002, register_type: holding, deadband: 0}
  - {address: 40003, register_type: holding, heartbeat_seconds: 5}
  - {address: 40004, register_type: holding, report: always}
`)
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		var got []map[string]int
		for _, set := range []int64{0, 1, 2, 3, 1, 1, 0} {
			v.Store(set)
			if set != 0 || len(got) > 0 {
				time.Sleep(time.Second)
			}
			n := map[string]int{}
			for _, r := range b.take() {
				n[r.Address[len("1:4000"):]]++
			}
			got = append(got, n)
		}
		stop()
		want := []map[string]int{
			{"1": 1, "2": 1, "3": 1, "4": 1}, // 0
			{"2": 1, "4": 1},                 // 1
			{"2": 1, "4": 1},                 // 2
			{"1": 1, "2": 1, "3": 1, "4": 1}, // 3
			{"2": 1, "4": 1},                 // 1
			{"4": 1},                         // 1
			{"1": 1, "2": 1, "3": 1, "4": 1}, // 0
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

// TestRepliesThatAreAlike holds on_change to its word where a reply is compared
// as a whole: after a failure in between, and after a batch that was not stored.
func TestRepliesThatAreAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &fakeLine{answer: answerAfter(0)}
		b := newBench(t, line, "modbus+tcp://h", "retries: 0\nreport: on_change\nregisters: [{address: 40001, register_type: holding, count: 3}, {address: 10001, register_type: discrete, count: 3}]")
		stop := b.run(t)
		after := func(d time.Duration) int {
			time.Sleep(d)
			synctest.Wait()
			return len(b.take())
		}
		if n := after(2500 * time.Millisecond); n != 6 {
			t.Errorf("three polls that are alike made %d records, want 6", n)
		}
		line.set(func(request) (data, error) { return data{}, exception(4) }, nil)
		if n := after(2 * time.Second); n != 6 {
			t.Errorf("two polls that failed made %d records, want 6", n)
		}
		line.set(answerAfter(0), nil)
		if n := after(2 * time.Second); n != 6 {
			t.Errorf("%d records after the failure, want 6 although the replies are like those before it", n)
		}
		b.mu.Lock()
		b.verdict = errors.New("not stored")
		b.mu.Unlock()
		line.set(func(r request) (data, error) {
			d := numbered(r)
			if len(d) > 0 {
				d[1]++
			}
			return d, nil
		}, nil)
		if n := after(time.Second); n != 1 {
			t.Errorf("one register changed and made %d records", n)
		}
		b.mu.Lock()
		b.verdict = nil
		b.mu.Unlock()
		if n := after(2 * time.Second); n != 6 {
			t.Errorf("%d records after a batch that was not stored, want all 6 again", n)
		}
		stop()
	})
}

func TestHeartbeatAndQualityAreReportedOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v atomic.Int64
		var broken atomic.Bool
		answer := register(&v)
		line := &fakeLine{answer: func(r request) (data, error) {
			if broken.Load() {
				return data{}, exception(4)
			}
			return answer(r)
		}}
		b := newBench(t, line, "modbus+tcp://h", "report: on_change\nheartbeat_seconds: 5\nregisters: [{address: 40001, register_type: holding}]")
		stop := b.run(t)
		time.Sleep(20*time.Second + 500*time.Millisecond)
		if n := len(b.take()); n != 5 {
			t.Errorf("%d records of a value that did not change for 20 s, want the first and 4 heartbeats", n)
		}
		broken.Store(true)
		time.Sleep(20 * time.Second)
		if recs := b.take(); len(recs) != 1 || recs[0].Status != statusDeviceFailure || !recs[0].Value.IsNone() {
			t.Errorf("got %+v, want one bad record", recs)
		}
		broken.Store(false)
		time.Sleep(time.Second)
		stop()
		if recs := b.take(); len(recs) != 1 || recs[0].Status != 0 {
			t.Errorf("got %+v, want the value that is good again, although it is the same", recs)
		}
	})
}

func TestValuesThatWereNotStoredAreReportedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v atomic.Int64
		b := newBench(t, &fakeLine{answer: register(&v)}, "modbus+tcp://h", "report: on_change\nregisters: [{address: 40001, register_type: holding}]")
		b.verdict = errors.New("the pipeline was stopped")
		stop := b.run(t)
		time.Sleep(2*time.Second + 500*time.Millisecond)
		b.mu.Lock()
		b.verdict = nil
		b.mu.Unlock()
		time.Sleep(3 * time.Second)
		stop()
		if n, failed := len(b.take()), b.status.Snapshot().Failed["not_stored"]; n != 4 || failed != 3 {
			t.Errorf("%d records, %d not stored; want 4 and 3", n, failed)
		}
	})
}

func TestBadDigitsMakeOneBadRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v atomic.Int64
		v.Store(0x12ab)
		b := newBench(t, &fakeLine{answer: register(&v)}, "modbus+tcp://h", "registers: [{address: 40001, register_type: holding, data_type: bcd16}]")
		stop := b.run(t)
		time.Sleep(5*time.Second + 500*time.Millisecond)
		recs := b.take()
		if len(recs) != 1 || recs[0].Status != sources.StatusBadDecoding {
			t.Errorf("got %+v", recs)
		}
		v.Store(0x1234)
		time.Sleep(time.Second)
		stop()
		if got := values(b.take()); got["1:40001"] != "1234" {
			t.Errorf("got %v", got)
		}
	})
}

func TestLargeSourcesAreEmittedInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &fakeLine{answer: answerAfter(0)}, "modbus+tcp://h", "addressing: zero_based\nregisters: [{address: 0, count: 1201, register_type: holding}]")
		stop := b.run(t)
		time.Sleep(500 * time.Millisecond)
		stop()
		if n := len(b.take()); n != 1201 || b.batches != 3 {
			t.Errorf("%d records in %d batches", n, b.batches)
		}
	})
}
