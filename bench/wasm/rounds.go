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

// race gives each contender its turn, round after round, and returns the medians in
// nanoseconds of CPU time a record.
func race(cs []contender, batches []*abi.Batch, rounds int) (map[string]float64, error) {
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
	times := make([][]float64, len(cs))
	for range rounds {
		for i, c := range cs {
			runtime.GC() // the garbage of the one before is not this one's
			spent, err := lap(c, batches, laps[i])
			if err != nil {
				return nil, err
			}
			times[i] = append(times[i], float64(spent.Nanoseconds())/float64(laps[i]*records))
		}
	}
	medians := map[string]float64{}
	for i, c := range cs {
		medians[c.name] = median(times[i])
	}
	return medians, nil
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
