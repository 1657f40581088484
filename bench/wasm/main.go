// Command wasm measures the sandbox beside native Go, Extism and go-plugin, and
// holds it to its gates. It prints a JSON line for each figure,
//
//	{"name":"ratio/scale/1000/C/native","value":1.4,"unit":"x","gate":2,"goal":1.5,"pass":true}
//
// and exits with 1 when a gate fails. All contenders of a table run in turns, round
// after round, on the same records; a figure is the median of its rounds, in CPU
// time of the whole process, garbage collection included.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	log.SetFlags(0)
	cache := flag.String("cache", "../../.cache/bench-wasm", "where built guests go")
	rounds := flag.Int("rounds", 5, "rounds of each table")
	only := flag.String("only", "", "run only the parts whose name contains this")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this file")
	flag.Parse()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			log.Fatal(err)
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			log.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	modules, err := build(*cache)
	if err != nil {
		log.Fatal(err)
	}
	r := &report{out: json.NewEncoder(os.Stdout)}
	r.note("machine", float64(runtime.NumCPU()), "cores")
	r.note("load average at start", load(), "")
	for _, part := range []struct {
		name string
		run  func(r *report, g *guests, rounds int) error
	}{
		{"transform", transforms}, {"meter", metering}, {"stop", stopping}, {"recover", recovery},
		{"admission", admission}, {"parallel", parallel}, {"memory", memoryUse},
	} {
		if !strings.Contains(part.name, *only) {
			continue
		}
		begin := time.Now()
		if err := part.run(r, modules, *rounds); err != nil {
			log.Fatalf("%s: %v", part.name, err)
		}
		r.note("time of "+part.name, time.Since(begin).Seconds(), "s")
	}
	r.note("load average at end", load(), "")
	if r.failed > 0 {
		pprof.StopCPUProfile()
		log.Fatalf("%d gates failed", r.failed)
	}
}

// figure is one line of the report. A gate is an upper bound, or a lower one when
// the unit is "x faster" or "x as much".
type figure struct {
	Name  string   `json:"name"`
	Value float64  `json:"value"`
	Unit  string   `json:"unit"`
	Gate  *float64 `json:"gate,omitempty"`
	Goal  *float64 `json:"goal,omitempty"`
	Pass  *bool    `json:"pass,omitempty"`
}

// report prints figures and counts failed gates.
type report struct {
	out    *json.Encoder
	failed int
}

func (r *report) note(name string, value float64, unit string) {
	r.print(figure{Name: name, Value: value, Unit: unit})
}

// most reports a figure that must not be over its gate.
func (r *report) most(name string, value float64, unit string, gate, goal float64) {
	r.gated(figure{Name: name, Value: value, Unit: unit, Gate: &gate, Goal: &goal}, value <= gate)
}

// least reports a figure that must not be under its gate.
func (r *report) least(name string, value float64, unit string, gate, goal float64) {
	r.gated(figure{Name: name, Value: value, Unit: unit, Gate: &gate, Goal: &goal}, value >= gate)
}

func (r *report) gated(f figure, pass bool) {
	f.Pass = &pass
	if !pass {
		r.failed++
	}
	r.print(f)
}

func (r *report) print(f figure) {
	if err := r.out.Encode(f); err != nil {
		log.Fatal(err)
	}
}

// cpu is the CPU time that this process has used, user and system.
func cpu() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		log.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// load is the load average of the last minute: how much else the machine did.
func load() float64 {
	var one float64
	b, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		fmt.Sscan(string(b), &one)
	}
	return one
}

// resident is what the process holds in memory now, in bytes.
func resident() float64 {
	var size, pages float64
	b, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		fmt.Sscan(string(b), &size, &pages)
	}
	return pages * float64(os.Getpagesize())
}

// mapped is how many mappings the process has.
func mapped() float64 {
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		log.Fatal(err)
	}
	return float64(strings.Count(string(b), "\n"))
}

func abs(path string) string {
	p, err := filepath.Abs(path)
	if err != nil {
		log.Fatal(err)
	}
	return p
}
