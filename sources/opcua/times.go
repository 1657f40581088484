package opcua

import (
	"math"
	"time"

	"github.com/gopcua/opcua/ua"
)

// OPC UA counts 100 ns from 1601 on; what lies behind the year 9999 means "no end"
// (Part 6, 5.2.2.5).
const (
	ticksToUnix = 116444736000000000 // 1601 to 1970
	maxYear     = 9999
)

var noEnd = time.Date(maxYear, 12, 31, 23, 59, 59, 0, time.UTC)

// timeOf is the time of a number on the wire; the zero time for none.
func timeOf(ticks uint64) time.Time {
	if ticks == 0 || ticks > math.MaxInt64 {
		return time.Time{}
	}
	d := int64(ticks) - ticksToUnix
	return bounded(time.Unix(d/1e7, d%1e7*100))
}

func bounded(t time.Time) time.Time {
	if t = t.UTC(); t.Year() > maxYear {
		return noEnd
	}
	return t
}

// exactTime puts right a time that the library decoded. It counts nanoseconds in
// 64 bits, which wrap before 1678 and after 2262: 9999 comes as 1816. What is on
// the wire is a multiple of 100 ns and 2^64 is not, so the last two digits tell
// how often it wrapped.
func exactTime(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	n := t.UnixNano()
	digits := (n%100 + 100) % 100
	if digits%4 != 0 {
		return t // not the library's
	}
	// digits + 16·wraps is a multiple of 100, where 16 is 2^64 modulo 100 and 19
	// the inverse of 4 modulo 25.
	wraps := (25 - digits/4*19%25) % 25
	if wraps == 24 {
		wraps = -1 // before 1678
	}
	const seconds, nanoseconds = 18446744073, 709551616 // 2^64 ns
	exact := time.Unix(n/1e9+wraps*seconds, n%1e9+wraps*nanoseconds)
	if exact.Year() < 1601 {
		return noEnd
	}
	return bounded(exact)
}

// eventTime is when v was taken by the clocks of the server, for history: its
// source's time, else its server's, else now by our clock put right by skew.
func eventTime(v *ua.DataValue, now time.Time, skew time.Duration) int64 {
	switch {
	case !v.SourceTimestamp.IsZero():
		return exactTime(v.SourceTimestamp).UnixMicro()
	case !v.ServerTimestamp.IsZero():
		return exactTime(v.ServerTimestamp).UnixMicro()
	default:
		return now.Add(skew).UnixMicro()
	}
}
