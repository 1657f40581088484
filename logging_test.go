package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLogger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "connector.log")
	c := newConfig().Monitoring.Logging
	c.FilePath = path
	var stderr strings.Builder
	var level slog.LevelVar
	log, file, err := newLogger(c, &stderr, &level)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("too quiet")
	log.With("component", "source", "source", "m1").Info("connected", "records", 5, "error", errors.New("two\nlines"))
	level.Set(slog.LevelDebug) // while it runs
	log.Debug("loud enough")
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	written, err := os.ReadFile(path)
	if err != nil || string(written) != stderr.String() {
		t.Errorf("file and stderr differ: %v\n%s\n%s", err, written, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2:\n%s", len(lines), stderr.String())
	}
	var line struct {
		TS               time.Time
		Level, Msg       string
		Component, Error string
	}
	if err := json.Unmarshal([]byte(lines[0]), &line); err != nil {
		t.Fatal(err)
	}
	if line.TS.IsZero() || line.TS.Location() != time.UTC || line.Level != "INFO" || line.Msg != "connected" || line.Component != "source" || line.Error != "two\nlines" {
		t.Errorf("line = %+v", line)
	}
}

func TestLoggerText(t *testing.T) {
	c := newConfig().Monitoring.Logging
	c.Format, c.Level = "text", "warning"
	var stderr strings.Builder
	log, _, err := newLogger(c, &stderr, new(slog.LevelVar))
	if err != nil {
		t.Fatal(err)
	}
	log.Info("too quiet")
	log.Warn("heard", "a", 1)
	if got := stderr.String(); !strings.Contains(got, "level=WARN msg=heard a=1") || strings.Contains(got, "quiet") {
		t.Errorf("%s", got)
	}
}

func TestLoggerRefuses(t *testing.T) {
	inFile := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(inFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]loggingConfig{
		"level":     {Level: "LOUD"},
		"no dir":    {Level: "INFO", FilePath: filepath.Join(inFile, "x", "log")},
		"directory": {Level: "INFO", FilePath: t.TempDir()},
	} {
		if _, _, err := newLogger(c, new(strings.Builder), new(slog.LevelVar)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// failing is a file on a full disk.
type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// TestLogOnFullDisk: stderr has every line although the file takes none.
func TestLogOnFullDisk(t *testing.T) {
	var stderr strings.Builder
	level := new(slog.LevelVar)
	log := slog.New(slog.NewMultiHandler(logHandler("json", failing{}, level), logHandler("json", &stderr, level)))
	log.Info("still here")
	if !strings.Contains(stderr.String(), "still here") {
		t.Error("the line is lost")
	}
}
