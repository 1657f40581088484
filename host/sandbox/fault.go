package sandbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/edgehost/edgehost/abi"
)

// Class says what kind of fault a module committed. It is a metric label.
type Class string

// The classes of faults.
const (
	ClassBatchError Class = "batch_error" // the module itself refused the batch
	ClassTrap       Class = "trap"        // the module trapped, panicked or exited
	ClassFuel       Class = "fuel"        // the budget of instructions is used up
	ClassDeadline   Class = "deadline"    // the time is used up
	ClassDepth      Class = "depth"       // calls are nested too deeply
	ClassMemory     Class = "memory"      // the batch does not fit, or the module wanted more memory than it may have
	ClassBadOutput  Class = "bad_output"  // what the module left in memory breaks the ABI
)

// Classes are all of them.
var Classes = []Class{ClassBatchError, ClassTrap, ClassFuel, ClassDeadline, ClassDepth, ClassMemory, ClassBadOutput}

// Fault is a module's own failure. Every effect of the call is discarded and the
// instance is usable again. What is not the module's doing (a cancelled context,
// a bug of ours) is never a *Fault.
type Fault struct {
	Class            Class
	Module, Revision string
	Message          string // for people; the module's words where it left some
}

func (f *Fault) Error() string {
	return fmt.Sprintf("module %s (revision %s): %s: %s", f.Module, f.Revision, f.Class, f.Message)
}

// Refusal says why a module is not admitted. Each reason is a sentence for its
// author.
type Refusal struct{ Reasons []string }

func (r *Refusal) Error() string { return "module refused: " + strings.Join(r.Reasons, "; ") }

func refuse(format string, args ...any) *Refusal {
	return &Refusal{Reasons: []string{fmt.Sprintf(format, args...)}}
}

// abort ends a call from inside a host function: host functions panic with it,
// and the engine gives it back as the error of the call.
type abort struct {
	class Class
	msg   string
}

func (a *abort) Error() string { return a.msg }

// errHost marks what ends a call and is not the module's doing.
var errHost = errors.New("host")

// fault finds out whose failure err is: a *Fault for the module's, another error
// for ours.
func (i *Instance) fault(ctx context.Context, err error) error {
	f := &Fault{Class: ClassTrap, Module: i.env.Name, Revision: i.env.Revision}
	var (
		a   *abort
		bug runtime.Error
	)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("call module %s: %w", i.env.Name, ctx.Err())
	case errors.Is(err, errHost), errors.As(err, &bug):
		return fmt.Errorf("call module %s: %w", i.env.Name, err)
	case i.tooDeep(err):
		f.Class, f.Message = ClassDepth, "calls are nested too deeply: recursion without an end?"
	case errors.As(err, &a):
		f.Class, f.Message = a.class, a.msg
	case errors.Is(err, abi.ErrBatchTooLarge): // a smaller batch may fit, and a single record may have to be set aside
		f.Class, f.Message = ClassMemory, err.Error()
	case errors.Is(err, abi.ErrBadOutput):
		f.Class, f.Message = ClassBadOutput, err.Error()
	default:
		if i.memory.refused {
			f.Class = ClassMemory
		}
		f.Message = trapMessage(err, i.logs.stderr)
	}
	return f
}

// trapMessage joins the trap with what the module wrote to stderr before it: the
// text of a Go panic, for instance.
func trapMessage(err error, stderr []byte) string {
	trap, trace, _ := strings.Cut(err.Error(), "\nwasm stack trace:\n")
	trap = strings.TrimSuffix(trap, " (recovered by wazero)")
	if frame, _, _ := strings.Cut(strings.TrimSpace(trace), "\n"); frame != "" {
		trap += " in " + frame
	}
	words, _, _ := strings.Cut(strings.TrimSpace(strings.ToValidUTF8(string(stderr), "")), "\n\n")
	if words == "" {
		return trap
	}
	return words + " [" + trap + "]"
}
