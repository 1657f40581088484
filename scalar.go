package main

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// scalar decodes a single value. Variables are put in first, and what they hold
// is a value and never YAML.
func (d *document) scalar(path string, n ast.Node, v reflect.Value) {
	at := position(n)
	text, quoted, ok := scalarText(n)
	if !ok {
		d.fail(path, at, "must be %s, not %s", kindName(v.Kind()), describe(n))
		return
	}
	text, expanded, err := expand(text, d.lookup)
	if err != nil {
		d.fail(path, at, "%v", err)
		return
	}
	at.expanded = expanded
	d.places[path] = at
	if v.Kind() == reflect.String {
		v.SetString(text)
		return
	}
	if quoted && !expanded {
		d.fail(path, at, "must be %s, not text in quotes", kindName(v.Kind()))
		return
	}
	if msg := setNumber(v, text); msg != "" {
		if expanded {
			text = "the variable's value" // it may be a secret in the wrong place
		}
		d.fail(path, at, "%s %s", text, msg)
	}
}

// anything decodes a single value whose type the file decides: text in quotes
// and what variables hold is text.
func (d *document) anything(path string, n ast.Node, v reflect.Value) {
	_, quoted, _ := scalarText(n)
	var text string
	d.scalar(path, n, reflect.ValueOf(&text).Elem())
	v.Set(reflect.ValueOf(text))
	if quoted || d.places[path].expanded {
		return
	}
	for _, typed := range []any{new(bool), new(int64), new(float64)} {
		if p := reflect.ValueOf(typed).Elem(); setNumber(p, text) == "" {
			v.Set(p)
			return
		}
	}
}

// setNumber parses text into a bool or number; it returns what is wrong.
func setNumber(v reflect.Value, text string) string {
	digits := strings.ReplaceAll(text, "_", "")
	base := 10
	if hex, ok := strings.CutPrefix(digits, "0x"); ok {
		digits, base = hex, 16
	}
	wrong := "is not " + kindName(v.Kind())
	switch v.Kind() {
	case reflect.Bool:
		b, err := strconv.ParseBool(strings.ToLower(text))
		if err != nil || len(text) < 4 { // not 1, 0, t, f
			return wrong
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(digits, base, 64)
		if errors.Is(err, strconv.ErrRange) || err == nil && v.OverflowInt(i) {
			return "is too large a number"
		}
		if err != nil {
			return wrong
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		u, err := strconv.ParseUint(digits, base, 64)
		if errors.Is(err, strconv.ErrRange) || err == nil && v.OverflowUint(u) {
			return "is too large a number"
		}
		if err != nil {
			return wrong
		}
		v.SetUint(u)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(strings.ReplaceAll(text, "_", ""), 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return wrong
		}
		v.SetFloat(f)
	default:
		panic(fmt.Sprintf("configuration has a field of type %s, which decode does not know", v.Type()))
	}
	return ""
}

func kindName(k reflect.Kind) string {
	switch k {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number, 0 or more"
	default:
		return "a whole number"
	}
}
