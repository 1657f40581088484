package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/edgehost/edgehost/host/control"
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

// admit compiles a revision and makes it ready wherever the name is used. An
// error leaves everything as it was.
func (h *Host) admit(ctx context.Context, name, digest string, wasm []byte) (ready, error) {
	r := ready{uses: h.uses(name)}
	if len(r.uses) == 0 {
		m, err := h.cfg.Sandbox.Compile(ctx, wasm)
		if err != nil {
			return r, refusal(name, err)
		}
		return r, m.Close(ctx)
	}
	for _, u := range r.uses {
		l, err := u.p.chain.load(ctx, u.st, digest, wasm)
		if err != nil {
			return r, errors.Join(refusal(name, fmt.Errorf("pipeline %s: %w", u.p.cfg.Name, err)), r.discard(ctx))
		}
		r.loaded = append(r.loaded, l)
	}
	return r, nil
}

// digestOf names a revision.
func digestOf(wasm []byte) string {
	sum := sha256.Sum256(wasm)
	return hex.EncodeToString(sum[:])
}

// refusal is the answer to an upload that is not admitted.
func refusal(name string, err error) error {
	return control.Errorf(control.Refused, "module %s is not admitted, nothing was changed: %w", name, err)
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
	h.modulesMu.Lock()
	defer h.modulesMu.Unlock()
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
	h.modulesMu.Lock()
	defer h.modulesMu.Unlock()
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
