package opcua

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/gopcua/opcua/ua"
)

// tooLarge and undecodable say that the next notification cannot be read.
const (
	tooLarge    = -1
	undecodable = -2
)

// errWeird is how the library reports a value that it cannot decode.
var errWeird = errors.New("opcua: invalid type id: 30")

func (f *fakeServer) holdsWeird(s *fakeSub, m *ua.NotificationMessage) bool {
	values, ok := m.NotificationData[0].Value.(*ua.DataChangeNotification)
	return ok && slices.ContainsFunc(values.MonitoredItems, func(v *ua.MonitoredItemNotification) bool {
		return f.weird[s.items[v.ClientHandle]]
	})
}

// fakeServer answers the services that the engine uses, from memory. It keeps
// notifications until they are acknowledged, as a server does.
type fakeServer struct {
	mu         sync.Mutex
	wake       chan struct{} // closed and replaced when something changed
	down       chan struct{} // closed when the connection is cut
	namespaces []string
	started    time.Time
	values     map[string]any // by node id; absent nodes are unknown
	subs       map[uint32]*fakeSub
	nextSub    uint32
	noSubs     bool // no subscription services at all
	// subsRefused is how CreateSubscription is refused; 0: it is not.
	subsRefused ua.StatusCode
	mute        bool // publish requests are never answered
	maxItems    int  // per call; 0 is no limit
	maxRead     int
	maxNotify   int             // as asked for by ModifySubscription
	weird       map[string]bool // nodes whose values cannot be decoded
	readable    int             // notifications with more values cannot be read; 0 is no limit
	calls       map[string]int
	acked       []uint32
	hold        map[uint32]bool // sequence numbers that are not sent, only kept
	refuse      map[string]ua.StatusCode
	noFilter    map[string]ua.StatusCode // how a filter on a node's values is refused
	children    map[string][]string      // what a browse finds below a folder
	skew        time.Duration            // its clock is ahead of ours
	history     map[string][]*ua.DataValue
	idle        time.Duration // a session without a request for longer is closed; 0: never
	asked       time.Time
	expired     int    // how often that was so
	queues      uint32 // most that it grants as a queue; 0 is no limit
	slow        int    // creating more items at once takes for ever; 0: it does not
	loseAnswer  bool   // the next answer to the creation of items, and the connection
	nextItem    uint32
	lists       bool // GetMonitoredItems is served
}

type fakeSub struct {
	seq       uint32
	items     map[uint32]string // client handle to node
	made      map[uint32]uint32 // server's number of an item to client handle
	queue     []*ua.MonitoredItemNotification
	events    []*ua.EventFieldList
	kept      map[uint32]*ua.NotificationMessage
	interval  time.Duration
	keepalive time.Duration
	last      time.Time
}

func newFakeServer() *fakeServer {
	return &fakeServer{wake: make(chan struct{}), down: make(chan struct{}), namespaces: []string{"http://opcfoundation.org/UA/", "urn:a"},
		started: time.Unix(1000, 0), values: map[string]any{}, subs: map[uint32]*fakeSub{}, calls: map[string]int{}, hold: map[uint32]bool{},
		refuse: map[string]ua.StatusCode{}, nextSub: 100}
}

// connect is Source.connect: the session always lives on when it did before.
func (f *fakeServer) connect(resumed *bool) func(context.Context) (*link, error) {
	return func(context.Context) (*link, error) {
		f.mu.Lock()
		f.down = make(chan struct{})
		l := &link{transport: f, security: "None/None", resumed: *resumed, idle: f.idle}
		f.asked = time.Now()
		f.mu.Unlock()
		*resumed = true
		l.close = func(context.Context, bool) { f.cut() }
		return l, nil
	}
}

func (f *fakeServer) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.down:
	default:
		close(f.down)
	}
}

func (f *fakeServer) changed() {
	close(f.wake)
	f.wake = make(chan struct{})
}

// set changes a node's value and queues it for everyone who monitors it.
func (f *fakeServer) set(node string, v any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.values[node] = v
	if f.history[node] != nil {
		f.history[node] = append(f.history[node], f.value(node))
	}
	for _, s := range f.subs {
		for _, h := range s.made {
			if s.items[h] == node {
				s.queue = append(s.queue, &ua.MonitoredItemNotification{ClientHandle: h, Value: f.value(node)})
			}
		}
	}
	f.changed()
}

// raise sends an event of a standard type from node to everyone who monitors it
// for changes of the address space.
func (f *fakeServer) raise(node string, eventType uint32) {
	f.raiseFields(node, ua.MustVariant(ns0(eventType)))
}

// raiseFields sends an event of these fields.
func (f *fakeServer) raiseFields(node string, fields ...*ua.Variant) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.subs {
		for h, n := range s.items {
			if n == node {
				s.events = append(s.events, &ua.EventFieldList{ClientHandle: h, EventFields: fields})
			}
		}
	}
	f.changed()
}

// grow puts a new variable below a folder.
func (f *fakeServer) grow(folder, node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.values[node] = uint32(0)
	f.children[folder] = append(f.children[folder], node)
}

func (f *fakeServer) browse(r *ua.BrowseRequest) *ua.BrowseResponse {
	out := &ua.BrowseResponse{}
	for _, n := range r.NodesToBrowse {
		res := &ua.BrowseResult{}
		if children := f.children[n.NodeID.String()]; n.BrowseDirection == ua.BrowseDirectionForward && children != nil {
			f.calls["Browse"]++
			for _, c := range children {
				id := ua.MustParseNodeID(c)
				res.References = append(res.References, &ua.ReferenceDescription{ReferenceTypeID: ns0(idHierarchicalReferences), NodeID: &ua.ExpandedNodeID{NodeID: id},
					BrowseName: &ua.QualifiedName{NamespaceIndex: 1, Name: c}, NodeClass: ua.NodeClassVariable})
			}
		}
		out.Results = append(out.Results, res)
	}
	return out
}

func (f *fakeServer) value(node string) *ua.DataValue {
	v, ok := f.values[node]
	if !ok {
		return &ua.DataValue{Value: &ua.Variant{}, Status: ua.StatusBadNodeIDUnknown}
	}
	now := f.clock()
	return &ua.DataValue{Value: ua.MustVariant(v), SourceTimestamp: now, ServerTimestamp: now}
}

// clock is the server's, in the steps of the wire.
func (f *fakeServer) clock() time.Time { return time.Now().Add(f.skew).Truncate(100) }

func (f *fakeServer) Send(ctx context.Context, req ua.Request) (ua.Response, error) {
	f.mu.Lock()
	down := f.down
	if f.idle > 0 && time.Since(f.asked) > f.idle {
		f.expired++
	}
	f.asked = time.Now()
	f.mu.Unlock()
	select {
	case <-down:
		return nil, io.EOF
	default:
	}
	if p, ok := req.(*ua.PublishRequest); ok {
		return f.publish(ctx, p, down)
	}
	if c, ok := req.(*ua.CreateMonitoredItemsRequest); ok && f.slow > 0 && len(c.ItemsToCreate) > f.slow {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch r := req.(type) {
	case *ua.ReadRequest:
		return f.read(r)
	case *ua.BrowseRequest:
		return f.browse(r), nil
	case *ua.CreateSubscriptionRequest:
		f.calls["CreateSubscription"]++
		if f.noSubs {
			return nil, ua.StatusBadServiceUnsupported
		}
		if f.subsRefused != 0 {
			return nil, f.subsRefused
		}
		f.nextSub++
		interval := time.Duration(r.RequestedPublishingInterval) * time.Millisecond
		f.subs[f.nextSub] = &fakeSub{items: map[uint32]string{}, made: map[uint32]uint32{}, kept: map[uint32]*ua.NotificationMessage{}, interval: interval,
			keepalive: interval * time.Duration(r.RequestedMaxKeepAliveCount), last: time.Now()}
		return &ua.CreateSubscriptionResponse{SubscriptionID: f.nextSub, RevisedPublishingInterval: r.RequestedPublishingInterval,
			RevisedLifetimeCount: r.RequestedLifetimeCount, RevisedMaxKeepAliveCount: r.RequestedMaxKeepAliveCount}, nil
	case *ua.CreateMonitoredItemsRequest:
		return f.createItems(r)
	case *ua.RepublishRequest:
		f.calls["Republish"]++
		s := f.subs[r.SubscriptionID]
		if s == nil {
			return nil, ua.StatusBadSubscriptionIDInvalid
		}
		if m := s.kept[r.RetransmitSequenceNumber]; m != nil {
			if f.holdsWeird(s, m) {
				return nil, errWeird
			}
			return &ua.RepublishResponse{NotificationMessage: m}, nil
		}
		return nil, ua.StatusBadMessageNotAvailable
	case *ua.TransferSubscriptionsRequest:
		f.calls["Transfer"]++
		out := &ua.TransferSubscriptionsResponse{}
		for _, id := range r.SubscriptionIDs {
			if s := f.subs[id]; s != nil {
				// What the old session is told, and nobody there reads.
				s.seq++
				s.kept[s.seq] = &ua.NotificationMessage{SequenceNumber: s.seq, NotificationData: []*ua.ExtensionObject{
					{Value: &ua.StatusChangeNotification{Status: ua.StatusGoodSubscriptionTransferred}}}}
				out.Results = append(out.Results, &ua.TransferResult{AvailableSequenceNumbers: s.available()})
			} else {
				out.Results = append(out.Results, &ua.TransferResult{StatusCode: ua.StatusBadSubscriptionIDInvalid})
			}
		}
		return out, nil
	case *ua.DeleteSubscriptionsRequest:
		for _, id := range r.SubscriptionIDs {
			delete(f.subs, id)
		}
		return &ua.DeleteSubscriptionsResponse{Results: make([]ua.StatusCode, len(r.SubscriptionIDs))}, nil
	case *ua.DeleteMonitoredItemsRequest:
		for _, id := range r.MonitoredItemIDs {
			f.calls["DeleteItem"]++
			delete(f.subs[r.SubscriptionID].made, id)
		}
		return &ua.DeleteMonitoredItemsResponse{Results: make([]ua.StatusCode, len(r.MonitoredItemIDs))}, nil
	case *ua.ModifySubscriptionRequest:
		f.calls["ModifySubscription"]++
		f.maxNotify = int(r.MaxNotificationsPerPublish)
		return &ua.ModifySubscriptionResponse{}, nil
	case *ua.SetPublishingModeRequest:
		f.calls["SetPublishingMode"]++
		return &ua.SetPublishingModeResponse{Results: make([]ua.StatusCode, len(r.SubscriptionIDs))}, nil
	case *ua.HistoryReadRequest:
		return f.readHistory(r), nil
	case *ua.CallRequest:
		switch m := r.MethodsToCall[0]; {
		case m.MethodID.IntID() == idConditionRefresh:
			f.calls["ConditionRefresh"]++
			return &ua.CallResponse{Results: []*ua.CallMethodResult{{}}}, nil
		case f.lists:
			var server, client []uint32
			for id, handle := range f.subs[m.InputArguments[0].Value().(uint32)].made {
				server, client = append(server, id), append(client, handle)
			}
			return &ua.CallResponse{Results: []*ua.CallMethodResult{{OutputArguments: []*ua.Variant{ua.MustVariant(server), ua.MustVariant(client)}}}}, nil
		}
		return nil, ua.StatusBadServiceUnsupported
	default:
		return nil, ua.StatusBadServiceUnsupported
	}
}

func (f *fakeServer) readHistory(r *ua.HistoryReadRequest) *ua.HistoryReadResponse {
	details := r.HistoryReadDetails.Value.(*ua.ReadRawModifiedDetails)
	out := &ua.HistoryReadResponse{}
	for _, n := range r.NodesToRead {
		data := &ua.HistoryData{}
		for _, v := range f.history[n.NodeID.String()] {
			if t := v.SourceTimestamp; !t.Before(details.StartTime) && t.Before(details.EndTime) {
				data.DataValues = append(data.DataValues, v)
			}
		}
		out.Results = append(out.Results, &ua.HistoryReadResult{HistoryData: &ua.ExtensionObject{Value: data}})
	}
	return out
}

func (f *fakeServer) read(r *ua.ReadRequest) (ua.Response, error) {
	f.calls["Read"]++
	if f.maxRead > 0 && len(r.NodesToRead) > f.maxRead {
		return nil, ua.StatusBadTooManyOperations
	}
	for _, n := range r.NodesToRead {
		if f.weird[n.NodeID.String()] && n.AttributeID == ua.AttributeIDValue {
			return nil, errWeird
		}
	}
	out := &ua.ReadResponse{}
	for _, n := range r.NodesToRead {
		v := &ua.DataValue{Value: &ua.Variant{}, Status: ua.StatusBadNodeIDUnknown}
		switch id := n.NodeID.String(); {
		case n.NodeID.Namespace() == 0 && n.NodeID.IntID() == idNamespaceArray:
			v = &ua.DataValue{Value: ua.MustVariant(f.namespaces)}
		case n.NodeID.Namespace() == 0 && n.NodeID.IntID() == idServerStartTime:
			v = &ua.DataValue{Value: ua.MustVariant(f.started)}
		case n.NodeID.Namespace() == 0 && n.NodeID.IntID() == idServerCurrentTime:
			v = &ua.DataValue{Value: ua.MustVariant(f.clock())}
		case n.AttributeID == ua.AttributeIDHistorizing && f.history[id] != nil:
			v = &ua.DataValue{Value: ua.MustVariant(true)}
		case n.NodeID.Namespace() == 0 && n.NodeID.IntID() == idServerState:
			v = &ua.DataValue{Value: ua.MustVariant(int32(0))}
		case n.AttributeID == ua.AttributeIDNodeClass && f.children[id] != nil:
			v = &ua.DataValue{Value: ua.MustVariant(int32(ua.NodeClassObject))}
		case n.AttributeID == ua.AttributeIDValue:
			v = f.value(id)
		}
		out.Results = append(out.Results, v)
	}
	return out, nil
}

func (f *fakeServer) createItems(r *ua.CreateMonitoredItemsRequest) (ua.Response, error) {
	f.calls["CreateMonitoredItems"]++
	if f.maxItems > 0 && len(r.ItemsToCreate) > f.maxItems {
		return nil, ua.StatusBadTooManyOperations
	}
	s := f.subs[r.SubscriptionID]
	if s == nil {
		return nil, ua.StatusBadSubscriptionIDInvalid
	}
	out := &ua.CreateMonitoredItemsResponse{}
	for _, it := range r.ItemsToCreate {
		node, handle := it.ItemToMonitor.NodeID.String(), it.RequestedParameters.ClientHandle
		f.nextItem++
		res := &ua.MonitoredItemCreateResult{MonitoredItemID: f.nextItem, RevisedSamplingInterval: it.RequestedParameters.SamplingInterval, RevisedQueueSize: it.RequestedParameters.QueueSize}
		if f.queues > 0 {
			res.RevisedQueueSize = min(res.RevisedQueueSize, f.queues)
		}
		if _, ok := f.values[node]; !ok {
			res.StatusCode = ua.StatusBadNodeIDUnknown
		} else if st := f.refuse[node]; st != 0 {
			res.StatusCode = st
		} else if st := f.noFilter[node]; st != 0 && it.RequestedParameters.Filter != nil {
			res.StatusCode = st
		} else {
			s.items[handle], s.made[f.nextItem] = node, handle
			if it.ItemToMonitor.AttributeID != ua.AttributeIDEventNotifier {
				s.queue = append(s.queue, &ua.MonitoredItemNotification{ClientHandle: handle, Value: f.value(node)})
			}
		}
		out.Results = append(out.Results, res)
	}
	f.changed()
	if f.loseAnswer {
		f.loseAnswer = false
		close(f.down)
		return nil, io.EOF
	}
	return out, nil
}

func (s *fakeSub) available() []uint32 {
	var out []uint32
	for n := range s.kept {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (f *fakeServer) publish(ctx context.Context, r *ua.PublishRequest, down chan struct{}) (ua.Response, error) {
	f.mu.Lock()
	for _, a := range r.SubscriptionAcknowledgements {
		if s := f.subs[a.SubscriptionID]; s != nil {
			delete(s.kept, a.SequenceNumber)
			f.acked = append(f.acked, a.SequenceNumber)
		}
	}
	f.mu.Unlock()
	for {
		f.mu.Lock()
		wake := f.wake
		res, due := f.next()
		f.mu.Unlock()
		if res != nil {
			return res, nil
		}
		if due == undecodable {
			return nil, errWeird
		}
		if due == tooLarge {
			return nil, ua.StatusBadEncodingLimitsExceeded
		}
		timer := time.NewTimer(due)
		select {
		case <-wake:
		case <-timer.C:
		case <-down:
			timer.Stop()
			return nil, io.EOF
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
		timer.Stop()
	}
}

// next makes the next publish response, or says when to look again.
func (f *fakeServer) next() (*ua.PublishResponse, time.Duration) {
	due := time.Hour
	if f.mute {
		return nil, due
	}
	for id, s := range f.subs {
		if len(s.events) > 0 {
			s.seq++
			m := &ua.NotificationMessage{SequenceNumber: s.seq, NotificationData: []*ua.ExtensionObject{{Value: &ua.EventNotificationList{Events: s.events}}}}
			s.events, s.kept[s.seq], s.last = nil, m, time.Now()
			return &ua.PublishResponse{SubscriptionID: id, AvailableSequenceNumbers: s.available(), NotificationMessage: m}, 0
		}
		if len(s.queue) > 0 {
			n := min(len(s.queue), 20)
			if f.readable > 0 {
				if f.maxNotify > 0 {
					n = min(n, f.maxNotify)
				}
				if n > f.readable {
					return nil, tooLarge
				}
			}
			s.seq++
			m := &ua.NotificationMessage{SequenceNumber: s.seq, NotificationData: []*ua.ExtensionObject{
				{Value: &ua.DataChangeNotification{MonitoredItems: slices.Clone(s.queue[:n])}}}}
			s.queue, s.kept[s.seq], s.last = s.queue[n:], m, time.Now()
			if f.hold[s.seq] {
				continue
			}
			if f.holdsWeird(s, m) {
				return nil, undecodable
			}
			return &ua.PublishResponse{SubscriptionID: id, AvailableSequenceNumbers: s.available(), NotificationMessage: m}, 0
		}
		if left := s.keepalive - time.Since(s.last); left > 0 {
			due = min(due, left)
			continue
		}
		s.last = time.Now()
		return &ua.PublishResponse{SubscriptionID: id, AvailableSequenceNumbers: s.available(), NotificationMessage: &ua.NotificationMessage{SequenceNumber: s.seq + 1}}, 0
	}
	return nil, due
}

func (f *fakeServer) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}
