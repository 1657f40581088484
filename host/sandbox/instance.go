package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// Output is a record that a module emitted.
type Output = abi.Output

// Reject is an input record that a module rejected, and why.
type Reject = abi.Reject

// Result is what one call of a module left: what it emitted, in its order, and
// what it rejected. Input records that neither names were filtered. The slices are
// valid until the next call of the instance; the records, keys and values in them
// may be kept.
type Result struct {
	Out     []Output
	Rejects []Reject
	KV      []KVWrite // at most one for each key
	Metrics []Metric  // at most one for each metric
	Fuel    int64     // units that the call used
}

// Instance is one running copy of a module. Its methods are called by one
// goroutine at a time.
type Instance struct {
	module *Module
	env    Env
	limits abi.OutputLimits
	logs   logs

	mod                        api.Module // nil until instantiated, and after a call that a snapshot cannot undo
	alloc, process, tick, stop api.Function
	fuel, depth                api.MutableGlobal
	memory                     memory
	snapshot                   snapshot
	fresh                      uint64 // bytes of memory after init
	spare                      uint32 // pages that a strict module starts with beyond its minimum: what its batches asked for

	arena      *abi.Arena
	base, room uint32 // the guest's arena: address and size
	call       call
	context    callContext
	granted    int64 // the fuel of the running slice
	even       bool  // the last call returned, which leaves the depth as it was
	now, mono  int64 // the clocks that the module sees: microseconds, nanoseconds
	out        abi.Outputs
	state      state
	metrics    []Metric // by id, with the changes of this call
	result     Result
	stack      [1]uint64 // parameters and results of calls
}

// instanceKey is the context key of the *Instance that a call belongs to.
type instanceKey struct{}

func instanceOf(ctx context.Context) *Instance { return ctx.Value(instanceKey{}).(*Instance) }

// callContext is the context of calls into the guest: that of the caller with the
// instance as its only value. The engine asks for values of its own in every call, and
// looking for them all the way up would cost more than the call.
type callContext struct {
	context.Context
	instance *Instance
}

func (c *callContext) Value(key any) any {
	if key == (instanceKey{}) {
		return c.instance
	}
	return nil
}

// within is the context of a call into the guest. An instance is in one call at a time,
// so it has one of them.
func (i *Instance) within(ctx context.Context) context.Context {
	i.context = callContext{ctx, i}
	return &i.context
}

// Instantiate starts a module for one deployment: _initialize and edgehost_init
// run under env's init deadline. When the module fails it is a *Fault; when
// edgehost_init refuses the deployment it is a *Refusal.
func (m *Module) Instantiate(ctx context.Context, env Env) (*Instance, error) {
	env.Limits = env.Limits.orDefault()
	i := &Instance{module: m, env: env, limits: env.outputLimits(), arena: abi.NewArena()}
	i.logs = logs{logger: env.Logger.With("module", env.Name, "revision", env.Revision), rate: env.Limits.LogBytes, tokens: float64(env.Limits.LogBytes), last: time.Now()}
	i.now = time.Now().UnixMicro()
	if err := i.start(ctx); err != nil {
		return nil, err
	}
	return i, nil
}

// start makes a fresh instance of the module and runs it up to its first batch.
func (i *Instance) start(ctx context.Context) error {
	i.logs.begin()
	i.base, i.room, i.mono, i.even = 0, 0, 0, false
	i.memory = memory{most: uint64(i.env.Limits.MemoryPages) << 16}
	err := i.boot(ctx)
	i.logs.flush(ctx) // what a module says while it starts helps most when it fails
	if err == nil {
		return nil
	}
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		err = i.fault(ctx, err)
	}
	i.drop()
	return err
}

func (i *Instance) boot(ctx context.Context) error {
	i.arm(ctx, i.env.Limits.InitDeadline, unlimited)
	i.call.deadline = time.Now().Add(i.env.Limits.InitDeadline)
	i.granted = i.module.meter.Slice
	if need, most := i.module.meter.MemoryMin, i.env.Limits.MemoryPages; need > most {
		return refuse("the module starts with %d pages of memory, at most %d are allowed", need, most)
	}
	cx := i.within(ctx)
	mod, err := i.instantiate(cx)
	if err != nil {
		return err
	}
	i.mod = mod
	i.alloc, i.process = mod.ExportedFunction(abi.ExportAlloc), mod.ExportedFunction(abi.ExportProcess)
	i.tick, i.stop = mod.ExportedFunction(abi.ExportTick), mod.ExportedFunction(abi.ExportStop)
	i.fuel, i.depth = meters(mod, i.module.meter)
	i.setMeters()
	if i.spare > 0 {
		// A module that cannot have it asks for memory itself, and is started afresh.
		_, _ = mod.Memory().Grow(i.spare)
		i.memory.refused = false
	}
	if i.module.has.initialize {
		if _, err := mod.ExportedFunction(abi.ExportInitialize).Call(cx); err != nil {
			return err
		}
	}
	if i.module.has.init {
		res, err := mod.ExportedFunction(abi.ExportInit).Call(cx)
		if err != nil {
			return err
		}
		if code := int32(res[0]); code != 0 {
			words := strings.TrimSpace(strings.ToValidUTF8(string(i.logs.stderr), ""))
			return refuse("edgehost_init refused the deployment with code %d: %s", code, words)
		}
	}
	i.fresh = i.memory.used
	i.snapshot.take(i)
	return nil
}

// instantiate makes the wazero instance. wazero panics when there is no address
// space for its memory.
func (i *Instance) instantiate(ctx context.Context) (mod api.Module, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: instantiate module: %v", errHost, r)
		}
	}()
	return i.module.engine.runtime.InstantiateModule(experimental.WithMemoryAllocator(ctx, &i.memory), i.module.compiled,
		wazero.NewModuleConfig().WithName("").WithStartFunctions())
}

// Process runs one batch through the module. A *Fault means that the module
// failed: every effect is discarded, and the instance is ready for the next call.
// Any other error is not the module's.
func (i *Instance) Process(ctx context.Context, in *abi.Batch) (*Result, error) {
	return i.run(ctx, in, 0)
}

// Tick runs the module without input, for windows and the like. in carries the
// sequence number and the time. A module without edgehost_tick gives an empty
// result.
func (i *Instance) Tick(ctx context.Context, in *abi.Batch) (*Result, error) {
	if !i.module.has.tick {
		i.result = Result{}
		return &i.result, nil
	}
	return i.run(ctx, &abi.Batch{Seq: in.Seq, Time: in.Time}, abi.FlagTick)
}

func (i *Instance) run(ctx context.Context, in *abi.Batch, flags uint32) (*Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("call module %s: %w", i.env.Name, err)
	}
	if i.mod == nil {
		if err := i.start(ctx); err != nil {
			return nil, err
		}
	}
	i.now = in.Time
	i.logs.begin()
	i.forget()
	i.memory.refused = false
	i.arm(ctx, i.env.Limits.Deadline, i.env.Limits.Fuel+i.env.Limits.FuelPerRow*int64(len(in.Records)))
	i.call.commits = true
	err := i.batch(i.within(ctx), in, flags)
	if err == nil {
		i.even = true
		i.logs.flush(ctx)
		i.result.Out, i.result.Rejects = i.out.Out, i.out.Rejects
		i.effects()
		i.result.Fuel = i.call.used + i.granted - int64(i.fuel.Get())
		if i.env.Strict {
			i.reset()
		}
		return &i.result, nil
	}
	overflow := isOverflow(err)
	err = i.fault(ctx, err)
	if overflow {
		i.drop() // gives back the engine's stack, which stays as large as it became
	} else {
		i.reset()
	}
	return nil, err
}

// batch lays the batch out, calls the module and reads what it left.
func (i *Instance) batch(ctx context.Context, in *abi.Batch, flags uint32) error {
	image, err := i.arena.Encode(in, i.base, flags)
	if err != nil {
		return err
	}
	if uint64(len(image)) > uint64(i.room) {
		if err := i.grow(ctx, len(image)); err != nil {
			return err
		}
		if i.env.Strict {
			i.snapshot.take(i) // the arena outlives the batches, which leave nothing else
		}
		if image, err = i.arena.Encode(in, i.base, flags); err != nil {
			return err
		}
	}
	mem := i.memory.bytes()
	if uint64(i.base)+uint64(len(image)) > uint64(len(mem)) {
		return fmt.Errorf("%w: the arena at %#x is no longer inside the memory", abi.ErrBadOutput, i.base)
	}
	copy(mem[i.base:], image)
	fn := i.process
	if flags&abi.FlagTick != 0 {
		fn = i.tick
	}
	i.stack[0] = uint64(i.base)
	if err := fn.CallWithStack(ctx, i.stack[:]); err != nil {
		return err
	}
	mem = i.memory.bytes() // it may have grown
	if code := int32(i.stack[0]); code != 0 {
		msg := i.arena.BatchError(mem)
		if msg == "" {
			msg = "the module left no message"
		}
		return &abort{ClassBatchError, fmt.Sprintf("%s (code %d)", msg, code)}
	}
	return i.arena.Decode(mem, &i.limits, &i.out)
}

// grow asks the module for an arena of at least need bytes, with some room for
// the batches to come.
func (i *Instance) grow(ctx context.Context, need int) error {
	i.base, i.room = 0, 0
	const page = 4 << 10
	size := uint32(need+need/4+page-1) &^ (page - 1)
	i.stack[0] = uint64(size)
	if err := i.alloc.CallWithStack(ctx, i.stack[:]); err != nil {
		return err
	}
	at := uint32(i.stack[0])
	switch {
	case at == 0:
		return &abort{ClassMemory, fmt.Sprintf("edgehost_alloc(%d) returned 0: the module has no room for the batch", size)}
	case at%8 != 0:
		return fmt.Errorf("%w: edgehost_alloc(%d) returned %#x, which is no multiple of 8", abi.ErrBadOutput, size, at)
	case uint64(at)+uint64(size) > uint64(i.mod.Memory().Size()):
		return fmt.Errorf("%w: edgehost_alloc(%d) returned %#x, which reaches outside the memory", abi.ErrBadOutput, size, at)
	}
	i.base, i.room = at, size
	return nil
}

// drop frees the wazero instance and its memory.
func (i *Instance) drop() {
	if i.mod != nil {
		_ = i.mod.Close(context.Background()) // only frees memory; there is no file to fail on
	}
	i.memory.Free() // a module whose start function fails is not closed by wazero
	i.mod, i.alloc, i.process, i.tick, i.stop, i.fuel, i.depth = nil, nil, nil, nil, nil, nil, nil
	i.base, i.room = 0, 0
}

// MemoryBytes is the size of the module's linear memory now.
func (i *Instance) MemoryBytes() uint64 { return i.memory.used }

// Close runs edgehost_stop and frees the instance. The error is the module's or
// the context's; the instance is freed in any case.
func (i *Instance) Close(ctx context.Context) error {
	defer i.drop()
	if i.mod == nil || i.stop == nil {
		return nil
	}
	i.logs.begin()
	i.arm(ctx, i.env.Limits.Deadline, unlimited)
	if err := i.stop.CallWithStack(i.within(ctx), i.stack[:]); err != nil {
		return i.fault(ctx, err)
	}
	i.logs.flush(ctx)
	return nil
}
