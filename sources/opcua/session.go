package opcua

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/gopcua/opcua/ua"
)

// Node ids of the standard address space (Part 5 and Part 6, Annex A).
const (
	idRootFolder             = 84
	idObjectsFolder          = 85
	idHierarchicalReferences = 33
	idHasSubtype             = 45
	idHasProperty            = 46
	idHasEncoding            = 38
	idBaseEventType          = 2041
	idServer                 = 2253
	idNamespaceArray         = 2255
	idServerStartTime        = 2257
	idServerCurrentTime      = 2258
	idServerState            = 2259
	idMaxBrowseContinuation  = 2735
	idMaxNodesPerRead        = 11705
	idMaxNodesPerBrowse      = 11710
	idMaxNodesPerTranslate   = 11712
	idMaxItemsPerCall        = 11714
	idMaxItemsPerSub         = 24104
	idMaxHistoryReadData     = 12165
)

// limits are the most operations that one call may hold. They start as the
// server says and shrink when it refuses.
type limits struct {
	read, browse, translate, items, history int
	// perSubscription is the most items of one subscription; 0 is no limit.
	perSubscription int
	// continuation is the most continuation points that may be open.
	continuation int
}

// The limits when a server does not say: sizes that every server seen so far
// takes, and half of that for requests whose answers are large.
const (
	defaultLimit      = 1000
	defaultLargeLimit = 500
)

// session is what is known of one connection: its limits, namespaces and types.
// The engine's goroutine owns it.
type session struct {
	t       transport
	cfg     Config
	log     *slog.Logger
	lim     limits
	ns      []string
	started time.Time // when the server started; zero when it does not say
	// skew is how far the server's clock is ahead of ours; 0 when it is not known or
	// less than minSkew.
	skew  time.Duration
	types *typeSystem
}

// openSession reads the namespaces and limits of the server. most bounds the
// operations of a call beside what the server says; 0: it does not.
func openSession(ctx context.Context, t transport, cfg Config, most int, log *slog.Logger) (*session, error) {
	s := &session{t: t, cfg: cfg, log: log, lim: limits{read: 10}}
	ids := []uint32{idNamespaceArray, idServerStartTime, idMaxNodesPerRead, idMaxNodesPerBrowse, idMaxNodesPerTranslate,
		idMaxItemsPerCall, idMaxItemsPerSub, idMaxBrowseContinuation, idMaxHistoryReadData, idServerCurrentTime}
	var want []*ua.ReadValueID
	for _, id := range ids {
		want = append(want, valueOf(ns0(id)))
	}
	got, err := s.read(ctx, want)
	if err != nil {
		return nil, fmt.Errorf("read the server's namespaces and limits: %w", err)
	}
	ns, ok := got[0].Value.Value().([]string)
	if !ok {
		return nil, fmt.Errorf("read the server's namespaces: %s", statusName(got[0].Status))
	}
	s.ns = ns
	s.started, _ = got[1].Value.Value().(time.Time)
	s.measureSkew(got[9])
	limit := func(i, configured, byDefault int) int {
		switch n := uintOf(got[i]); {
		case configured > 0 && n > 0:
			return min(configured, n)
		case configured > 0:
			return configured
		case n > 0:
			return n
		default:
			return byDefault
		}
	}
	s.lim = limits{
		read: limit(2, cfg.Limits.MaxNodesPerRead, defaultLimit), browse: limit(3, cfg.Limits.MaxNodesPerBrowse, defaultLargeLimit),
		translate: limit(4, 0, defaultLargeLimit), items: limit(5, cfg.Limits.MaxItemsPerCall, defaultLimit),
		perSubscription: limit(6, cfg.Limits.MaxItemsPerSubscription, 0), continuation: limit(7, 0, 0), history: limit(8, 0, 100),
	}
	if most > 0 {
		for _, n := range []*int{&s.lim.read, &s.lim.browse, &s.lim.translate, &s.lim.items, &s.lim.history} {
			*n = min(*n, most)
		}
	}
	// A browse of n nodes may open n continuation points.
	if s.lim.continuation > 0 {
		s.lim.browse = min(s.lim.browse, s.lim.continuation)
	}
	s.types = newTypeSystem()
	return s, nil
}

// minSkew is how far two clocks are apart before it counts, and tellSkew before
// it is worth a line in the log.
const (
	minSkew  = 2 * time.Second
	tellSkew = time.Minute
)

// measureSkew compares the server's clock, which was just read, with ours.
func (s *session) measureSkew(current *ua.DataValue) {
	at, ok := current.Value.Value().(time.Time)
	if !ok || at.IsZero() {
		return
	}
	if skew := time.Until(exactTime(at)); skew.Abs() > minSkew {
		s.skew = skew
	}
	if s.skew.Abs() > tellSkew {
		s.log.Warn("the server's clock and ours differ: set one of them right, or timestamp: ingest", "server_ahead_seconds", s.skew.Seconds())
	}
}

// now is the time by the server's clock.
func (s *session) now() time.Time { return time.Now().Add(s.skew) }

func uintOf(v *ua.DataValue) int {
	switch n := v.Value.Value().(type) {
	case uint32:
		return int(min(n, 1_000_000))
	case uint16:
		return int(n)
	default:
		return 0
	}
}

func valueOf(id *ua.NodeID) *ua.ReadValueID { return attrOf(id, ua.AttributeIDValue) }

func attrOf(id *ua.NodeID, a ua.AttributeID) *ua.ReadValueID {
	return &ua.ReadValueID{NodeID: id, AttributeID: a, DataEncoding: &ua.QualifiedName{}}
}

// errUnanswered is a request without an answer in time.
var errUnanswered = errors.New("server does not answer in time")

// slowError is a call of many operations without an answer in time: the connection
// is lost, or the server needs longer for so many. The next connection asks for
// fewer at once.
type slowError struct {
	operations int
	err        error
}

func (e *slowError) Error() string { return fmt.Sprintf("call of %d: %s", e.operations, e.err) }
func (e *slowError) Unwrap() error { return e.err }

// leastChunk is how few operations in one call are few enough for any server.
const leastChunk = 50

// inChunks calls do with at most *limit of list at a time, and halves *limit
// for good when the server finds that too much.
func inChunks[T any](list []T, limit *int, do func(part []T) error) error {
	for len(list) > 0 {
		n := min(len(list), max(*limit, 1))
		err := do(list[:n])
		if tooMuch(err) && n > 1 {
			*limit = n / 2
			continue
		}
		if errors.Is(err, errUnanswered) {
			return &slowError{operations: n, err: err}
		}
		if err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// do sends one request within the configured time-out.
func do[T ua.Response](ctx context.Context, s *session, req ua.Request) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.requestTimeout())
	defer cancel()
	res, err := call[T](ctx, s.t, req)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		return res, fmt.Errorf("%w: %T within %s: %w", errUnanswered, req, s.cfg.requestTimeout(), err)
	}
	return res, err
}

var errShortAnswer = errors.New("server answers with fewer results than were asked for")

// read reads attributes; the answer has one value for each, whatever its
// status, and Value is never nil.
func (s *session) read(ctx context.Context, what []*ua.ReadValueID) ([]*ua.DataValue, error) {
	out := make([]*ua.DataValue, 0, len(what))
	err := inChunks(what, &s.lim.read, func(part []*ua.ReadValueID) error {
		got, err := s.readPart(ctx, part)
		out = append(out, got...)
		return err
	})
	return out, err
}

// readPart is one call. When its answer cannot be decoded, the values are read
// in halves until the one at fault stands alone: it becomes BadDecodingError.
func (s *session) readPart(ctx context.Context, part []*ua.ReadValueID) ([]*ua.DataValue, error) {
	res, err := do[*ua.ReadResponse](ctx, s, &ua.ReadRequest{TimestampsToReturn: ua.TimestampsToReturnBoth, NodesToRead: part})
	switch {
	case unreadable(err) && len(part) == 1:
		s.log.Warn("a value cannot be decoded", "node", nodeText(part[0].NodeID), "err", err)
		return []*ua.DataValue{{Value: &ua.Variant{}, Status: ua.StatusBadDecodingError}}, nil
	case unreadable(err):
		half := len(part) / 2
		first, err := s.readPart(ctx, part[:half])
		if err != nil {
			return nil, err
		}
		second, err := s.readPart(ctx, part[half:])
		return append(first, second...), err
	case err != nil:
		return nil, err
	case len(res.Results) != len(part):
		return nil, errShortAnswer
	}
	for _, v := range res.Results {
		if v.Value == nil {
			v.Value = &ua.Variant{}
		}
	}
	return res.Results, nil
}

// browse returns the references of each node in one direction, continuation
// points followed. A node that cannot be browsed has none, and its status says
// why.
func (s *session) browse(ctx context.Context, nodes []*ua.NodeID, dir ua.BrowseDirection, refType uint32, classes ua.NodeClass) ([][]*ua.ReferenceDescription, []ua.StatusCode, error) {
	refs, status := make([][]*ua.ReferenceDescription, 0, len(nodes)), make([]ua.StatusCode, 0, len(nodes))
	err := inChunks(nodes, &s.lim.browse, func(part []*ua.NodeID) error {
		req := &ua.BrowseRequest{View: &ua.ViewDescription{ViewID: ns0(0)}}
		for _, id := range part {
			req.NodesToBrowse = append(req.NodesToBrowse, &ua.BrowseDescription{NodeID: id, BrowseDirection: dir,
				ReferenceTypeID: ns0(refType), IncludeSubtypes: true, NodeClassMask: uint32(classes), ResultMask: uint32(ua.BrowseResultMaskAll)})
		}
		res, err := do[*ua.BrowseResponse](ctx, s, req)
		if err != nil {
			return err
		}
		if len(res.Results) != len(part) {
			return errShortAnswer
		}
		for _, r := range res.Results {
			if r.StatusCode == ua.StatusBadNoContinuationPoints && len(part) > 1 {
				return ua.StatusBadTooManyOperations // fewer nodes at once need fewer points
			}
		}
		if err := s.browseNext(ctx, res.Results); err != nil {
			return err
		}
		for _, r := range res.Results {
			refs, status = append(refs, r.References), append(status, r.StatusCode)
		}
		return nil
	})
	return refs, status, err
}

// browseNext follows the continuation points of results until there are none.
func (s *session) browseNext(ctx context.Context, results []*ua.BrowseResult) error {
	for {
		var open []*ua.BrowseResult
		req := &ua.BrowseNextRequest{}
		for _, r := range results {
			if len(r.ContinuationPoint) > 0 && r.StatusCode == ua.StatusOK {
				open, req.ContinuationPoints = append(open, r), append(req.ContinuationPoints, r.ContinuationPoint)
			}
		}
		if len(open) == 0 {
			return nil
		}
		res, err := do[*ua.BrowseNextResponse](ctx, s, req)
		if err != nil {
			return err
		}
		if len(res.Results) != len(open) {
			return errShortAnswer
		}
		for i, r := range open {
			r.References = append(r.References, res.Results[i].References...)
			r.ContinuationPoint, r.StatusCode = res.Results[i].ContinuationPoint, res.Results[i].StatusCode
		}
	}
}
