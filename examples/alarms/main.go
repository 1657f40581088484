// Alarms sends a copy of every record that is out of its limits, or of bad
// quality, to the output "alarms"; the record itself goes where it always goes.
package main

import (
	"path"
	"strconv"
	"strings"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/abi/guest"
)

const bad = 0x80000000 // of an OPC UA StatusCode

type limit struct {
	pattern string
	above   float64
}

func init() {
	alarms, limits := guest.Handle("alarms"), limitsOf(guest.Config("above"))
	raised := guest.NewCounter("alarms_total")
	guest.FlatMap(func(r *guest.Record, out *guest.Emitter) {
		out.Emit(r)
		why := ""
		if v, ok := r.Number(); ok {
			for _, l := range limits {
				if match, _ := path.Match(l.pattern, r.Address()); match && v > l.above {
					why = "above " + strconv.FormatFloat(l.above, 'g', -1, 64)
				}
			}
		}
		if r.Status()&bad != 0 {
			why = "bad quality"
		}
		if why != "" {
			r.SetAttr("alarm", abi.String(why))
			r.SetOutput(alarms)
			out.Emit(r)
			raised.Add(1)
		}
	})
}

// limitsOf reads a list like "*/temperature=80; */pressure=6".
func limitsOf(text string) (limits []limit) {
	for rule := range strings.SplitSeq(text, ";") {
		if rule = strings.TrimSpace(rule); rule == "" {
			continue
		}
		pattern, value, _ := strings.Cut(rule, "=")
		above, err := strconv.ParseFloat(value, 64)
		if _, bad := path.Match(pattern, ""); bad != nil || err != nil {
			guest.Refuse("config key above: " + rule + " is not like */temperature=80")
		}
		limits = append(limits, limit{pattern, above})
	}
	return limits
}

func main() {}
