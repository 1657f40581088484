package sandbox_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// guests are the Go modules that tests have built, each once.
var guests = struct {
	sync.Mutex
	dir   string
	cache string // of compiled code
	built map[string][]byte
}{built: map[string][]byte{}}

func TestMain(m *testing.M) {
	var err error
	if guests.cache, err = os.MkdirTemp("", "edgehost-cache"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(guests.cache)
	if guests.dir != "" {
		os.RemoveAll(guests.dir)
	}
	os.Exit(code)
}

// example is the wasm of examples/<name>, built with the Go toolchain.
func example(t testing.TB, name string) []byte {
	t.Helper()
	return build(t, "../../examples/"+name)
}

// build is the wasm of a Go package, built as module authors build it.
func build(t testing.TB, dir string) []byte {
	t.Helper()
	name := filepath.Base(dir)
	guests.Lock()
	defer guests.Unlock()
	if b := guests.built[name]; b != nil {
		return b
	}
	if guests.dir == "" {
		dir, err := os.MkdirTemp("", "edgehost-guests")
		if err != nil {
			t.Fatal(err)
		}
		guests.dir = dir
	}
	out := filepath.Join(guests.dir, name+".wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", out, dir)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	guests.built[name] = b
	return b
}

func newHost(t testing.TB) *sandbox.Host {
	t.Helper()
	// Compiled code is kept for the other tests; and under the race detector the
	// engine takes its time.
	h, err := sandbox.New(sandbox.Config{Cache: cacheIn(guests.cache), Limits: sandbox.Limits{CompileDeadline: 10 * time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func compile(t testing.TB, h *sandbox.Host, wasm []byte) *sandbox.Module {
	t.Helper()
	m, err := h.Compile(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func instantiate(t testing.TB, m *sandbox.Module, env sandbox.Env) *sandbox.Instance {
	t.Helper()
	if env.Logger == nil {
		env.Logger = slog.New(slog.DiscardHandler)
	}
	i, err := m.Instantiate(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close(context.Background()) })
	return i
}

// batch makes n records of float64 values 0..n-1.
func batch(n int) *abi.Batch {
	b := &abi.Batch{Seq: 7, Time: 1_700_000_000_000_000}
	for i := range n {
		b.Records = append(b.Records, abi.Record{
			EventTime: 1_700_000_000_000_000 + int64(i), IngestTime: 1_700_000_000_000_500,
			Source: "plant", Address: fmt.Sprintf("line1/pump%d/temperature", i%100), Protocol: abi.ProtocolMQTT,
			Value: abi.Float(float64(i)),
			Attrs: []abi.Attr{{Key: abi.AttrQoS, Value: abi.Int(1)}, {Key: abi.AttrUnit, Value: abi.String("°C")}},
		})
	}
	return b
}
