package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
	"github.com/edgehost/edgehost/modules"
)

// use is a stage somewhere that runs a module.
type use struct {
	p  *pipeline
	st *stage
}

// uses lists the stages that run the module called name.
func (h *Host) uses(name string) []use {
	var out []use
	for _, p := range h.pipelines {
		for _, st := range p.chain.stages {
			if st.cfg.Name == name {
				out = append(out, use{p, st})
			}
		}
	}
	return out
}

// ready is a revision that was admitted and instantiated for all its uses.
type ready struct {
	uses   []use
	loaded []*loaded
}

// admit compiles a revision once and makes it ready wherever the name is used. An
// error leaves everything as it was.
func (h *Host) admit(ctx context.Context, name, digest string, wasm []byte) (ready, error) {
	r := ready{uses: h.uses(name)}
	m, err := h.cfg.Sandbox.Compile(ctx, wasm)
	if err != nil {
		return r, refusal(name, err)
	}
	rev := newRevision(m)
	for _, u := range r.uses {
		l, err := u.p.chain.load(ctx, u.st, digest, rev)
		if err != nil {
			return r, errors.Join(refusal(name, fmt.Errorf("pipeline %s: %w", u.p.cfg.Name, err)), r.discard(ctx), rev.release(ctx))
		}
		r.loaded = append(r.loaded, l)
	}
	return r, rev.release(ctx)
}

// digestOf names a revision.
func digestOf(wasm []byte) string {
	sum := sha256.Sum256(wasm)
	return hex.EncodeToString(sum[:])
}

// refusal is the answer to an upload that is not admitted: by a fault of the module's,
// or of ours.
func refusal(name string, err error) error {
	code := control.Internal
	var refused *sandbox.Refusal
	var fault *sandbox.Fault
	if errors.As(err, &refused) || errors.As(err, &fault) {
		code = control.Refused
	}
	return control.Errorf(code, "module %s is not admitted, nothing was changed: %w", name, err)
}

// nameLocks let one upload or rollback of a name go on at a time; those of other
// names go on beside it.
type nameLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the name is free
}

// lock waits for a name, until ctx ends.
func (n *nameLocks) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		n.mu.Lock()
		busy, taken := n.held[name]
		if !taken {
			free := make(chan struct{})
			n.held[name] = free
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				delete(n.held, name)
				close(free)
			}, nil
		}
		n.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, control.Errorf(control.Busy, "wait for another change of module %s: %w", name, ctx.Err())
		}
	}
}

func (r ready) discard(ctx context.Context) error {
	var errs []error
	for _, l := range r.loaded {
		errs = append(errs, l.close(ctx))
	}
	return errors.Join(errs...)
}

// offer puts the revision in force from the next batch of each pipeline on.
func (r ready) offer(ctx context.Context) error {
	var errs []error
	for i, u := range r.uses {
		errs = append(errs, u.p.chain.offer(ctx, u.st, r.loaded[i]))
	}
	return errors.Join(errs...)
}

// PushModule implements control.Backend: admission first, then the disk, then
// the swap.
func (h *Host) PushModule(ctx context.Context, r control.PushRequest) (control.Module, error) {
	if err := modules.CheckName(r.Name); err != nil {
		return control.Module{}, control.Errorf(control.Invalid, "%w", err)
	}
	unlock, err := h.changing.lock(ctx, r.Name)
	if err != nil {
		return control.Module{}, err
	}
	defer unlock()
	ready, err := h.admit(ctx, r.Name, digestOf(r.Wasm), r.Wasm)
	if err != nil {
		return control.Module{}, err
	}
	digest, err := h.cfg.Modules.Put(r.Wasm)
	if err == nil {
		_, err = h.cfg.Modules.Point(r.Name, digest, r.Activate, r.By, time.Now())
	}
	if err != nil {
		return control.Module{}, errors.Join(fmt.Errorf("keep module %s: %w", r.Name, err), ready.discard(ctx))
	}
	if r.Activate {
		err = ready.offer(ctx)
	} else {
		err = ready.discard(ctx)
	}
	if err != nil {
		h.log.Warn("an instance did not close", "module", r.Name, "error", err)
	}
	h.log.Info("module kept", "module", r.Name, "revision", short(digest), "active", r.Activate, "by", r.By)
	return h.module(r.Name)
}

// RollbackModule implements control.Backend.
func (h *Host) RollbackModule(ctx context.Context, name string) (control.Module, error) {
	unlock, err := h.changing.lock(ctx, name)
	if err != nil {
		return control.Module{}, err
	}
	defer unlock()
	i := slices.IndexFunc(h.cfg.Modules.List(), func(e modules.Entry) bool { return e.Name == name })
	if i < 0 {
		return control.Module{}, control.Errorf(control.NotFound, "no module %s was ever uploaded: edgehost module list shows those that were", name)
	}
	previous := h.cfg.Modules.List()[i].Previous
	if previous == "" {
		return control.Module{}, control.Errorf(control.Invalid, "module %s has no revision to roll back to: only one was ever active", name)
	}
	wasm, err := h.cfg.Modules.Read(previous)
	if err != nil {
		return control.Module{}, fmt.Errorf("read revision %s: %w", short(previous), err)
	}
	ready, err := h.admit(ctx, name, previous, wasm)
	if err != nil {
		return control.Module{}, err
	}
	if _, err := h.cfg.Modules.Rollback(name); err != nil {
		return control.Module{}, errors.Join(err, ready.discard(ctx))
	}
	if err := ready.offer(ctx); err != nil {
		h.log.Warn("an instance did not close", "module", name, "error", err)
	}
	h.log.Info("module rolled back", "module", name, "revision", short(previous), "by", control.Caller(ctx))
	return h.module(name)
}

// Modules implements control.Backend.
func (h *Host) Modules(context.Context) ([]control.Module, error) {
	var out []control.Module
	for _, e := range h.cfg.Modules.List() {
		out = append(out, h.describe(e))
	}
	return out, nil
}

func (h *Host) module(name string) (control.Module, error) {
	for _, e := range h.cfg.Modules.List() {
		if e.Name == name {
			return h.describe(e), nil
		}
	}
	return control.Module{}, control.Errorf(control.NotFound, "no module %s", name)
}

func (h *Host) describe(e modules.Entry) control.Module {
	m := control.Module{Name: e.Name, Active: e.Active, Revisions: []control.Revision{}}
	for _, r := range e.Revisions {
		m.Revisions = append(m.Revisions, control.Revision{Digest: r.Digest, Size: r.Size, At: r.At, By: r.By})
	}
	for _, u := range h.uses(e.Name) {
		if !slices.Contains(m.Pipelines, u.p.cfg.Name) {
			m.Pipelines = append(m.Pipelines, u.p.cfg.Name)
		}
	}
	return m
}
