package opcua

import (
	"context"
	"sync"

	"github.com/gopcua/opcua/ua"
)

// enumNames are the names of an enumeration's values.
type enumNames map[int64]string

// dataType is what is known of one data type of the server.
type dataType struct {
	builtin uint32     // 1..29: how it is encoded
	def     *structDef // of a structure
	enum    enumNames  // of an enumeration
}

// typeSystem holds the data types of one server, as its DataTypeDefinition
// attributes describe them (Part 3, 5.8.3). The engine's goroutine owns it.
type typeSystem struct {
	byType     map[string]*dataType // by node id of the data type
	byEncoding map[string]*structDef
	parent     map[string]*ua.NodeID
	scanned    bool
	// missing are encodings that came without a definition: they are looked for
	// once.
	missing map[string]*ua.NodeID
}

func newTypeSystem() *typeSystem {
	ts := &typeSystem{byType: map[string]*dataType{}, byEncoding: map[string]*structDef{}, parent: map[string]*ua.NodeID{}, missing: map[string]*ua.NodeID{}}
	for id := uint32(1); id <= 29; id++ {
		ts.byType[ns0(id).String()] = &dataType{builtin: id}
	}
	return ts
}

// wanted notes an encoding whose definition is not known.
func (ts *typeSystem) wanted(encoding *ua.NodeID) {
	key := nodeText(encoding)
	if _, seen := ts.missing[key]; !seen && len(ts.missing) < 10_000 {
		ts.missing[key] = encoding
		keepBytes(encoding)
	}
}

// lookup returns the type with this id, nil when it is not known yet.
func (ts *typeSystem) lookup(id *ua.NodeID) *dataType {
	if id == nil {
		return nil
	}
	return ts.byType[nodeText(id)]
}

// learn reads the definitions of types and of all that they are made of. A type
// that the server does not describe stays unknown; only a lost connection is an
// error.
func (ts *typeSystem) learn(ctx context.Context, s *session, types []*ua.NodeID) error {
	for len(types) > 0 {
		var fresh []*ua.NodeID
		seen := map[string]bool{}
		for _, id := range types {
			key := nodeText(id)
			if ts.byType[key] == nil && !seen[key] {
				fresh, seen[key] = append(fresh, id), true
			}
		}
		if len(fresh) == 0 {
			return nil
		}
		bases, err := ts.bases(ctx, s, fresh)
		if err != nil {
			return err
		}
		if types, err = ts.define(ctx, s, fresh, bases); err != nil {
			return err
		}
	}
	return nil
}

// bases returns the built-in type below which each type is.
func (ts *typeSystem) bases(ctx context.Context, s *session, types []*ua.NodeID) ([]uint32, error) {
	up := types
	for range maxDepth {
		var ask []*ua.NodeID
		for _, id := range up {
			if _, known := ts.parent[nodeText(id)]; !known && ts.lookup(id) == nil {
				ask = append(ask, id)
			}
		}
		if len(ask) == 0 {
			break
		}
		refs, _, err := s.browse(ctx, ask, ua.BrowseDirectionInverse, idHasSubtype, 0)
		if err != nil {
			return nil, err
		}
		up = nil
		for i, id := range ask {
			ts.parent[nodeText(id)] = nil
			for _, r := range refs[i] {
				if p, ok := expanded(r.NodeID, s.ns); ok {
					ts.parent[nodeText(id)] = p
					up = append(up, p)
				}
			}
		}
	}
	out := make([]uint32, len(types))
	for i, id := range types {
		for n, p := 0, id; p != nil && n < maxDepth; n, p = n+1, ts.parent[nodeText(p)] {
			if t := ts.lookup(p); t != nil {
				out[i] = t.builtin
				break
			}
		}
	}
	return out, nil
}

// define fills in the types and returns the types of their fields.
func (ts *typeSystem) define(ctx context.Context, s *session, types []*ua.NodeID, bases []uint32) (fields []*ua.NodeID, err error) {
	var ask []*ua.ReadValueID
	var at []int
	for i, id := range types {
		ts.byType[nodeText(id)] = &dataType{builtin: bases[i]}
		if bases[i] == 22 || bases[i] == 29 {
			ask, at = append(ask, attrOf(id, ua.AttributeIDDataTypeDefinition), attrOf(id, ua.AttributeIDBrowseName)), append(at, i)
		}
	}
	got, err := s.read(ctx, ask)
	if err != nil {
		return nil, err
	}
	var legacyEnums, legacyStructs []*ua.NodeID
	for k, i := range at {
		id, t := types[i], ts.byType[nodeText(types[i])]
		eo, _ := got[2*k].Value.Value().(*ua.ExtensionObject)
		name, _ := got[2*k+1].Value.Value().(*ua.QualifiedName)
		var body any
		if eo != nil {
			body = eo.Value
		}
		switch def := body.(type) {
		case *ua.StructureDefinition:
			t.def = ts.layout(def, name, &fields)
			if def.DefaultEncodingID == nil || nodeText(def.DefaultEncodingID) == "i=0" {
				legacyStructs = append(legacyStructs, id)
				continue
			}
			ts.encoding(def.DefaultEncodingID, t.def)
		case *ua.EnumDefinition:
			t.enum = enumNames{}
			for _, f := range def.Fields {
				t.enum[f.Value] = validUTF8(f.Name)
			}
		default:
			if t.builtin == 29 {
				legacyEnums = append(legacyEnums, id)
			} else {
				legacyStructs = append(legacyStructs, id)
			}
		}
	}
	if err := ts.legacyEnums(ctx, s, legacyEnums); err != nil {
		return nil, err
	}
	return fields, ts.encodings(ctx, s, legacyStructs)
}

// layout makes our definition of the server's; the field types are shared
// pointers that learn fills in later.
func (ts *typeSystem) layout(def *ua.StructureDefinition, name *ua.QualifiedName, more *[]*ua.NodeID) *structDef {
	out := &structDef{kind: int(def.StructureType)}
	if name != nil {
		out.name = validUTF8(name.Name)
	}
	for _, f := range def.Fields {
		*more = append(*more, f.DataType)
		out.fields = append(out.fields, fieldDef{name: validUTF8(f.Name), typ: &dataType{}, rank: f.ValueRank, optional: f.IsOptional})
		out.fields[len(out.fields)-1].typ = ts.later(f.DataType)
	}
	return out
}

// later returns the type with this id as a pointer that learn completes.
func (ts *typeSystem) later(id *ua.NodeID) *dataType {
	key := "later:" + nodeText(id)
	if t := ts.lookup(id); t != nil {
		return t
	}
	if t := ts.byType[key]; t != nil {
		return t
	}
	t := &dataType{}
	ts.byType[key] = t
	return t
}

func (ts *typeSystem) encoding(id *ua.NodeID, def *structDef) {
	key := nodeText(id)
	if def != nil {
		ts.byEncoding[key] = def
	}
	delete(ts.missing, key)
	keepBytes(id)
}

// legacyEnums reads EnumStrings and EnumValues of servers before 1.04.
func (ts *typeSystem) legacyEnums(ctx context.Context, s *session, types []*ua.NodeID) error {
	refs, _, err := s.browse(ctx, types, ua.BrowseDirectionForward, idHasProperty, 0)
	if err != nil {
		return err
	}
	var ask []*ua.ReadValueID
	var owner []*dataType
	for i := range types {
		for _, r := range refs[i] {
			id, ok := expanded(r.NodeID, s.ns)
			if ok && r.BrowseName != nil && (r.BrowseName.Name == "EnumStrings" || r.BrowseName.Name == "EnumValues") {
				ask, owner = append(ask, valueOf(id)), append(owner, ts.lookup(types[i]))
			}
		}
	}
	got, err := s.read(ctx, ask)
	if err != nil {
		return err
	}
	for i, v := range got {
		names := enumNames{}
		switch x := v.Value.Value().(type) {
		case []*ua.LocalizedText:
			for n, t := range x {
				names[int64(n)] = validUTF8(t.Text)
			}
		case []*ua.ExtensionObject:
			for _, eo := range x {
				if e, ok := eo.Value.(*ua.EnumValueType); ok && e.DisplayName != nil {
					names[e.Value] = validUTF8(e.DisplayName.Text)
				}
			}
		}
		if len(names) > 0 {
			owner[i].enum = names
		}
	}
	return nil
}

// encodings finds the encodings of structures whose definition does not name
// them, so that at least their bytes are kept.
func (ts *typeSystem) encodings(ctx context.Context, s *session, types []*ua.NodeID) error {
	refs, _, err := s.browse(ctx, types, ua.BrowseDirectionForward, idHasEncoding, 0)
	if err != nil {
		return err
	}
	for i := range types {
		for _, r := range refs[i] {
			if id, ok := expanded(r.NodeID, s.ns); ok && r.BrowseName != nil && r.BrowseName.Name == "Default Binary" {
				ts.encoding(id, ts.lookup(types[i]).def)
			}
		}
	}
	return nil
}

// scan learns every structure of the server beyond the standard ones. It is
// needed once a variable may hold any structure.
func (ts *typeSystem) scan(ctx context.Context, s *session) error {
	if ts.scanned {
		return nil
	}
	ts.scanned = true
	level, seen := []*ua.NodeID{ns0(22)}, map[string]bool{}
	var custom []*ua.NodeID
	for depth := 0; len(level) > 0 && depth < maxDepth; depth++ {
		refs, _, err := s.browse(ctx, level, ua.BrowseDirectionForward, idHasSubtype, 0)
		if err != nil {
			return err
		}
		level = nil
		for _, list := range refs {
			for _, r := range list {
				id, ok := expanded(r.NodeID, s.ns)
				if !ok || seen[nodeText(id)] {
					continue
				}
				seen[nodeText(id)] = true
				level = append(level, id)
				if id.Namespace() != 0 {
					custom = append(custom, id)
				}
			}
		}
	}
	return ts.learn(ctx, s, custom)
}

// settle connects the field types that were not known when their structure was
// read.
func (ts *typeSystem) settle() {
	for key, t := range ts.byType {
		if len(key) > 6 && key[:6] == "later:" {
			if known := ts.byType[key[6:]]; known != nil {
				*t = *known
			}
		}
	}
}

// forced by the library: its table of structures is one for the whole process,
// and it throws away the bytes of those that are not in it. We enter only our
// rawBody there, which holds nothing of any server; the layouts stay in each
// session's typeSystem.
var registerMu sync.Mutex

// keepBytes makes the library keep the bytes of structures with this encoding.
// One that the library has a Go type for is left as it is.
func keepBytes(encoding *ua.NodeID) {
	registerMu.Lock()
	defer registerMu.Unlock()
	// The library panics for ids that are taken by another type.
	defer func() { _ = recover() }()
	ua.RegisterExtensionObject(encoding, new(rawBody))
}
