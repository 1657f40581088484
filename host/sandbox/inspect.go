package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/edgehost/edgehost/host/sandbox/meter"
)

// Inspection is what can be said about a module without running any of it.
type Inspection struct {
	// Info is what was learned; nil when the file cannot be read as a module.
	Info *Info
	// Reasons are all the reasons for which Compile refuses the module; none when it
	// would take it.
	Reasons []string
}

// Inspect looks at a module as Compile does, but does not end at the first stage
// that refuses it. The error is never the module's.
func (h *Host) Inspect(ctx context.Context, wasm []byte) (Inspection, error) {
	if err := precheck(wasm, h.limits.ModuleBytes); err != nil {
		return Inspection{Reasons: reasonsOf(err)}, nil
	}
	_, info, err := meter.Instrument(wasm, meterConfig(h.limits))
	var refused *meter.Refused
	switch {
	case errors.As(err, &refused):
		found := Inspection{Info: refused.Info, Reasons: refused.Reasons}
		if refused.Info != nil {
			_, more := checkModule(refused.Info)
			found.Reasons = append(found.Reasons, more...)
		}
		return found, nil
	case err != nil:
		return Inspection{}, fmt.Errorf("meter module: %w", err)
	}
	m, err := h.Compile(ctx, wasm)
	if err == nil {
		return Inspection{Info: info}, m.Close(ctx)
	}
	reasons := reasonsOf(err)
	if len(reasons) == 0 {
		return Inspection{}, err
	}
	return Inspection{Info: info, Reasons: reasons}, nil
}

func reasonsOf(err error) []string {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return refusal.Reasons
	}
	return nil
}
