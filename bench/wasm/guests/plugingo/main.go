//go:build wasip1

// The go-plugin guest: the generated code decodes and encodes whole messages.
package main

import (
	"context"

	"github.com/edgehost/edgehost/bench/wasm/peer"
)

type transform struct{}

func (transform) Process(_ context.Context, b *peer.Batch) (*peer.Batch, error) {
	switch b.Op {
	case 1:
		kept := b.Records[:0]
		for _, r := range b.Records {
			if d, ok := r.Value.(*peer.Record_D); !ok || d.D > 50 {
				kept = append(kept, r)
			}
		}
		b.Records = kept
	case 2:
		for _, r := range b.Records {
			if d, ok := r.Value.(*peer.Record_D); ok {
				d.D = d.D*1.8 + 32
			}
			r.Address = "site/" + r.Address
		}
	}
	return b, nil
}

func init() { peer.RegisterTransform(transform{}) }

func main() {}
