package main

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// suggest names the key that was probably meant: one that is spelt alike, one of
// that very name in a block further in, or in one further out. The last of blocks
// is the one in which name stands.
func suggest(name string, blocks []block) string {
	fields := blocks[len(blocks)-1].fields
	names := make([]string, len(fields))
	for i := range fields {
		names[i] = fields[i].name
	}
	for i := len(blocks) - 2; i > 0; i-- { // not the whole file
		if has(blocks[i].fields, name) {
			inner := strings.TrimPrefix(blocks[i+1].path, blocks[i].path+".")
			return fmt.Sprintf("; %s stands one block further out, beside %s", name, inner)
		}
	}
	best := nearest(name, names)
	for _, f := range fields {
		t := f.typ
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if best == "" && t.Kind() == reflect.Struct && has(fieldsOf(t), name) {
			best = f.name + "." + name
		}
	}
	return meant(best, names)
}

func has(fields []field, name string) bool {
	return slices.ContainsFunc(fields, func(f field) bool { return f.name == name })
}

// nearest returns the name that is spelt most like name, "" when none is.
func nearest(name string, names []string) string {
	best, distance := "", max(2, len(name)/3)+1
	for _, n := range names {
		if len(name) > 3 && strings.HasPrefix(n, name) {
			return n // its end is missing: max_delay for max_delay_seconds, user for username
		}
		if d := levenshtein(name, n); d < min(distance, len(name)) {
			best, distance = n, d
		}
	}
	return best
}

// meant is the end of a sentence about an unknown name.
func meant(best string, names []string) string {
	switch {
	case best != "":
		return fmt.Sprintf("; did you mean %s?", best)
	case len(names) == 0:
		return ""
	}
	return "; known here: " + strings.Join(names, ", ")
}

func levenshtein(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
