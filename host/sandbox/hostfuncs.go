package sandbox

import (
	"context"
	"log/slog"
	"unicode/utf8"

	"github.com/edgehost/edgehost/abi"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// hostFunc is a function that modules import. It reads its parameters from the
// stack and leaves its result there.
type hostFunc struct {
	signature
	run func(i *Instance, mem api.Memory, stack []uint64)
}

// edgehostFuncs are the imports of the module "edgehost" (docs/abi.md).
var edgehostFuncs = map[string]hostFunc{
	"log":        {signature{"iii", "i"}, hostLog},
	"config_get": {signature{"iiii", "i"}, hostConfigGet},
	"output":     {signature{"ii", "i"}, hostOutput},
	"features":   {signature{"", "I"}, hostFeatures},
	"kv_get":     {signature{"iiii", "i"}, hostKVGet},
	"kv_set":     {signature{"iiiiI", "i"}, hostKVSet},
	"kv_delete":  {signature{"ii", "i"}, hostKVDelete},
	"metric":     {signature{"iii", "i"}, hostMetric},
	"metric_add": {signature{"iF", "i"}, hostMetricAdd},
	"metric_set": {signature{"iF", "i"}, hostMetricSet},
}

// exportEdgehost exports the host functions.
func exportEdgehost(ctx context.Context, r wazero.Runtime) error {
	return exportFuncs(ctx, r, abi.ImportModule, edgehostFuncs)
}

func exportFuncs(ctx context.Context, r wazero.Runtime, module string, funcs map[string]hostFunc) error {
	b := r.NewHostModuleBuilder(module)
	for name, f := range funcs {
		run := f.run
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, mod api.Module, stack []uint64) {
			i := instanceOf(ctx)
			i.call.charge(0)
			run(i, mod.Memory(), stack)
		}), valueTypes(f.params), valueTypes(f.results)).Export(name)
	}
	_, err := b.Instantiate(ctx)
	return err
}

// errno is a result below zero, or a length or handle.
func errno(n int) uint64 { return uint64(uint32(int32(n))) }

// name reads the text parameter at stack[at], stack[at+1].
func name(mem api.Memory, stack []uint64, at, most int) (string, int) {
	n := uint32(stack[at+1])
	if uint64(n) > uint64(most) {
		return "", abi.ErrnoTooLarge
	}
	b, ok := mem.Read(uint32(stack[at]), n)
	if !ok {
		return "", abi.ErrnoMemory
	}
	if !utf8.Valid(b) {
		return "", abi.ErrnoInvalid
	}
	return string(b), 0
}

// give writes v into the module's buffer at stack[at], of stack[at+1] bytes, if it
// fits, and returns its length in any case.
func give(mem api.Memory, stack []uint64, at int, v string) uint64 {
	if uint64(len(v)) <= uint64(uint32(stack[at+1])) && !mem.WriteString(uint32(stack[at]), v) {
		return errno(abi.ErrnoMemory)
	}
	return uint64(len(v))
}

// hostLog is log(level, ptr, len): 0 debug, 1 info, 2 warning, 3 error.
func hostLog(i *Instance, mem api.Memory, stack []uint64) {
	level := uint32(stack[0])
	n := min(uint32(stack[2]), abi.MaxLogLine)
	b, ok := mem.Read(uint32(stack[1]), n)
	switch {
	case level > 3:
		stack[0] = errno(abi.ErrnoInvalid)
	case !ok:
		stack[0] = errno(abi.ErrnoMemory)
	default:
		i.call.charge(len(b))
		i.logs.add([]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}[level], b)
		stack[0] = 0
	}
}

// hostConfigGet is config_get(key, key_len, buf, buf_len) -> length.
func hostConfigGet(i *Instance, mem api.Memory, stack []uint64) {
	key, bad := name(mem, stack, 0, abi.MaxKey)
	if bad != 0 {
		stack[0] = errno(bad)
		return
	}
	v, ok := i.env.Config[key]
	if !ok {
		stack[0] = errno(abi.ErrnoNotFound)
		return
	}
	i.call.charge(len(v))
	stack[0] = give(mem, stack, 2, v)
}

// hostOutput is output(name, name_len) -> handle.
func hostOutput(i *Instance, mem api.Memory, stack []uint64) {
	key, bad := name(mem, stack, 0, abi.MaxKey)
	if bad != 0 {
		stack[0] = errno(bad)
		return
	}
	handle, ok := i.env.Outputs[key]
	if !ok {
		stack[0] = errno(abi.ErrnoNotFound)
		return
	}
	stack[0] = uint64(handle)
}

// hostFeatures is features() -> bits.
func hostFeatures(i *Instance, _ api.Memory, stack []uint64) {
	stack[0] = abi.FeatureTick | abi.FeatureMetrics
	if i.env.KV != nil {
		stack[0] |= abi.FeatureKV
	}
}
