//go:build !race

// Compiling ten Go modules takes minutes under the race detector, which has
// nothing to find here: one goroutine runs one module.

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// building bounds how many Go modules are built at a time.
var building = make(chan struct{}, 2)

// buildGo builds a Go module as its author would.
func buildGo(t *testing.T, dir, pkg string, env ...string) []byte {
	t.Helper()
	building <- struct{}{}
	defer func() { <-building }()
	out := filepath.Join(t.TempDir(), "module.wasm")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-trimpath", "-buildmode=c-shared", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0"), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// exampleConfig is the configuration of an example.
func exampleConfig(t *testing.T, dir string) *config {
	t.Helper()
	cfg, err := loadConfig(filepath.Join(dir, "config.yaml"), func(name string) (string, bool) {
		return "0123456789abcdef", name == "REDACT_KEY"
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.checkComplete(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// exampleSetup is what the configuration of an example gives its module.
func exampleSetup(t *testing.T, dir string) trialSetup {
	t.Helper()
	p := exampleConfig(t, dir).plan()[0]
	return setupFor(p, p.Modules[0])
}

// exampleCase is a wrong configuration of an example.
type exampleCase struct{ key, value, refusal string }

// Every example does with in.ndjson what out.ndjson says, in one batch, and record
// by record with a restart before each: what must last is in the state. In a live
// host it does the same.
func TestExamples(t *testing.T) {
	for name, cases := range map[string][]exampleCase{
		"alarms":       {{"above", "x=1", "output alarms is not configured"}, {"above", "x=high", "config key above: x=high is not like */temperature=80"}},
		"convert":      {{"units", "°C", "is not like °C=°F*1.8+32"}, {"match", "(", "config key match: error parsing regexp"}},
		"deadband":     {{"band", "wide", "config key band: wide is no number"}, {"band", "-1", "config key band: -1 is below 0"}, {"silence_seconds", "NaN", "NaN is no number"}},
		"minutes":      nil, // no key, and any key is one of a payload
		"payload":      nil,
		"redact":       {{"hash", "badge", "at least 16 characters"}, {"drop", "[", "config key drop: [ is no pattern"}},
		"route":        {{"every", "10", "output second is not configured"}, {"every", "ten", "config key every: ten is no number"}},
		"scale":        {{"factor", "twice", "config key factor: twice is no number"}, {"offset", "Inf", "config key offset: Inf is no number"}},
		"swingingdoor": {{"deviation", "-", "is no number"}, {"deviation", "-0.5", "config key deviation: -0.5 is below 0"}, {"longest_seconds", "-1", "below 0"}},
		"threshold":    {{"above", "high", "config key above: high is no number"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join("examples", name)
			in, err := readRecords(nil, filepath.Join(dir, "in.ndjson"))
			want, err2 := readOutcomes(nil, filepath.Join(dir, "out.ndjson"))
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
			if err != nil || !strings.HasPrefix(string(readme), "# "+name+"\n") {
				t.Errorf("README.md: %v", err)
			}
			setup := exampleSetup(t, dir)
			wasm := buildGo(t, ".", "./examples/"+name)
			l := startLive(t, liveConfig(t, name))
			l.push(setup.Name, wasm)
			m, err := newTrial(t.Context(), l.host.sandbox, wasm, setup) // is compiled already
			if err != nil {
				t.Fatal(err)
			}
			if err := m.run(t.Context(), trialPlan{Batch: batchRecords, Tick: setup.Tick}, in); err != nil {
				t.Fatal(err)
			}
			checkTrial(t, m, want)
			checkFuel(t, m, in)
			resetTrial(t, m)
			if err := m.run(t.Context(), trialPlan{Batch: 1, Tick: setup.Tick, Restart: true}, in); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(slices.Sorted(slices.Values(linesOf(want))), slices.Sorted(slices.Values(linesOf(m.Outcomes)))); diff != "" {
				t.Errorf("with restarts (-want +got):\n%s", diff)
			}
			for _, c := range cases {
				checkRefusal(t, m, c)
			}
			if name == "minutes" {
				resetTrial(t, m)
				checkQuiet(t, m, in)
			}
			if err := m.close(t.Context()); err != nil {
				t.Error(err)
			}
			if name == "minutes" {
				checkLiveMinutes(t, l)
			} else {
				checkLive(t, l, in, want)
			}
		})
	}
}

// checkQuiet holds a batch in the middle of a minute to changing the state only.
func checkQuiet(t *testing.T, m *trial, in []abi.Record) {
	t.Helper()
	if err := m.run(t.Context(), trialPlan{Batch: batchRecords}, in[:3]); err != nil {
		t.Fatal(err)
	}
	if len(m.Outcomes) != 0 || m.Filtered != 3 || len(m.state.values) == 0 {
		t.Errorf("%d outcomes, %d filtered, %d keys", len(m.Outcomes), m.Filtered, len(m.state.values))
	}
}

// checkFuel runs full batches of a hundred addresses, whose first values come in the
// same batch, and holds the module to a quarter of the fuel that it has by default.
func checkFuel(t *testing.T, m *trial, in []abi.Record) {
	t.Helper()
	resetTrial(t, m)
	limits := sandbox.DefaultLimits()
	for n := range 3 {
		b := &abi.Batch{Seq: uint64(n + 1), Time: in[0].EventTime}
		for k := range 1000 {
			r := in[k%len(in)]
			r.EventTime = in[0].EventTime + int64(n)*60_000_000 + int64(k)*1000
			r.Address = fmt.Sprintf("%s/%d", r.Address, k%100)
			b.Records = append(b.Records, r)
		}
		res, err := m.instance.Process(t.Context(), b)
		if err != nil {
			t.Fatalf("batch %d of 1000 records: %v", n, err)
		}
		share := float64(res.Fuel) / float64(limits.Fuel+int64(len(b.Records))*limits.FuelPerRow)
		t.Logf("batch %d: %d units of fuel for each record, %.1f %% of what it has", n, res.Fuel/1000, 100*share)
		if share > 0.25 {
			t.Errorf("batch %d takes %.1f %% of the default fuel", n, 100*share)
		}
		m.state.commit(res.KV)
	}
}

func resetTrial(t *testing.T, m *trial) {
	t.Helper()
	m.state.values, m.trialResult = map[string]map[string]trialValue{}, trialResult{Metrics: map[string]float64{}}
	if err := m.restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func checkTrial(t *testing.T, m *trial, want []outcome) {
	t.Helper()
	for _, d := range diffOutcomes(want, m.Outcomes) {
		t.Errorf("line %d:\n- %s\n+ %s\n%s", d.Line, d.Want, d.Got, strings.Join(d.Fields, "\n"))
	}
	if len(m.Faults) > 0 {
		t.Errorf("faults: %+v", m.Faults)
	}
}

// checkRefusal gives the module a wrong configuration and wants words that help.
func checkRefusal(t *testing.T, m *trial, e exampleCase) {
	t.Helper()
	env := m.env
	env.Config, env.Outputs = map[string]string{e.key: e.value}, nil
	i, err := m.module.Instantiate(t.Context(), env)
	if err == nil {
		err = errors.Join(errors.New("it starts"), i.Close(t.Context()))
	}
	if !strings.Contains(err.Error(), e.refusal) {
		t.Errorf("%s=%s: error %v, want %q", e.key, e.value, err, e.refusal)
	}
}

// A new Go module builds with the Go toolchain alone: no proxy, no checksums of
// others, nothing of this repository.
func TestModuleNewGo(t *testing.T) {
	dir := newModuleFolder(t, "go")
	wasm := filepath.Join(dir, "my-module.wasm")
	if err := os.WriteFile(wasm, buildGo(t, dir, ".", "GOPROXY=off", "GOWORK=off", "GOFLAGS=-mod=readonly"), 0o600); err != nil {
		t.Fatal(err)
	}
	checkNewModule(t, dir, wasm)
}
