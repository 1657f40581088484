package host

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/edgehost/edgehost/host/control"
)

// TestUploadsSideBySide: an upload that takes its time does not keep one of another
// name waiting, and ends when its uploader goes away. One of the same name waits.
func TestUploadsSideBySide(t *testing.T) {
	r := newRig(t, "m", "start")
	r.cfg.Modules[1].Config = map[string]string{"spin": "1"}
	r.cfg.Modules[1].Limits.InitDeadline = time.Hour
	r.cfg.Bypass = true
	r.start()
	ctx, goAway := context.WithCancel(t.Context())
	defer goAway()
	slow := make(chan error, 1)
	go func() {
		_, err := r.host.PushModule(ctx, control.PushRequest{Name: "start", Wasm: wasm(t, "start"), Activate: true})
		slow <- err
	}()
	for busy := false; !busy; runtime.Gosched() {
		r.host.changing.mu.Lock()
		_, busy = r.host.changing.held["start"]
		r.host.changing.mu.Unlock()
	}
	r.push("m", "stamp1")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.host.PushModule(gone, control.PushRequest{Name: "start", Wasm: wasm(t, "stamp1")}); control.CodeOf(err) != control.Busy {
		t.Errorf("a second upload of the name that did not wait: %v", err)
	}
	if _, err := r.host.RollbackModule(gone, "start"); control.CodeOf(err) != control.Busy {
		t.Errorf("a rollback during an upload: %v", err)
	}
	select {
	case err := <-slow:
		t.Fatalf("the slow upload ended: %v", err)
	default:
	}
	goAway()
	if err := <-slow; err == nil || !strings.Contains(err.Error(), "context canceled") || control.CodeOf(err) != control.Internal {
		t.Errorf("an upload whose uploader went away: %v, code %s", err, control.CodeOf(err))
	}
	r.must(r.feed.give(t, recs("a", 0, 1)...))
	if rows := r.main.wait(t, 1); rows[0].Value.AsFloat() != 1 {
		t.Errorf("value %v", rows[0].Value)
	}
	ms, err := r.host.Modules(t.Context())
	r.must(err)
	if len(ms) != 1 || ms[0].Name != "m" {
		t.Errorf("modules %+v", ms)
	}
}

// TestModuleOfSeveralStages: one upload serves every stage that has the name, and its
// code is freed after the last of them.
func TestModuleOfSeveralStages(t *testing.T) {
	r := newRig(t, "m", "add", "add").start()
	r.push("m", "stamp1")
	r.push("add", "add10")
	first := r.host.pipelines[0].chain
	r.must(r.feed.give(t, recs("a", 0, 1)...))
	r.push("add", "add20")
	r.must(r.feed.give(t, recs("a", 0, 1)...))
	rows := r.main.wait(t, 2)
	if one, two := rows[0].Value.AsFloat(), rows[1].Value.AsFloat(); one != 21 || two != 41 {
		t.Errorf("values %v, %v", one, two)
	}
	r.stop()
	for _, st := range first.stages {
		if st.now != nil {
			t.Error("a stage still has its revision")
		}
	}
}
