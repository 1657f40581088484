package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// shape has a field of every kind that decode knows.
type shape struct {
	Text    string            `yaml:"text"`
	Flag    bool              `yaml:"flag"`
	Int     int               `yaml:"int"`
	Small   int8              `yaml:"small"`
	Count   uint16            `yaml:"count"`
	Number  float64           `yaml:"number"`
	Any     any               `yaml:"any"`
	Pointer *int              `yaml:"pointer"`
	List    []string          `yaml:"list"`
	Map     map[string]string `yaml:"map"`
	Block   inner             `yaml:"block"`
	Blocks  []inner           `yaml:"blocks"`
	Named   map[string]inner  `yaml:"named"`
	inlined `yaml:",inline"`
	Hidden  string
}

type inner struct {
	Name  string `yaml:"name"`
	Depth int    `yaml:"depth"`
	On    bool   `yaml:"on"`
}

func (i *inner) setDefaults()           { i.On = true }
func (i *inner) fromScalar(text string) { i.Name = text }

type inlined struct {
	Within string `yaml:"within"`
}

func decodeShape(src string) (shape, *document) {
	env := map[string]string{"HOST": "plant", "PORT": "1883", "TRICK": "a: [b, {c: d}] # $$ ${HOST}\n- e", "EMPTY": "", "YES": "true"}
	d := &document{file: "f.yaml", lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	var s shape
	d.decode([]byte(src), &s)
	return s, d
}

func TestDecode(t *testing.T) {
	five := 5
	for name, test := range map[string]struct {
		src  string
		want shape
	}{
		"empty":            {"", shape{}},
		"comments only":    {"# nothing\n", shape{}},
		"document marker":  {"---\ntext: a\n", shape{Text: "a"}},
		"byte order mark":  {"\ufefftext: a\n", shape{Text: "a"}},
		"windows":          {"text: a\r\nint: 5\r\n", shape{Text: "a", Int: 5}},
		"scalars":          {"text: a\nflag: true\nint: -5\nsmall: 127\ncount: 65535\nnumber: 1.5", shape{Text: "a", Flag: true, Int: -5, Small: 127, Count: 65535, Number: 1.5}},
		"other spellings":  {"int: 0x10\ncount: 1_000\nnumber: 1e3\nflag: True", shape{Int: 16, Count: 1000, Number: 1000, Flag: true}},
		"not octal":        {"int: 010", shape{Int: 10}},
		"text as written":  {"text: 00010\nlist: [yes, 1.50, true, null-ish]", shape{Text: "00010", List: []string{"yes", "1.50", "true", "null-ish"}}},
		"quotes":           {`text: "a\tb"` + "\nlist: ['it''s']", shape{Text: "a\tb", List: []string{"it's"}}},
		"block text":       {"text: |\n  a\n  b\n", shape{Text: "a\nb\n"}},
		"null is absent":   {"text: null\nint: ~\nblock:\nlist:\npointer:", shape{}},
		"pointer":          {"pointer: 5", shape{Pointer: &five}},
		"any":              {"any: 7", shape{Any: int64(7)}},
		"any text":         {`any: "7"`, shape{Any: "7"}},
		"any variable":     {"any: ${PORT}", shape{Any: "1883"}},
		"any flag":         {"any: false", shape{Any: false}},
		"maps":             {"map: {a: 1, b: x}\nnamed: {k: {name: n}}", shape{Map: map[string]string{"a": "1", "b": "x"}, Named: map[string]inner{"k": {Name: "n", On: true}}}},
		"blocks":           {"blocks:\n- name: a\n  depth: 1\n- b\n- {name: c, on: false}", shape{Blocks: []inner{{"a", 1, true}, {"b", 0, true}, {"c", 0, false}}}},
		"inline":           {"within: a", shape{inlined: inlined{"a"}}},
		"anchors":          {"block: &b {name: a, depth: 2}\nblocks: [*b, {<<: *b, depth: 3}]", shape{Block: inner{Name: "a", Depth: 2}, Blocks: []inner{{"a", 2, true}, {"a", 3, true}}}},
		"merged list":      {"named:\n  x: &x {name: a}\n  y: &y {name: b, depth: 4}\nblock: {<<: [*x, *y]}", shape{Named: map[string]inner{"x": {"a", 0, true}, "y": {"b", 4, true}}, Block: inner{Name: "a", Depth: 4}}},
		"variables":        {"text: mqtt://${HOST}:${PORT}/${NONE:-x}${EMPTY:-y}${EMPTY}\nint: ${PORT}\nflag: \"${YES}\"", shape{Text: "mqtt://plant:1883/xy", Int: 1883, Flag: true}},
		"dollars":          {"text: $share/a/$SYS/$$x$$${PORT}$\nlist: ['$${HOST}', $]", shape{Text: "$share/a/$SYS/$x$1883$", List: []string{"${HOST}", "$"}}},
		"values, not YAML": {"text: ${TRICK}\nlist: [\"${TRICK}\"]", shape{Text: "a: [b, {c: d}] # $$ ${HOST}\n- e", List: []string{"a: [b, {c: d}] # $$ ${HOST}\n- e"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, d := decodeShape(test.src)
			if len(d.found) > 0 {
				t.Fatalf("problems:\n%v", d.found)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(shape{}, inlined{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeProblems(t *testing.T) {
	for name, test := range map[string]struct{ src, want string }{
		"unknown key":         {"txet: a", "f.yaml:1:1: txet: unknown key; did you mean text?"},
		"key of another kind": {"a: 1", "f.yaml:1:1: a: unknown key; known here: text, flag, int"},
		"hidden field":        {"Hidden: a", "Hidden: unknown key"},
		"key of a block":      {"depth: 1", "f.yaml:1:1: depth: unknown key; did you mean block.depth?"},
		"within a list":       {"blocks:\n- name: a\n- nam: b", "f.yaml:3:3: blocks[1].nam: unknown key; did you mean name?"},
		"twice":               {"text: a\nint: 1\ntext: b", "f.yaml:3:1: text: this key stands here twice; the other is on line 1"},
		"text for number":     {"int: many", "f.yaml:1:6: int: many is not a whole number"},
		"fraction":            {"int: 1.5", "int: 1.5 is not a whole number"},
		"negative":            {"count: -1", "count: -1 is not a whole number, 0 or more"},
		"too large":           {"small: 128", "small: 128 is too large a number"},
		"far too large":       {"int: 99999999999999999999", "is too large a number"},
		"quoted number":       {"int: \"5\"", "int: must be a whole number, not text in quotes"},
		"yes":                 {"flag: yes", "flag: yes is not true or false"},
		"one":                 {"flag: 1", "flag: 1 is not true or false"},
		"not a number":        {"number: .nan", "number: .nan is not a number"},
		"infinite":            {"number: .inf", "number: .inf is not a number"},
		"list for text":       {"text: [a]", "f.yaml:1:7: text: must be text, not a list"},
		"block for number":    {"int: {a: 1}", "int: must be a whole number, not a block of keys"},
		"text for list":       {"list: a", "f.yaml:1:7: list: must be a list (lines that start with -), not a single value"},
		"list for block":      {"block: [a]", "block: must be a block of keys, not a list"},
		"text for map":        {"map: a", "map: must be a block of keys, not a single value"},
		"text for document":   {"a", "f.yaml:1:1: must be a block of keys, not a single value"},
		"unset variable":      {"int: 1\ntext: \"${NONE}\"", "f.yaml:2:7: text: the environment variable NONE is not set; set it, or write ${NONE:-default}"},
		"open variable":       {"text: ${HOST", "text: ${ is not closed"},
		"no variable":         {"text: ${a b}", "text: ${a b} is not a variable"},
		"variable in number":  {"int: ${HOST}", "f.yaml:1:6: int: the variable's value is not a whole number"},
		"no anchor":           {"block: *b", "block: no anchor &b in this file"},
		"endless alias":       {"block: &b {<<: *b}", "nested more than 50 deep"},
		"tag":                 {"text: !secret a", "text: a YAML tag (!secret) has no meaning here"},
		"two documents":       {"text: a\n---\ntext: b", "f.yaml:3:1: a second document starts here"},
		"syntax":              {"text: [a\nint: 1", "f.yaml:"},
		"tab":                 {"block:\n\tname: a", "f.yaml:"},
	} {
		t.Run(name, func(t *testing.T) {
			_, d := decodeShape(test.src)
			if len(d.found) == 0 || !strings.Contains(d.found.Error(), test.want) {
				t.Errorf("problems:\n%v\nwant one with:\n%s", d.found, test.want)
			}
		})
	}
}

func TestDecodeFindsEverything(t *testing.T) {
	_, d := decodeShape("int: many\nblocks:\n- {nam: a}\n- {depth: x}\nflag: 3\nlits: []\n")
	var lines []string
	for _, p := range d.found {
		lines = append(lines, fmt.Sprintf("%d %s", p.line, p.path))
	}
	want := []string{"1 int", "3 blocks[0].nam", "4 blocks[1].depth", "5 flag", "6 lits"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPlaces(t *testing.T) {
	_, d := decodeShape("text: a\nblocks:\n- name: b\n  depth: 1\nmap:\n  k: v\n")
	for path, want := range map[string]string{
		"text": "1:7", "blocks": "2:1", "blocks[0]": "3:3", "blocks[0].name": "3:9", "blocks[0].depth": "4:10", "map.k": "6:6",
		"blocks[0].missing.deeper[3]": "3:3", // what is missing is told at the block around it
		"nowhere":                     "0:0",
	} {
		p := d.place(path)
		if got := fmt.Sprintf("%d:%d", p.line, p.col); got != want {
			t.Errorf("%s is at %s, want %s", path, got, want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"endpoint", "enabled", "protocol", "qos"}
	for name, want := range map[string]string{"endpont": "endpoint", "protocoll": "protocol", "Enabled": "enabled", "qs": "qos",
		"x": "", "completely": "", "": ""} {
		if got := nearest(name, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

// FuzzConfig throws files at the whole loader: it must not panic, whatever it
// is given, and every problem must have a place in the file.
func FuzzConfig(f *testing.F) {
	f.Add(readTestdata(f, "testdata/config/document.yaml"))
	f.Add(readTestdata(f, "examples/connector.yaml"))
	for _, s := range []string{"", "a", "- a", "sources: [{name: a, protocol: mqtt, mqtt: }]", "a: &a [*a]", "<<: *x", "&a : b", "? [a]\n: b", "*a : b",
		"sources: *s\npipelines: &s []", "tables: [{name: a.b.c, columns: [{name: x, type: int}]}]", "text: |", "%YAML 1.2\n---\n", "!!map {a: b}",
		"pipelines: [{name: p, sources: ['[']}]", "sources:\n- name: a\n  protocol: modbus\n  modbus:\n    registers: [{address: 0x10, count: 3}]", "a:\n\t- b", "\xff\xfe"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		c := parseConfig("f.yaml", src, func(name string) (string, bool) { return name, name != "UNSET" })
		for _, p := range c.doc.found {
			if p.msg == "" {
				t.Errorf("a problem without words: %+v", p)
			}
		}
		if len(c.doc.found) == 0 {
			c.plan()
			c.NotInForce()
			c.warnings()
			c.strict()
		}
	})
}

// FuzzExpand: what is expanded holds no reference to a variable that was not
// in a variable's own value, and $$ escapes everything.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{"", "$", "$$", "${A}", "${A:-b}", "${", "${}", "$${A}", "a$b$", "${A}${A}", "${A:-${B}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		lookup := func(string) (string, bool) { return "", false }
		escaped := strings.ReplaceAll(text, "$", "$$")
		if out, expanded, err := expand(escaped, lookup); err != nil || expanded || out != text {
			t.Errorf("expand(%q) = %q, %v, %v; want %q", escaped, out, expanded, err, text)
		}
		if out, expanded, err := expand(text, lookup); err == nil && !expanded && strings.Contains(out, "${") && !strings.Contains(text, "$$") {
			t.Errorf("expand(%q) = %q", text, out)
		}
	})
}
