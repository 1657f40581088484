//go:build conformance

package zerobustest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	vendor "github.com/databricks/zerobus-sdk/purego/zerobus"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/descriptorpb"
)

// peers is where conformance/install-zerobus.sh puts the other clients.
const peers = "../../../.cache/zerobus"

// peer sends records 0 to total-1 to e in batches and returns when they are
// durable.
type peer func(t *testing.T, e *Emulator, format string, total, batch int)

// TestSmokeClients: each of the vendor's clients delivers to the emulator, and
// the emulator finds nothing wrong with any of them.
func TestSmokeClients(t *testing.T) { clients(t, 2_000, 100) }

// TestClients is the same with 100,000 records.
func TestClients(t *testing.T) { clients(t, 100_000, 500) }

func clients(t *testing.T, total, batch int) {
	for name, deliver := range map[string]peer{"go": goPeer, "npm": npmPeer, "pypi": pypiPeer} {
		for _, format := range []string{"json", "proto"} {
			t.Run(name+"/"+format, func(t *testing.T) {
				dir := t.TempDir()
				e := start(t, Config{Dir: dir, ClientID: "client", ClientSecret: "secret"})
				began := time.Now()
				deliver(t, e, format, total, batch)
				t.Logf("%d records in %v", total, time.Since(began).Round(time.Millisecond))
				checkRows(t, filepath.Join(dir, readings+".ndjson"), total)
				s := e.Stats()
				if s.Messages != uint64((total+batch-1)/batch) || len(s.Violations) > 0 || s.OpenStreams != 0 || s.Tables[readings] != (TableStats{Rows: int64(total)}) {
					t.Errorf("stats %+v", s)
				}
			})
		}
	}
}

// TestSmokeSingles: records one by one, without batches.
func TestSmokeSingles(t *testing.T) {
	for name, deliver := range map[string]peer{"go": goPeer, "npm": npmPeer} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			e := start(t, Config{Dir: dir})
			deliver(t, e, "json", 1_000, 1)
			checkRows(t, filepath.Join(dir, readings+".ndjson"), 1_000)
			if s := e.Stats(); s.Messages != 1_000 || len(s.Violations) > 0 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// TestSmokePeerRecovers: the official clients recover as they do from the real
// service, so the emulator's faults are like its faults.
func TestSmokePeerRecovers(t *testing.T) {
	for name, f := range map[string]Faults{
		"create unavailable":  {Create: CodeFault{Code: 14, Count: 1}},
		"stream unavailable":  {Stream: CodeFault{Code: 14, Count: 1, After: 5}},
		"token 500":           {Token: TokenFault{Status: 500, Count: 1}},
		"unauthenticated":     {Create: CodeFault{Code: 16, Count: 1}},
		"planned close early": {RotateAfterMS: 30, RotateNoticeMS: 2000},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			e := start(t, Config{Dir: dir})
			e.SetFaults(f)
			npmPeer(t, e, "json", 2_000, 100)
			if s := e.Stats(); s.Tables[readings].Rows-s.Tables[readings].Duplicates != 2_000 || len(s.Violations) > 0 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

func readingDescriptor(t *testing.T) []byte {
	return descriptor(t, field("record_id", 1, tString, optional), field("device", 2, tString, optional),
		field("n", 3, tInt64, optional), field("temperature", 4, descriptorpb.FieldDescriptorProto_TYPE_DOUBLE, optional))
}

// checkRows wants each row once, exactly as it was sent. The order is not looked
// at: the npm client keeps it only for calls that are awaited one by one.
func checkRows(t *testing.T, path string, total int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := make([]bool, total)
	n := 0
	for line := range strings.Lines(string(data)) {
		var row struct{ N int }
		if err := json.Unmarshal([]byte(line), &row); err != nil || row.N < 0 || row.N >= total || seen[row.N] {
			t.Fatalf("unexpected row %q: %v", line, err)
		}
		seen[row.N] = true
		if want := jsonReading(row.N); strings.ReplaceAll(line, ".0}", "}") != want+"\n" {
			t.Fatalf("row %d is %q, want %q", n, line, want)
		}
		n++
	}
	if n != total {
		t.Errorf("%d rows of %d", n, total)
	}
}

func jsonReading(i int) string {
	return fmt.Sprintf(`{"record_id":"%d","device":"press-%d","n":%d,"temperature":%s}`, i, i%7, i, strconv.FormatFloat(float64(i)/4, 'g', -1, 64))
}

func protoReading(i int) []byte {
	b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), strconv.Itoa(i))
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), fmt.Sprint("press-", i%7))
	b = protowire.AppendVarint(protowire.AppendTag(b, 3, protowire.VarintType), uint64(i))
	return protowire.AppendFixed64(protowire.AppendTag(b, 4, protowire.Fixed64Type), math.Float64bits(float64(i)/4))
}

func goPeer(t *testing.T, e *Emulator, format string, total, batch int) {
	sdk, err := vendor.New(e.Endpoint(), e.Workspace(), vendor.WithTLSConfig(e.clientTLS()), vendor.WithHTTPClient(client(t, e)))
	if err != nil {
		t.Fatal(err)
	}
	defer sdk.Close()
	option := vendor.WithJSON()
	if format == "proto" {
		option = vendor.WithProto(readingDescriptor(t))
	}
	st, err := sdk.CreateStream(t.Context(), readings, "client", "secret", option)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < total; {
		var rows [][]byte
		for ; i < total && len(rows) < batch; i++ {
			if format == "proto" {
				rows = append(rows, protoReading(i))
			} else {
				rows = append(rows, []byte(jsonReading(i)))
			}
		}
		if len(rows) == 1 {
			_, err = st.IngestRecordOffset(rows[0])
		} else {
			_, err = st.IngestRecordsOffset(rows)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
}

func npmPeer(t *testing.T, e *Emulator, format string, total, batch int) {
	runPeer(t, e, format, total, batch, "node", "client.js", "NODE_PATH="+abs(t, peers+"/node_modules"))
}

func pypiPeer(t *testing.T, e *Emulator, format string, total, batch int) {
	runPeer(t, e, format, total, batch, abs(t, peers+"/venv/bin/python"), "client.py", "")
}

// runPeer runs one of conformance/zerobus/client.*, which trusts the emulator's
// authority by SSL_CERT_FILE.
func runPeer(t *testing.T, e *Emulator, format string, total, batch int, program, script, env string) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, e.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, abs(t, "../../../conformance/zerobus/"+script), e.Endpoint(), e.Workspace(), readings, format,
		strconv.Itoa(total), strconv.Itoa(batch), base64.StdEncoding.EncodeToString(readingDescriptor(t)))
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+ca, "NO_PROXY=127.0.0.1", env)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v (is conformance/install-zerobus.sh done?)\n%s", script, err, out)
	}
}

func abs(t *testing.T, path string) string {
	t.Helper()
	a, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
