package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/control"
)

// TestDemo runs the demo for a moment: three protocols into three tables, and a
// ledger that balances.
func TestDemo(t *testing.T) {
	var out, errOut bytes.Buffer
	begin := time.Now()
	code := run(t.Context(), []string{"edgehost", "demo", "--for", "3s", "--json"}, strings.NewReader(""), &out, &errOut)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, errOut.String())
	}
	var l control.Ledger
	if err := json.Unmarshal(out.Bytes(), &l); err != nil {
		t.Fatal(err)
	}
	if !l.Balanced || l.Delivered == 0 || len(l.Destinations) != 3 {
		t.Errorf("ledger: %s", out.String())
	}
	for _, d := range l.Destinations {
		if d.Delivered == 0 || !d.Balanced {
			t.Errorf("%s: %+v", d.Name, d)
		}
	}
	if errOut.Len() > 0 {
		t.Errorf("the demo complains: %s", errOut.String())
	}
	t.Logf("took %v", time.Since(begin))
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
