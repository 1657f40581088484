package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/edgehost/edgehost/abi"
)

// difference is one outcome that is not as expected: both sides, or one of them.
type difference struct {
	Line   int             `json:"line,omitempty"` // of the expected outcome, from 1
	Want   json.RawMessage `json:"want,omitempty"`
	Got    json.RawMessage `json:"got,omitempty"`
	Fields []string        `json:"fields,omitempty"` // what differs when there are both
}

// diffOutcomes compares what came with what was expected, in order.
func diffOutcomes(want, got []outcome) []difference {
	w, g := linesOf(want), linesOf(got)
	head := 0
	for head < min(len(w), len(g)) && w[head] == g[head] {
		head++
	}
	tail := 0
	for tail < min(len(w), len(g))-head && w[len(w)-1-tail] == g[len(g)-1-tail] {
		tail++
	}
	var out []difference
	var gone, come []int // lines of the hunk, as indices of want and got
	flush := func() {
		for i := range max(len(gone), len(come)) {
			var d difference
			if i < len(gone) {
				d.Line, d.Want = gone[i]+1, json.RawMessage(w[gone[i]])
			}
			if i < len(come) {
				d.Got = json.RawMessage(g[come[i]])
			}
			if i < min(len(gone), len(come)) {
				d.Fields = diffFields(&want[gone[i]], &got[come[i]])
			}
			out = append(out, d)
		}
		gone, come = gone[:0], come[:0]
	}
	i, j := head, head
	for _, same := range common(w[head:len(w)-tail], g[head:len(g)-tail]) {
		for ; i < head+same[0]; i++ {
			gone = append(gone, i)
		}
		for ; j < head+same[1]; j++ {
			come = append(come, j)
		}
		flush()
		i, j = i+1, j+1
	}
	for ; i < len(w)-tail; i++ {
		gone = append(gone, i)
	}
	for ; j < len(g)-tail; j++ {
		come = append(come, j)
	}
	flush()
	return out
}

func linesOf(list []outcome) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = string(list[i].appendJSON(nil))
	}
	return out
}

// maxCommon bounds the table of common: beyond it, lines are compared one by one.
const maxCommon = 4 << 20

// common finds the longest common subsequence, as pairs of indices.
func common(a, b []string) (pairs [][2]int) {
	if len(a)*len(b) > maxCommon {
		for i := range min(len(a), len(b)) {
			if a[i] == b[i] {
				pairs = append(pairs, [2]int{i, i})
			}
		}
		return pairs
	}
	length := make([][]int, len(a)+1) // of what is common in a[i:] and b[j:]
	for i := range length {
		length[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			pairs = append(pairs, [2]int{i, j})
			i, j = i+1, j+1
		case length[i+1][j] >= length[i][j+1]:
			i++
		default:
			j++
		}
	}
	return pairs
}

// diffFields names what differs between two outcomes.
func diffFields(want, got *outcome) (out []string) {
	w, g := fieldsOfOutcome(want), fieldsOfOutcome(got)
	keys := map[string]bool{}
	for k := range w {
		keys[k] = true
	}
	for k := range g {
		keys[k] = true
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if w[k] != g[k] {
			out = append(out, fmt.Sprintf("%s: want %s, got %s", k, orNone(w[k]), orNone(g[k])))
		}
	}
	if len(out) == 0 {
		out = append(out, "attrs: the order differs")
	}
	return out
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func fieldsOfOutcome(o *outcome) map[string]string {
	out := map[string]string{"output": o.Output, "rejected": o.Rejected, "source": o.Source, "address": o.Address,
		"protocol": o.Protocol.String(), "status": fmt.Sprintf("0x%08x", o.Status), "value": valueText(o.Value),
		"event_time": timeText(o.EventTime), "ingest_time": timeText(o.IngestTime)}
	for _, a := range o.Attrs {
		out["attrs."+a.Key] = valueText(a.Value)
	}
	return out
}

// valueText is a value for people: its kind and its JSON.
func valueText(v abi.Value) string {
	r := abi.Record{Value: v}
	var typed struct {
		Kind  string          `json:"kind"`
		Value json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(abi.AppendJSON(nil, &r), &typed); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(typed.Kind + " " + string(typed.Value))
}

func timeText(us int64) string {
	r := abi.Record{EventTime: us}
	var typed struct {
		At json.RawMessage `json:"event_time"`
	}
	if err := json.Unmarshal(abi.AppendJSON(nil, &r), &typed); err != nil {
		return err.Error()
	}
	return strings.Trim(string(typed.At), `"`)
}

// shownDifferences is how many differences people get to see.
const shownDifferences = 20

func printDifferences(w io.Writer, file string, list []difference) {
	for i, d := range list {
		if i == shownDifferences {
			fmt.Fprintf(w, "… and %d more differences\n", len(list)-i)
			return
		}
		switch {
		case d.Want == nil:
			fmt.Fprintf(w, "not expected:\n  + %s\n", d.Got)
		case d.Got == nil:
			fmt.Fprintf(w, "%s line %d did not come:\n  - %s\n", file, d.Line, d.Want)
		default:
			fmt.Fprintf(w, "%s line %d differs:\n  - %s\n  + %s\n", file, d.Line, d.Want, d.Got)
		}
		for _, f := range d.Fields {
			fmt.Fprintf(w, "      %s\n", f)
		}
	}
}
