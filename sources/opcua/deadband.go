package opcua

import (
	"context"
	"fmt"
	"math"

	"github.com/edgehost/edgehost/abi"
	"github.com/gopcua/opcua/ua"
)

// A dead-band is applied where the value is sampled: by the server for what is
// subscribed, by us for what is polled. It saves traffic and decides nothing, so
// an item for which it cannot be applied is delivered at every change.

var deadbands = map[string]uint32{"none": 0, "absolute": 1, "percent": 2}

// noDeadband is the dead-band of an item for which none can be applied.
var noDeadband = &DeadbandConfig{Type: "none"}

// refusesDeadband reports whether the server did not create it because of its
// dead-band. Part 8, 6.2.2 and Part 4, 5.12.2.4 name four codes; servers differ
// in which they use for a node without EURange, or without a number.
func (it *item) refusesDeadband(status ua.StatusCode) bool {
	if it.event != nil || it.cfg.Deadband.Type == noDeadband.Type {
		return false
	}
	switch status {
	case ua.StatusBadFilterNotAllowed, ua.StatusBadMonitoredItemFilterUnsupported, ua.StatusBadMonitoredItemFilterInvalid, ua.StatusBadDeadbandFilterInvalid:
		return true
	}
	return false
}

// withoutDeadband gives up the dead-bands of items, and says so once for all.
func (e *engine) withoutDeadband(items []*item, why string) {
	if len(items) == 0 {
		return
	}
	asked := items[0].cfg.Deadband.Type
	for _, it := range items {
		it.cfg.Deadband, it.undamped = noDeadband, true
	}
	advice := "the node holds no number, or the server has no dead-band"
	if asked == "percent" {
		advice = "percent needs an analog item with EURange; give these nodes deadband type absolute or none"
	}
	e.src.log.Warn("dead-band cannot be applied: these items are delivered at every change", "items", len(items), "first", items[0].address,
		"deadband", asked, "why", why, "advice", advice)
}

// undamped are the items that come without the dead-band that they should have.
func (p *plan) undamped() (list []string) {
	for _, it := range p.items {
		if it.undamped && !it.failed {
			list = append(list, it.address)
		}
	}
	return list
}

// findRanges reads the EURange of polled items with a percent dead-band (Part 8,
// 5.3.2): nobody but us can apply it.
func (e *engine) findRanges(ctx context.Context) error {
	var items []*item
	var nodes []*ua.NodeID
	for _, it := range e.src.plan.items {
		if e.polls(it) && it.cfg.Deadband.Type == "percent" && it.span == 0 {
			items, nodes = append(items, it), append(nodes, it.node)
		}
	}
	refs, _, err := e.s.browse(ctx, nodes, ua.BrowseDirectionForward, idHasProperty, ua.NodeClassVariable)
	if err != nil {
		return fmt.Errorf("find EURange: %w", err)
	}
	var ask []*ua.ReadValueID
	var of []*item
	for i, list := range refs {
		for _, r := range list {
			if id, ok := expanded(r.NodeID, e.s.ns); ok && r.BrowseName != nil && r.BrowseName.Name == "EURange" && r.BrowseName.NamespaceIndex == 0 {
				ask, of = append(ask, valueOf(id)), append(of, items[i])
			}
		}
	}
	got, err := e.s.read(ctx, ask)
	if err != nil {
		return fmt.Errorf("read EURange: %w", err)
	}
	for i, v := range got {
		if x, ok := v.Value.Value().(*ua.ExtensionObject); ok {
			if r, ok := x.Value.(*ua.Range); ok && r.High > r.Low {
				of[i].span = r.High - r.Low
			}
		}
	}
	var without []*item
	for _, it := range items {
		if it.span == 0 {
			without = append(without, it)
		}
	}
	e.withoutDeadband(without, "no EURange")
	return nil
}

// outsideDeadband compares a polled value with the last one that was delivered.
func (it *item) outsideDeadband(v abi.Value) bool {
	band := it.cfg.Deadband.Value
	switch it.cfg.Deadband.Type {
	case "percent":
		band *= it.span / 100
	case "none":
		return v != it.lastValue
	}
	a, ok1 := v.Number()
	b, ok2 := it.lastValue.Number()
	if !ok1 || !ok2 {
		return v != it.lastValue
	}
	return math.Abs(a-b) > band || math.IsNaN(a) != math.IsNaN(b)
}
