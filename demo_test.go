package main

import (
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/control"
)

// TestDemo runs the demo for a moment, and for longer where three devices cannot
// start in one: three protocols into three tables, and a ledger that balances.
func TestDemo(t *testing.T) {
	for _, moment := range []string{"2s", "15s", "1m"} {
		var out, errOut bytes.Buffer
		code := run(t.Context(), []string{"edgehost", "demo", "--for", moment, "--json"}, strings.NewReader(""), &out, &errOut)
		if code != exitOK || errOut.Len() > 0 {
			t.Fatalf("exit code %d: %s", code, errOut.String())
		}
		var l control.Ledger
		if err := json.Unmarshal(out.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		if !l.Balanced || slices.ContainsFunc(l.Destinations, func(d control.DestinationLedger) bool { return !d.Balanced }) {
			t.Fatalf("ledger: %s", out.String())
		}
		if len(l.Destinations) == 3 && !slices.ContainsFunc(l.Destinations, func(d control.DestinationLedger) bool { return d.Delivered == 0 }) {
			return
		}
		t.Logf("in %s not every table had a row: %s", moment, out.String())
	}
	t.Fatal("a table stays empty")
}

func TestDemoRefusesOddRates(t *testing.T) {
	for _, rate := range []string{"0", "20001"} {
		var errOut bytes.Buffer
		if code := run(t.Context(), []string{"edgehost", "demo", "--rate", rate}, strings.NewReader(""), io.Discard, &errOut); code != exitUsage {
			t.Errorf("--rate %s: exit code %d: %s", rate, code, errOut.String())
		}
	}
}

// TestDemoView holds one screen to what it must show.
func TestDemoView(t *testing.T) {
	status := newFakeHost().status
	var v demoView
	v.show(io.Discard, true, status, nil)
	v.at = v.at.Add(-time.Second)
	status.Sources[0].Records += 50
	var b bytes.Buffer
	v.show(&b, true, status, []string{`{"value":1}`})
	for _, want := range []string{"s1           mqtt     connected", "c.s.t", "48 delivered", `{"value":1}`, "balanced true"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not on the screen:\n%s", want, b.String())
		}
	}
	if r := v.rate["source s1"]; r < 10 || r > 51 {
		t.Errorf("50 records in a second or more are shown as %v a second", r)
	}
}
