package sandbox

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/edgehost/edgehost/abi"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// The error numbers of wasi_snapshot_preview1 that modules get to see.
// https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md#errno
const (
	wasiOK      = 0
	wasiBadf    = 8
	wasiFault   = 21
	wasiInval   = 28
	wasiNosys   = 52
	wasiSpipe   = 70
	wasiMaxIovs = 1024
)

// wasiFuncs are the imports of the module "wasi_snapshot_preview1". What a
// reactor needs works; everything else exists, so that modules link, and fails.
var wasiFuncs = map[string]hostFunc{
	"args_get":             {signature{"ii", "i"}, wasiNothing},
	"args_sizes_get":       {signature{"ii", "i"}, wasiEmpty},
	"environ_get":          {signature{"ii", "i"}, wasiNothing},
	"environ_sizes_get":    {signature{"ii", "i"}, wasiEmpty},
	"clock_res_get":        {signature{"ii", "i"}, wasiClockRes},
	"clock_time_get":       {signature{"iIi", "i"}, wasiClockTime},
	"fd_write":             {signature{"iiii", "i"}, wasiFdWrite},
	"fd_fdstat_get":        {signature{"ii", "i"}, wasiFdstat},
	"fd_fdstat_set_flags":  {signature{"ii", "i"}, wasiStdio(wasiOK)},
	"fd_close":             {signature{"i", "i"}, wasiStdio(wasiOK)},
	"fd_read":              {signature{"iiii", "i"}, wasiFdRead},
	"fd_seek":              {signature{"iIii", "i"}, wasiStdio(wasiSpipe)},
	"fd_tell":              {signature{"ii", "i"}, wasiStdio(wasiSpipe)},
	"fd_prestat_get":       {signature{"ii", "i"}, wasiError(wasiBadf)},
	"fd_prestat_dir_name":  {signature{"iii", "i"}, wasiError(wasiBadf)},
	"poll_oneoff":          {signature{"iiii", "i"}, wasiPoll},
	"proc_exit":            {signature{"i", ""}, wasiExit},
	"random_get":           {signature{"ii", "i"}, wasiRandom},
	"sched_yield":          {signature{"", "i"}, wasiNothing},
	"fd_advise":            {signature{"iIIi", "i"}, wasiError(wasiBadf)},
	"fd_allocate":          {signature{"iII", "i"}, wasiError(wasiBadf)},
	"fd_datasync":          {signature{"i", "i"}, wasiError(wasiBadf)},
	"fd_fdstat_set_rights": {signature{"iII", "i"}, wasiError(wasiBadf)},
	"fd_filestat_get":      {signature{"ii", "i"}, wasiError(wasiBadf)},
	"fd_filestat_set_size": {signature{"iI", "i"}, wasiError(wasiBadf)},
	"fd_filestat_set_times": {
		signature{"iIIi", "i"}, wasiError(wasiBadf),
	},
	"fd_pread":              {signature{"iiiIi", "i"}, wasiError(wasiBadf)},
	"fd_pwrite":             {signature{"iiiIi", "i"}, wasiError(wasiBadf)},
	"fd_readdir":            {signature{"iiiIi", "i"}, wasiError(wasiBadf)},
	"fd_renumber":           {signature{"ii", "i"}, wasiError(wasiBadf)},
	"fd_sync":               {signature{"i", "i"}, wasiError(wasiBadf)},
	"path_create_directory": {signature{"iii", "i"}, wasiError(wasiBadf)},
	"path_filestat_get":     {signature{"iiiii", "i"}, wasiError(wasiBadf)},
	"path_filestat_set_times": {
		signature{"iiiiIIi", "i"}, wasiError(wasiBadf),
	},
	"path_link":             {signature{"iiiiiii", "i"}, wasiError(wasiBadf)},
	"path_open":             {signature{"iiiiiIIii", "i"}, wasiError(wasiBadf)},
	"path_readlink":         {signature{"iiiiii", "i"}, wasiError(wasiBadf)},
	"path_remove_directory": {signature{"iii", "i"}, wasiError(wasiBadf)},
	"path_rename":           {signature{"iiiiii", "i"}, wasiError(wasiBadf)},
	"path_symlink":          {signature{"iiiii", "i"}, wasiError(wasiBadf)},
	"path_unlink_file":      {signature{"iii", "i"}, wasiError(wasiBadf)},
	"proc_raise":            {signature{"i", "i"}, wasiError(wasiNosys)},
	"sock_accept":           {signature{"iii", "i"}, wasiError(wasiBadf)},
	"sock_recv":             {signature{"iiiiii", "i"}, wasiError(wasiBadf)},
	"sock_send":             {signature{"iiiii", "i"}, wasiError(wasiBadf)},
	"sock_shutdown":         {signature{"ii", "i"}, wasiError(wasiBadf)},
}

func exportWASI(ctx context.Context, r wazero.Runtime) error {
	return exportFuncs(ctx, r, abi.ImportWASI, wasiFuncs)
}

type hostRun = func(i *Instance, mem api.Memory, stack []uint64)

// wasiError is a function that always fails.
func wasiError(code uint64) hostRun {
	return func(_ *Instance, _ api.Memory, stack []uint64) { stack[0] = code }
}

// wasiStdio answers code for the standard files, and that there are no others.
func wasiStdio(code uint64) hostRun {
	return func(_ *Instance, _ api.Memory, stack []uint64) {
		if uint32(stack[0]) > 2 {
			code := uint64(wasiBadf)
			stack[0] = code
			return
		}
		stack[0] = code
	}
}

// wasiNothing succeeds and does nothing.
func wasiNothing(_ *Instance, _ api.Memory, stack []uint64) { stack[0] = wasiOK }

// wasiEmpty tells a module that it has no arguments or no environment.
func wasiEmpty(_ *Instance, mem api.Memory, stack []uint64) {
	if !mem.WriteUint32Le(uint32(stack[0]), 0) || !mem.WriteUint32Le(uint32(stack[1]), 0) {
		stack[0] = wasiFault
		return
	}
	stack[0] = wasiOK
}

func wasiClockRes(_ *Instance, mem api.Memory, stack []uint64) {
	switch {
	case uint32(stack[0]) > 1:
		stack[0] = wasiInval
	case !mem.WriteUint64Le(uint32(stack[1]), 1000):
		stack[0] = wasiFault
	default:
		stack[0] = wasiOK
	}
}

// wasiClockTime gives the batch's time for the wall clock, so that a replay
// computes the same. The monotonic clock moves by what poll_oneoff slept and a
// little with each look at it, so that nobody waits for it in vain.
func wasiClockTime(i *Instance, mem api.Memory, stack []uint64) {
	var now int64
	switch uint32(stack[0]) {
	case 0:
		now = i.now * 1000
	case 1:
		i.mono += 1000
		now = i.mono
	default:
		stack[0] = wasiInval
		return
	}
	if !mem.WriteUint64Le(uint32(stack[2]), uint64(now)) {
		stack[0] = wasiFault
		return
	}
	stack[0] = wasiOK
}

// wasiFdWrite takes stdout as info and stderr as errors of the module's log.
func wasiFdWrite(i *Instance, mem api.Memory, stack []uint64) {
	fd, iovs, n, result := uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
	if fd != 1 && fd != 2 {
		stack[0] = wasiBadf
		return
	}
	if n > wasiMaxIovs {
		stack[0] = wasiInval
		return
	}
	vectors, ok := mem.Read(iovs, n*8)
	var total uint32
	for ; ok && len(vectors) > 0; vectors = vectors[8:] {
		var b []byte
		if b, ok = mem.Read(le32(vectors), le32(vectors[4:])); ok {
			total += uint32(len(b))
			b = b[:min(len(b), 4*abi.MaxLogLine)] // the rest would be over any rate
			i.call.charge(len(b))
			i.logs.write(int(fd), b)
		}
	}
	if !ok || !mem.WriteUint32Le(result, total) {
		stack[0] = wasiFault
		return
	}
	stack[0] = wasiOK
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// wasiFdRead says that stdin is at its end.
func wasiFdRead(_ *Instance, mem api.Memory, stack []uint64) {
	switch {
	case uint32(stack[0]) != 0:
		stack[0] = wasiBadf
	case !mem.WriteUint32Le(uint32(stack[3]), 0):
		stack[0] = wasiFault
	default:
		stack[0] = wasiOK
	}
}

// wasiFdstat describes the standard files as character devices.
func wasiFdstat(_ *Instance, mem api.Memory, stack []uint64) {
	const characterDevice, rightWrite = 2, 1 << 6
	stat := [24]byte{0: characterDevice, 8: rightWrite}
	switch {
	case uint32(stack[0]) > 2:
		stack[0] = wasiBadf
	case !mem.Write(uint32(stack[1]), stat[:]):
		stack[0] = wasiFault
	default:
		stack[0] = wasiOK
	}
}

// wasiPoll reports every subscription as ready at once. Nobody sleeps in a
// transform: a clock subscription moves the monotonic clock instead.
func wasiPoll(i *Instance, mem api.Memory, stack []uint64) {
	const subscription, event, absolute = 48, 32, 1
	in, out, n, result := uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
	if n == 0 || n > wasiMaxIovs {
		stack[0] = wasiInval
		return
	}
	i.call.charge(int(n) * subscription)
	for k := range n {
		sub, ok := mem.Read(in+k*subscription, subscription)
		if !ok {
			stack[0] = wasiFault
			return
		}
		var ev [event]byte
		copy(ev[:8], sub[:8]) // userdata
		ev[10] = sub[8]       // type
		if sub[8] == 0 {      // clock
			timeout := int64(uint64(le32(sub[24:])) | uint64(le32(sub[28:]))<<32)
			if le32(sub[40:])&absolute == 0 {
				timeout += i.mono
			}
			if le32(sub[16:]) == 1 || le32(sub[40:])&absolute == 0 {
				i.mono = max(i.mono, timeout)
			}
		}
		if !mem.Write(out+k*event, ev[:]) {
			stack[0] = wasiFault
			return
		}
	}
	if !mem.WriteUint32Le(result, n) {
		stack[0] = wasiFault
		return
	}
	stack[0] = wasiOK
}

// wasiExit ends the call: a module has no process to leave.
func wasiExit(_ *Instance, _ api.Memory, stack []uint64) {
	panic(&abort{ClassTrap, fmt.Sprintf("the module called proc_exit(%d)", uint32(stack[0]))})
}

// wasiRandom fills a buffer from the system's generator.
func wasiRandom(i *Instance, mem api.Memory, stack []uint64) {
	b, ok := mem.Read(uint32(stack[0]), uint32(stack[1]))
	if !ok {
		stack[0] = wasiFault
		return
	}
	for len(b) > 0 {
		n := min(len(b), workBetweenChecks)
		i.call.charge(n)
		rand.Read(b[:n])
		b = b[n:]
	}
	stack[0] = wasiOK
}
