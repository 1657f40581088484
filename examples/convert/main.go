// Convert changes engineering units and renames addresses by a pattern.
package main

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/edgehost/edgehost/abi/guest"
)

type conversion struct {
	unit           string
	factor, offset float64
}

func init() {
	units := conversions(guest.Config("units"))
	match := guest.Config("match")
	if match == "" {
		match = "(?s)^.*$" // the whole address
	}
	pattern, err := regexp.Compile(match)
	if err != nil {
		guest.Refuse("config key match: " + err.Error())
		return
	}
	to := guest.Config("rename")
	names := map[string]string{} // memory is a cache: it may be lost at any time
	guest.Map(func(r *guest.Record) {
		if c, ok := units[r.Unit()]; ok {
			if v, ok := r.Number(); ok {
				r.SetFloat(v*c.factor + c.offset)
				r.SetUnit(c.unit)
			}
		}
		if to == "" {
			return
		}
		name, known := names[r.Address()]
		if !known {
			address := strings.Clone(r.Address()) // the record's own text ends with the batch
			name = pattern.ReplaceAllString(address, to)
			names[address] = name
		}
		r.SetAddress(name)
	})
}

// conversions reads a list like "°C=°F*1.8+32; bar=kPa*100".
func conversions(text string) map[string]conversion {
	units := map[string]conversion{}
	for rule := range strings.SplitSeq(text, ";") {
		if rule = strings.TrimSpace(rule); rule == "" {
			continue
		}
		from, rest, _ := strings.Cut(rule, "=")
		unit, rest, _ := strings.Cut(rest, "*")
		factor, offset, shifted := strings.Cut(rest, "+")
		c := conversion{unit: unit}
		var err, err2 error
		c.factor, err = strconv.ParseFloat(factor, 64)
		if shifted {
			c.offset, err2 = strconv.ParseFloat(offset, 64)
		}
		if err != nil || err2 != nil {
			guest.Refuse("config key units: " + rule + " is not like °C=°F*1.8+32")
		}
		units[from] = c
	}
	return units
}

func main() {}
