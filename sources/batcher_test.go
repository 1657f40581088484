package sources

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgehost/edgehost/abi"
)

func TestBatcherByCount(t *testing.T) {
	b := NewBatcher(3, time.Hour)
	for i, want := range []bool{false, false, true} {
		if full := b.Add(abi.Record{EventTime: int64(i)}); full != want {
			t.Errorf("after record %d full is %v", i, full)
		}
	}
	recs := b.Take()
	if len(recs) != 3 || recs[2].EventTime != 2 || b.Len() != 0 || b.Take() != nil {
		t.Errorf("took %v and left %d", recs, b.Len())
	}
	b.Add(abi.Record{EventTime: 9})
	if recs[0].EventTime != 0 {
		t.Error("a taken batch changed when the next one began")
	}
}

func TestBatcherByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBatcher(0, 0)
		if b.Due() != nil {
			t.Error("an empty batch can be due")
		}
		for range 2 { // the second batch waits from its own first record
			start := time.Now()
			b.Add(abi.Record{})
			<-time.After(30 * time.Millisecond)
			b.Add(abi.Record{})
			<-b.Due()
			if took := time.Since(start); took != BatchWait {
				t.Errorf("due after %v, want %v", took, BatchWait)
			}
			if len(b.Take()) != 2 {
				t.Error("records are missing")
			}
			<-time.After(time.Second)
		}
	})
}

func TestBatcherHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBatcher(0, 0)
		start := time.Now()
		for range 3 { // each record hurries, none puts the batch off
			b.Add(abi.Record{})
			b.Hurry(5 * time.Millisecond)
			<-time.After(time.Millisecond)
		}
		<-b.Due()
		if took := time.Since(start); took != 5*time.Millisecond {
			t.Errorf("due after %v, want 5 ms", took)
		}
	})
}
