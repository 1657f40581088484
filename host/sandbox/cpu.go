package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"time"

	"github.com/edgehost/edgehost/host/sandbox/meter"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// workBetweenChecks is how many bytes host functions handle for a module before
// they look at the deadline themselves.
const workBetweenChecks = 1 << 16

// meterConfig is what the meter holds a module to.
func meterConfig(l Limits) meter.Config {
	cfg := meter.DefaultConfig()
	cfg.ModuleBytes = l.ModuleBytes
	cfg.MemoryPages = 1 << 16 // memory holds each instance to its own limit, and notices
	return cfg
}

// instrument meters a module.
func instrument(wasm []byte, l Limits) ([]byte, *meter.Info, error) {
	out, info, err := meter.Instrument(wasm, meterConfig(l))
	var refused *meter.Refused
	if errors.As(err, &refused) {
		return nil, nil, &Refusal{Reasons: refused.Reasons}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("meter module: %w", err)
	}
	if info.MemoryMin > l.MemoryPages {
		return nil, nil, refuse("the module starts with %d pages of memory, at most %d are allowed", info.MemoryMin, l.MemoryPages)
	}
	return out, info, nil
}

// call is the state of the call that an instance is in.
type call struct {
	ctx      context.Context
	deadline time.Time // zero until the clock is looked at: short calls do not need it
	allowed  time.Duration
	budget   int64 // units of fuel for the whole call
	used     int64 // units of slices that are used up
	commits  bool  // its effects are committed: a batch or a tick
	work     int   // bytes that host functions handled since the last check
}

func (c *call) deadlineMessage() string {
	return fmt.Sprintf("the call takes longer than %s", c.allowed)
}

// check aborts the call when its time or its caller has ended.
func (c *call) check() {
	if c.ctx.Err() != nil {
		panic(errHost)
	}
	now := time.Now()
	if c.deadline.IsZero() { // less than a slice of fuel after the call began
		c.deadline = now.Add(c.allowed)
	}
	if !now.Before(c.deadline) {
		panic(&abort{ClassDeadline, c.deadlineMessage()})
	}
}

// charge counts bytes that a host function handles, so that a module cannot
// spend the host's time between two yields.
func (c *call) charge(n int) {
	c.work += n + 64
	if c.work >= workBetweenChecks {
		c.work = 0
		c.check()
	}
}

// slice is the fuel until the next yield.
func (i *Instance) slice() int64 {
	return min(i.module.meter.Slice, max(0, i.call.budget-i.call.used))
}

// arm gives the module a call's fuel, depth and time.
func (i *Instance) arm(ctx context.Context, allowed time.Duration, budget int64) {
	i.call = call{ctx: ctx, allowed: allowed, budget: budget}
	i.setMeters()
}

func (i *Instance) setMeters() {
	if i.fuel == nil {
		return
	}
	i.granted = i.slice()
	i.fuel.Set(uint64(i.granted))
	if !i.even {
		i.depth.Set(uint64(i.module.meter.MaxDepth))
	}
	i.even = false
}

// exportYield exports the function that metered modules call when a slice of
// fuel is used up.
func exportYield(ctx context.Context, r wazero.Runtime) error {
	_, err := r.NewHostModuleBuilder(meter.YieldModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(yield), nil, nil).Export(meter.YieldName).Instantiate(ctx)
	return err
}

// yield is the host's turn in a long call: it ends the call, or lets the
// scheduler and the garbage collector run and grants another slice.
func yield(ctx context.Context, mod api.Module, _ []uint64) {
	i := instanceOf(ctx)
	fuel, depth := i.fuel, i.depth
	if fuel == nil { // the start function runs before there are handles
		fuel, depth = meters(mod, i.module.meter)
	}
	if int64(depth.Get()) < 0 {
		panic(errDepth)
	}
	i.call.used += i.granted - int64(fuel.Get())
	i.call.check()
	if i.call.used >= i.call.budget {
		panic(&abort{ClassFuel, fmt.Sprintf("the batch used up its %d units of fuel: an endless loop, or too much work for each record", i.call.budget)})
	}
	runtime.Gosched()
	i.granted = i.slice()
	fuel.Set(uint64(i.granted))
}

// errDepth ends a call that is nested too deeply.
var errDepth = &abort{ClassDepth, "calls are nested too deeply: recursion without an end?"}

// meters are the fuel and the depth of an instance.
func meters(mod api.Module, info *meter.Info) (fuel, depth api.MutableGlobal) {
	return mod.ExportedGlobal(info.FuelGlobal).(api.MutableGlobal), mod.ExportedGlobal(info.DepthGlobal).(api.MutableGlobal)
}

// tooDeep reports whether err came from nesting, in the meter's terms or the
// engine's.
func (i *Instance) tooDeep(err error) bool {
	return errors.Is(err, errDepth) || isOverflow(err) || (i.depth != nil && int64(i.depth.Get()) < 0)
}

// isOverflow reports whether the engine's own stack was exhausted. Its error is
// of an internal type.
func isOverflow(err error) bool { return strings.HasPrefix(err.Error(), "wasm error: stack overflow") }

// unlimited is the fuel of calls that only time bounds.
const unlimited = math.MaxInt64
