package opcua

import (
	"context"
	"errors"
	"fmt"

	"github.com/gopcua/opcua/ua"
)

// Conditions are alarms and the like (Part 9): events tell when their state
// changes, and nothing tells a new subscriber the state that they have. So the
// server is asked to repeat those in force whenever events may have been missed.
const (
	idConditionType            = 2782
	idConditionRefresh         = 3875 // a method of it
	idRefreshStartEventType    = 2787
	idRefreshEndEventType      = 2788
	idRefreshRequiredEventType = 2789
)

// fieldConditionID is the field of an event by which conditions are told apart:
// an attribute of the condition, where all others are values below it (Part 9,
// 5.5.2.13).
const fieldConditionID = "ConditionId"

// attrRefreshed marks an event that repeats the state of a condition.
const attrRefreshed = "refreshed"

// wantRefresh asks for the conditions of every subscription with events.
func (e *engine) wantRefresh() {
	for _, s := range e.src.subs {
		for _, it := range s.items {
			s.refresh = s.refresh || it.event != nil && !it.modelChange
		}
	}
}

// refreshConditions has the server repeat its conditions where that is wanted. A
// server without conditions refuses, and there is nothing to repeat.
func (e *engine) refreshConditions(ctx context.Context) error {
	for _, s := range e.src.subs {
		if !s.refresh {
			continue
		}
		s.refresh = false
		for _, it := range s.items {
			it.refreshing = false // the end of the last one may be lost
		}
		res, err := do[*ua.CallResponse](ctx, e.s, &ua.CallRequest{MethodsToCall: []*ua.CallMethodRequest{{
			ObjectID: ns0(idConditionType), MethodID: ns0(idConditionRefresh), InputArguments: []*ua.Variant{ua.MustVariant(s.id)}}}})
		if err == nil && len(res.Results) == 1 && res.Results[0].StatusCode>>30 == 2 {
			err = res.Results[0].StatusCode
		}
		switch {
		case err == nil:
		case dead(err):
			return fmt.Errorf("refresh conditions: %w", err)
		case errors.Is(err, ua.StatusBadUserAccessDenied):
			e.src.log.Warn("server does not let this user ask for the alarms in force: they come when they change next", "subscription", s.id)
		default:
			e.src.log.Debug("server has no conditions to refresh", "subscription", s.id, "reason", statusText(err))
		}
	}
	return nil
}

// refreshEvent takes the events that frame a refresh; ok is false for any other.
func (it *item) refreshEvent(sub *subscription, fields []*ua.Variant) (ok bool) {
	if len(fields) <= eventTypeField || fields[eventTypeField] == nil {
		return false
	}
	id, _ := fields[eventTypeField].Value().(*ua.NodeID)
	if id == nil || id.Namespace() != 0 {
		return false
	}
	switch id.IntID() {
	case idRefreshStartEventType:
		it.refreshing = true
	case idRefreshEndEventType:
		it.refreshing = false
	case idRefreshRequiredEventType:
		sub.refresh = true
	default:
		return false
	}
	return true
}
