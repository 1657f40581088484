//go:build conformance

package sandbox_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// The SDKs of other languages against the sandbox, the vectors of abi/testdata and
// the Go SDK. They need the compilers that each SDK's README names; a missing
// one fails:
//
//	go test -tags conformance -run SDK ./host/sandbox

// sdk builds modules with one SDK. high puts the module's data above 4 MiB, so that
// a test may lay batches out below.
type sdk struct {
	name  string
	check string // the module of abi/<sdk>/testdata
	scale string // the example
	trap  string // words of a trap that the SDK passes on
	build func(t *testing.T, source string, high bool) []byte
	built map[string][]byte
}

// wasm builds a module once.
func (s *sdk) wasm(t *testing.T, source string, high bool) []byte {
	t.Helper()
	key := fmt.Sprint(source, high)
	if s.built[key] == nil {
		if s.built == nil {
			s.built = map[string][]byte{}
		}
		s.built[key] = s.build(t, source, high)
	}
	return s.built[key]
}

var sdks = []sdk{
	{name: "C", check: "../../abi/c/testdata/check.c", scale: "../../abi/c/example/scale.c", trap: "unreachable", build: buildC},
	{name: "C with libc", check: "../../abi/c/testdata/check.c", scale: "../../abi/c/example/scale.c", trap: "unreachable", build: buildCWithLibc},
	{name: "Rust", check: "../../abi/rust/testdata/check.rs", scale: "../../abi/rust/examples/scale.rs", trap: "the module traps", build: buildRust},
	{name: "AssemblyScript", check: "testdata/check.ts", scale: "examples/scale.ts", trap: "the module traps", build: buildAssemblyScript},
	{name: "AssemblyScript without collector", check: "testdata/check.ts", scale: "examples/scale.ts", trap: "the module traps", build: buildAssemblyScriptStub},
}

const highBase = "4194304"

func buildC(t *testing.T, source string, high bool) []byte {
	return clang(t, source, high, "--target=wasm32", "-nostdlib", "-Wl,--no-entry")
}

func buildCWithLibc(t *testing.T, source string, high bool) []byte {
	return clang(t, source, high, "--target=wasm32-wasi", "-mexec-model=reactor")
}

func clang(t *testing.T, source string, high bool, args ...string) []byte {
	args = append(args, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2", "-mbulk-memory", "-Wl,--strip-all")
	if high {
		args = append(args, "-Wl,--global-base="+highBase)
	}
	return compiled(t, "clang-14", append(args, source)...)
}

// buildRust compiles the crate and a module with Debian's rustc, which has the wasm32
// standard library; cargo does the same.
func buildRust(t *testing.T, source string, high bool) []byte {
	return rust(t, source, high, "--cfg", `feature="std"`)
}

func rust(t *testing.T, source string, high bool, features ...string) []byte {
	const rustc = "/usr/bin/rustc"
	args := []string{"--edition", "2021", "--target", "wasm32-unknown-unknown", "-O", "-C", "panic=abort", "-C", "strip=symbols",
		"-C", "target-feature=+bulk-memory", "-C", "linker=wasm-ld-14", "-D", "warnings"}
	crate := filepath.Join(t.TempDir(), "libedgehost.rlib")
	library := append(slices.Clone(args), "--crate-type", "rlib", "--crate-name", "edgehost", "../../abi/rust/src/lib.rs", "-o", crate)
	if msg, err := exec.Command(rustc, append(library, features...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", rustc, err, msg)
	}
	args = append(args, "--crate-type", "cdylib", "--extern", "edgehost="+crate)
	if high {
		args = append(args, "-C", "link-arg=-zstack-size="+highBase)
	}
	return compiled(t, rustc, append(args, source)...)
}

func buildAssemblyScript(t *testing.T, source string, high bool) []byte {
	return asc(t, source, high, "incremental")
}

func buildAssemblyScriptStub(t *testing.T, source string, high bool) []byte {
	return asc(t, source, high, "stub")
}

// asc runs the compiler that npm puts into the SDK's folder; there it must run.
func asc(t *testing.T, source string, high bool, runtime string) []byte {
	t.Helper()
	args := []string{source, "-O3", "--enable", "bulk-memory", "--runtime", runtime, "--use", "abort=assembly/host/aborted"}
	if high {
		args = append(args, "--memoryBase", highBase)
	}
	out := filepath.Join(t.TempDir(), "module.wasm")
	cmd := exec.Command("node_modules/.bin/asc", append(args, "-o", out)...)
	cmd.Dir = "../../abi/assemblyscript"
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("asc (run npm install in abi/assemblyscript): %v\n%s", err, msg)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// compiled runs a compiler that writes its output to what follows -o.
func compiled(t *testing.T, compiler string, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "module.wasm")
	if msg, err := exec.Command(compiler, append(args, "-o", out)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", compiler, err, msg)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// vectorRecords are the records of all vectors.
func vectorRecords(t *testing.T) []abi.Record {
	t.Helper()
	var recs []abi.Record
	for _, file := range []string{"layout.json", "rest.json", "output.json"} {
		for _, v := range readVectors(t, file) {
			recs = append(recs, v.Records...)
		}
	}
	return recs
}

type sdkVector struct {
	Name, Image string
	Base, Flags uint32
	Time        int64
	Seq         uint64
	Records     []abi.Record
}

func readVectors(t *testing.T, file string) []sdkVector {
	t.Helper()
	text, err := os.ReadFile("../../abi/testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var raw []struct {
		sdkVector
		Records []json.RawMessage
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		t.Fatal(err)
	}
	vs := make([]sdkVector, len(raw))
	for i, r := range raw {
		vs[i] = r.sdkVector
		for _, line := range r.Records {
			rec, err := abi.ParseJSON(line)
			if err != nil {
				t.Fatal(err)
			}
			vs[i].Records = append(vs[i].Records, rec)
		}
	}
	return vs
}

// want is what the module of abi/<sdk>/testdata makes of records.
type want struct {
	out     []abi.Output
	rejects []abi.Reject
}

func emitted(recs []abi.Record, change func(i int, o *abi.Output) bool) (w want) {
	for i, r := range recs {
		o := abi.Output{Record: r, Index: i}
		o.Attrs = slices.Clone(r.Attrs)
		if change(i, &o) {
			w.out = append(w.out, o)
		}
	}
	return w
}

func setAttr(r *abi.Record, key string, v abi.Value) {
	for i := range r.Attrs {
		if r.Attrs[i].Key == key {
			r.Attrs[i].Value = v
			return
		}
	}
	r.Attrs = append(r.Attrs, abi.Attr{Key: key, Value: v})
}

func editValue(v abi.Value) abi.Value {
	switch v.Kind() {
	case abi.KindNone:
		return abi.Int(1)
	case abi.KindBool:
		return abi.Bool(!v.AsBool())
	case abi.KindInt:
		return abi.Int(v.AsInt() * 2)
	case abi.KindUint:
		return abi.Uint(v.AsUint() / 2)
	case abi.KindFloat:
		return abi.Float(v.AsFloat() * 2)
	case abi.KindString:
		return abi.String(v.Text() + v.Text())
	case abi.KindBytes:
		return abi.Bytes([]byte(v.Text() + v.Text()))
	default:
		return abi.JSON(`{"was":` + v.Text() + `}`)
	}
}

// sdkOps says what each op does.
var sdkOps = map[string]func(recs []abi.Record) want{
	"pass": func(recs []abi.Record) want { return emitted(recs, func(int, *abi.Output) bool { return true }) },
	"copy": func(recs []abi.Record) want {
		return emitted(recs, func(_ int, o *abi.Output) bool {
			o.Index, o.Protocol = -1, 0
			return true
		})
	},
	"edit": func(recs []abi.Record) want {
		return emitted(recs, func(_ int, o *abi.Output) bool {
			o.EventTime, o.IngestTime, o.Status = o.EventTime+1, o.IngestTime+2, 0x80000000
			o.Source, o.Address = "new "+o.Source, o.Source
			o.Value = editValue(o.Value)
			return true
		})
	},
	"attrs": func(recs []abi.Record) want {
		return emitted(recs, func(_ int, o *abi.Output) bool {
			setAttr(&o.Record, "unit", abi.String("mbar"))
			setAttr(&o.Record, "x", abi.Float(2))
			setAttr(&o.Record, "y", abi.String("why"))
			setAttr(&o.Record, "z", abi.Bool(true))
			o.Attrs = slices.DeleteFunc(o.Attrs, func(a abi.Attr) bool { return a.Key == "qos" })
			return true
		})
	},
	"filter": func(recs []abi.Record) want {
		return emitted(recs, func(i int, _ *abi.Output) bool { return i%2 == 1 })
	},
	"reject": func(recs []abi.Record) want {
		var rejects []abi.Reject
		w := emitted(recs, func(i int, o *abi.Output) bool {
			if o.Value.Kind() == abi.KindString {
				rejects = append(rejects, abi.Reject{Index: i, Reason: "no text: " + o.Address})
				return false
			}
			return true
		})
		w.rejects = rejects
		return w
	},
	"route": func(recs []abi.Record) want {
		return emitted(recs, func(i int, o *abi.Output) bool {
			o.Handle = uint32(i%2) * 5
			return true
		})
	},
	"fan":  func(recs []abi.Record) want { return fanned(recs, 2) },
	"grow": func(recs []abi.Record) want { return fanned(recs, 3) },
	"share": func(recs []abi.Record) (w want) {
		for i, r := range recs {
			first, second := abi.Output{Record: r, Index: i}, abi.Output{Record: r, Index: i}
			first.Attrs, second.Attrs = slices.Clone(r.Attrs), slices.Clone(r.Attrs)
			setAttr(&first.Record, "copy", abi.Int(0))
			setAttr(&second.Record, "copy", abi.Int(int64(i)))
			second.Attrs = slices.DeleteFunc(second.Attrs, func(a abi.Attr) bool { return a.Key == "qos" })
			w.out = append(w.out, first, second)
		}
		return w
	},
	"parse": func(recs []abi.Record) want {
		return emitted(recs, func(_ int, o *abi.Output) bool {
			if k := o.Value.Kind(); k >= abi.KindString && k <= abi.KindJSON {
				o.Value = abi.Value{}
				if f, err := strconv.ParseFloat(recs[o.Index].Value.Text(), 64); err == nil {
					o.Value = abi.Float(f)
				}
			}
			return true
		})
	},
}

func fanned(recs []abi.Record, times int) (w want) {
	for i, r := range recs {
		if r.Value.IsNone() {
			continue
		}
		w.out = append(w.out, abi.Output{Record: r, Index: i})
		for range times - 1 {
			o := abi.Output{Record: r, Index: i}
			o.Attrs = slices.Clone(r.Attrs)
			o.Address += "/2"
			setAttr(&o.Record, "copy", abi.Int(int64(i)))
			w.out = append(w.out, o)
		}
	}
	return w
}

func sameOutputs(t *testing.T, what string, w want, out []abi.Output, rejects []abi.Reject) {
	t.Helper()
	if len(out) != len(w.out) || len(rejects) != len(w.rejects) {
		t.Errorf("%s: %d out, %d rejects; want %d and %d: %v", what, len(out), len(rejects), len(w.out), len(w.rejects), rejects)
		return
	}
	for i, o := range out {
		if len(o.Attrs) == 0 {
			o.Attrs = nil
		}
		if len(w.out[i].Attrs) == 0 {
			w.out[i].Attrs = nil
		}
		if !reflect.DeepEqual(o, w.out[i]) {
			t.Errorf("%s: row %d is\n%+v, want\n%+v", what, i, o, w.out[i])
			return
		}
	}
	if !slices.Equal(rejects, w.rejects) {
		t.Errorf("%s: rejects %+v, want %+v", what, rejects, w.rejects)
	}
}

func TestSDKOperators(t *testing.T) {
	recs := vectorRecords(t)
	if len(recs) < 50 {
		t.Fatalf("%d records in the vectors", len(recs))
	}
	numbers := batch(0)
	for _, text := range []string{"1.8", "-32", "1e3", "-1.5E-3", "0.1", "123456789012345", "x", "", "1.", ".5", "1e", "--1", "1 "} {
		numbers.Records = append(numbers.Records, abi.Record{Source: "s", Address: "a", Value: abi.String(text)})
	}
	// Text as long as it may be, in every place.
	long, longest := strings.Repeat("ä", 32<<10), batch(0)
	for range 2 {
		longest.Records = append(longest.Records, abi.Record{Source: long, Address: long, Value: abi.Bytes([]byte(long)), Attrs: []abi.Attr{{Key: long, Value: abi.String(long)}}})
	}
	eachSDK(t, func(t *testing.T, s *sdk) {
		m := compile(t, newHost(t), s.wasm(t, s.check, false))
		for op, expect := range sdkOps {
			env := sandbox.Env{Name: op, Config: map[string]string{"op": op}, Outputs: map[string]uint32{"second": 5}}
			i := instantiate(t, m, env)
			batches := []*abi.Batch{{Seq: 1, Time: 9, Records: recs}, {Seq: 2, Time: 10}, batch(1000), {Seq: 1, Time: 9, Records: recs}}
			switch op {
			case "parse":
				batches = []*abi.Batch{numbers}
			case "pass", "copy", "filter", "route":
				batches = append(batches, longest)
			}
			for k, in := range batches {
				res, err := i.Process(t.Context(), in)
				if err != nil {
					t.Fatalf("%s: %v", op, err)
				}
				sameOutputs(t, fmt.Sprintf("%s, batch %d", op, k), expect(in.Records), res.Out, res.Rejects)
			}
		}
	})
}

func eachSDK(t *testing.T, f func(t *testing.T, s *sdk)) {
	for i := range sdks {
		t.Run(sdks[i].name, func(t *testing.T) { f(t, &sdks[i]) })
	}
}

func TestSDKHostFunctions(t *testing.T) {
	eachSDK(t, func(t *testing.T, s *sdk) {
		m := compile(t, newHost(t), s.wasm(t, s.check, false))
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, nil))

		fail := instantiate(t, m, sandbox.Env{Name: "fail", Config: map[string]string{"op": "fail"}})
		_, err := fail.Process(t.Context(), batch(3))
		var f *sandbox.Fault
		if !errors.As(err, &f) || f.Class != sandbox.ClassBatchError || !strings.HasPrefix(f.Message, "refused by plant") {
			t.Errorf("fail: %v", err)
		}

		trap := instantiate(t, m, sandbox.Env{Name: "trap", Config: map[string]string{"op": "trap"}})
		_, err = trap.Process(t.Context(), batch(3))
		if !errors.As(err, &f) || f.Class != sandbox.ClassTrap || !strings.Contains(f.Message, s.trap) {
			t.Errorf("trap: %v", err)
		}

		kept := mapKV{"count": string(binary.LittleEndian.AppendUint64(nil, 40))}
		state := instantiate(t, m, sandbox.Env{Name: "state", Config: map[string]string{"op": "state"}, KV: kept, Logger: logger})
		res, err := state.Process(t.Context(), batch(3))
		if err != nil {
			t.Fatal(err)
		}
		count, _ := res.Out[2].Attr("count")
		if count != abi.Bytes([]byte(kept["count"])) || len(res.KV) != 2 || len(res.Metrics) != 2 || !strings.Contains(log.String(), "state kept") {
			t.Errorf("state: %+v, log %q", res, log.String())
		}
		for _, w := range res.KV {
			if w.Key == "count" && (w.Delete || binary.LittleEndian.Uint64(w.Value) != 43 || w.TTL.Seconds() != 60) || w.Key == "old" && !w.Delete {
				t.Errorf("state wrote %+v", w)
			}
		}
		for _, w := range res.Metrics {
			if w.Name == "seen" && (w.Kind != sandbox.Counter || w.Value != 3) || w.Name == "last" && (w.Kind != sandbox.Gauge || w.Value != 43) {
				t.Errorf("state counted %+v", w)
			}
		}

		tick, err := state.Tick(t.Context(), &abi.Batch{Seq: 77, Time: 1000})
		if err != nil {
			t.Fatal(err)
		}
		sameOutputs(t, "tick", want{out: []abi.Output{{Index: -1, Record: abi.Record{EventTime: 999, IngestTime: 1000, Source: "tick",
			Address: "t", Value: abi.Float(77), Attrs: []abi.Attr{{Key: "n", Value: abi.Uint(77)}}}}}}, tick.Out, tick.Rejects)

		for op, reason := range map[string]string{"nonsense": "no such op: nonsense", "route": "output second is not configured"} {
			_, err := m.Instantiate(t.Context(), sandbox.Env{Name: op, Config: map[string]string{"op": op}, Logger: logger})
			var refusal *sandbox.Refusal
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), reason) {
				t.Errorf("op %s: %v", op, err)
			}
		}
	})
}

// TestSDKRustWithoutStd: a module can do without the standard library, and a module
// with it has its panics reported.
func TestSDKRustWithoutStd(t *testing.T) {
	const body = `
struct Panics;
impl edgehost::Module for Panics {
	fn init() -> Self { Panics }
	fn process<'b>(&mut self, batch: &mut edgehost::Batch<'b>) -> edgehost::Outcome<'b> {
		if batch.len() > 1 { panic!("too many records: {}", batch.len()) }
		Ok(())
	}
}
edgehost::module!(Panics);
`
	const without = `#![no_std]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { core::arch::wasm32::unreachable() }
`
	for name, c := range map[string]struct {
		source, words string
		features      []string
	}{
		"without std": {without + body, "unreachable", nil},
		"with std":    {body, "too many records: 3", []string{"--cfg", `feature="std"`}},
	} {
		source := filepath.Join(t.TempDir(), "module.rs")
		if err := os.WriteFile(source, []byte(c.source), 0o600); err != nil {
			t.Fatal(err)
		}
		i := instantiate(t, compile(t, newHost(t), rust(t, source, false, c.features...)), sandbox.Env{Name: "panics"})
		if _, err := i.Process(t.Context(), batch(1)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err := i.Process(t.Context(), batch(3))
		var f *sandbox.Fault
		if !errors.As(err, &f) || f.Class != sandbox.ClassTrap || !strings.Contains(f.Message, c.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSDKScale: the example of each SDK does what the Go example does.
func TestSDKScale(t *testing.T) {
	host := newHost(t)
	reference := compile(t, host, example(t, "scale"))
	recs := vectorRecords(t)
	eachSDK(t, func(t *testing.T, s *sdk) {
		m := compile(t, host, s.wasm(t, s.scale, false))
		for _, config := range []map[string]string{
			nil,
			{"factor": "1.8", "offset": "32", "unit": "°F", "prefix": "f/"},
			{"factor": "-0.001", "unit": strings.Repeat("u", 300)},
		} {
			env := sandbox.Env{Name: "scale", Config: config}
			a, b := instantiate(t, reference, env), instantiate(t, m, env)
			for _, in := range []*abi.Batch{{Seq: 1, Records: recs}, batch(1000), batch(4000), batch(0)} {
				x, err := a.Process(t.Context(), in)
				if err != nil {
					t.Fatal(err)
				}
				y, err := b.Process(t.Context(), in)
				if err != nil {
					t.Fatal(err)
				}
				sameOutputs(t, fmt.Sprint(config), want{x.Out, x.Rejects}, y.Out, y.Rejects)
			}
		}
		_, err := m.Instantiate(t.Context(), sandbox.Env{Name: "scale", Config: map[string]string{"factor": "high"}, Logger: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), "config key factor: high is no number") {
			t.Errorf("bad config: %v", err)
		}
	})
}
