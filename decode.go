package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// problem is one thing that is wrong with a configuration file.
type problem struct {
	file      string
	line, col int    // from 1; 0: the file as a whole
	path      string // sources[0].mqtt.topics[1].qos
	msg       string // what is wrong and what to do
}

func (p problem) Error() string {
	where := p.file
	if p.line > 0 {
		where = fmt.Sprintf("%s:%d:%d", p.file, p.line, p.col)
	}
	if p.path == "" {
		return where + ": " + p.msg
	}
	return where + ": " + p.path + ": " + p.msg
}

// problems is every thing that is wrong with a file, in the order of its lines.
type problems []problem

func (p problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].Error()
	}
	return strings.Join(lines, "\n")
}

// place is where the value of a key stands in its file.
type place struct {
	line, col int
	expanded  bool // it contains a ${VARIABLE}
}

// document decodes one YAML file into structs and remembers where each key
// stood. It is strict, and it does not stop at the first problem.
type document struct {
	file    string
	places  map[string]place // by key path
	found   problems
	lookup  func(string) (string, bool) // the environment
	anchors map[string]ast.Node
	lenient bool // pass over unknown keys
	blocks  []block
}

// block is one of the blocks around the place that is being decoded.
type block struct {
	path   string
	fields []field
}

// defaulter is implemented by structs that have other defaults than zero.
type defaulter interface{ setDefaults() }

// shorthand is implemented by structs that may also be written as one scalar.
type shorthand interface{ fromScalar(text string) }

// maxNesting bounds how deep a file nests; an alias inside its own anchor has no end.
const maxNesting = 50

// decode reads src into out, a pointer to a struct that holds the defaults.
// What is wrong is in d.found afterwards.
func (d *document) decode(src []byte, out any) {
	d.places, d.anchors = map[string]place{}, map[string]ast.Node{}
	src = bytes.TrimPrefix(src, []byte("\ufeff")) // some editors put a mark in front
	if line := notText(src); line > 0 {
		d.fail("", place{line: line, col: 1}, "this is not UTF-8 text; save the file as UTF-8")
		return
	}
	file, err := parse(src)
	if err != nil {
		d.syntaxError(err)
		return
	}
	var body ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil || doc.Body.Type() == ast.CommentGroupType:
		case body != nil:
			d.fail("", position(doc.Body), "a second document starts here (---); a configuration is one document")
			return
		default:
			body = doc.Body
		}
	}
	if body == nil {
		return
	}
	ast.Walk(anchorCollector(d.anchors), body)
	d.value("", body, reflect.ValueOf(out).Elem(), 0)
	d.sort()
}

// sort puts what was found into the order of the file.
func (d *document) sort() {
	slices.SortStableFunc(d.found, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.col, b.col))
	})
}

// notText returns the line of the first byte that is no UTF-8 text, 0 when all is.
func notText(src []byte) int {
	line := 1
	for len(src) > 0 {
		r, size := utf8.DecodeRune(src)
		switch {
		case r == utf8.RuneError && size == 1, r == 0:
			return line
		case r == '\n':
			line++
		}
		src = src[size:]
	}
	return 0
}

// parse calls the YAML parser, which panics on some malformed files.
func parse(src []byte) (file *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("this is not YAML")
		}
	}()
	return parser.ParseBytes(src, 0, parser.AllowDuplicateMapKey())
}

func (d *document) syntaxError(err error) {
	p := problem{file: d.file, msg: err.Error()}
	var syntax *yaml.SyntaxError
	if errors.As(err, &syntax) {
		p.msg = syntax.Message
		if at := syntax.Token; at != nil && at.Position != nil {
			p.line, p.col = at.Position.Line, at.Position.Column
		}
		if strings.Contains(p.msg, "\t") {
			p.msg = "a tab stands here; indent with spaces"
		}
	}
	d.found = append(d.found, p)
}

type anchorCollector map[string]ast.Node

// Visit implements ast.Visitor.
func (c anchorCollector) Visit(n ast.Node) ast.Visitor {
	if a, ok := n.(*ast.AnchorNode); ok && a.Name != nil {
		c[a.Name.GetToken().Value] = a.Value
	}
	return c
}

func (d *document) fail(path string, at place, format string, args ...any) {
	d.found = append(d.found, problem{d.file, at.line, at.col, path, fmt.Sprintf(format, args...)})
}

// failAt adds a problem with a key that was read before; where a key is missing
// it points at the nearest block around it.
func (d *document) failAt(path, format string, args ...any) {
	d.fail(path, d.place(path), format, args...)
}

func (d *document) place(path string) place {
	for p := path; ; {
		if at, ok := d.places[p]; ok {
			return at
		}
		cut := strings.LastIndexAny(p, ".[")
		if cut < 0 {
			return place{}
		}
		p = p[:cut]
	}
}

// value decodes n into v.
func (d *document) value(path string, n ast.Node, v reflect.Value, depth int) {
	n, ok := d.resolve(path, n, depth)
	if !ok {
		return
	}
	if _, known := d.places[path]; !known {
		d.places[path] = position(n)
	}
	if isNull(n) {
		return // as if the key were not there
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(newValue(v.Type().Elem()))
		}
		d.value(path, n, v.Elem(), depth+1)
	case reflect.Struct:
		d.structure(path, n, v, depth)
	case reflect.Map:
		d.mapping(path, n, v, depth)
	case reflect.Slice:
		d.sequence(path, n, v, depth)
	case reflect.Interface:
		d.anything(path, n, v)
	default:
		d.scalar(path, n, v)
	}
}

func newValue(t reflect.Type) reflect.Value {
	p := reflect.New(t)
	if d, ok := p.Interface().(defaulter); ok {
		d.setDefaults()
	}
	return p
}

// resolve follows anchors and aliases.
func (d *document) resolve(path string, n ast.Node, depth int) (ast.Node, bool) {
	for hops := 0; ; hops++ {
		if depth+hops > maxNesting {
			d.fail(path, position(n), "nested more than %d deep", maxNesting)
			return nil, false
		}
		switch node := n.(type) {
		case *ast.AnchorNode:
			n = node.Value
		case *ast.AliasNode:
			name := node.Value.GetToken().Value
			target, ok := d.anchors[name]
			if !ok {
				d.fail(path, position(n), "no anchor &%s in this file", name)
				return nil, false
			}
			n = target
		case *ast.TagNode:
			d.fail(path, position(n), "a YAML tag (%s) has no meaning here; remove it", node.GetToken().Value)
			return nil, false
		case nil:
			return nil, false
		default:
			return n, true
		}
	}
}

// pair is one key of a mapping.
type pair struct {
	name  string
	at    place
	value ast.Node
}

// pairs returns the keys of a mapping in the order of the file, then those that
// it merges with <<.
func (d *document) pairs(path string, n ast.Node, depth int) ([]pair, bool) {
	var values []*ast.MappingValueNode
	switch node := n.(type) {
	case *ast.MappingNode:
		values = node.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{node}
	default:
		d.fail(path, position(n), "must be a block of keys, not %s", describe(n))
		return nil, false
	}
	var own, merged []pair
	for _, kv := range values {
		key := kv.Key.GetToken()
		if m, ok := kv.Key.(*ast.MappingKeyNode); ok && m.Value != nil {
			key = m.Value.GetToken()
		}
		if kv.Key.IsMergeKey() {
			merged = append(merged, d.mergePairs(path, kv.Value, depth)...)
			continue
		}
		p := pair{key.Value, place{line: key.Position.Line, col: key.Position.Column}, kv.Value}
		if i := index(own, p.name); i >= 0 {
			d.fail(join(path, p.name), p.at, "this key stands here twice; the other is on line %d", own[i].at.line)
			continue
		}
		own = append(own, p)
	}
	for _, p := range merged {
		if index(own, p.name) < 0 {
			own = append(own, p)
		}
	}
	return own, true
}

func index(pairs []pair, name string) int {
	return slices.IndexFunc(pairs, func(p pair) bool { return p.name == name })
}

func (d *document) mergePairs(path string, n ast.Node, depth int) []pair {
	n, ok := d.resolve(path, n, depth)
	if !ok {
		return nil
	}
	if seq, ok := n.(*ast.SequenceNode); ok {
		var all []pair
		for _, item := range seq.Values {
			all = append(all, d.mergePairs(path, item, depth+1)...)
		}
		return all
	}
	pairs, _ := d.pairs(path, n, depth+1)
	return pairs
}

func (d *document) structure(path string, n ast.Node, v reflect.Value, depth int) {
	if s, ok := v.Addr().Interface().(shorthand); ok && isScalar(n) {
		var text string
		d.scalar(path, n, reflect.ValueOf(&text).Elem())
		s.fromScalar(text)
		return
	}
	pairs, ok := d.pairs(path, n, depth)
	if !ok {
		return
	}
	fields := fieldsOf(v.Type())
	d.blocks = append(d.blocks, block{path, fields})
	defer func() { d.blocks = d.blocks[:len(d.blocks)-1] }()
	for _, p := range pairs {
		at := join(path, p.name)
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == p.name })
		if i < 0 {
			if !d.lenient {
				d.fail(at, p.at, "unknown key%s", suggest(p.name, d.blocks))
			}
			continue
		}
		d.entry(at, p, v.FieldByIndex(fields[i].index), depth)
	}
}

// entry decodes the value of a key. A scalar is where its value is, a block
// where its key is.
func (d *document) entry(path string, p pair, v reflect.Value, depth int) {
	d.places[path] = p.at
	if n, ok := d.resolve(path, p.value, depth); ok && isScalar(n) && !isNull(n) {
		d.places[path] = position(n)
	}
	d.value(path, p.value, v, depth+1)
}

func (d *document) mapping(path string, n ast.Node, v reflect.Value, depth int) {
	pairs, ok := d.pairs(path, n, depth)
	if !ok {
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	for _, p := range pairs {
		item := newValue(v.Type().Elem()).Elem()
		d.entry(join(path, p.name), p, item, depth)
		v.SetMapIndex(reflect.ValueOf(p.name).Convert(v.Type().Key()), item)
	}
}

func (d *document) sequence(path string, n ast.Node, v reflect.Value, depth int) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(path, position(n), "must be a list (lines that start with -), not %s", describe(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, len(seq.Values)))
	for i, item := range seq.Values {
		e := newValue(v.Type().Elem()).Elem()
		d.value(fmt.Sprintf("%s[%d]", path, i), item, e, depth+1)
		v.Set(reflect.Append(v, e))
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// field is one key that a struct knows.
type field struct {
	name  string
	typ   reflect.Type
	index []int
}

// fieldsOf lists the keys of a struct: fields with a yaml tag, and those of
// embedded structs that are tagged ",inline".
func fieldsOf(t reflect.Type) []field {
	var out []field
	for _, f := range reflect.VisibleFields(t) {
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if !f.IsExported() || name == "-" || name == "" || opts == "inline" {
			continue
		}
		out = append(out, field{name, f.Type, f.Index})
	}
	return out
}
