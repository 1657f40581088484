package zerobus

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"regexp"
	"strconv"

	"github.com/edgehost/edgehost/abi"
)

// Why a column cannot take a value. They follow "cannot take a … value: ".
var (
	errNotNumber  = errors.New("it is not a number")
	errNotInteger = errors.New("it is not a whole number")
	errRange      = errors.New("it is out of range")
	errNotBool    = errors.New("it is neither true nor false")
	errNotBytes   = errors.New("it is neither bytes nor text")
	errNotUTF8    = errors.New("it is not valid UTF-8")
	errNotDecimal = errors.New("it is not a decimal number")
	errNotJSON    = errors.New("it is not valid JSON")
)

// intRange is the values of the integer types that are narrower than 64 bits.
var intRange = map[Type][2]int64{
	"TINYINT": {math.MinInt8, math.MaxInt8}, "BYTE": {math.MinInt8, math.MaxInt8},
	"SMALLINT": {math.MinInt16, math.MaxInt16}, "SHORT": {math.MinInt16, math.MaxInt16},
	"INT": {math.MinInt32, math.MaxInt32}, "INTEGER": {math.MinInt32, math.MaxInt32}, "DATE": {math.MinInt32, math.MaxInt32},
}

// toInt converts v exactly or not at all.
func toInt(v abi.Value, t Type) (int64, error) {
	var n int64
	switch v.Kind() {
	case abi.KindInt:
		n = v.AsInt()
	case abi.KindUint:
		if v.AsUint() > math.MaxInt64 {
			return 0, errRange
		}
		n = int64(v.AsUint())
	case abi.KindBool:
		n = int64(v.Bits())
	case abi.KindFloat:
		f := v.AsFloat()
		if f != math.Trunc(f) { // also NaN
			return 0, errNotInteger
		}
		if f < -(1<<63) || f >= 1<<63 {
			return 0, errRange
		}
		n = int64(f)
	default:
		return 0, errNotNumber
	}
	if r, narrow := intRange[t]; narrow && (n < r[0] || n > r[1]) {
		return 0, errRange
	}
	return n, nil
}

func toBool(v abi.Value) (bool, error) {
	switch v.Kind() {
	case abi.KindBool:
		return v.AsBool(), nil
	case abi.KindInt, abi.KindUint:
		if v.Bits() <= 1 {
			return v.Bits() == 1, nil
		}
	}
	return false, errNotBool
}

// decimal is the text of a DECIMAL.
var decimal = regexp.MustCompile(`^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$`)

// toText is v as the text of a STRING, VARIANT or DECIMAL column.
func toText(v abi.Value, t Type) (string, error) {
	switch t {
	case "VARIANT":
		return toJSON(v)
	case "DECIMAL":
		if v.Kind() == abi.KindFloat {
			f := v.AsFloat()
			if math.IsNaN(f) || math.IsInf(f, 0) {
				return "", errNotDecimal
			}
			return strconv.FormatFloat(f, 'f', -1, 64), nil
		}
		s := plainText(v)
		if !decimal.MatchString(s) {
			return "", errNotDecimal
		}
		return s, nil
	default:
		return plainText(v), nil
	}
}

// plainText is the text form of v: numbers in their shortest exact form, bytes in
// base64, text and JSON as they are.
func plainText(v abi.Value) string {
	switch v.Kind() {
	case abi.KindBool:
		return strconv.FormatBool(v.AsBool())
	case abi.KindInt:
		return strconv.FormatInt(v.AsInt(), 10)
	case abi.KindUint:
		return strconv.FormatUint(v.AsUint(), 10)
	case abi.KindFloat:
		return strconv.FormatFloat(v.AsFloat(), 'g', -1, 64)
	case abi.KindBytes:
		return base64.StdEncoding.EncodeToString([]byte(v.Text()))
	default:
		return v.Text()
	}
}

// toJSON is v as JSON text. NaN and infinities, which JSON lacks, become text.
func toJSON(v abi.Value) (string, error) {
	switch v.Kind() {
	case abi.KindJSON:
		if !json.Valid([]byte(v.Text())) {
			return "", errNotJSON
		}
		return v.Text(), nil
	case abi.KindBool, abi.KindInt, abi.KindUint:
		return plainText(v), nil
	case abi.KindFloat:
		if f := v.AsFloat(); !math.IsNaN(f) && !math.IsInf(f, 0) {
			return plainText(v), nil
		}
	}
	b, err := json.Marshal(plainText(v))
	return string(b), err
}

func parseInt(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }
