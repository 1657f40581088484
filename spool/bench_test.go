package spool

import (
	"crypto/rand"
	"testing"
	"time"
)

// BenchmarkFlow appends, commits, reads and settles frames of 100 records
// (15 KB that do not compress), with a backlog of 1,000 frames, each frame
// synced alone. It reports what the disk has to write for each sealed byte.
func BenchmarkFlow(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir() + "/spool", Logger: quiet(), WindowRecords: 10_000})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	q, err := s.Queue("q", func(Owner) bool { return true })
	if err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, 15<<10)
	rand.Read(payload)
	r := q.Reader(0)
	done := make(chan error, 1)
	b.SetBytes(int64(len(payload)))
	for seq := uint64(0); b.Loop(); seq++ {
		q.Append(Frame{Owner: Owner{alice, seq}, Count: 100, Payload: payload}, func(_ uint64, err error) { done <- err })
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		q.Commit(alice, seq)
		if seq < 1000 {
			continue
		}
		st, err := r.Next(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if err := q.Advance(st.end(), Settled{Delivered: 100}); err != nil {
			b.Fatal(err)
		}
		if seq%100 == 0 {
			q.tick(time.Now())
		}
	}
	total := q.db.Metrics().Total() // flushed bytes include those of the log
	sealed := float64(q.Stat().Next / 100 * uint64(len(payload)+frameHeader+45))
	b.ReportMetric(float64(total.TableBytesFlushed+total.TableBytesCompacted)/sealed, "written/sealed")
	b.ReportMetric(float64(q.Stat().DiskBytes)/(1<<20), "disk-MB")
}
