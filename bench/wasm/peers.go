package main

import (
	"context"
	"fmt"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/bench/wasm/pb"
	"github.com/edgehost/edgehost/bench/wasm/peer"
	extism "github.com/extism/go-sdk"
)

// peersOf are Extism and go-plugin with the same operators.
func peersOf(g *guests, op string) (cs []contender, end func(), err error) {
	var closers []func()
	end = func() {
		for _, f := range closers {
			f()
		}
	}
	for _, lang := range []string{"C", "Go"} {
		c, closer, err := extismOf(lang, g.extism[lang], op)
		if err != nil {
			return nil, nil, fmt.Errorf("Extism, %s guest: %w", lang, err)
		}
		cs, closers = append(cs, c), append(closers, closer)
	}
	c, closer, err := pluginOf(g.plugin, op)
	if err != nil {
		return nil, nil, fmt.Errorf("go-plugin: %w", err)
	}
	closers = append(closers, closer)
	return append(cs, c), end, nil
}

// extismOf has Extism as its documents set it up: a timeout, which is what stops a
// guest that does not end, and a limit on memory.
func extismOf(lang string, wasm []byte, op string) (contender, func(), error) {
	ctx := context.Background()
	p, err := extism.NewPlugin(ctx, extism.Manifest{
		Wasm: []extism.Wasm{extism.WasmData{Data: wasm}}, Timeout: 1000, Memory: &extism.ManifestMemory{MaxPages: 512},
	}, extism.PluginConfig{EnableWasi: true}, nil)
	if err != nil {
		return contender{}, nil, err
	}
	var in []byte
	var recs []abi.Record
	return contender{
		name: "Extism/" + lang,
		run: func(b *abi.Batch) error {
			in = pb.Append(in[:0], b.Records)
			code, out, err := p.Call(op, in)
			if err != nil || code != 0 {
				return fmt.Errorf("code %d: %w", code, err)
			}
			recs, err = pb.Decode(out, recs)
			return err
		},
		got: func() []abi.Record { return recs },
	}, func() { p.Close(ctx) }, nil
}

// pluginOf has go-plugin without the conversion between its messages and our
// records, which it would need, too.
func pluginOf(path, op string) (contender, func(), error) {
	ctx := context.Background()
	loader, err := peer.NewTransformPlugin(ctx)
	if err != nil {
		return contender{}, nil, err
	}
	p, err := loader.Load(ctx, path)
	if err != nil {
		return contender{}, nil, err
	}
	code := map[string]uint32{pass: 0, filter: 1, scale: 2}[op]
	made := map[*abi.Batch]*peer.Batch{} // conversions, made once
	var res *peer.Batch
	return contender{
		name: "go-plugin/Go",
		run: func(b *abi.Batch) (err error) {
			m := made[b]
			if m == nil {
				m = message(b, code)
				made[b] = m
			}
			res, err = p.Process(ctx, m)
			return err
		},
		got: func() []abi.Record { return records(res) },
	}, func() { p.Close(ctx) }, nil
}

func message(b *abi.Batch, op uint32) *peer.Batch {
	m := &peer.Batch{Op: op}
	for i := range b.Records {
		r := &b.Records[i]
		p := &peer.Record{EventTime: r.EventTime, IngestTime: r.IngestTime, Source: r.Source, Address: r.Address, Protocol: uint32(r.Protocol), Status: r.Status}
		switch v := r.Value; v.Kind() {
		case abi.KindBool:
			p.Value = &peer.Record_B{B: v.AsBool()}
		case abi.KindInt:
			p.Value = &peer.Record_I{I: v.AsInt()}
		case abi.KindFloat:
			p.Value = &peer.Record_D{D: v.AsFloat()}
		case abi.KindString:
			p.Value = &peer.Record_S{S: v.Text()}
		}
		for _, a := range r.Attrs {
			pa := &peer.Attr{Key: a.Key, Value: &peer.Attr_S{S: a.Value.Text()}}
			if a.Value.Kind() == abi.KindInt {
				pa.Value = &peer.Attr_I{I: a.Value.AsInt()}
			}
			p.Attrs = append(p.Attrs, pa)
		}
		m.Records = append(m.Records, p)
	}
	return m
}

func records(m *peer.Batch) []abi.Record {
	recs := make([]abi.Record, len(m.Records))
	for i, p := range m.Records {
		recs[i] = abi.Record{EventTime: p.EventTime, IngestTime: p.IngestTime, Source: p.Source, Address: p.Address, Protocol: abi.Protocol(p.Protocol), Status: p.Status}
		switch v := p.Value.(type) {
		case *peer.Record_B:
			recs[i].Value = abi.Bool(v.B)
		case *peer.Record_I:
			recs[i].Value = abi.Int(v.I)
		case *peer.Record_D:
			recs[i].Value = abi.Float(v.D)
		case *peer.Record_S:
			recs[i].Value = abi.String(v.S)
		}
		for _, a := range p.Attrs {
			at := abi.Attr{Key: a.Key}
			switch v := a.Value.(type) {
			case *peer.Attr_I:
				at.Value = abi.Int(v.I)
			case *peer.Attr_S:
				at.Value = abi.String(v.S)
			}
			recs[i].Attrs = append(recs[i].Attrs, at)
		}
	}
	return recs
}
