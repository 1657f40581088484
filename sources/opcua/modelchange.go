package opcua

import (
	"slices"
	"time"

	"github.com/gopcua/opcua/ua"
)

// Event types by which a server says that its address space changed (Part 3,
// 9.32); the second is a subtype of the first and lists what changed.
const (
	idBaseModelChangeEventType    = 2132
	idGeneralModelChangeEventType = 2133
)

// modelChangeRest is the least time between two browses that events ask for.
const modelChangeRest = 5 * time.Second

// modelChangeItem watches the Server object for changes of the address space;
// nil when nothing is browsed, or when the source shall only poll. It makes no
// records, and a server that refuses it leaves us with rebrowse_seconds.
func (s *session) modelChangeItem() *item {
	if s.cfg.Mode == "poll" || !slices.ContainsFunc(s.cfg.Nodes, func(n NodeConfig) bool { return n.Recursive }) {
		return nil
	}
	ofType := &ua.ContentFilterElement{FilterOperator: ua.FilterOperatorOfType, FilterOperands: []*ua.ExtensionObject{
		filterOperand(idLiteralOperand, &ua.LiteralOperand{Value: ua.MustVariant(ns0(idBaseModelChangeEventType))})}}
	return &item{node: ns0(idServer), address: "model changes", cfg: ItemConfig{}.over(s.cfg.Defaults), types: s.types, modelChange: true,
		event: &eventFilter{fields: []string{"EventType"}, queue: 10, filter: &ua.EventFilter{
			SelectClauses: []*ua.SimpleAttributeOperand{operand("EventType")},
			WhereClause:   &ua.ContentFilter{Elements: []*ua.ContentFilterElement{ofType}}}}}
}

// tellsModelChange reports whether an event is about the address space. Some
// servers ignore the filter; of the standard's types only two are. A type of
// the server's own came through the filter.
func tellsModelChange(fields []*ua.Variant) bool {
	if len(fields) == 0 || fields[0] == nil {
		return false
	}
	id, ok := fields[0].Value().(*ua.NodeID)
	return ok && (id.Namespace() != 0 || id.IntID() == idBaseModelChangeEventType || id.IntID() == idGeneralModelChangeEventType)
}

// modelChanged reports whether an event, or a hole in which one may have been,
// asks for a browse now. It says so at most once in modelChangeRest.
func (e *engine) modelChanged(now time.Time) bool {
	if !e.src.plan.changed || now.Sub(e.lastModelBrowse) < modelChangeRest {
		return false
	}
	e.lastModelBrowse = now
	return true
}

// watchesModel reports whether the server tells us of changes.
func (p *plan) watchesModel() bool {
	return slices.ContainsFunc(p.items, func(it *item) bool { return it.modelChange && !it.failed })
}

// read is how many items make records.
func (p *plan) read() int {
	n := len(p.items)
	if slices.ContainsFunc(p.items, func(it *item) bool { return it.modelChange }) {
		n--
	}
	return n
}
