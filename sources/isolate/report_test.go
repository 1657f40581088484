package isolate

import (
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/sources"
)

// TestCounters: what two children count adds up, whatever they send.
func TestCounters(t *testing.T) {
	st := sources.NewStatus("m", "opcua")
	snap := func(records uint64, total, gauge float64) sources.Snapshot {
		return sources.Snapshot{Records: records, Bytes: 2 * records, Failed: map[string]uint64{"decode_error": records / 10},
			Counters: map[string]float64{"a_total": total, "b": gauge}}
	}
	var first counted
	first.apply(st, snap(100, 10, 5))
	first.apply(st, snap(150, 12, 3))
	first.apply(st, snap(140, 11, 4)) // backwards
	first.emitted = 160
	first.close(st)
	var second counted
	second.apply(st, snap(10, 1, math.NaN()))
	got := st.Snapshot()
	if got.Records != 170 || got.Bytes != 320 || got.Failed["decode_error"] != 16 {
		t.Errorf("%d records, %d bytes, failed %v", got.Records, got.Bytes, got.Failed)
	}
	if diff := cmp.Diff(map[string]float64{"a_total": 13, "b": 4}, got.Counters); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	many := sources.Snapshot{Counters: map[string]float64{}}
	for i := range 10_000 {
		many.Counters[strings.Repeat("x", i)] = 1
	}
	second.apply(st, many)
	if n := len(st.Snapshot().Counters); n > 2+maxMetrics {
		t.Errorf("a child made %d metrics", n)
	}
}

func TestRelay(t *testing.T) {
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, nil)).With("source", "m")
	for _, line := range []string{
		`{"time":"2026-01-02T03:04:05.5Z","level":"WARN","msg":"certificate\nexpires","days":3,"group":{"a":1}}`,
		`{"time":"2026-01-02T03:04:05Z","level":"DEBUG","msg":"not wanted"}`,
		`{"level":"INFO","msg":"source connected"}`, `{"level":"INFO","msg":"source of doubt"}`, `{"msg":`, `garbage`, ``,
	} {
		relay(log, []byte(line))
	}
	want := "time=2026-01-02T03:04:05.500Z level=WARN msg=\"certificate\\nexpires\" source=m days=3 group=map[a:1]\n" +
		"level=INFO msg=\"source of doubt\" source=m\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestDeathError(t *testing.T) {
	exit := errors.New("exit status 2")
	const again = "it is started again, and if that repeats, see what answers at the endpoint: "
	for stderr, want := range map[string]string{
		"":                           "source process ended: exit status 2",
		"a\nb\n\nc\nd\n":             "source process ended: exit status 2: b; c; d",
		"x\npanic: p\n\ngoroutine 1": "source process ended: a fault in decoding or elsewhere, which one malformed message of the peer can do; " + again + "exit status 2: panic: p",
		"runtime: out of memory: cannot allocate 1-byte block\nfatal error: out of memory\n\ngoroutine": "source process ended: out of memory, which one message of the peer that claims to be huge can do; " + again + "exit status 2: runtime: out of memory: cannot allocate 1-byte block; fatal error: out of memory",
		"runtime: goroutine stack exceeds 67108864-byte limit\nfatal error: stack overflow": "source process ended: its stack is used up, which one message of the peer that is nested too deeply can do; " + again +
			"exit status 2: runtime: goroutine stack exceeds 67108864-byte limit; fatal error: stack overflow",
		"\x1b[31mred\x00\xff": "source process ended: exit status 2:  [31mred ?",
	} {
		if got := deathError("", exit, stderr); got.Error() != want || !errors.Is(got, exit) {
			t.Errorf("%q is told as %q, want %q", stderr, got, want)
		}
	}
	if got := deathError("it was silent for 30s", exit, "").Error(); got != "source process ended: it was silent for 30s" {
		t.Error(got)
	}
	if got := deathError("", errors.New("signal: killed"), "").Error(); got != "source process ended: it was killed, by a person or by the system for want of memory; it is started again: signal: killed" {
		t.Error(got)
	}
	var ends headTail
	for range 10_000 {
		if _, err := ends.Write([]byte("0123456789")); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(ends.text()); n > 2*keepText+10 || !strings.Contains(ends.text(), "…") {
		t.Errorf("%d bytes of stderr are kept", n)
	}
	if n := len(deathError("", nil, ends.text()).Error()); n > 700 {
		t.Errorf("the error has %d bytes", n)
	}
}

func TestEnvironment(t *testing.T) {
	got := environment(func(name string) (string, bool) { return "v", name != "LC_ALL" })
	want := []string{"GOTRACEBACK=single", "SSL_CERT_FILE=v", "SSL_CERT_DIR=v", "TZ=v", "LANG=v", "LC_CTYPE=v"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
