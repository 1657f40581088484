package zerobustest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	vendor "github.com/databricks/zerobus-sdk/purego/zerobus"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const readings = "main.iot.readings"

func start(t testing.TB, cfg Config) *Emulator {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	e, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *Emulator) clientTLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(e.CAPEM())
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// client is an HTTPS client of the token endpoint.
func client(t testing.TB, e *Emulator) *http.Client {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: e.clientTLS()}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// form is a good token request for table.
func form(table string) url.Values {
	c, s, _ := strings.Cut(table, ".")
	schema, _, _ := strings.Cut(s, ".")
	details := fmt.Sprintf(`[{"object_full_path":"%[1]s","object_type":"CATALOG","privileges":["USE CATALOG"],"type":"unity_catalog_privileges"},`+
		`{"object_full_path":"%[1]s.%[2]s","object_type":"SCHEMA","privileges":["USE SCHEMA"],"type":"unity_catalog_privileges"},`+
		`{"object_full_path":"%[3]s","object_type":"TABLE","operations":["zerobuswrite"],"privileges":["SELECT","MODIFY"],"type":"unity_catalog_privileges"}]`, c, schema, table)
	return url.Values{"grant_type": {"client_credentials"}, "scope": {"all-apis"}, "resource": {"api://databricks/workspaces/127/zerobusDirectWriteApi"}, "authorization_details": {details}}
}

// ask posts a token request.
func ask(t testing.TB, e *Emulator, f url.Values, change func(*http.Request)) (status int, token string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.Workspace()+"/oidc/v1/token", strings.NewReader(f.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("id", "secret")
	if change != nil {
		change(req)
	}
	resp, err := client(t, e).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, answer.Token
}

// The token endpoint takes exactly what the vendor's clients send.
func TestTokenIsStrict(t *testing.T) {
	e := start(t, Config{ClientID: "id", ClientSecret: "secret"})
	with := func(key, value string) url.Values { f := form(readings); f.Set(key, value); return f }
	older := form(readings)
	older.Set("authorization_details", strings.Replace(older.Get("authorization_details"), `"operations":["zerobuswrite"],`, "", 1))
	missing := form(readings)
	missing.Del("scope")
	twice := form(readings)
	twice.Add("scope", "all-apis")
	for name, tt := range map[string]struct {
		form   url.Values
		change func(*http.Request)
		want   int
	}{
		"good":               {form(readings), nil, 200},
		"without operations": {older, nil, 200},
		"no Basic":           {form(readings), func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		"wrong secret":       {form(readings), func(r *http.Request) { r.SetBasicAuth("id", "x") }, 401},
		"JSON":               {form(readings), func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }, 400},
		"missing field":      {missing, nil, 400},
		"field twice":        {twice, nil, 400},
		"further field":      {with("audience", "x"), nil, 400},
		"other grant":        {with("grant_type", "password"), nil, 400},
		"other workspace":    {with("resource", "api://databricks/workspaces/128/zerobusDirectWriteApi"), nil, 400},
		"other API":          {with("resource", "api://databricks/workspaces/127/sql"), nil, 400},
		"details no JSON":    {with("authorization_details", "x"), nil, 400},
		"details empty":      {with("authorization_details", "[]"), nil, 400},
		"fewer privileges":   {with("authorization_details", strings.Replace(form(readings).Get("authorization_details"), `"SELECT",`, "", 1)), nil, 400},
		"other schema":       {with("authorization_details", strings.Replace(form(readings).Get("authorization_details"), `"main.iot"`, `"main.other"`, 1)), nil, 400},
		"further keys":       {with("authorization_details", strings.Replace(form(readings).Get("authorization_details"), `[{`, `[{"x":1,`, 1)), nil, 400},
		"two-part table":     {form("main.iot"), nil, 400},
	} {
		t.Run(name, func(t *testing.T) {
			status, token := ask(t, e, tt.form, tt.change)
			if status != tt.want || (token != "") != (tt.want == 200) {
				t.Errorf("status %d, token %q", status, token)
			}
		})
	}
}

// rpc is a hand-made client: it can break every rule.
type rpc struct {
	t      *testing.T
	stream grpc.ClientStream
}

func dial(t *testing.T, e *Emulator, md metadata.MD) rpc {
	t.Helper()
	cc, err := grpc.NewClient(e.Addr(), grpc.WithTransportCredentials(credentials.NewTLS(e.clientTLS())), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(t.Context(), md), 30*time.Second)
	t.Cleanup(cancel)
	st, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/databricks.zerobus.Zerobus/EphemeralStream")
	if err != nil {
		t.Fatal(err)
	}
	return rpc{t, st}
}

// headers are those of a client that has a token for table.
func headers(t *testing.T, e *Emulator, table string) metadata.MD {
	t.Helper()
	_, token := ask(t, e, form(table), nil)
	return metadata.Pairs("authorization", "Bearer "+token, "x-databricks-zerobus-table-name", table)
}

func (r rpc) send(msg []byte) {
	if err := r.stream.SendMsg(&msg); err != nil && !errors.Is(err, io.EOF) { // the reason follows
		r.t.Fatal(err)
	}
}

// end reads until the RPC has ended and returns the acks and the status.
func (r rpc) end() (acks []uint64, err error) {
	for {
		var msg []byte
		if err := r.stream.RecvMsg(&msg); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return acks, err
		}
		_ = fields(msg, func(num protowire.Number, _ protowire.Type, _ uint64, inner []byte) error {
			return fields(inner, func(_ protowire.Number, _ protowire.Type, v uint64, _ []byte) error {
				if num == 2 {
					acks = append(acks, v)
				}
				return nil
			})
		})
	}
}

func createMessage(table string, descriptor []byte, recordType uint64) []byte {
	inner := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), table)
	if descriptor != nil {
		inner = protowire.AppendBytes(protowire.AppendTag(inner, 3, protowire.BytesType), descriptor)
	}
	inner = protowire.AppendVarint(protowire.AppendTag(inner, 4, protowire.VarintType), recordType)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), inner)
}

// recordMessage is an ingest_record: field 2 is protobuf, 3 JSON.
func recordMessage(offset int64, field protowire.Number, record []byte) []byte {
	inner := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(offset))
	inner = protowire.AppendBytes(protowire.AppendTag(inner, field, protowire.BytesType), record)
	return protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), inner)
}

func descriptor(t testing.TB, fields ...*descriptorpb.FieldDescriptorProto) []byte {
	t.Helper()
	b, err := proto.Marshal(&descriptorpb.DescriptorProto{Name: proto.String("Reading"), Field: fields})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func field(name string, number int32, typ descriptorpb.FieldDescriptorProto_Type, label descriptorpb.FieldDescriptorProto_Label) *descriptorpb.FieldDescriptorProto {
	return &descriptorpb.FieldDescriptorProto{Name: &name, Number: &number, Type: &typ, Label: &label}
}

const (
	optional = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
	required = descriptorpb.FieldDescriptorProto_LABEL_REQUIRED
	repeated = descriptorpb.FieldDescriptorProto_LABEL_REPEATED
	tString  = descriptorpb.FieldDescriptorProto_TYPE_STRING
	tInt64   = descriptorpb.FieldDescriptorProto_TYPE_INT64
)

// Each rule of the protocol, broken once.
func TestStreamIsStrict(t *testing.T) {
	e := start(t, Config{})
	desc := descriptor(t, field("record_id", 1, tString, optional), field("n", 2, tInt64, required))
	row := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 7)
	js := createMessage(readings, nil, typeJSON)
	other := headers(t, e, "main.iot.other")
	other.Set("x-databricks-zerobus-table-name", readings)
	for name, tt := range map[string]struct {
		md   metadata.MD
		msgs [][]byte
		want codes.Code
	}{
		"json":                    {nil, [][]byte{js, recordMessage(0, 3, []byte(`{}`))}, codes.OK},
		"proto":                   {nil, [][]byte{createMessage(readings, desc, typeProto), recordMessage(0, 2, row)}, codes.OK},
		"no token":                {metadata.Pairs("x-databricks-zerobus-table-name", readings), [][]byte{js}, codes.Unauthenticated},
		"unknown token":           {metadata.Pairs("authorization", "Bearer x", "x-databricks-zerobus-table-name", readings), [][]byte{js}, codes.Unauthenticated},
		"token of another table":  {other, [][]byte{js}, codes.PermissionDenied},
		"header of another table": {nil, [][]byte{createMessage("main.iot.other", nil, typeJSON)}, codes.InvalidArgument},
		"two-part table":          {nil, [][]byte{createMessage("main.iot", nil, typeJSON)}, codes.InvalidArgument},
		"no record type":          {nil, [][]byte{createMessage(readings, nil, 0)}, codes.InvalidArgument},
		"proto, no descriptor":    {nil, [][]byte{createMessage(readings, nil, typeProto)}, codes.InvalidArgument},
		"json with descriptor":    {nil, [][]byte{createMessage(readings, desc, typeJSON)}, codes.InvalidArgument},
		"bad descriptor":          {nil, [][]byte{createMessage(readings, []byte{0xff}, typeProto)}, codes.InvalidArgument},
		"nonsense descriptor":     {nil, [][]byte{createMessage(readings, descriptor(t, field("a", 0, tString, optional)), typeProto)}, codes.InvalidArgument},
		"records first":           {nil, [][]byte{recordMessage(0, 3, []byte(`{}`))}, codes.InvalidArgument},
		"create twice":            {nil, [][]byte{js, js}, codes.InvalidArgument},
		"offset begins at 1":      {nil, [][]byte{js, recordMessage(1, 3, []byte(`{}`))}, codes.InvalidArgument},
		"offset repeats":          {nil, [][]byte{js, recordMessage(0, 3, []byte(`{}`)), recordMessage(0, 3, []byte(`{}`))}, codes.InvalidArgument},
		"proto on a json stream":  {nil, [][]byte{js, recordMessage(0, 2, row)}, codes.InvalidArgument},
		"not an object":           {nil, [][]byte{js, recordMessage(0, 3, []byte(`[]`))}, codes.InvalidArgument},
		"not JSON":                {nil, [][]byte{js, recordMessage(0, 3, []byte(`{"a"}`))}, codes.InvalidArgument},
		"required field missing":  {nil, [][]byte{createMessage(readings, desc, typeProto), recordMessage(0, 2, nil)}, codes.InvalidArgument},
		"unknown field":           {nil, [][]byte{createMessage(readings, desc, typeProto), recordMessage(0, 2, protowire.AppendVarint(protowire.AppendTag(row, 9, protowire.VarintType), 1))}, codes.InvalidArgument},
		"not protobuf":            {nil, [][]byte{createMessage(readings, desc, typeProto), recordMessage(0, 2, []byte{0xff})}, codes.InvalidArgument},
		"garbage":                 {nil, [][]byte{js, {0xff, 0xff}}, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			md := tt.md
			if md == nil {
				md = headers(t, e, readings)
			}
			before := e.Stats().Tables[readings].Rows
			r := dial(t, e, md)
			for _, msg := range tt.msgs {
				r.send(msg)
			}
			if err := r.stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			acks, err := r.end()
			if status.Code(err) != tt.want {
				t.Fatalf("ended with %v", err)
			}
			rows := e.Stats().Tables[readings].Rows - before
			if tt.want == codes.OK && (len(acks) != 1 || rows != 1) || tt.want != codes.OK && rows > 1 {
				t.Errorf("acks %v, %d rows", acks, rows)
			}
		})
	}
}

// The rows in the file: columns by name, numbers exact, absent left out.
func TestRows(t *testing.T) {
	dir := t.TempDir()
	e := start(t, Config{Dir: dir})
	sdk, err := vendor.New(e.Endpoint(), e.Workspace(), vendor.WithTLSConfig(e.clientTLS()), vendor.WithHTTPClient(client(t, e)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sdk.Close() })
	nested := &descriptorpb.DescriptorProto{Name: proto.String("Point"), Field: []*descriptorpb.FieldDescriptorProto{field("x", 1, tInt64, optional)}}
	point := field("at", 6, descriptorpb.FieldDescriptorProto_TYPE_MESSAGE, optional)
	point.TypeName = proto.String("Point")
	desc, err := proto.Marshal(&descriptorpb.DescriptorProto{Name: proto.String("R"), NestedType: []*descriptorpb.DescriptorProto{nested}, Field: []*descriptorpb.FieldDescriptorProto{
		field("record_id", 1, tString, optional), field("n", 2, tInt64, optional), field("d", 3, descriptorpb.FieldDescriptorProto_TYPE_DOUBLE, optional),
		field("b", 4, descriptorpb.FieldDescriptorProto_TYPE_BYTES, optional), field("list", 5, tInt64, repeated), point, field("ok", 7, descriptorpb.FieldDescriptorProto_TYPE_BOOL, optional)}})
	if err != nil {
		t.Fatal(err)
	}
	st, err := sdk.CreateStream(t.Context(), readings, "id", "secret", vendor.WithProto(desc))
	if err != nil {
		t.Fatal(err)
	}
	row := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "k\n\"1\"")
	row = protowire.AppendVarint(protowire.AppendTag(row, 2, protowire.VarintType), 9007199254740993)
	row = protowire.AppendFixed64(protowire.AppendTag(row, 3, protowire.Fixed64Type), 0x7ff8000000000001)
	row = protowire.AppendBytes(protowire.AppendTag(row, 4, protowire.BytesType), []byte{0xff})
	row = protowire.AppendVarint(protowire.AppendTag(row, 5, protowire.VarintType), 1)
	row = protowire.AppendVarint(protowire.AppendTag(row, 5, protowire.VarintType), 2)
	row = protowire.AppendBytes(protowire.AppendTag(row, 6, protowire.BytesType), []byte{8, 3})
	row = protowire.AppendVarint(protowire.AppendTag(row, 7, protowire.VarintType), 0)
	if _, err := st.IngestRecordsOffset([][]byte{row, nil, row}); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	js, err := sdk.CreateStream(t.Context(), "main.iot.json", "id", "secret", vendor.WithJSON())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.IngestJSONOffset([]byte("{\n \"record_id\": \"k\", \"n\": 9007199254740993 }")); err != nil {
		t.Fatal(err)
	}
	if err := js.Close(); err != nil {
		t.Fatal(err)
	}
	line := `{"record_id":"k\n\"1\"","n":9007199254740993,"d":"NaN","b":"/w==","list":[1,2],"at":{"x":3},"ok":false}` + "\n"
	for name, want := range map[string]string{readings: line + "{}\n" + line, "main.iot.json": `{"record_id":"k","n":9007199254740993}` + "\n"} {
		got, err := os.ReadFile(filepath.Join(dir, name+".ndjson"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Error(diff)
		}
	}
	s := e.Stats()
	if s.Tables[readings] != (TableStats{Rows: 3, Duplicates: 1}) || len(s.Violations) > 0 || s.TokensIssued != 2 || s.Streams != 2 {
		t.Errorf("stats %+v", s)
	}
}

// A table that is there already keeps its rows, loses a partial one, and
// duplicates are counted across runs.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, readings+".ndjson")
	if err := os.WriteFile(path, []byte("{\"record_id\":\"a\"}\n{\"record_id\":\"b\"}\n{\"rec"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := start(t, Config{Dir: dir})
	r := dial(t, e, headers(t, e, readings))
	r.send(createMessage(readings, nil, typeJSON))
	r.send(recordMessage(0, 3, []byte(`{"record_id":"b"}`)))
	r.send(recordMessage(1, 3, []byte(`{"record_id":"c"}`)))
	if err := r.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if acks, err := r.end(); err != nil || acks[len(acks)-1] != 1 {
		t.Fatalf("acks %v, %v", acks, err)
	}
	if s := e.Stats().Tables[readings]; s != (TableStats{Rows: 4, Duplicates: 1}) {
		t.Errorf("%+v", s)
	}
	if got, _ := os.ReadFile(path); strings.Count(string(got), "\n") != 4 || strings.Contains(string(got), "{\"rec\n") {
		t.Errorf("table %q", got)
	}
}

// The knobs over HTTP, for tests in other processes.
func TestAdmin(t *testing.T) {
	e := start(t, Config{})
	c := client(t, e)
	do := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, e.Workspace()+"/_emulator"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if code, body := do("PUT", "/faults", `{"create":{"code":14,"count":1},"withhold_acks":true}`); code != 200 || !strings.Contains(body, `"withhold_acks":true`) {
		t.Errorf("PUT faults: %d %s", code, body)
	}
	r := dial(t, e, headers(t, e, readings))
	r.send(createMessage(readings, nil, typeJSON))
	if _, err := r.end(); status.Code(err) != codes.Unavailable {
		t.Errorf("create: %v", err)
	}
	if f := e.Faults(); f.Create.Count != 0 || !f.WithholdAcks {
		t.Errorf("faults %+v", f)
	}
	for _, tt := range []struct {
		method, path, body string
		want               int
	}{
		{"PUT", "/faults", `{"withold":true}`, 400}, {"POST", "/close-signal?duration=1s", "", 200}, {"POST", "/close-signal?duration=x", "", 400},
		{"POST", "/kill", "", 200}, {"POST", "/revoke-tokens", "", 200}, {"GET", "/stats", "", 200}, {"GET", "/faults", "", 200}, {"GET", "/nothing", "", 404},
	} {
		if code, body := do(tt.method, tt.path, tt.body); code != tt.want {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, code, body)
		}
	}
}

func TestStartErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e := start(t, Config{})
	for name, cfg := range map[string]Config{
		"no directory": {}, "directory is a file": {Dir: file}, "port taken": {Dir: t.TempDir(), Listen: e.Addr()}, "token port taken": {Dir: t.TempDir(), TokenListen: e.TokenAddr()},
	} {
		if e, err := Start(cfg); err == nil {
			t.Errorf("%s: started", name)
			_ = e.Close()
		}
	}
}

// FuzzFrame: the decoder of the wire never fails in another way than by an error,
// and what it accepts is consistent.
func FuzzFrame(f *testing.F) {
	f.Add(createMessage(readings, []byte{1, 2}, typeProto))
	f.Add(recordMessage(3, 2, []byte("abc")))
	batch := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte("x"))
	f.Add(protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), protowire.AppendBytes([]byte{8, 1, 0x12}, batch)))
	f.Add([]byte{0xff, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.Clone(data)
		fr, err := parseFrame(data)
		if !bytes.Equal(in, data) {
			t.Error("the decoder changed its input")
		}
		if err != nil {
			return
		}
		if (fr.create == nil) == (fr.ingest == nil) {
			t.Errorf("frame %+v", fr)
		}
		if fr.ingest != nil && len(fr.ingest.records) == 0 {
			t.Error("ingest without records")
		}
	})
}

// FuzzRow: whatever a client sends as a row becomes one line of JSON or an error.
func FuzzRow(f *testing.F) {
	f.Add([]byte{0x0a, 1, 'k', 0x10, 7}, false)
	f.Add([]byte(`{"record_id":"k", "n": [1, {"a": null}]}`), true)
	f.Add([]byte(`{"record_id":`), true)
	desc := descriptor(f, field("record_id", 1, tString, optional), field("n", 2, tInt64, optional), field("d", 3, descriptorpb.FieldDescriptorProto_TYPE_DOUBLE, repeated))
	f.Fuzz(func(t *testing.T, record []byte, js bool) {
		d := &decoder{key: "record_id"}
		if !js {
			var err error
			if d, err = newDecoder(desc, "record_id"); err != nil {
				t.Fatal(err)
			}
		}
		line, _, err := d.row([]byte("before\n"), record)
		if err != nil {
			return
		}
		rest, ok := bytes.CutPrefix(line, []byte("before\n"))
		if !ok || !json.Valid(rest) || bytes.IndexByte(rest, '\n') != len(rest)-1 {
			t.Errorf("line %q", line)
		}
	})
}
