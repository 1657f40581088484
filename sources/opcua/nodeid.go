package opcua

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/gopcua/opcua/ua"
)

// nodeRef is a node id as configured: its namespace is an index or a URI that
// is looked up in the namespace array of the server at every connect.
type nodeRef struct {
	uri  string // when not empty, ns is unknown until resolved
	ns   uint16
	kind byte // i, s, g, b
	id   string
}

// parseNodeRef reads "i=85", "ns=2;s=Temperature", "nsu=urn:x;g=…" or
// "svr=…"-free forms of Part 6, 5.3.1.10.
func parseNodeRef(s string) (nodeRef, error) {
	var r nodeRef
	rest := s
	if uri, ok := strings.CutPrefix(rest, "nsu="); ok {
		// A namespace URI may hold a semicolon: look for the identifier's kind.
		at := -1
		for _, k := range []string{";i=", ";s=", ";g=", ";b="} {
			if i := strings.Index(uri, k); i >= 0 && (at < 0 || i < at) {
				at = i
			}
		}
		if at <= 0 {
			return r, fmt.Errorf("node id %q: after nsu=<uri> comes ;i=, ;s=, ;g= or ;b=", s)
		}
		r.uri, rest = uri[:at], uri[at+1:]
	} else if ns, ok := strings.CutPrefix(rest, "ns="); ok {
		num, id, found := strings.Cut(ns, ";")
		n, err := strconv.ParseUint(num, 10, 16)
		if err != nil || !found {
			return r, fmt.Errorf("node id %q: write ns=<0..65535>;i=, s=, g= or b=", s)
		}
		r.ns, rest = uint16(n), id
	}
	if len(rest) < 2 || rest[1] != '=' {
		return r, fmt.Errorf("node id %q: the identifier is i=<number>, s=<text>, g=<guid> or b=<base64>", s)
	}
	r.kind, r.id = rest[0], rest[2:]
	if _, err := r.nodeID(0); err != nil {
		return r, fmt.Errorf("node id %q: %w", s, err)
	}
	return r, nil
}

// resolve returns the node id in the namespace array of one server.
func (r nodeRef) resolve(namespaces []string) (*ua.NodeID, error) {
	if r.uri == "" {
		return r.nodeID(r.ns)
	}
	for i, uri := range namespaces {
		if uri == r.uri {
			return r.nodeID(uint16(i))
		}
	}
	return nil, fmt.Errorf("namespace %q is not known to the server", r.uri)
}

func (r nodeRef) nodeID(ns uint16) (*ua.NodeID, error) {
	switch r.kind {
	case 'i':
		n, err := strconv.ParseUint(r.id, 10, 32)
		if err != nil {
			return nil, errors.New("i= takes a number up to 4294967295")
		}
		return numericID(ns, uint32(n)), nil
	case 's':
		if r.id == "" {
			return nil, errors.New("s= takes a text that is not empty")
		}
		return ua.NewStringNodeID(ns, r.id), nil
	case 'g':
		if g := ua.NewGUID(r.id); g == nil {
			return nil, errors.New("g= takes a GUID such as 72962B91-FA75-4AE6-8D28-B404DC7DAF63")
		}
		return ua.NewGUIDNodeID(ns, r.id), nil
	case 'b':
		b, err := base64.StdEncoding.DecodeString(r.id)
		if err != nil || len(b) == 0 {
			return nil, errors.New("b= takes base64")
		}
		return ua.NewByteStringNodeID(ns, b), nil
	default:
		return nil, fmt.Errorf("unknown kind %q; use i, s, g or b", string(r.kind))
	}
}

// numericID is the smallest encoding of a numeric node id, which is what
// servers send and what our maps are keyed by.
func numericID(ns uint16, id uint32) *ua.NodeID {
	switch {
	case ns == 0 && id < 256:
		return ua.NewTwoByteNodeID(byte(id))
	case ns < 256 && id < 65536:
		return ua.NewFourByteNodeID(byte(ns), uint16(id))
	default:
		return ua.NewNumericNodeID(ns, id)
	}
}

// ns0 is a node id of the standard namespace.
func ns0(id uint32) *ua.NodeID { return numericID(0, id) }

// expanded turns an ExpandedNodeID of this server into a NodeID; ok is false
// when the node is on another server or in a namespace that this one lacks.
func expanded(e *ua.ExpandedNodeID, namespaces []string) (id *ua.NodeID, ok bool) {
	if e == nil || e.NodeID == nil || e.ServerIndex != 0 {
		return nil, false
	}
	id = ua.NewNodeIDFromExpandedNodeID(e)
	if e.NamespaceURI == "" {
		return id, true
	}
	for i, uri := range namespaces {
		if uri == e.NamespaceURI {
			return id, id.SetNamespace(uint16(i)) == nil
		}
	}
	return nil, false
}

// nameRef is one element of a browse path: a qualified name whose namespace is
// an index or a URI (nsu=<uri>:Name is not common, so indexes only).
type nameRef struct {
	ns   uint16
	name string
}

func (n nameRef) String() string { return qualified(n.ns, n.name) }

// qualified writes a browse name as in a browse path; reserved characters are
// escaped with & (Part 4, Annex A.2).
func qualified(ns uint16, name string) string {
	return strconv.Itoa(int(ns)) + ":" + pathEscaper.Replace(name)
}

var pathEscaper = strings.NewReplacer("&", "&&", "/", "&/", ":", "&:")

// parseBrowsePath reads "0:Root/0:Objects/2:ProcessArea". The namespace may be
// left out (0). A leading Root is the root folder itself, and a path without it
// starts at Objects.
func parseBrowsePath(s string) ([]nameRef, error) {
	var out []nameRef
	cur := nameRef{}
	var b strings.Builder
	sawNS := false
	flush := func() error {
		cur.name = b.String()
		if cur.name == "" {
			return fmt.Errorf("browse path %q: empty name", s)
		}
		out = append(out, cur)
		cur, sawNS = nameRef{}, false
		b.Reset()
		return nil
	}
	text := strings.TrimPrefix(s, "/")
	for i := 0; i < len(text); i++ {
		switch ch := text[i]; {
		case ch == '&' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		case ch == '&':
			return nil, fmt.Errorf("browse path %q: & at the end; write && for one", s)
		case ch == '/':
			if err := flush(); err != nil {
				return nil, err
			}
		case ch == ':' && !sawNS:
			n, err := strconv.ParseUint(b.String(), 10, 16)
			if err != nil {
				return nil, fmt.Errorf("browse path %q: %q before the colon is not a namespace index; write &: for a colon in a name", s, b.String())
			}
			cur.ns, sawNS = uint16(n), true
			b.Reset()
		default:
			b.WriteByte(ch)
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return out, nil
}
