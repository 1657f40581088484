package mqtt

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/edgehost/edgehost/sources"
)

// The words with which a quality begins, in any case: those of OPC UA's names of
// status codes too ("BadSensorFailure").
var qualityWords = []struct {
	word   string
	status uint32
}{{"good", sources.StatusGood}, {"uncertain", sources.StatusUncertain}, {"bad", sources.StatusBad}}

// parseQuality reads a JSON value as the status that a payload gives its value.
// reason is "" when the quality is Good. What cannot be read makes the value
// Uncertain: somebody says something of it that nobody here understands.
//
// auto takes words, true and false, the numbers of OPC DA (0 to 255, of which
// bits 6 and 7 are the quality: OPC Data Access Custom Interface 3.0, section
// 6.8; JSON of Sparkplug hosts has them too) and, from 2^30 on, status codes of
// OPC UA. opcua takes each number as a status code, so that 0 is Good.
func parseQuality(format string, v node) (status uint32, reason string) {
	status, ok := qualityStatus(format, v)
	switch {
	case !ok:
		return sources.StatusUncertain, fmt.Sprintf("the quality of the payload is not understood: %s", shorten(v))
	case sources.Quality(status) == sources.Good:
		return status, ""
	}
	return status, fmt.Sprintf("the payload says so: %s", shorten(v))
}

func qualityStatus(format string, v node) (status uint32, ok bool) {
	text := string(v)
	if v[0] == '"' {
		text = strings.TrimSpace(text2string(v))
	}
	for _, q := range qualityWords {
		if len(text) >= len(q.word) && strings.EqualFold(text[:len(q.word)], q.word) {
			return q.status, true
		}
	}
	switch text {
	case "true":
		return sources.StatusGood, true
	case "false":
		return sources.StatusBad, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil || n > 1<<32-1 || n < -1<<31:
		return 0, false
	case format == "opcua" || n >= 1<<30 || n < 0: // below 0: printed as an int32
		return uint32(n), true
	case n > 255 || n>>6 == 2:
		return 0, false
	}
	return [...]uint32{sources.StatusBad, sources.StatusUncertain, 0, sources.StatusGood}[n>>6], true
}

// shorten keeps a reason short, whatever a payload holds.
func shorten(v node) string {
	const most = 100
	if len(v) <= most {
		return string(v)
	}
	return strings.ToValidUTF8(string(v[:most]), "") + "…"
}
