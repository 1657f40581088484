package mqtt

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func levels(s string) []string { return strings.Split(s, "/") }

func TestMatches(t *testing.T) {
	cases := []struct {
		filter, topic string
		want          bool
	}{ // MQTT 3.1.1, section 4.7
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/#", "sport", true},
		{"#", "a/b", true},
		{"#", "$SYS/x", false},
		{"+/x", "$SYS/x", false},
		{"$SYS/#", "$SYS/x", true},
		{"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"a/b", "a/b/c", false},
		{"a/b/c", "a/b", false},
		{"a/B", "a/b", false},
	}
	for _, c := range cases {
		if got := matches(levels(c.filter), levels(c.topic)); got != c.want {
			t.Errorf("%s selects %s: %v", c.filter, c.topic, got)
		}
	}
}

func TestCoversAndOverlap(t *testing.T) {
	cases := []struct {
		a, b            string
		covers, overlap bool
	}{
		{"#", "a/b", true, true}, {"#", "a/#", true, true}, {"#", "$SYS/a", false, true}, {"a/#", "a", true, true},
		{"a/+", "a/b", true, true}, {"a/+", "a/#", false, true}, {"a/#", "a/+", true, true}, {"a/+", "+/b", false, true},
		{"a/b", "a/b", true, true}, {"a/b", "a/c", false, false}, {"a/+/c", "a/b/#", false, true}, {"a/b", "a/b/c", false, false},
		{"+/+", "a", false, false}, {"a/#", "b/#", false, false},
	}
	for _, c := range cases {
		if got := covers(levels(c.a), levels(c.b)); got != c.covers {
			t.Errorf("%s covers %s: %v", c.a, c.b, got)
		}
		if got := overlap(levels(c.a), levels(c.b)); got != c.overlap {
			t.Errorf("%s overlaps %s: %v", c.a, c.b, got)
		}
	}
}

// FuzzCovers: what covers a filter selects every topic that the filter
// selects, and what covers or shares a topic overlaps.
func FuzzCovers(f *testing.F) {
	f.Add("a/#", "a/+", "a/b")
	f.Add("+/b", "a/+", "a/b")
	f.Add("#", "$x/#", "$x")
	f.Fuzz(func(t *testing.T, a, b, topic string) {
		if checkFilter(a) != nil || checkFilter(b) != nil || topic == "" || strings.ContainsAny(topic, "+#") {
			return
		}
		byA, byB := matches(levels(a), levels(topic)), matches(levels(b), levels(topic))
		if byB && !byA && covers(levels(a), levels(b)) {
			t.Errorf("%s covers %s, but only the latter selects %s", a, b, topic)
		}
		if byA && byB && !overlap(levels(a), levels(b)) {
			t.Errorf("%s and %s both select %s and do not overlap", a, b, topic)
		}
	})
}

func TestSubscriptions(t *testing.T) {
	topics := []TopicConfig{
		{Topic: "a/b", QoS: 2},
		{Topic: "a/#", QoS: 0},
		{Topic: "a/#", QoS: 1},
		{Topic: "x/+", QoS: 0},
		{Topic: "+/y", QoS: 1},
		{Topic: "a/b", QoS: 1, SharedGroup: "g"},
		{Topic: "a/b", QoS: 2, SharedGroup: "g"},
		{Topic: "a/b", QoS: 0, SharedGroup: "h"},
	}
	want := []subscription{{"a/#", 2}, {"x/+", 0}, {"+/y", 1}, {"$share/g/a/b", 2}, {"$share/h/a/b", 0}}
	if diff := cmp.Diff(want, subscriptions(topics), cmp.AllowUnexported(subscription{})); diff != "" {
		t.Error(diff)
	}
}

func TestTemplate(t *testing.T) {
	cases := []struct {
		template, topic string
		want            map[string]string
		ok              bool
	}{
		{"plant/{line}/{sensor_name}", "plant/7/temp", map[string]string{"line": "7", "sensor_name": "temp"}, true},
		{"plant/{line}/{sensor_name}", "plant/7", nil, false},
		{"plant/{line}/{sensor_name}", "plant/7/temp/x", nil, false},
		{"plant/{line}/{sensor_name}", "other/7/temp", nil, false},
		{"plant/+/{sensor_name}/#", "plant/7/temp/x/y", map[string]string{"sensor_name": "temp"}, true},
		{"plant/+/{sensor_name}/#", "plant/7/temp", map[string]string{"sensor_name": "temp"}, true},
	}
	for _, c := range cases {
		tmpl, err := parseTemplate(c.template)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := tmpl.read(levels(c.topic))
		if ok != c.ok || (ok && cmp.Diff(c.want, got) != "") {
			t.Errorf("%s of %s: %v, %v", c.template, c.topic, got, ok)
		}
	}
}
