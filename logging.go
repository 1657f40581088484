package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/natefinch/lumberjack.v2"
)

// newLogger makes the program's logger: stderr always, and the file that is
// configured. level can be changed while it runs. The closer closes the file.
func newLogger(c loggingConfig, stderr io.Writer, level *slog.LevelVar) (*slog.Logger, io.Closer, error) {
	l, err := logLevel(c.Level)
	if err != nil {
		return nil, nil, err
	}
	level.Set(l)
	handlers := []slog.Handler{logHandler(c.Format, stderr, level)}
	var closer io.Closer = io.NopCloser(nil)
	if c.FilePath != "" {
		// The directory is made here, so that a wrong path fails at the start and
		// not at the first line.
		if err := os.MkdirAll(filepath.Dir(c.FilePath), 0o700); err != nil {
			return nil, nil, fmt.Errorf("make directory of the log file: %w", err)
		}
		if info, err := os.Stat(c.FilePath); err == nil && !info.Mode().IsRegular() {
			return nil, nil, fmt.Errorf("open log file: %s is not a file", c.FilePath)
		}
		f := &lumberjack.Logger{Filename: c.FilePath, MaxSize: c.MaxSizeMB, MaxBackups: c.MaxBackups, MaxAge: c.MaxAgeDays}
		if _, err := f.Write(nil); err != nil {
			return nil, nil, fmt.Errorf("open log file: %w", err)
		}
		handlers = append(handlers, logHandler(c.Format, f, level))
		closer = f
	}
	// A full disk fails the file's handler; stderr has the line all the same.
	return slog.New(slog.NewMultiHandler(handlers...)), closer, nil
}

func logHandler(format string, w io.Writer, level slog.Leveler) slog.Handler {
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: utcTime}
	if format == "text" {
		return slog.NewTextHandler(w, o)
	}
	return slog.NewJSONHandler(w, o)
}

// utcTime names the time of a line ts and gives it in UTC, whatever the
// container's zone.
func utcTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Time("ts", a.Value.Time().UTC())
	}
	return a
}

// logLevel reads a level in any case.
func logLevel(name string) (slog.Level, error) {
	switch strings.ToUpper(name) {
	case "DEBUG":
		return slog.LevelDebug, nil
	case "INFO":
		return slog.LevelInfo, nil
	case "WARN", "WARNING":
		return slog.LevelWarn, nil
	case "ERROR":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is none of DEBUG, INFO, WARN, ERROR", name)
}
