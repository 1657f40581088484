package opcua

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/gopcua/opcua/ua"
)

// baseEventFields are selected for every event; they make the record.
var baseEventFields = []string{"Time", "EventType", "SourceName", "Message", "Severity", "EventId"}

// eventTypeField is the index of EventType in baseEventFields.
const eventTypeField = 1

// eventFilter is what is selected of events and which of them.
type eventFilter struct {
	fields []string
	filter *ua.EventFilter
	queue  uint32
}

// eventItems makes the items of the configured events. Their node ids were
// checked by Validate; one with an unknown namespace is left to fail alone.
func (s *session) eventItems(src *Source) []*item {
	var out []*item
	for _, e := range s.cfg.Events {
		ref, err := parseNodeRef(e.NodeID)
		if err != nil {
			continue
		}
		id, err := ref.resolve(s.ns)
		if err != nil {
			s.log.Warn("events cannot be subscribed", "node", e.NodeID, "err", err)
			continue
		}
		it := &item{node: id, address: e.NodeID, cfg: ItemConfig{}.over(s.cfg.Defaults), types: s.types}
		if it.event, err = makeEventFilter(e, s.ns); err != nil {
			s.log.Warn("events cannot be subscribed", "node", e.NodeID, "err", err)
			continue
		}
		it.describe(src.endpoint, e.Name, "", src.tags, e.Tags)
		out = append(out, it)
	}
	return out
}

// makeEventFilter builds select and where clauses (Part 4, 7.22.3). Fields are
// looked up on BaseEventType, which servers resolve on every subtype.
func makeEventFilter(e EventConfig, namespaces []string) (*eventFilter, error) {
	f := &eventFilter{fields: append([]string(nil), baseEventFields...), filter: &ua.EventFilter{WhereClause: &ua.ContentFilter{}}, queue: uint32(e.QueueSize)}
	if f.queue == 0 {
		f.queue = 1000
	}
	known := map[string]bool{}
	for _, name := range f.fields {
		known[name] = true
	}
	for _, name := range e.Fields {
		if name = strings.Trim(name, "/"); !known[name] {
			known[name] = true
			f.fields = append(f.fields, name)
		}
	}
	for _, name := range f.fields {
		f.filter.SelectClauses = append(f.filter.SelectClauses, operand(name))
	}
	var terms []*ua.ContentFilterElement
	compare := func(op ua.FilterOperator, field string, v any) error {
		lit, err := literal(v)
		if err != nil {
			return err
		}
		terms = append(terms, &ua.ContentFilterElement{FilterOperator: op, FilterOperands: []*ua.ExtensionObject{
			filterOperand(idSimpleAttributeOperand, operand(field)), filterOperand(idLiteralOperand, &ua.LiteralOperand{Value: lit})}})
		return nil
	}
	if e.EventType != "" {
		ref, err := parseNodeRef(e.EventType)
		if err != nil {
			return nil, err
		}
		id, err := ref.resolve(namespaces)
		if err != nil {
			return nil, err
		}
		terms = append(terms, &ua.ContentFilterElement{FilterOperator: ua.FilterOperatorOfType, FilterOperands: []*ua.ExtensionObject{
			filterOperand(idLiteralOperand, &ua.LiteralOperand{Value: ua.MustVariant(id)})}})
	}
	if e.MinSeverity > 0 {
		if err := compare(ua.FilterOperatorGreaterThanOrEqual, "Severity", uint16(e.MinSeverity)); err != nil {
			return nil, err
		}
	}
	for _, w := range e.Where {
		if err := compare(filterOps[w.Op], w.Field, w.Value); err != nil {
			return nil, err
		}
	}
	f.filter.WhereClause.Elements = allOf(terms)
	return f, nil
}

var filterOps = map[string]ua.FilterOperator{"eq": ua.FilterOperatorEquals, "gt": ua.FilterOperatorGreaterThan, "gte": ua.FilterOperatorGreaterThanOrEqual,
	"lt": ua.FilterOperatorLessThan, "lte": ua.FilterOperatorLessThanOrEqual, "like": ua.FilterOperatorLike}

// Encoding ids of filter operands (Part 6, Annex A).
const (
	idElementOperand         = 594
	idLiteralOperand         = 597
	idSimpleAttributeOperand = 603
	idEventFilter            = 727
	idDataChangeFilter       = 724
	idReadRawDetails         = 649
)

func filterOperand(encoding uint32, v any) *ua.ExtensionObject {
	return &ua.ExtensionObject{TypeID: &ua.ExpandedNodeID{NodeID: ns0(encoding)}, EncodingMask: ua.ExtensionObjectBinary, Value: v}
}

// allOf joins terms with And: the first element is the root, and each And
// refers to its operands by index.
func allOf(terms []*ua.ContentFilterElement) []*ua.ContentFilterElement {
	if len(terms) < 2 {
		return terms
	}
	n := len(terms) - 1
	var out []*ua.ContentFilterElement
	for i := range n {
		right := uint32(i + 1) // the next And
		if i == n-1 {
			right = uint32(n + i + 1) // the last term
		}
		out = append(out, &ua.ContentFilterElement{FilterOperator: ua.FilterOperatorAnd, FilterOperands: []*ua.ExtensionObject{
			filterOperand(idElementOperand, &ua.ElementOperand{Index: uint32(n + i)}), filterOperand(idElementOperand, &ua.ElementOperand{Index: right})}})
	}
	return append(out, terms...)
}

func operand(field string) *ua.SimpleAttributeOperand {
	if field == fieldConditionID {
		return &ua.SimpleAttributeOperand{TypeDefinitionID: ns0(idConditionType), AttributeID: ua.AttributeIDNodeID}
	}
	op := &ua.SimpleAttributeOperand{TypeDefinitionID: ns0(idBaseEventType), AttributeID: ua.AttributeIDValue}
	for part := range strings.SplitSeq(field, "/") {
		q := &ua.QualifiedName{Name: part}
		if ns, name, ok := strings.Cut(part, ":"); ok {
			if n, err := strconv.ParseUint(ns, 10, 16); err == nil {
				q = &ua.QualifiedName{NamespaceIndex: uint16(n), Name: name}
			}
		}
		op.BrowsePath = append(op.BrowsePath, q)
	}
	return op
}

// literal makes a constant of a filter out of a configuration value.
func literal(v any) (*ua.Variant, error) {
	switch x := v.(type) {
	case int:
		return literal(int64(x))
	case uint64:
		if x > math.MaxInt64 {
			return nil, fmt.Errorf("%d is too large", x)
		}
		return literal(int64(x))
	case int64:
		if x >= math.MinInt32 && x <= math.MaxInt32 {
			return ua.NewVariant(int32(x))
		}
		return ua.NewVariant(x)
	case uint16, float64, string, bool:
		return ua.NewVariant(x)
	default:
		return nil, fmt.Errorf("use a number, a text or a bool, not %T", v)
	}
}

// eventRecord makes the record of one event: the value is a JSON object of all
// selected fields.
func (it *item) eventRecord(source string, cfg *Config, fields []*ua.Variant, now time.Time) abi.Record {
	w := &jsonWriter{types: it.types}
	w.b = append(w.b, '{')
	at := time.Time{}
	for i, name := range it.event.fields {
		var v *ua.Variant
		if i < len(fields) {
			v = fields[i]
		}
		w.comma(i)
		w.string(name)
		w.b = append(w.b, ':')
		if v == nil {
			w.b = append(w.b, "null"...)
			continue
		}
		if t, ok := v.Value().(time.Time); ok && name == "Time" {
			at = t
		}
		w.any(v.Value(), 0)
	}
	w.b = append(w.b, '}')
	r := abi.Record{IngestTime: now.UnixMicro(), Source: source, Address: it.address, Protocol: abi.ProtocolOPCUA, Value: abi.JSON(string(w.b)), Attrs: it.good}
	extra := stamp(&r, nil, cfg, &ua.DataValue{SourceTimestamp: at}, now)
	if it.refreshing {
		extra = append(extra, abi.Attr{Key: attrRefreshed, Value: abi.Bool(true)})
	}
	if len(extra) > 0 {
		r.Attrs = append(r.Attrs, extra...)
	}
	return r
}
