//go:build !race

package sandbox_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

// TestTextsOfGoModules: what the Go SDK joins is what Go would join, whatever the
// lengths are and wherever the texts lie, batch after batch.
func TestTextsOfGoModules(t *testing.T) {
	m := compile(t, newHost(t), build(t, "./testdata/guests/texts"))
	letters := strings.Repeat("0123456789abcdefghijklmnopqrstuvwxyzÄ", 600)
	for _, prefix := range []string{"", "a", "site/", "sevenby", "eight by", "nine byte", strings.Repeat("long ", 20)} {
		i := instantiate(t, m, sandbox.Env{Name: "texts", Config: map[string]string{"prefix": prefix}})
		var all []string
		for n := range 70 {
			all = append(all, strings.ToValidUTF8(letters[n:2*n], ""))
		}
		all = append(all, strings.ToValidUTF8(letters[:20_000], ""))
		batches := [][]string{all, all[:1], all[40:41], slices.Repeat(all[20:30], 40), all}
		for _, text := range all {
			batches = append(batches, []string{text}) // ends where the batch ends
		}
		for _, texts := range batches {
			in := &abi.Batch{Seq: 1, Time: 1}
			for _, text := range texts {
				in.Records = append(in.Records, abi.Record{Source: "s", Address: text})
			}
			res, err := i.Process(t.Context(), in)
			if err != nil {
				t.Fatalf("prefix %q, %d texts: %v", prefix, len(texts), err)
			}
			for k, text := range texts {
				o := res.Out[k]
				own, _ := o.Attr("own")
				heap, _ := o.Attr("heap")
				same, _ := o.Attr("same")
				if o.Address != prefix+text || o.Source != text+prefix || o.Value.Text() != prefix+text+text+prefix ||
					own.Text() != text || heap.Text() != prefix+text || same.Text() != text {
					t.Fatalf("prefix %q, text %q: %+v", prefix, text, o)
				}
			}
		}
	}
}

// TestFailOfGoModules: the words of a batch that a module gives up arrive, and the next
// batch is a new one.
func TestFailOfGoModules(t *testing.T) {
	i := instantiate(t, compile(t, newHost(t), build(t, "./testdata/guests/texts")), sandbox.Env{Name: "texts", Config: map[string]string{"prefix": "p"}})
	for range 2 {
		_, err := i.Process(t.Context(), &abi.Batch{Records: []abi.Record{{Address: "good"}, {Address: "fail"}, {Address: "good"}}})
		var f *sandbox.Fault
		if !errors.As(err, &f) || f.Class != sandbox.ClassBatchError || !strings.Contains(f.Message, "as asked: p") {
			t.Fatalf("error %v", err)
		}
		if _, err := i.Process(t.Context(), &abi.Batch{Records: []abi.Record{{Address: "good"}}}); err != nil {
			t.Fatal(err)
		}
	}
}
