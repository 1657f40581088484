package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

var quiet = slog.New(slog.DiscardHandler)

// sandboxed is a guest of ours in the sandbox, with every limit of the default.
func sandboxed(h *sandbox.Host, lang string, wasm []byte, op string) (contender, error) {
	m, err := h.Compile(context.Background(), wasm)
	if err != nil {
		return contender{}, fmt.Errorf("%s guest: %w", lang, err)
	}
	i, err := m.Instantiate(context.Background(), sandbox.Env{Name: lang, Config: map[string]string{"op": op}, Logger: quiet})
	if err != nil {
		return contender{}, fmt.Errorf("%s guest: %w", lang, err)
	}
	var res *sandbox.Result
	return contender{
		name: "edgehost/" + lang,
		run: func(b *abi.Batch) (err error) {
			res, err = i.Process(context.Background(), b)
			return err
		},
		got: func() []abi.Record {
			recs := make([]abi.Record, len(res.Out))
			for k := range recs {
				recs[k] = res.Out[k].Record
			}
			return recs
		},
	}, nil
}

var compiled = []string{"C", "Rust", "AssemblyScript"}

// transforms is the table of transforms: native Go, guests of ours, guests of the peers.
func transforms(r *report, g *guests, rounds int) error {
	h, err := sandbox.New(sandbox.Config{})
	if err != nil {
		return err
	}
	defer h.Close()
	all := map[string]table{}
	for _, op := range []string{pass, filter, scale} {
		var out []abi.Record
		cs := []contender{{
			name: "native Go",
			run:  func(b *abi.Batch) error { out = native(op, b.Records, out); return nil },
			got:  func() []abi.Record { return out },
		}}
		for _, lang := range append([]string{"Go"}, compiled...) {
			c, err := sandboxed(h, lang, g.flat[lang], op)
			if err != nil {
				return err
			}
			cs = append(cs, c)
		}
		peers, end, err := peersOf(g, op)
		if err != nil {
			return err
		}
		cs = append(cs, peers...)
		for _, n := range []int{1, 100, 1000} {
			batches := plant(max(4, 64/n), n, false)
			if err := agree(op, cs, batches); err != nil {
				return err
			}
			times, err := race(cs, batches, rounds)
			if err != nil {
				return err
			}
			key := fmt.Sprintf("%s/%d", op, n)
			all[key] = times
			for _, c := range cs {
				r.note("cpu/"+key+"/"+c.name, times.of(c.name), "ns/record")
			}
		}
		if op == scale {
			times, err := race(cs[:5], plant(4, 1000, true), rounds)
			if err != nil {
				return err
			}
			for _, c := range cs[:5] {
				r.note("cpu/scale/1000, strings new in every record/"+c.name, times.of(c.name), "ns/record")
			}
		}
		end()
	}
	judge(r, all)
	return nil
}

// judge holds the table to the gates.
func judge(r *report, all map[string]table) {
	t := all["scale/1000"]
	for _, lang := range compiled {
		r.most("time over native Go/scale/1000/"+lang, t.over("edgehost/"+lang, "native Go"), "x", 2, 1.5)
	}
	r.most("time over native Go/scale/1000/Go", t.over("edgehost/Go", "native Go"), "x", 3.5, 2.5)
	for _, n := range []string{"1000", "1"} {
		gate, goal := 20.0, 30.0
		if n == "1" {
			gate, goal = 50, 100
		}
		t := all["scale/"+n]
		for _, peer := range []string{"Extism/C", "Extism/Go", "go-plugin/Go"} {
			lang := peer[strings.Index(peer, "/")+1:]
			r.least("ahead of "+peer+"/scale/"+n, t.over(peer, "edgehost/"+lang), "x faster", gate, goal)
		}
	}
	for _, lang := range append([]string{"Go"}, compiled...) {
		r.most("batch of one/"+lang, all["scale/1"].of("edgehost/"+lang), "ns", 1000, 400)
		if lang == "Go" {
			continue // its pass and filter are in the table
		}
		for _, op := range []string{pass, filter} {
			r.most(op+"/1000/"+lang, all[op+"/1000"].of("edgehost/"+lang), "ns/record", 60, 45)
		}
	}
}
