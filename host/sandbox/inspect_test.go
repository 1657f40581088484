package sandbox_test

import (
	"strings"
	"testing"

	"github.com/edgehost/edgehost/abi"
)

func TestInspect(t *testing.T) {
	h := newHost(t)
	good, err := h.Inspect(t.Context(), guest{}.bytes())
	if err != nil || len(good.Reasons) != 0 || good.Info == nil || good.Info.MemoryMin != 16 {
		t.Errorf("a good module: %+v, %v", good, err)
	}
	// What the meter refuses and what the ABI lacks come together.
	a := newAsm()
	a.fn("__eh_fuel", "", "")
	a.imp("env", "abort", "", "")
	bad, err := h.Inspect(t.Context(), a.bytes())
	if err != nil || bad.Info == nil {
		t.Fatalf("%+v, %v", bad, err)
	}
	all := strings.Join(bad.Reasons, "\n")
	for _, want := range []string{"__eh_", abi.ExportMarker + " is missing", "env.abort is unknown"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q does not say %q", all, want)
		}
	}
	// What is no module has one reason and no information.
	if text, err := h.Inspect(t.Context(), []byte("(module)")); err != nil || text.Info != nil || len(text.Reasons) != 1 {
		t.Errorf("text: %+v, %v", text, err)
	}
}
