package main

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/edgehost/edgehost/abi"
)

// The operators that every contender has.
const (
	pass   = "pass"   // nothing
	filter = "filter" // drop floats up to 50, about 40 % of all records
	scale  = "scale"  // scale floats and rename every record
)

// points is how many addresses the plant has.
const points = 200

// plant makes batches of n records as sources make them: 80 % float64, 10 % int64,
// 5 % string, 5 % bool; two attributes in an array of the record's own; names and
// addresses that are the same Go strings in every batch, unless fresh, as MQTT
// topics are.
func plant(count, n int, fresh bool) []*abi.Batch {
	rnd := rand.New(rand.NewPCG(1, 2))
	addresses := make([]string, points)
	for i := range addresses {
		addresses[i] = fmt.Sprintf("line%d/pump%02d/temperature", i%4, i/4)
	}
	words := []string{"running", "stopped", "maintenance"}
	batches := make([]*abi.Batch, count)
	at := 0
	for k := range batches {
		b := &abi.Batch{Seq: uint64(k + 1), Time: 1_700_000_000_000_000, Records: make([]abi.Record, n)}
		for i := range b.Records {
			point := at % points
			at++
			r := &b.Records[i]
			*r = abi.Record{EventTime: b.Time + int64(i), IngestTime: b.Time + 500, Source: "plant", Address: addresses[point], Protocol: abi.ProtocolModbus,
				Attrs: []abi.Attr{{Key: abi.AttrUnit, Value: abi.String("°C")}, {Key: abi.AttrSlaveID, Value: abi.Int(int64(1 + point/50))}}}
			switch x := rnd.IntN(20); {
			case x < 16:
				r.Value = abi.Float(rnd.Float64() * 100)
			case x < 18:
				r.Value = abi.Int(rnd.Int64N(10000))
			case x < 19:
				r.Value = abi.String(words[rnd.IntN(len(words))])
			default:
				r.Value = abi.Bool(rnd.IntN(2) == 1)
			}
			if fresh {
				r.Address, r.Source = strings.Clone(r.Address), strings.Clone(r.Source)
			}
		}
		batches[k] = b
	}
	return batches
}

// native is the transform as Go code on the records themselves. out is reused; the
// input stays as it is.
func native(op string, in, out []abi.Record) []abi.Record {
	out = out[:0]
	switch op {
	case pass:
		return append(out, in...)
	case filter:
		for i := range in {
			if v := in[i].Value; v.Kind() != abi.KindFloat || v.AsFloat() > 50 {
				out = append(out, in[i])
			}
		}
	case scale:
		for i := range in {
			out = append(out, in[i])
			r := &out[len(out)-1]
			if r.Value.Kind() == abi.KindFloat {
				r.Value = abi.Float(r.Value.AsFloat()*1.8 + 32)
			}
			r.Address = "site/" + r.Address
		}
	}
	return out
}

// sameRecords reports where got differs from want.
func sameRecords(got, want []abi.Record) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d records, want %d", len(got), len(want))
	}
	for i := range want {
		g, w := &got[i], &want[i]
		if g.EventTime != w.EventTime || g.IngestTime != w.IngestTime || g.Source != w.Source || g.Address != w.Address ||
			g.Protocol != w.Protocol || g.Value != w.Value || g.Status != w.Status || len(g.Attrs) != len(w.Attrs) {
			return fmt.Errorf("record %d is %+v, want %+v", i, *g, *w)
		}
		for k := range w.Attrs {
			if g.Attrs[k] != w.Attrs[k] {
				return fmt.Errorf("record %d: attribute %+v, want %+v", i, g.Attrs[k], w.Attrs[k])
			}
		}
	}
	return nil
}
