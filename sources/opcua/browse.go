package opcua

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/gopcua/opcua/ua"
)

// Reference types below HierarchicalReferences that lead to no variables of
// the process (Part 3, 7).
const (
	idHasEventSource = 36
	idHasNotifier    = 48
)

// variable is one variable that a browse found.
type variable struct {
	id   *ua.NodeID
	path string // from Root, qualified
}

// found is one node below the start of a browse.
type found struct {
	id    *ua.NodeID
	path  string // from Root, qualified
	name  string // below the start, names only
	depth int    // 1 is a child of the start
	ref   *ua.ReferenceDescription
}

// descend visits the nodes below from in breadth-first order, each once however
// many ways lead to it, until visit returns false.
func (s *session) descend(ctx context.Context, from *ua.NodeID, path string, depth int, classes ua.NodeClass, follow func(ref *ua.NodeID) bool, visit func(found) bool) error {
	seen := map[string]bool{from.String(): true}
	level := []found{{id: from, path: path}}
	for d := 1; d <= depth && len(level) > 0; d++ {
		ids := make([]*ua.NodeID, len(level))
		for i, at := range level {
			ids[i] = at.id
		}
		refs, status, err := s.browse(ctx, ids, ua.BrowseDirectionForward, idHierarchicalReferences, classes)
		if err != nil {
			return fmt.Errorf("browse: %w", err)
		}
		var next []found
		for i, list := range refs {
			if status[i]>>30 == 2 {
				s.log.Warn("server does not let us browse a node; what is below it is not read", "node", nodeText(ids[i]), "status", statusName(status[i]))
			}
			for _, r := range list {
				id, ok := expanded(r.NodeID, s.ns)
				if !ok || r.BrowseName == nil || !follow(r.ReferenceTypeID) || seen[id.String()] {
					continue
				}
				seen[id.String()] = true
				name := validUTF8(r.BrowseName.Name)
				at := found{id: id, name: name, path: qualified(r.BrowseName.NamespaceIndex, name), depth: d, ref: r}
				if level[i].path != "" {
					at.path = level[i].path + "/" + at.path
				}
				if level[i].name != "" {
					at.name = level[i].name + "/" + at.name
				}
				next = append(next, at)
				if !visit(at) {
					return nil
				}
			}
		}
		level = next
	}
	return nil
}

// browseBelow returns the variables at and below a start node, each once. full
// says that max_nodes cut it short. A start node that the server does not have
// is an error that is a ua.StatusCode.
func (s *session) browseBelow(ctx context.Context, st start) (out []variable, full bool, err error) {
	depth, limit := st.cfg.MaxDepth, st.cfg.MaxNodes
	if depth == 0 {
		depth = defaultDepth
	}
	if limit == 0 {
		limit = defaultMaxNodes
	}
	class, err := s.read(ctx, []*ua.ReadValueID{attrOf(st.node, ua.AttributeIDNodeClass)})
	if err != nil {
		return nil, false, fmt.Errorf("browse %s: %w", nodeName(st.cfg), err)
	}
	if class[0].Status>>30 == 2 {
		return nil, false, class[0].Status
	}
	path := st.path
	if path == "" {
		one := []*item{{node: st.node}}
		if err := s.findPaths(ctx, one); err != nil {
			return nil, false, err
		}
		path = one[0].path
	}
	if n, ok := class[0].Value.Value().(int32); ok && ua.NodeClass(n) == ua.NodeClassVariable {
		out = append(out, variable{id: st.node, path: path})
	}
	follow := func(ref *ua.NodeID) bool { return follows(ref, st.cfg.IncludeProperties) }
	err = s.descend(ctx, st.node, path, depth, ua.NodeClassObject|ua.NodeClassVariable, follow, func(at found) bool {
		if at.ref.NodeClass != ua.NodeClassVariable || !wanted(at.name, st.cfg.Include, st.cfg.Exclude) {
			return true
		}
		if full = len(out) >= limit; !full {
			out = append(out, variable{id: at.id, path: at.path})
		}
		return !full
	})
	return out, full, err
}

func follows(ref *ua.NodeID, properties bool) bool {
	if ref == nil || ref.Namespace() != 0 {
		return true
	}
	switch ref.IntID() {
	case idHasProperty:
		return properties
	case idHasEventSource, idHasNotifier, idHasSubtype:
		return false
	default:
		return true
	}
}

// wanted applies include and exclude globs to a relative path.
func wanted(path string, include, exclude []string) bool {
	matches := func(p string) bool { return globMatch(strings.Split(p, "/"), strings.Split(path, "/")) }
	return (len(include) == 0 || slices.ContainsFunc(include, matches)) && !slices.ContainsFunc(exclude, matches)
}

// globMatch matches a path against a pattern, name by name; ** stands for any
// number of names.
func globMatch(pattern, path []string) bool {
	for len(pattern) > 0 {
		if pattern[0] == "**" {
			for i := range len(path) + 1 {
				if globMatch(pattern[1:], path[i:]) {
					return true
				}
			}
			return false
		}
		if len(path) == 0 || !globName(pattern[0], path[0]) {
			return false
		}
		pattern, path = pattern[1:], path[1:]
	}
	return len(path) == 0
}

// globName matches one name: * is any text, ? one byte.
func globName(pattern, name string) bool {
	star, mark, i, j := -1, 0, 0, 0
	for j < len(name) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, j
			i++
		case i < len(pattern) && (pattern[i] == '?' || pattern[i] == name[j]):
			i, j = i+1, j+1
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[i:], "*") == ""
}

// findPaths fills in the browse paths of items that were given by node id: up
// the hierarchy to Root, each parent asked for once. A node without a parent
// keeps none.
func (s *session) findPaths(ctx context.Context, items []*item) error {
	known := map[string]*upward{ns0(idRootFolder).String(): {name: "0:Root"}}
	var level []*ua.NodeID
	for _, it := range items {
		if it.path == "" {
			level = append(level, it.node)
		}
	}
	for d := 0; len(level) > 0 && d < maxDepth; d++ {
		var ask []*ua.NodeID
		var names []*ua.ReadValueID
		for _, id := range level {
			if known[id.String()] == nil {
				known[id.String()] = &upward{}
				ask, names = append(ask, id), append(names, attrOf(id, ua.AttributeIDBrowseName))
			}
		}
		refs, _, err := s.browse(ctx, ask, ua.BrowseDirectionInverse, idHierarchicalReferences, 0)
		if err != nil {
			return fmt.Errorf("find browse paths: %w", err)
		}
		got, err := s.read(ctx, names)
		if err != nil {
			return fmt.Errorf("find browse paths: %w", err)
		}
		level = nil
		for i, id := range ask {
			u := known[id.String()]
			if q, ok := got[i].Value.Value().(*ua.QualifiedName); ok {
				u.name = qualified(q.NamespaceIndex, validUTF8(q.Name))
			}
			for _, r := range refs[i] {
				if p, ok := expanded(r.NodeID, s.ns); ok && follows(r.ReferenceTypeID, true) && u.parent == nil {
					u.parent = p
					level = append(level, p)
				}
			}
		}
	}
	for _, it := range items {
		if it.path == "" {
			it.path = pathUp(known, it.node)
		}
	}
	return nil
}

// upward is what is known of a node on the way to Root.
type upward struct {
	parent *ua.NodeID
	name   string
}

// pathUp is the browse path of id; "" when its parents do not lead to Root.
func pathUp(known map[string]*upward, id *ua.NodeID) string {
	var parts []string
	for range maxDepth {
		u := known[id.String()]
		if u == nil || u.name == "" {
			return ""
		}
		parts = append(parts, u.name)
		if u.parent == nil {
			break
		}
		id = u.parent
	}
	slices.Reverse(parts)
	if parts[0] != "0:Root" {
		return ""
	}
	return strings.Join(parts, "/")
}

// lastName is the last name of a qualified browse path, without its namespace.
func lastName(path string) string {
	names, err := parseBrowsePath(path)
	if err != nil {
		return ""
	}
	return names[len(names)-1].name
}
