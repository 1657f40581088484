package opcua

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/gopcua/opcua/ua"
)

// TestTimesOfTheWire: every time that OPC UA can carry comes out as it is, as a
// value, as an event time and in a structure; the library alone takes 9999 for 1816.
func TestTimesOfTheWire(t *testing.T) {
	ticks := func(s string) uint64 {
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return uint64(at.Unix()*1e7+int64(at.Nanosecond())/100) + ticksToUnix
	}
	cases := map[uint64]string{0: "", math.MaxInt64: "9999-12-31T23:59:59Z", math.MaxInt64 - 1: "9999-12-31T23:59:59Z", ticks("9999-12-31T23:59:59Z") + 1e7: "9999-12-31T23:59:59Z"}
	for _, s := range []string{"1601-01-01T00:00:00.0000001Z", "1601-01-02T00:00:00Z", "1677-09-21T00:12:43Z", "1677-09-21T00:12:43.1452241Z", "1677-09-21T00:12:43.1452242Z",
		"1969-12-31T23:59:59.9999999Z", "1970-01-01T00:00:00Z", "2024-02-29T12:34:56.7891234Z", "2262-04-11T23:47:16.8547758Z", "2262-04-11T23:47:16.8547759Z",
		"2846-11-05T23:22:00.0000009Z", "4000-01-01T00:00:00Z", "9999-12-31T23:59:59Z"} {
		cases[ticks(s)] = s
	}
	for n := uint64(2000); n < 9999; n += 97 { // every number of wraps
		s := time.Date(int(n), 3, 4, 5, 6, 7, int(n)*100, time.UTC).Format("2006-01-02T15:04:05.9999999Z")
		cases[ticks(s)] = s
	}
	for n, want := range cases {
		wire := binary.LittleEndian.AppendUint64([]byte{13}, n) // a Variant of a DateTime
		var v ua.Variant
		if _, err := v.Decode(wire); err != nil {
			t.Fatal(err)
		}
		if got := newTypeSystem().convert(&v, nil).value.Text(); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
		w := &jsonWriter{}
		if w.builtin(&reader{b: wire[1:]}, 13, nil, 0); string(w.b) != `"`+want+`"` {
			t.Errorf("%d in a structure is %s, want %q", n, w.b, want)
		}
		at, _ := v.Value().(time.Time)
		it := &item{node: ua.NewStringNodeID(1, "n"), types: newTypeSystem()}
		cfg := Config{}.withDefaults()
		r := it.record("s", &cfg, &ua.DataValue{Value: ua.MustVariant(int32(1)), SourceTimestamp: at}, time.Now(), new(attrArena))
		if want != "" && timeText(time.UnixMicro(r.EventTime)) != timeText(exactTime(at).Truncate(time.Microsecond)) {
			t.Errorf("event time of %q is %s", want, timeText(time.UnixMicro(r.EventTime)))
		}
	}
	// A time that is not from the wire stays what it is.
	if now := time.Unix(1_700_000_000, 123_456_789); !exactTime(now).Equal(now) {
		t.Errorf("%s became %s", now, exactTime(now))
	}
}
