package meter

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// withoutCustom drops the custom sections: the engine refuses a module for torn
// names, which the specification does not, and metering drops them.
func withoutCustom(wasm []byte) []byte {
	out := []byte(header)
	r := reader{buf: wasm, pos: len(header)}
	for r.more() {
		id := r.byte()
		body := r.bytes(r.u32())
		if id != secCustom {
			out = appendSection(out, id, body)
		}
	}
	return out
}

// FuzzInstrument: a module is refused, or the engine takes the plain and the
// metered module, or neither. The seeds are small modules of the testsuite and
// those of the other tests.
func FuzzInstrument(f *testing.F) {
	for _, build := range hostile() {
		var a asm
		build(&a)
		if wasm := a.build(); len(wasm) < 2000 {
			f.Add(wasm)
		}
	}
	for _, c := range refusals() {
		var a asm
		c.build(&a)
		if wasm := a.build(); len(wasm) < 2000 {
			f.Add(wasm)
		}
	}
	dir := specDir(f, "v2")
	files, err := os.ReadDir(dir)
	if err != nil {
		f.Fatal(err)
	}
	for i, file := range files {
		if i%20 != 0 || !strings.HasSuffix(file.Name(), ".wasm") {
			continue
		}
		wasm, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			f.Fatal(err)
		}
		if len(wasm) < 2000 {
			f.Add(wasm)
		}
	}
	cfg := DefaultConfig()
	cfg.BodyBytes, cfg.Locals, cfg.TableEntries, cfg.MemoryPages = 4<<10, 200, 1000, 16
	runtime := wazero.NewRuntimeWithConfig(f.Context(), wazero.NewRuntimeConfig().WithCoreFeatures(api.CoreFeaturesV2))
	f.Cleanup(func() { runtime.Close(context.Background()) })
	f.Fuzz(func(t *testing.T, wasm []byte) {
		out, _, err := Instrument(wasm, cfg)
		if err != nil {
			return
		}
		plain, plainErr := runtime.CompileModule(t.Context(), withoutCustom(wasm))
		metered, meteredErr := runtime.CompileModule(t.Context(), out)
		if (plainErr == nil) != (meteredErr == nil) {
			t.Errorf("plain: %v\nmetered: %v", plainErr, meteredErr)
		}
		if plainErr == nil {
			plain.Close(t.Context())
		}
		if meteredErr == nil {
			metered.Close(t.Context())
		}
	})
}
