package main

import (
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// contender does the same work as the others of its table.
type contender struct {
	name string
	run  func(b *abi.Batch) error
	// got is what the last run made; nil where the contender hands over none.
	got func() []abi.Record
}

// roundTime is the CPU time that one contender works in a round, about.
const roundTime = 60 * time.Millisecond

// table holds nanoseconds of CPU time a record, by contender and round.
type table map[string][]float64

// of is the median of a contender.
func (t table) of(name string) float64 { return median(t[name]) }

// over is the median of a's time over b's in the same round: what else the machine
// does changes from round to round, and less within one.
func (t table) over(a, b string) float64 {
	ratios := make([]float64, len(t[a]))
	for i := range ratios {
		ratios[i] = t[a][i] / t[b][i]
	}
	return median(ratios)
}

// race gives each contender its turn, round after round.
func race(cs []contender, batches []*abi.Batch, rounds int) (table, error) {
	records := 0
	for _, b := range batches {
		records += len(b.Records)
	}
	laps := make([]int, len(cs)) // how often all batches are run in a round
	for i, c := range cs {
		spent := time.Duration(0)
		for n := 1; ; n *= 2 {
			var err error
			if spent, err = lap(c, batches, n); err != nil {
				return nil, err
			}
			if laps[i] = max(1, int(float64(n)*float64(roundTime)/float64(spent))); spent > roundTime/4 {
				break
			}
		}
	}
	times := table{}
	for range rounds {
		for i, c := range cs {
			runtime.GC() // the garbage of the one before is not this one's
			spent, err := lap(c, batches, laps[i])
			if err != nil {
				return nil, err
			}
			times[c.name] = append(times[c.name], float64(spent.Nanoseconds())/float64(laps[i]*records))
		}
	}
	return times, nil
}

func lap(c contender, batches []*abi.Batch, n int) (time.Duration, error) {
	begin := cpu()
	for range n {
		for _, b := range batches {
			if err := c.run(b); err != nil {
				return 0, fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return cpu() - begin, nil
}

// agree holds what each contender makes of the batches to native Go.
func agree(op string, cs []contender, batches []*abi.Batch) error {
	for _, c := range cs {
		if c.got == nil {
			continue
		}
		for _, b := range batches {
			if err := c.run(b); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if err := sameRecords(c.got(), native(op, b.Records, nil)); err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, op, err)
			}
		}
	}
	return nil
}

func median(x []float64) float64 { return quantile(x, 0.5) }

func quantile(x []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(x))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}
