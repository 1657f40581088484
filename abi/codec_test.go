package abi

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"testing"
)

func TestRecordsAtRest(t *testing.T) {
	in := append(testRecords(), Record{EventTime: math.MinInt64, IngestTime: math.MaxInt64, Protocol: 255, Status: math.MaxUint32, Value: Int(math.MinInt64)})
	b := AppendRecords(nil, in)
	out, err := DecodeRecords(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != len(in) {
		t.Fatalf("%d records", len(out))
	}
	for i := range in {
		if !reflect.DeepEqual(AppendRecord(nil, &out[i]), AppendRecord(nil, &in[i])) || out[i].Value != in[i].Value || !sameAttrs(out[i].Attrs, in[i].Attrs) {
			t.Errorf("record %d: %+v, want %+v", i, out[i], in[i])
		}
	}
	if _, err := DecodeRecords(nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
}

func TestCorruptRecords(t *testing.T) {
	good := AppendRecords(nil, testRecords())
	for n := range good {
		recs, err := DecodeRecords(good[:n])
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: error %v", n, err)
		}
		if err == nil && !bytes.Equal(AppendRecords(nil, recs), good[:n]) {
			t.Fatalf("cut at %d: accepted", n)
		}
	}
	for name, b := range map[string][]byte{
		"version 0":              {0},
		"version 2":              {2, 0, 0, 0, 0, 0, 0, 0, 0},
		"long form of a number":  {1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0},
		"number over 64 bits":    {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0, 0, 0},
		"text over the end":      {1, 0, 0, 0, 9, 'a', 0, 0, 0, 0},
		"unknown kind":           {1, 0, 0, 0, 0, 0, 8, 0, 0},
		"bool of 2":              {1, 0, 0, 0, 0, 0, 1, 2, 0, 0},
		"status over 32 bits":    {1, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x1f, 0},
		"more attributes":        {1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"an attribute cut short": {1, 0, 0, 0, 0, 0, 0, 0, 1, 1},
	} {
		if _, err := DecodeRecords(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// FuzzDecodeRecords: garbage never panics, and what is accepted is canonical.
func FuzzDecodeRecords(f *testing.F) {
	f.Add(AppendRecords(nil, testRecords()))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, err := DecodeRecords(b)
		if err == nil && !bytes.Equal(AppendRecords(nil, recs), b) {
			t.Fatalf("%x decodes to %+v, which encodes to %x", b, recs, AppendRecords(nil, recs))
		}
		for i := range recs {
			line := AppendJSON(nil, &recs[i])
			if bytes.IndexByte(line, '\n') >= 0 {
				t.Fatalf("a newline in %s", line)
			}
		}
	})
}

func BenchmarkAtRest(b *testing.B) {
	recs, buf := benchRecords(1000), []byte(nil)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendRecords(buf[:0], recs)
		if _, err := DecodeRecords(buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
	b.ReportMetric(float64(len(buf))/1000, "bytes/record")
}
