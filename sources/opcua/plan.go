package opcua

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/edgehost/edgehost/abi"
	"github.com/gopcua/opcua/ua"
)

// The bounds of a recursive browse when the configuration gives none.
const (
	defaultDepth    = 10
	defaultMaxNodes = 10_000
)

// plan is what one connection reads: the configured nodes, resolved and
// browsed on this server.
type plan struct {
	items []*item
	// lost are nodes of the configuration that this server does not have; they
	// are looked for again.
	lost []lostNode
	// truncated are recursive nodes with more variables than max_nodes.
	truncated []string
	// changed says that the address space is no longer what was browsed.
	changed bool
}

type lostNode struct {
	at     int // index in Config.Nodes
	text   string
	status ua.StatusCode
	why    string
}

// start is a node of the configuration on this server.
type start struct {
	at   int
	cfg  NodeConfig
	node *ua.NodeID
	path string
}

// makePlan resolves and browses the configured nodes with these indexes (nil:
// all) and the events.
func (s *session) makePlan(ctx context.Context, src *Source, only []int) (*plan, error) {
	p := &plan{}
	starts, err := s.resolve(ctx, p, only)
	if err != nil {
		return nil, err
	}
	// A node that is named itself is read as it says, also below a recursive one.
	slices.SortStableFunc(starts, namedFirst)
	seen := map[string]bool{}
	add := func(it *item) (fresh bool) {
		key := it.node.String()
		if fresh = !seen[key]; fresh {
			seen[key] = true
			p.items = append(p.items, it)
		}
		return fresh
	}
	names, filters := map[*item]NodeConfig{}, map[*item][]string{}
	for _, st := range starts {
		if !st.cfg.Recursive {
			it := s.single(st)
			names[it] = st.cfg
			if !add(it) {
				s.log.Warn("two nodes of the configuration are one on the server; the first is read", "second", nodeName(st.cfg), "node", it.node.String())
			}
			continue
		}
		found, full, err := s.browseBelow(ctx, st)
		var missing ua.StatusCode
		if errors.As(err, &missing) && !dead(err) {
			p.lost = append(p.lost, lostNode{at: st.at, text: nodeName(st.cfg), status: missing, why: statusName(missing)})
			continue
		}
		if err != nil {
			return nil, err
		}
		if full {
			p.truncated = append(p.truncated, nodeName(st.cfg))
		}
		for _, v := range found {
			it := &item{node: v.id, path: v.path, origin: st.at, cfg: st.cfg.over(s.cfg.Defaults), address: v.id.String()}
			names[it], filters[it] = NodeConfig{Tags: st.cfg.Tags, Unit: st.cfg.Unit}, st.cfg.Types
			add(it)
		}
	}
	if err := s.detail(ctx, p, filters); err != nil {
		return nil, err
	}
	if err := s.findPaths(ctx, p.items); err != nil {
		return nil, err
	}
	for _, it := range p.items {
		n := names[it]
		name := n.Name
		if name == "" && n.Tags[abi.AttrSensorName] == "" && src.tags[abi.AttrSensorName] == "" {
			name = lastName(it.path)
		}
		it.describe(src.endpoint, name, n.Unit, src.tags, n.Tags)
	}
	if only == nil {
		p.items = append(p.items, s.eventItems(src)...)
		if it := s.modelChangeItem(); it != nil {
			p.items = append(p.items, it)
		}
	}
	giveHandles(p.items)
	return p, nil
}

// single is the item of a node that is named itself.
func (s *session) single(st start) *item {
	it := &item{node: st.node, path: st.path, origin: st.at, cfg: st.cfg.over(s.cfg.Defaults), address: st.node.String()}
	if strings.HasPrefix(st.cfg.NodeID, "nsu=") {
		it.address = st.cfg.NodeID // it survives a change of indexes
	}
	return it
}

// namedFirst orders nodes that are named themselves before recursive ones.
func namedFirst(a, b start) int {
	switch {
	case a.cfg.Recursive == b.cfg.Recursive:
		return 0
	case b.cfg.Recursive:
		return -1
	default:
		return 1
	}
}

func nodeName(n NodeConfig) string {
	if n.NodeID != "" {
		return n.NodeID
	}
	return n.BrowsePath
}

// resolve finds the start nodes of the configuration on this server.
func (s *session) resolve(ctx context.Context, p *plan, only []int) ([]start, error) {
	var starts, byPath []start
	var paths [][]nameRef
	for i, n := range s.cfg.Nodes {
		if only != nil && !slices.Contains(only, i) {
			continue
		}
		if n.BrowsePath != "" {
			names, err := parseBrowsePath(n.BrowsePath)
			if err != nil {
				return nil, err
			}
			byPath, paths = append(byPath, start{at: i, cfg: n}), append(paths, names)
			continue
		}
		ref, err := parseNodeRef(n.NodeID)
		if err != nil {
			return nil, err
		}
		id, err := ref.resolve(s.ns)
		if err != nil {
			p.lost = append(p.lost, lostNode{at: i, text: n.NodeID, status: ua.StatusBadNodeIDUnknown, why: err.Error()})
			continue
		}
		starts = append(starts, start{at: i, cfg: n, node: id})
	}
	ids, status, err := s.translate(ctx, paths)
	if err != nil {
		return nil, err
	}
	for i, st := range byPath {
		if ids[i] == nil {
			p.lost = append(p.lost, lostNode{at: st.at, text: st.cfg.BrowsePath, status: status[i], why: "browse path: " + statusName(status[i])})
			continue
		}
		st.node, st.path = ids[i], fullPath(paths[i])
		starts = append(starts, st)
	}
	slices.SortStableFunc(starts, func(a, b start) int { return a.at - b.at })
	return starts, nil
}

// fullPath is a configured browse path written from Root on.
func fullPath(names []nameRef) string {
	switch names[0] {
	case nameRef{0, "Root"}:
		return pathText(names)
	case nameRef{0, "Objects"}:
		return "0:Root/" + pathText(names)
	default:
		return "0:Root/0:Objects/" + pathText(names)
	}
}

func pathText(names []nameRef) string {
	parts := make([]string, len(names))
	for i, n := range names {
		parts[i] = n.String()
	}
	return strings.Join(parts, "/")
}

// pathStart is the node at which a browse path starts, and what is left of it:
// Root and Objects are named, anything else is below Objects.
func pathStart(names []nameRef) (*ua.NodeID, []nameRef) {
	switch {
	case names[0] == nameRef{0, "Root"}:
		return ns0(idRootFolder), names[1:]
	case names[0] == nameRef{0, "Objects"}:
		return ns0(idObjectsFolder), names[1:]
	default:
		return ns0(idObjectsFolder), names
	}
}

// translate returns the node at the end of each path; nil and a status when
// there is none. Servers without TranslateBrowsePaths are browsed step by step.
func (s *session) translate(ctx context.Context, paths [][]nameRef) ([]*ua.NodeID, []ua.StatusCode, error) {
	ids, status := make([]*ua.NodeID, 0, len(paths)), make([]ua.StatusCode, 0, len(paths))
	err := inChunks(paths, &s.lim.translate, func(part [][]nameRef) error {
		req := &ua.TranslateBrowsePathsToNodeIDsRequest{}
		for _, names := range part {
			from, rest := pathStart(names)
			rel := &ua.RelativePath{}
			for _, n := range rest {
				rel.Elements = append(rel.Elements, &ua.RelativePathElement{ReferenceTypeID: ns0(idHierarchicalReferences), IncludeSubtypes: true,
					TargetName: &ua.QualifiedName{NamespaceIndex: n.ns, Name: n.name}})
			}
			req.BrowsePaths = append(req.BrowsePaths, &ua.BrowsePath{StartingNode: from, RelativePath: rel})
		}
		res, err := do[*ua.TranslateBrowsePathsToNodeIDsResponse](ctx, s, req)
		if err != nil {
			return err
		}
		if len(res.Results) != len(part) {
			return errShortAnswer
		}
		for i, r := range res.Results {
			from, rest := pathStart(part[i])
			if len(rest) == 0 {
				ids, status = append(ids, from), append(status, ua.StatusOK)
				continue
			}
			var id *ua.NodeID
			for _, t := range r.Targets {
				if got, ok := expanded(t.TargetID, s.ns); ok && t.RemainingPathIndex == 0xFFFFFFFF && id == nil {
					id = got
				}
			}
			st := r.StatusCode
			if id == nil && st == ua.StatusOK {
				st = ua.StatusBadNoMatch
			}
			ids, status = append(ids, id), append(status, st)
		}
		return nil
	})
	if err != nil && !dead(err) {
		s.log.Info("server does not translate browse paths; browsing step by step", "reason", statusText(err))
		return s.walk(ctx, paths)
	}
	return ids, status, err
}

// walk follows each path by browsing, one step at a time.
func (s *session) walk(ctx context.Context, paths [][]nameRef) ([]*ua.NodeID, []ua.StatusCode, error) {
	ids, status := make([]*ua.NodeID, len(paths)), make([]ua.StatusCode, len(paths))
	for i, names := range paths {
		at, rest := pathStart(names)
		for _, n := range rest {
			refs, st, err := s.browse(ctx, []*ua.NodeID{at}, ua.BrowseDirectionForward, idHierarchicalReferences, 0)
			if err != nil {
				return nil, nil, err
			}
			at = nil
			for _, r := range refs[0] {
				if r.BrowseName != nil && r.BrowseName.Name == n.name && r.BrowseName.NamespaceIndex == n.ns {
					at, _ = expanded(r.NodeID, s.ns)
				}
			}
			if at == nil {
				status[i] = ua.StatusBadNoMatch
				if st[0] != ua.StatusOK {
					status[i] = st[0]
				}
				break
			}
		}
		ids[i] = at
	}
	return ids, status, nil
}

// detail reads data types, and what is known of them, and drops items that the
// type filter of their node does not let through.
func (s *session) detail(ctx context.Context, p *plan, filters map[*item][]string) error {
	var ask []*ua.ReadValueID
	for _, it := range p.items {
		ask = append(ask, attrOf(it.node, ua.AttributeIDDataType), attrOf(it.node, ua.AttributeIDHistorizing))
	}
	got, err := s.read(ctx, ask)
	if err != nil {
		return fmt.Errorf("read data types: %w", err)
	}
	var types []*ua.NodeID
	for i := range p.items {
		if id, ok := got[2*i].Value.Value().(*ua.NodeID); ok {
			types = append(types, id)
		}
	}
	if err := s.types.learn(ctx, s, types); err != nil {
		return fmt.Errorf("read type definitions: %w", err)
	}
	var anything []*ua.ReadValueID
	kept := p.items[:0]
	for i, it := range p.items {
		id, _ := got[2*i].Value.Value().(*ua.NodeID)
		t := s.types.lookup(id)
		if allowed := filters[it]; len(allowed) > 0 && !typeAllowed(t, allowed) {
			continue
		}
		it.types = s.types
		it.history, _ = got[2*i+1].Value.Value().(bool)
		if t != nil {
			it.enum = t.enum
		}
		if id != nil && (t == nil || t.def == nil && (t.builtin == 22 || t.builtin == 24)) {
			anything = append(anything, valueOf(it.node))
		}
		kept = append(kept, it)
	}
	p.items = kept
	if len(anything) > 0 {
		if err := s.types.scan(ctx, s); err != nil {
			return fmt.Errorf("read type definitions: %w", err)
		}
		if err := s.meetStructures(ctx, anything); err != nil {
			return err
		}
	}
	s.types.settle()
	return nil
}

// meetStructures reads values that may be structures of any type, so that those
// without a definition are known to the library before their first value comes:
// it throws away the bytes of what it does not know.
func (s *session) meetStructures(ctx context.Context, values []*ua.ReadValueID) error {
	got, err := s.read(ctx, values)
	if err != nil {
		return fmt.Errorf("read values of unknown types: %w", err)
	}
	for _, v := range got {
		s.types.convert(v.Value, nil)
	}
	return nil
}

// typeAllowed reports whether t is one of the named types or below one.
func typeAllowed(t *dataType, names []string) bool {
	if t == nil {
		return false
	}
	for _, name := range names {
		id := builtinByName[name]
		switch {
		case id == t.builtin, id == 24,
			id == 26 && t.builtin >= 2 && t.builtin <= 11,
			id == 27 && (t.builtin == 2 || t.builtin == 4 || t.builtin == 6 || t.builtin == 8),
			id == 28 && (t.builtin == 3 || t.builtin == 5 || t.builtin == 7 || t.builtin == 9):
			return true
		}
	}
	return false
}

// giveHandles numbers the items that have no handle by what they are, so that
// the next process numbers them alike and can take the subscription over.
func giveHandles(items []*item) {
	taken := make(map[uint32]bool, len(items))
	sorted := slices.Clone(items)
	slices.SortFunc(sorted, func(a, b *item) int { return strings.Compare(a.key(), b.key()) })
	for _, it := range items {
		taken[it.handle] = true
	}
	for _, it := range sorted {
		if it.handle != 0 {
			continue
		}
		h := fnv.New32a()
		// Hash.Write never fails.
		_, _ = h.Write([]byte(it.key()))
		n := h.Sum32()
		for n == 0 || taken[n] {
			n++
		}
		taken[n], it.handle = true, n
	}
}

// key tells an item from the others of its source.
func (it *item) key() string {
	if it.modelChange {
		return "model changes"
	}
	if it.event != nil {
		return "event " + it.node.String()
	}
	return it.node.String()
}

// itemsHash tells whether two plans read the same items with the same handles.
func itemsHash(items []*item) uint64 {
	keys := make([]string, len(items))
	for i, it := range items {
		keys[i] = fmt.Sprintf("%d %s", it.handle, it.key())
	}
	slices.Sort(keys)
	h := fnv.New64a()
	for _, k := range keys {
		_, _ = fmt.Fprintln(h, k)
	}
	return h.Sum64()
}
