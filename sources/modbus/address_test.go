package modbus

import (
	"strings"
	"testing"
)

func TestAddressRules(t *testing.T) {
	for _, c := range []struct {
		mode   Addressing
		table  RegisterType
		text   Address
		offset int
		label  string // "": an error that contains hint
		hint   string
	}{
		{Auto, Holding, "40001", 0, "40001", ""},
		{Auto, Holding, "49999", 9998, "49999", ""},
		{Auto, Holding, "400001", 0, "400001", ""},
		{Auto, Holding, "465536", 65535, "465536", ""},
		{Auto, Input, "30001", 0, "30001", ""},
		{Auto, Input, "365536", 65535, "365536", ""},
		{Auto, Discrete, "10001", 0, "10001", ""},
		{Auto, Discrete, "165536", 65535, "165536", ""},
		{Auto, Holding, "0", 0, "holding:0", ""},
		{Auto, Holding, "100", 100, "holding:100", ""},
		{Auto, Holding, "40000", 40000, "holding:40000", ""},
		{Auto, Holding, "50000", 50000, "holding:50000", ""},
		{Auto, Holding, "20001", 20001, "holding:20001", ""},
		{Auto, Coil, "17", 17, "coil:17", ""},
		{Auto, Holding, "0x10", 16, "holding:16", ""},
		{Auto, Holding, "0x9C41", 40001, "holding:40001", ""},
		{Auto, Input, "40001", 0, "", "is Modicon notation for register_type holding, but register_type is input"},
		{Auto, Holding, "30001", 0, "", "is Modicon notation for register_type input"},
		{Auto, Holding, "10001", 0, "", "addressing: zero_based"},
		{Auto, Coil, "10001", 0, "", "is Modicon notation for register_type discrete"},
		{Auto, Coil, "00010", 0, "", "set addressing: modicon"},
		{Auto, Holding, "465537", 0, "", "neither Modicon notation nor below 65536"},
		{Auto, Holding, "", 0, "", "is missing"},
		{Auto, Holding, "4x0001", 0, "", "write digits only"},
		{Auto, Holding, "-1", 0, "", "write digits only"},

		{Modicon, Coil, "1", 0, "00001", ""},
		{Modicon, Coil, "00017", 16, "00017", ""},
		{Modicon, Coil, "9999", 9998, "09999", ""},
		{Modicon, Coil, "010001", 10000, "010001", ""},
		{Modicon, Coil, "065536", 65535, "065536", ""},
		{Modicon, Holding, "40001", 0, "40001", ""},
		{Modicon, Coil, "0", 0, "", "the first register is 1"},
		{Modicon, Coil, "10001", 0, "", "is Modicon notation for register_type discrete"},
		{Modicon, Holding, "100", 0, "", "the first register is 40001 or 400001"},
		{Modicon, Input, "40001", 0, "", "register_type is input"},

		{ZeroBased, Holding, "40001", 40001, "holding:40001", ""},
		{ZeroBased, Input, "65535", 65535, "input:65535", ""},
		{ZeroBased, Input, "65536", 0, "", "beyond the last register of a table (65535)"},
		{OneBased, Discrete, "1", 0, "discrete:1", ""},
		{OneBased, Holding, "65536", 65535, "holding:65536", ""},
		{OneBased, Holding, "0", 0, "", "the first register is 1"},
		{OneBased, Holding, "65537", 0, "", "(65536)"},
	} {
		got, err := c.text.resolve(c.mode, c.table)
		name := string(c.mode) + " " + string(c.table) + " " + string(c.text)
		switch {
		case c.label == "" && (err == nil || !strings.Contains(err.Error(), c.hint)):
			t.Errorf("%s: got %+v and error %v, want an error with %q", name, got, err, c.hint)
		case c.label != "" && (err != nil || got.offset != c.offset || got.label(c.table) != c.label):
			t.Errorf("%s: got offset %d label %s error %v, want %d %s", name, got.offset, got.label(c.table), err, c.offset, c.label)
		}
	}
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"40001", "00010", "0x10", "465536", "", " 7 # x", `"40001"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var a Address
		if err := a.UnmarshalYAML([]byte(s)); err != nil {
			t.Fatal(err)
		}
		for _, mode := range addressings {
			for _, table := range registerTypes {
				if p, err := a.resolve(mode, table); err == nil && (p.offset < 0 || p.offset >= tableSize) {
					t.Errorf("%q %s %s: offset %d is outside the table", s, mode, table, p.offset)
				}
			}
		}
	})
}
