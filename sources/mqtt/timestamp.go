package mqtt

import (
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

var errTimestamp = errors.New("not a timestamp of the configured format")

// The sizes from which auto tells the unit of a number. Each unit covers the
// years 1973 to 5138 of the one before it: seconds of today have 10 digits,
// milliseconds 13, microseconds 16, nanoseconds 19.
const (
	fromMillis = 1e11
	fromMicros = 1e14
	fromNanos  = 1e17
)

// maxDigits is more than any timestamp has.
const maxDigits = 64

// The years 1 to 9999, in microseconds since the Unix epoch: no table holds
// other times (TIMESTAMP of Databricks SQL).
const (
	minTime = -62135596800_000000
	maxTime = 253402300799_999999
)

// parseTime reads a JSON number or string as microseconds since the Unix epoch.
func parseTime(format string, v json.RawMessage) (int64, error) {
	us, err := readTime(format, v)
	if err != nil || us < minTime || us > maxTime {
		return 0, errTimestamp
	}
	return us, nil
}

func readTime(format string, v json.RawMessage) (int64, error) {
	text := string(v)
	if v[0] == '"' {
		text = strings.TrimSpace(text2string(v))
	}
	if format == "rfc3339" {
		return parseDate(text)
	}
	us, err := parseEpoch(format, text)
	if err != nil && format == "auto" {
		return parseDate(text)
	}
	return us, err
}

func parseDate(text string) (int64, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UnixMicro(), nil
		}
	}
	return 0, errTimestamp
}

// perUnit is how many microseconds a unit is, or how many of it a microsecond.
var perUnit = map[string]int64{"s": 1_000_000, "ms": 1000, "us": 1, "ns": 1000}

// parseEpoch reads a decimal number of s, ms, us or ns without losing
// microseconds to binary fractions.
func parseEpoch(format, text string) (int64, error) {
	if len(text) > maxDigits || strings.ContainsAny(text, "xX_pP") {
		return 0, errTimestamp
	}
	// Whole numbers, as nearly all are, take the short way.
	const most = math.MaxInt64 / 1_000_000
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n != 0 && n > -most && n < most {
		unit := format
		if unit == "auto" {
			unit = epochUnit(float64(n))
		}
		if unit != "ns" {
			return n * perUnit[unit], nil
		}
	}
	// A number that is 0 as a float64 may have an exponent that big.Rat would
	// write out in full.
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || f == 0 || !(f > -1e19 && f < 1e19) {
		return 0, errTimestamp
	}
	if format == "auto" {
		format = epochUnit(f)
	}
	exact, ok := new(big.Rat).SetString(text)
	if !ok {
		return 0, errTimestamp
	}
	factor := new(big.Rat).SetInt64(perUnit[format])
	if format == "ns" {
		factor.Inv(factor)
	}
	exact.Mul(exact, factor)
	us := new(big.Int).Quo(exact.Num(), exact.Denom())
	if !us.IsInt64() || us.Int64() == 0 {
		return 0, errTimestamp
	}
	return us.Int64(), nil
}

func epochUnit(f float64) string {
	switch abs := max(f, -f); {
	case abs < fromMillis:
		return "s"
	case abs < fromMicros:
		return "ms"
	case abs < fromNanos:
		return "us"
	default:
		return "ns"
	}
}
