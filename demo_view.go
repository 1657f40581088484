package main

import (
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
	at              time.Time
	read, delivered uint64
}

// show draws the status. rows are the newest rows in the tables.
func (v *demoView) show(w io.Writer, live bool, s control.Status, rows []string) {
	now := time.Now()
	in, out := v.rates(now, s.Ledger)
	l := s.Ledger
	if !live {
		fmt.Fprintf(w, "%s  in %.0f/s  out %.0f/s  read %d  delivered %d  waiting %d  filtered %d  dead-lettered %d  balanced %v\n",
			s.Status, in, out, l.Read, l.Delivered, l.Waiting, l.Filtered, l.DeadLettered, l.Balanced)
		return
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\x1b[K\n", args...) }
	b.WriteString("\x1b[H")
	line("edgehost demo  %s  up %s  (Ctrl-C ends it)", s.Status, time.Duration(s.UptimeSeconds*float64(time.Second)).Round(time.Second))
	line("")
	for _, src := range s.Sources {
		line("source       %-12s %-12s %8.0f records/s  %d in all", src.Name, src.State, in, src.Records)
	}
	for _, p := range s.Pipelines {
		line("pipeline     %-12s %-12s %s", p.Name, p.State, p.Detail)
		for _, m := range p.Modules {
			line("  module     %-12s %-12s %8.1f µs a batch, %d faults", m.Name, short(m.Digest), perCall(m), m.Faults)
		}
	}
	for _, d := range s.Destinations {
		line("destination  %s  %s  breaker %s  %.0f records/s", d.Name, d.State, d.Breaker.State, out)
		line("  spool      %d records waiting, %s on disk, encrypted", d.Queue.Records, size(d.BytesOnDisk))
	}
	line("ledger       read %d = delivered %d + waiting %d + filtered %d + dead-lettered %d   balanced %v",
		l.Read, l.Delivered, l.Waiting, l.Filtered, l.DeadLettered, l.Balanced)
	line("")
	line("last rows in the table")
	for _, r := range rows {
		line("  %s", r[:min(len(r), 150)])
	}
	b.WriteString("\x1b[J")
	_, _ = io.WriteString(w, b.String())
}

// rates returns records a second since the last call.
func (v *demoView) rates(now time.Time, l control.Ledger) (in, out float64) {
	if !v.at.IsZero() {
		d := now.Sub(v.at).Seconds()
		in, out = float64(l.Read-v.read)/d, float64(l.Delivered-v.delivered)/d
	}
	v.at, v.read, v.delivered = now, l.Read, l.Delivered
	return in, out
}

func perCall(m control.ModuleInUse) float64 {
	if m.Calls == 0 {
		return 0
	}
	return m.Seconds / float64(m.Calls) * 1e6
}

// lastRows returns the last n rows of the demo's table, oldest first.
func lastRows(dir string, n int) []string {
	f, err := os.Open(filepath.Join(dir, "tables", "mqtt.scada_data.mqtt_events_bronze.ndjson"))
	if err != nil {
		return nil // nothing was delivered yet
	}
	defer func() { _ = f.Close() }()
	const tail = 8 << 10
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil
	}
	b := make([]byte, min(tail, end))
	if _, err := f.ReadAt(b, end-int64(len(b))); err != nil && err != io.EOF {
		return nil
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > 1 && end > tail {
		lines = lines[1:] // begins in the middle
	}
	return lines[max(0, len(lines)-n):]
}
