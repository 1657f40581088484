package mqtt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/edgehost/edgehost/abi"
)

// maxLeaves bounds the records that flatten makes of one message, and maxDepth
// how deep it goes: what lies deeper stays JSON.
const (
	maxLeaves = 10000
	maxDepth  = 64
)

// sample is one value out of a payload.
type sample struct {
	value abi.Value
	path  string // of the leaf, when flattened
	unit  string
	time  int64 // microseconds since the Unix epoch; 0: the payload holds none
	raw   bool  // the payload is not text: value holds it as it came

	noTime bool   // the payload has a timestamp that is none
	status uint32 // the payload's quality
	reason string // what the payload says of its quality; "" when that is Good
}

// decoder turns payloads into samples as one PayloadConfig says. It holds no
// state and may be used by many goroutines.
type decoder struct {
	format        string
	value         path
	mustValue     bool // the value's path is configured: it must be there
	timestamps    []path
	unit          path
	quality       path // nil: not read
	timeFormat    string
	qualityFormat string
	flatten       bool
}

func newDecoder(p PayloadConfig) (*decoder, error) {
	mustValue := p.ValuePath != ""
	p = p.over(PayloadConfig{Format: "auto", ValuePath: "value", UnitPath: "unit", TimestampFormat: "auto", QualityFormat: "auto"})
	d := &decoder{format: p.Format, mustValue: mustValue, timeFormat: p.TimestampFormat, qualityFormat: p.QualityFormat,
		flatten: p.Flatten != nil && *p.Flatten}
	stamps := []string{"ts", "timestamp"}
	if p.TimestampPath != "" {
		stamps = []string{p.TimestampPath}
	}
	var errs []error
	parse := func(s string) path {
		out, err := parsePath(s)
		errs = append(errs, err)
		return out
	}
	d.value, d.unit = parse(p.ValuePath), parse(p.UnitPath)
	for _, s := range stamps {
		d.timestamps = append(d.timestamps, parse(s))
	}
	if p.QualityPath != "" {
		d.quality = parse(p.QualityPath)
	}
	return d, errors.Join(errs...)
}

// decode returns the samples of payload. An error says why payload does not
// hold what the format promises; its text is the record's reason.
func (d *decoder) decode(payload []byte) ([]sample, error) {
	switch d.format {
	case "raw":
		return []sample{{value: abi.Bytes(payload)}}, nil
	case "text":
		if !utf8.Valid(payload) {
			return nil, errors.New("payload is not UTF-8 text")
		}
		return []sample{{value: abi.String(string(payload))}}, nil
	case "number":
		v, err := parseNumber(string(bytes.TrimSpace(payload)))
		if err != nil {
			return nil, fmt.Errorf("payload is not a number: %w", err)
		}
		return []sample{{value: v}}, nil
	case "json":
		if !utf8.Valid(payload) || !json.Valid(payload) {
			return nil, errNotJSON
		}
		return d.decodeJSON(bytes.TrimSpace(payload))
	default:
		return d.decodeAuto(payload)
	}
}

var errNotJSON = errors.New("payload is not valid JSON")

// decodeAuto fails only for a document that is not what is configured: flatten
// cannot take it apart, or value_path does not find its value.
func (d *decoder) decodeAuto(payload []byte) ([]sample, error) {
	text := bytes.TrimSpace(payload)
	switch {
	case len(payload) == 0:
		return []sample{{}}, nil
	case !utf8.Valid(payload):
		return []sample{{value: abi.Bytes(payload), raw: true}}, nil
	case json.Valid(text):
		return d.decodeJSON(text)
	case d.mustValue && len(text) > 0 && (text[0] == '{' || text[0] == '['):
		return nil, errNotJSON
	}
	if v, err := parseNumber(string(text)); err == nil && startsLikeNumber(text) {
		return []sample{{value: v}}, nil
	}
	return []sample{{value: abi.String(string(payload))}}, nil
}

// startsLikeNumber keeps words that ParseFloat takes ("inf", "nan") text.
func startsLikeNumber(text []byte) bool {
	return len(text) > 0 && bytes.ContainsRune([]byte("+-.0123456789"), rune(text[0])) && !bytes.ContainsAny(text, "iInNxX")
}

func parseNumber(s string) (abi.Value, error) {
	if !strings.ContainsAny(s, ".eE") {
		if v, err := strconv.ParseInt(s, 10, 64); err == nil {
			return abi.Int(v), nil
		}
		if v, err := strconv.ParseUint(s, 10, 64); err == nil {
			return abi.Uint(v), nil
		}
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return abi.Value{}, errors.Unwrap(err)
	}
	return abi.Float(v), nil
}

// decodeJSON reads text, which is valid JSON without space around it.
func (d *decoder) decodeJSON(text []byte) ([]sample, error) {
	if d.flatten && text[0] == '[' {
		return d.decodeArray(text)
	}
	return d.decodeDocument(text)
}

// decodeArray flattens an array. Elements that hold a value where a payload does
// are read like payloads: many gateways send what they gathered at once.
func (d *decoder) decodeArray(text []byte) ([]sample, error) {
	var f flattener
	for i, item := range node(text).array() {
		if _, ok := node(item).at(d.value); ok && item[0] == '{' {
			samples, err := d.decodeDocument(item)
			if err != nil {
				return nil, err
			}
			f.out = append(f.out, samples...)
		} else if err := f.walk(item, strconv.Itoa(i), 0, never); err != nil {
			return nil, err
		}
		if len(f.out) > maxLeaves {
			return nil, errLeaves
		}
	}
	if len(f.out) == 0 {
		return []sample{{value: jsonValue(text)}}, nil
	}
	return f.out, nil
}

// decodeDocument reads one value with what belongs to it.
func (d *decoder) decodeDocument(text []byte) ([]sample, error) {
	var base sample
	value := json.RawMessage(text)
	if text[0] == '{' {
		base = d.meta(node(text))
	}
	if text[0] == '{' || text[0] == '[' {
		at, ok := node(text).at(d.value)
		if !ok && d.mustValue {
			return nil, fmt.Errorf("payload has no %q, where value_path says that its value is", strings.Join(d.value, "."))
		}
		if ok {
			value = json.RawMessage(at)
		}
	}
	if !d.flatten || (value[0] != '{' && value[0] != '[') {
		base.value = jsonValue(value)
		return []sample{base}, nil
	}
	f := flattener{base: base}
	whole := len(value) == len(text)
	if err := f.walk(value, "", 0, func(key string) bool { return whole && d.isMeta(key) }); err != nil {
		return nil, err
	}
	if len(f.out) == 0 {
		base.value = jsonValue(value)
		return []sample{base}, nil
	}
	return f.out, nil
}

// meta is what the object root says of its value: time, unit and quality.
func (d *decoder) meta(root node) sample {
	var s sample
	for _, p := range d.timestamps {
		if at, ok := root.at(p); ok {
			var err error
			s.time, err = parseTime(d.timeFormat, json.RawMessage(at))
			s.noTime = err != nil
			break
		}
	}
	if at, ok := root.at(d.unit); ok && at[0] == '"' {
		s.unit = text2string(at)
	}
	if d.quality != nil {
		if at, ok := root.at(d.quality); ok {
			s.status, s.reason = parseQuality(d.qualityFormat, at)
		}
	}
	return s
}

// isMeta reports whether a key of the root object was read by meta and is not a
// measurement of its own.
func (d *decoder) isMeta(key string) bool {
	is := func(p path) bool { return len(p) == 1 && p[0] == key }
	return is(d.unit) || is(d.quality) || slices.ContainsFunc(d.timestamps, is)
}

var errLeaves = fmt.Errorf("payload flattens to more than %d values", maxLeaves)

type flattener struct {
	base sample
	out  []sample
}

func (f *flattener) walk(value json.RawMessage, at string, depth int, skip func(string) bool) error {
	if depth < maxDepth && value[0] == '{' {
		obj := node(value).object()
		for _, key := range slices.Sorted(maps.Keys(obj)) {
			if skip(key) {
				continue
			}
			if err := f.walk(obj[key], join(at, key), depth+1, never); err != nil {
				return err
			}
		}
		return nil
	}
	if depth < maxDepth && value[0] == '[' {
		for i, item := range node(value).array() {
			if err := f.walk(item, join(at, strconv.Itoa(i)), depth+1, never); err != nil {
				return err
			}
		}
		return nil
	}
	if len(f.out) == maxLeaves {
		return errLeaves
	}
	s := f.base
	s.path, s.value = at, jsonValue(value)
	f.out = append(f.out, s)
	return nil
}

func never(string) bool { return false }

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

// jsonValue types one JSON value: scalars become scalars, null no value,
// objects and arrays stay JSON. A number beyond float64 stays JSON too.
func jsonValue(v json.RawMessage) abi.Value {
	switch v[0] {
	case 'n':
		return abi.Value{}
	case 't', 'f':
		return abi.Bool(v[0] == 't')
	case '"':
		return abi.String(text2string(v))
	case '{', '[':
		return abi.JSON(string(v))
	}
	n, err := parseNumber(string(v))
	if err != nil {
		return abi.JSON(string(v))
	}
	return n
}

// text2string unquotes a valid JSON string.
func text2string(quoted []byte) string {
	if plain := quoted[1 : len(quoted)-1]; bytes.IndexByte(plain, '\\') < 0 && utf8.Valid(plain) {
		return string(plain)
	}
	var s string
	if err := json.Unmarshal(quoted, &s); err != nil {
		return string(quoted)
	}
	return s
}

// node is one valid JSON value.
type node []byte

func (n node) object() map[string]json.RawMessage {
	var out map[string]json.RawMessage
	if json.Unmarshal(n, &out) != nil {
		return nil
	}
	return out
}

func (n node) array() []json.RawMessage {
	var out []json.RawMessage
	if json.Unmarshal(n, &out) != nil {
		return nil
	}
	return out
}

// member returns the value of key in the object n; of several, the last. It is
// what every message costs, so it goes over the text without taking it apart.
func (n node) member(key string) (value node, found bool) {
	i := skipSpace(n, 1)
	for n[i] != '}' {
		end := endOfValue(n, i)
		name := n[i:end]
		from := skipSpace(n, skipSpace(n, end)+1) // after the colon
		end = endOfValue(n, from)
		escaped := bytes.IndexByte(name, '\\') >= 0
		if !escaped && string(name[1:len(name)-1]) == key || escaped && text2string(name) == key {
			value, found = n[from:end], true
		}
		if i = skipSpace(n, end); n[i] == ',' {
			i = skipSpace(n, i+1)
		}
	}
	return value, found
}

func skipSpace(n node, i int) int {
	for n[i] == ' ' || n[i] == '\t' || n[i] == '\n' || n[i] == '\r' {
		i++
	}
	return i
}

// endOfValue is the index behind the value that begins at i, within an object or
// array.
func endOfValue(n node, i int) int {
	depth := 0
	for {
		switch n[i] {
		case '"':
			for i++; n[i] != '"'; i++ {
				if n[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		default:
			for depth == 0 && !endsScalar(n[i+1]) {
				i++
			}
		}
		i++
		if depth == 0 {
			return i
		}
	}
}

// endsScalar reports whether c stands behind a number or a word of JSON.
func endsScalar(c byte) bool {
	return c == ',' || c == '}' || c == ']' || c <= ' '
}

// at returns the value at p below n, and false when there is none.
func (n node) at(p path) (node, bool) {
	for _, key := range p {
		switch n[0] {
		case '{':
			next, ok := n.member(key)
			if !ok {
				return nil, false
			}
			n = next
		case '[':
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 {
				return nil, false
			}
			items := n.array()
			if i >= len(items) {
				return nil, false
			}
			n = node(items[i])
		default:
			return nil, false
		}
	}
	return n, true
}

// path is a dotted path, taken apart.
type path []string

func parsePath(s string) (path, error) {
	var out path
	var key strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '.' || s[i+1] == '\\'):
			i++
			key.WriteByte(s[i])
		case s[i] == '.':
			out = append(out, key.String())
			key.Reset()
		default:
			key.WriteByte(s[i])
		}
	}
	out = append(out, key.String())
	if slices.Contains(out, "") {
		return nil, fmt.Errorf("%q is not a path: write keys and array positions with dots between, for example data.0.value", s)
	}
	return out, nil
}
