package opcua

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// fakeSource makes a source that talks to f.
func fakeSource(t *testing.T, f *fakeServer, cfg Config, resume func() []byte) (*Source, *sources.Status) {
	t.Helper()
	if cfg.SecurityPolicy == "" {
		cfg.SecurityPolicy, cfg.SecurityMode = "None", "None"
	}
	status := sources.NewStatus("s", protocol)
	src, err := New("s", "opc.tcp://fake:4840", nil, cfg, Deps{Logger: slog.New(slog.DiscardHandler), Status: status, Resume: resume})
	if err != nil {
		t.Fatal(err)
	}
	resumed := false
	src.connect = f.connect(&resumed)
	return src, status
}

// pipe is a pipeline that calls everything durable.
type pipe struct {
	mu      sync.Mutex
	records []abi.Record
	resume  []byte
}

func (p *pipe) emit(_ context.Context, b sources.Batch, done func(error)) error {
	p.mu.Lock()
	p.records = append(p.records, b.Records...)
	if b.Resume != nil {
		p.resume = b.Resume
	}
	p.mu.Unlock()
	done(nil)
	return nil
}

func (p *pipe) all() []abi.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.records)
}

func (p *pipe) point() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.resume
}
