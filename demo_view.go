package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/edgehost/edgehost/host/control"
)

// demoView shows the status of the demo: one screen on a terminal, one line at a
// time elsewhere. It keeps what it needs to show rates.
type demoView struct {
	at   time.Time
	seen map[string]uint64 // by name of a source or destination: records
	rate map[string]float64
	// reach says how another shell reaches the demo.
	reach string
}

// The rates of the host as a whole.
const rateIn, rateOut = "in", "out"

// show draws the status. rows are the newest rows in the tables.
func (v *demoView) show(w io.Writer, live bool, s control.Status, rows []string) {
	now := time.Now()
	v.measure(now, s)
	l := s.Ledger
	if !live {
		fmt.Fprintf(w, "%s  in %.0f/s  out %.0f/s  read %d  delivered %d  waiting %d  filtered %d  dead-lettered %d  balanced %v\n",
			s.Status, v.rate[rateIn], v.rate[rateOut], l.Read, l.Delivered, l.Waiting, l.Filtered, l.DeadLettered, l.Balanced)
		return
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\x1b[K\n", args...) }
	b.WriteString("\x1b[H")
	line("edgehost demo  %s  up %s  (Ctrl-C ends it)", s.Status, time.Duration(s.UptimeSeconds*float64(time.Second)).Round(time.Second))
	line("%s", v.reach)
	line("")
	for _, src := range s.Sources {
		line("source       %-12s %-8s %-12s %8.0f records/s  %d in all", src.Name, src.Protocol, src.State, v.rate["source "+src.Name], src.Records)
	}
	for _, p := range s.Pipelines {
		line("pipeline     %-12s %-12s %s", p.Name, p.State, p.Detail)
		for _, m := range p.Modules {
			line("  module     %-12s %-12s %8.1f µs a batch, %d faults", m.Name, short(m.Digest), perCall(m), m.Faults)
		}
	}
	for _, d := range s.Destinations {
		line("destination  %-38s %s  breaker %s  %4.0f records/s, %d delivered", d.Name, d.State, d.Breaker.State, v.rate[d.Name], d.Ledger.Delivered)
		line("  spool      %d records waiting, %s on disk, encrypted", d.Queue.Records, size(d.BytesOnDisk))
	}
	line("ledger       read %d = delivered %d + waiting %d + filtered %d + dead-lettered %d   balanced %v",
		l.Read, l.Delivered, l.Waiting, l.Filtered, l.DeadLettered, l.Balanced)
	line("")
	line("last rows in the tables")
	for _, r := range rows {
		line("  %s", r[:min(len(r), 150)])
	}
	b.WriteString("\x1b[J")
	_, _ = io.WriteString(w, b.String())
}

// measure takes the rates since the last call, in records a second.
func (v *demoView) measure(now time.Time, s control.Status) {
	seen := map[string]uint64{rateIn: s.Ledger.Read, rateOut: s.Ledger.Delivered}
	for _, src := range s.Sources {
		seen["source "+src.Name] = src.Records
	}
	for _, d := range s.Destinations {
		seen[d.Name] = d.Ledger.Delivered
	}
	v.rate = map[string]float64{}
	if !v.at.IsZero() {
		for name, n := range seen {
			v.rate[name] = float64(n-v.seen[name]) / now.Sub(v.at).Seconds()
		}
	}
	v.at, v.seen = now, seen
}

func perCall(m control.ModuleInUse) float64 {
	if m.Calls == 0 {
		return 0
	}
	return m.Seconds / float64(m.Calls) * 1e6
}

// lastRows returns the last n rows of each of the demo's tables, oldest first.
func lastRows(dir string, n int) []string {
	paths, err := filepath.Glob(filepath.Join(dir, "tables", "*.ndjson"))
	if err != nil {
		return nil // the pattern is a constant: only the folder's name can be odd
	}
	var rows []string
	for _, path := range paths {
		rows = append(rows, tail(path, n)...)
	}
	return rows
}

// tail returns the last n lines of a file that is being written, or none.
func tail(path string, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	const enough = 8 << 10
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || end == 0 {
		return nil
	}
	b := make([]byte, min(enough, end))
	if _, err := f.ReadAt(b, end-int64(len(b))); err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > 1 && end > enough {
		lines = lines[1:] // begins in the middle
	}
	return lines[max(0, len(lines)-n):]
}
