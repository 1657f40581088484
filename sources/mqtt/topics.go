package mqtt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/edgehost/edgehost/sources"
)

// cutShare takes "$share/group/filter" apart.
func cutShare(topic string) (group, filter string, shared bool) {
	rest, ok := strings.CutPrefix(topic, "$share/")
	if !ok {
		return "", topic, false
	}
	group, filter, _ = strings.Cut(rest, "/")
	return group, filter, true
}

// checkFilter holds a topic filter to section 4.7 of MQTT 3.1.1.
func checkFilter(filter string) error {
	switch {
	case filter == "":
		return errors.New("is empty: give a topic filter, for example sensors/+/temperature")
	case len(filter) > 65535:
		return errors.New("is longer than 65535 bytes")
	case !utf8.ValidString(filter) || strings.ContainsRune(filter, 0):
		return errors.New("must be UTF-8 without NUL")
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		switch {
		case level == "#" && i < len(levels)-1:
			return fmt.Errorf("%q: # must be the last level", filter)
		case level != "#" && strings.Contains(level, "#"), level != "+" && strings.Contains(level, "+"):
			return fmt.Errorf("%q: + and # must stand alone between slashes", filter)
		}
	}
	return nil
}

// matches reports whether filter, in levels, selects topic, in levels. A
// wildcard in the first level does not select topics that begin with $.
func matches(filter, topic []string) bool {
	if len(topic[0]) > 0 && topic[0][0] == '$' && (filter[0] == "+" || filter[0] == "#") {
		return false
	}
	for i, level := range filter {
		if level == "#" {
			return true
		}
		if i >= len(topic) || (level != "+" && level != topic[i]) {
			return false
		}
	}
	return len(filter) == len(topic)
}

// covers reports whether every topic that b selects is selected by a too.
func covers(a, b []string) bool {
	if len(b[0]) > 0 && b[0][0] == '$' && (a[0] == "+" || a[0] == "#") {
		return false
	}
	for i, level := range a {
		if level == "#" {
			return true
		}
		if i >= len(b) || b[i] == "#" || (level != "+" && level != b[i]) {
			return false
		}
	}
	return len(a) == len(b)
}

// overlap reports whether some topic is selected by both.
func overlap(a, b []string) bool {
	for i := 0; ; i++ {
		switch {
		case i < len(a) && a[i] == "#", i < len(b) && b[i] == "#":
			return true
		case i >= len(a) || i >= len(b):
			// "a/#" selects "a" too.
			return len(a) == len(b)
		case a[i] != b[i] && a[i] != "+" && b[i] != "+":
			return false
		}
	}
}

// subscription is one filter as the broker gets it.
type subscription struct {
	filter string // with $share/group/ when shared
	qos    byte
}

// subscriptions reduces topics to filters of which none covers another: a
// broker may send a message once for each subscription that it matches, and
// one record is wanted. What is left out raises the qos of what covers it.
// Shared subscriptions are queues of their own and stay as they are.
func subscriptions(topics []TopicConfig) []subscription {
	var out []subscription
	for i, t := range topics {
		if t.SharedGroup != "" {
			s := subscription{"$share/" + t.SharedGroup + "/" + t.Topic, byte(t.QoS)}
			if at := slices.IndexFunc(out, func(o subscription) bool { return o.filter == s.filter }); at >= 0 {
				out[at].qos = max(out[at].qos, s.qos)
				continue
			}
			out = append(out, s)
			continue
		}
		filter := strings.Split(t.Topic, "/")
		qos, covered := byte(t.QoS), false
		for j, other := range topics {
			if i == j || other.SharedGroup != "" {
				continue
			}
			o := strings.Split(other.Topic, "/")
			if covers(o, filter) && (!covers(filter, o) || j < i) {
				covered = true
			}
			if covers(filter, o) {
				qos = max(qos, byte(other.QoS))
			}
		}
		if !covered {
			out = append(out, subscription{t.Topic, qos})
		}
	}
	return out
}

// template names the levels of a topic.
type template []templateLevel

type templateLevel struct {
	literal string
	name    string // attribute that gets the level; "" for a literal or a wildcard
	any     bool   // + or a name
	rest    bool   // #
}

// parseTemplate reads "plant/{line}/+/{sensor_name}".
func parseTemplate(s string) (template, error) {
	levels := strings.Split(s, "/")
	var out template
	names := map[string]bool{}
	for i, level := range levels {
		switch {
		case level == "+":
			out = append(out, templateLevel{any: true})
		case level == "#":
			if i < len(levels)-1 {
				return nil, errors.New("# must be the last level")
			}
			out = append(out, templateLevel{rest: true})
		case strings.HasPrefix(level, "{") && strings.HasSuffix(level, "}"):
			name := level[1 : len(level)-1]
			if msg := sources.TagKeyError(name); msg != "" {
				return nil, errors.New(msg)
			}
			if names[name] {
				return nil, fmt.Errorf("{%s} stands twice", name)
			}
			names[name] = true
			out = append(out, templateLevel{any: true, name: name})
		case strings.ContainsAny(level, "{}+#"):
			return nil, fmt.Errorf("level %q: a name in braces, + or # must stand alone between slashes", level)
		default:
			out = append(out, templateLevel{literal: level})
		}
	}
	return out, nil
}

// read returns the named levels of topic, and false when topic is not of this
// form.
func (t template) read(topic []string) (map[string]string, bool) {
	out := map[string]string{}
	for i, level := range t {
		if level.rest {
			return out, true
		}
		if i >= len(topic) || (!level.any && level.literal != topic[i]) {
			return nil, false
		}
		if level.name != "" {
			out[level.name] = topic[i]
		}
	}
	return out, len(t) == len(topic)
}
