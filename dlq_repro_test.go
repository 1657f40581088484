//go:build !race

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/control"
)

// reproConfig is a pipeline whose module traps, loops or rejects by the address.
const reproConfig = `
state_dir: DIR/state
health: {listen: "127.0.0.1:0"}
metrics: {listen: "127.0.0.1:0"}
sinks: {file: {dir: DIR/rows}}
sources:
- {name: plant, protocol: mqtt, endpoint: "mqtt://127.0.0.1:1", mqtt: {topics: [{topic: a}]}}
pipelines:
- name: line1
  sources: [plant]
  modules:
  - {name: poison, limits: {fuel: 50000, fuel_per_row: 1000}}
`

// A dead letter of a running host is reproduced as its words say: with the revision
// that was in force, which it finds by itself, also after another was pushed.
func TestDeadLetterReproLive(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(reproConfig, "DIR", filepath.ToSlash(dir))), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(file, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	module := func(name string) []byte {
		wasm, err := os.ReadFile(filepath.Join("host", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return wasm
	}
	edgehost := func(want int, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if code := run(t.Context(), append([]string{"edgehost"}, args...), nil, &out, &out); code != want {
			t.Errorf("edgehost %s: exit code %d, want %d:\n%s", strings.Join(args, " "), code, want, out.String())
		}
		return out.String()
	}
	l := startLive(t, cfg)
	socket, err := control.Listen(cfg.socket())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, socket, l.host, slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	l.push("poison", module("poison.wasm"))
	var recs []abi.Record
	for _, address := range []string{"a/fine", "a/trap", "a/reject", "a/loop", "a/fine"} {
		recs = append(recs, abi.Record{EventTime: 1, IngestTime: 2, Source: "plant", Address: address, Protocol: abi.ProtocolMQTT, Value: abi.Float(1)})
	}
	l.give(recs...)
	letters, err := l.host.DeadLetters(t.Context(), control.DeadLetterFilter{})
	if err != nil || len(letters) != 3 {
		t.Fatalf("%d dead letters: %v", len(letters), err)
	}
	l.push("poison", module("stamp1.wasm")) // mended; what was in force is still there
	for i, words := range []string{
		"reproduced: module_trap in module poison: wasm error: unreachable",
		"reproduced: rejected in module poison: not wanted here",
		"reproduced: module_fuel in module poison: the batch used up its 51000 units of fuel",
	} {
		id := letters[i].ID
		hint := edgehost(exitFailure, "dlq", "repro", id, "--config", file)
		found := regexp.MustCompile(`--module (\S+\.wasm)`).FindStringSubmatch(hint)
		if found == nil {
			t.Fatalf("dead letter %s: it does not say where the module is:\n%s", id, hint)
		}
		if out := edgehost(exitOK, "dlq", "repro", id, "--config", file, "--module", found[1]); !strings.Contains(out, words) {
			t.Errorf("dead letter %s: want %q:\n%s", id, words, out)
		}
		if out := edgehost(exitFailure, "dlq", "repro", id, "--config", file, "--module", "host/testdata/stamp1.wasm"); !strings.Contains(out, "now:  emitted in module poison") {
			t.Errorf("with the mended module: %s", out)
		}
	}
	if out := edgehost(exitUsage, "dlq", "repro", "no-such-id", "--config", file); !strings.Contains(out, "edgehost dlq list shows them") {
		t.Errorf("no id: %s", out)
	}
	if out := edgehost(exitFailure, "dlq", "repro", "999", "--config", file); !strings.Contains(out, "999") || !strings.Contains(out, "edgehost dlq list") {
		t.Errorf("an id that is not there: %s", out)
	}
	folder := filepath.Join(dir, "letter")
	edgehost(exitOK, "dlq", "repro", letters[2].ID, "--config", file, "--out", folder)
	out := edgehost(exitFailure, "module", "test", "host/testdata/poison.wasm", "--input", filepath.Join(folder, "in.ndjson"), "--config", file, "--pipeline", "line1", "--name", "poison", "--json")
	var report trialReport
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&report); err != nil || len(report.Faults) != 1 || report.Faults[0].Class != "fuel" {
		t.Errorf("module test: %v:\n%s", err, out)
	}
}
