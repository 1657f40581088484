package opcua

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/edgehost/edgehost/abi"
	"github.com/gopcua/opcua/ua"
)

// BrowseEntry is one node that Browse found.
type BrowseEntry struct {
	NodeID     string `json:"node_id"` // ns=<index>;…
	BrowsePath string `json:"browse_path"`
	Name       string `json:"name"`      // display name
	Class      string `json:"class"`     // Object | Variable | Method | …
	DataType   string `json:"data_type"` // of variables; a built-in type's name, or a node id
	Depth      int    `json:"depth"`     // below the start: 1 is a child
}

// BrowseOptions bound a Browse. The zero value browses the Objects folder, 10
// levels deep, at most 10 000 nodes.
type BrowseOptions struct {
	Start    string // node id or browse path
	MaxDepth int
	MaxNodes int
}

// with connects, runs f on the session and closes it.
func (s *Source) with(ctx context.Context, f func(*link, *session) error) error {
	l, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.requestTimeout())
		defer cancel()
		l.close(closeCtx, false)
	}()
	sess, err := openSession(ctx, l, s.cfg, s.most, s.log)
	if err != nil {
		return err
	}
	return f(l, sess)
}

// Browse lists the address space for a person who writes a configuration. It
// opens a connection of its own; Run must not be running. truncated says that
// MaxNodes cut it short.
func (s *Source) Browse(ctx context.Context, o BrowseOptions) (list []BrowseEntry, truncated bool, err error) {
	if o.MaxDepth == 0 {
		o.MaxDepth = defaultDepth
	}
	if o.MaxNodes == 0 {
		o.MaxNodes = defaultMaxNodes
	}
	err = s.with(ctx, func(_ *link, sess *session) error {
		list, truncated, err = sess.list(ctx, o)
		return err
	})
	return list, truncated, err
}

// list browses breadth-first from the start of o.
func (s *session) list(ctx context.Context, o BrowseOptions) (out []BrowseEntry, truncated bool, err error) {
	from, path, err := s.startOf(ctx, o.Start)
	if err != nil {
		return nil, false, err
	}
	var variables []*ua.ReadValueID
	var at []int
	err = s.descend(ctx, from, path, o.MaxDepth, 0, func(*ua.NodeID) bool { return true }, func(f found) bool {
		if truncated = len(out) >= o.MaxNodes; truncated {
			return false
		}
		e := BrowseEntry{NodeID: f.id.String(), BrowsePath: f.path, Class: className(f.ref.NodeClass), Depth: f.depth}
		if f.ref.DisplayName != nil {
			e.Name = validUTF8(f.ref.DisplayName.Text)
		}
		if f.ref.NodeClass == ua.NodeClassVariable {
			variables, at = append(variables, attrOf(f.id, ua.AttributeIDDataType)), append(at, len(out))
		}
		out = append(out, e)
		return true
	})
	if err != nil {
		return nil, false, err
	}
	types, err := s.read(ctx, variables)
	if err != nil {
		return nil, false, fmt.Errorf("read data types: %w", err)
	}
	for i, v := range types {
		if id, ok := v.Value.Value().(*ua.NodeID); ok {
			out[at[i]].DataType = typeName(id)
		}
	}
	return out, truncated, nil
}

// startOf finds the node that a text names: "" is the Objects folder.
func (s *session) startOf(ctx context.Context, text string) (*ua.NodeID, string, error) {
	if text == "" {
		return ns0(idObjectsFolder), "0:Root/0:Objects", nil
	}
	if ref, err := parseNodeRef(text); err == nil {
		id, err := ref.resolve(s.ns)
		if err != nil {
			return nil, "", err
		}
		one := []*item{{node: id}}
		err = s.findPaths(ctx, one)
		return id, one[0].path, err
	}
	names, err := parseBrowsePath(text)
	if err != nil {
		return nil, "", fmt.Errorf("neither a node id nor a browse path: %w", err)
	}
	ids, status, err := s.translate(ctx, [][]nameRef{names})
	if err != nil {
		return nil, "", err
	}
	if ids[0] == nil {
		return nil, "", fmt.Errorf("browse path %q: %s", text, statusName(status[0]))
	}
	return ids[0], fullPath(names), nil
}

func className(c ua.NodeClass) string {
	names := map[ua.NodeClass]string{1: "Object", 2: "Variable", 4: "Method", 8: "ObjectType", 16: "VariableType", 32: "ReferenceType", 64: "DataType", 128: "View"}
	return names[c]
}

func typeName(id *ua.NodeID) string {
	if id.Namespace() == 0 {
		for _, name := range slices.Sorted(maps.Keys(builtinByName)) {
			if builtinByName[name] == id.IntID() && id.IntID() != 0 {
				return name
			}
		}
	}
	return nodeText(id)
}

// Found is what a configuration matches on the server.
type Found struct {
	Records  []abi.Record `json:"-"`        // the present value of each item, Bad ones too
	Missing  []string     `json:"missing"`  // nodes of the configuration that the server does not have, and why
	Security string       `json:"security"` // the policy and mode in force: Basic256Sha256/SignAndEncrypt
	Server   time.Time    `json:"server_started"`
}

// ReadOnce connects, resolves the configured nodes and reads each once. It is
// what `source test` shows; Run must not be running.
func (s *Source) ReadOnce(ctx context.Context) (Found, error) {
	var out Found
	err := s.with(ctx, func(l *link, sess *session) error {
		p, err := sess.makePlan(ctx, s, nil)
		if err != nil {
			return err
		}
		for _, l := range p.lost {
			out.Missing = append(out.Missing, l.text+": "+l.why)
		}
		out.Server = sess.started
		out.Security = l.security
		var ask []*ua.ReadValueID
		var items []*item
		for _, it := range p.items {
			if it.event == nil {
				ask, items = append(ask, valueOf(it.node)), append(items, it)
			}
		}
		got, err := sess.read(ctx, ask)
		if err != nil {
			return fmt.Errorf("read values: %w", err)
		}
		now := time.Now()
		for i, it := range items {
			out.Records = append(out.Records, it.record(s.name, &s.cfg, got[i], now, new(attrArena)))
		}
		return nil
	})
	return out, err
}
