package sourcetest

import (
	"errors"
	"fmt"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// CheckRecord holds one record to what is the same for all protocols
// (docs/quality.md): it says where and when it is from, the attributes quality
// and status agree with the status code, what is not good says why, and no stale
// value passes for a good one. The error names everything that is wrong.
func CheckRecord(r abi.Record) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if r.Source == "" || r.Address == "" || r.EventTime == 0 || r.IngestTime == 0 || r.Protocol == abi.ProtocolNone {
		fail("source, address, protocol or times are missing")
	}
	text := map[string]string{}
	seen := map[string]bool{}
	for _, a := range r.Attrs {
		if a.Key == "" || seen[a.Key] {
			fail("attribute %q is nameless or there twice", a.Key)
		}
		seen[a.Key] = true
		text[a.Key] = a.Value.Text()
	}
	quality := sources.Quality(r.Status)
	if seen[abi.AttrQuality] && text[abi.AttrQuality] != quality {
		fail("quality is %q, and the status code 0x%08X says %s", text[abi.AttrQuality], r.Status, quality)
	}
	if v, ok := r.Attr(abi.AttrStale); ok && v.AsBool() && (quality != sources.Bad || !r.Value.IsNone()) {
		fail("a stale record is %s and holds a %s", quality, r.Value.Kind())
	}
	if quality != sources.Good {
		for _, key := range []string{abi.AttrQuality, abi.AttrStatus, abi.AttrReason} {
			if text[key] == "" {
				fail("a record that is %s has no attribute %s", quality, key)
			}
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("record %+v: %w", r, errors.Join(errs...))
	}
	return nil
}
