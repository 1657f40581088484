package modbus

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/sources"
)

func read(t testing.TB, text string) Config {
	t.Helper()
	var c Config
	if err := yaml.NewDecoder(bytes.NewReader([]byte(text)), yaml.DisallowUnknownField()).Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

// seed is the block of the user's own document.
const seed = `
slave_id: 1
poll_interval_seconds: 1
registers:
  - address: 40001
    count: 10
    register_type: "holding"
    data_type: "float32"
`

func TestSmokeSeedExpandsToFiveFloats(t *testing.T) {
	points, err := Expand(read(t, seed))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range points {
		if p.DataType != TypeFloat32 || p.Interval != time.Second || p.Slave != 1 {
			t.Errorf("got %+v", p)
		}
		got = append(got, p.Address)
	}
	want := []string{"1:40001", "1:40003", "1:40005", "1:40007", "1:40009"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestExpand(t *testing.T) {
	points, err := Expand(read(t, `
slave_id: 3
byte_order: word_swap
poll_interval_ms: 250
registers:
  - {address: 00017, count: 2, register_type: coil, name: valve}  # leading zeros are decimal
  - {address: 40001, register_type: holding, data_type: bit, bit: 3}
  - {address: 40001, register_type: holding, data_type: uint8_high, slave_id: 0}
  - {address: 30005, values: 2, register_type: input, data_type: int64, byte_order: ABCD, scale: 0.1, offset: -40, unit: C, poll_interval_ms: 5000}
  - {address: "40100", count: 4, register_type: holding, data_type: string}
  - {address: 40110, count: 4, length: 4, register_type: holding, data_type: string}
addressing: modicon
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range points {
		got = append(got, strings.Join([]string{p.Address, string(p.DataType), string(p.ByteOrder), p.Name, p.Interval.String()}, " "))
	}
	want := []string{
		"3:00017 bool CDAB valve[0] 250ms", "3:00018 bool CDAB valve[1] 250ms",
		"3:40001.3 bit CDAB  250ms", "0:40001.high uint8_high CDAB  250ms",
		"3:30005 int64 ABCD  5s", "3:30009 int64 ABCD  5s",
		"3:40100 string CDAB  250ms", "3:40110 string CDAB  250ms", "3:40112 string CDAB  250ms",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if points[0].Offset != 16 || points[5].Offset != 8 || points[6].Length != 8 || points[5].Scale != 0.1 {
		t.Errorf("got %+v", points)
	}
}

func TestConfigErrors(t *testing.T) {
	const reg = "registers: [{address: 40001, register_type: holding}]\n"
	for _, c := range []struct{ text, path, hint string }{
		{"slave_id: 1", "registers", "is empty"},
		{reg + "slave_id: 256", "slave_id", "between 0 and 255"},
		{reg + "poll_interval_seconds: -1", "poll_interval_seconds", "between 0.001"},
		{reg + "poll_interval_seconds: 0.0001", "poll_interval_seconds", "between 0.001"},
		{reg + "poll_interval_ms: -5", "poll_interval_ms", "below 1"},
		{reg + "poll_interval_ms: 5\npoll_interval_seconds: 1", "poll_interval_ms", "keep one"},
		{reg + "timeout_ms: -1", "timeout_ms", "between"},
		{reg + "retries: 11", "retries", "between"},
		{reg + "addressing: modbus", "addressing", "auto, modicon, zero_based, one_based"},
		{reg + "byte_order: XY", "byte_order", "not a byte order"},
		{reg + "max_gap: -1", "max_gap", "between 0 and 125"},
		{reg + "max_registers_per_request: 126", "max_registers_per_request", "between 1 and 125"},
		{reg + "report: never", "report", "always, on_change"},
		{reg + "deadband: -1", "deadband", "from 0 on"},
		{reg + "heartbeat_seconds: -1", "heartbeat_seconds", "between"},
		{reg + "unit_breaker: {failures: -1}", "unit_breaker.failures", "between"},
		{"registers: [{address: 40001, count: 4, register_type: holding}, {address: 40003, register_type: holding, data_type: float32}]", "registers[1].address", "1:40003 is read by registers[0] already"},
		{"registers: [{address: 40001, register_type: holding, name: a}, {address: 40001, register_type: holding, name: a, poll_interval_ms: 5}]", "registers[1].address", "different names"},
		{reg + "serial: {data_bits: 7}", "serial.data_bits", "RTU frames"},
		{reg + "serial: {parity: X}", "serial.parity", "N, E, O"},
		{reg + "serial: {stop_bits: 3}", "serial.stop_bits", "between 1 and 2"},
		{reg + "tls: {enabled: true, min_version: '1.0'}", "tls.min_version", "TLS version"},
		{"registers: [{address: 40001, register_type: input}]", "registers[0].address", "register_type holding"},
		{"registers: [{address: 40001}]", "registers[0].register_type", "holding, input, coil, discrete"},
		{"registers: [{register_type: holding}]", "registers[0].address", "is missing"},
		{"registers: [{address: 40001, register_type: holding, data_type: float}]", "registers[0].data_type", "float32"},
		{"registers: [{address: 40001, register_type: holding, data_type: float32, count: 3}]", "registers[0].count", "multiple of 2"},
		{"registers: [{address: 40001, register_type: holding, count: 2, values: 2}]", "registers[0].values", "keep one"},
		{"registers: [{address: 40001, register_type: holding, count: -2}]", "registers[0].count", "between"},
		{"registers: [{address: 465536, register_type: holding, data_type: uint32}]", "registers[0].count", "beyond the last register"},
		{"registers: [{address: 49999, register_type: holding, data_type: uint32}]", "registers[0].count", "six digits"},
		{"registers: [{address: 1, register_type: coil, data_type: uint16}]", "registers[0].data_type", "single bits"},
		{"registers: [{address: 40001, register_type: holding, bit: 3}]", "registers[0].bit", "data_type bit only"},
		{"registers: [{address: 40001, register_type: holding, data_type: bit, bit: 16}]", "registers[0].bit", "between 0 and 15"},
		{"registers: [{address: 40001, register_type: holding, length: 3}]", "registers[0].length", "data_type string only"},
		{"registers: [{address: 40001, register_type: holding, data_type: string}]", "registers[0].length", "between 1 and 250"},
		{"registers: [{address: 40001, register_type: holding, data_type: bool, scale: 2}]", "registers[0].scale", "for numbers"},
		{"registers: [{address: 40001, register_type: holding, scale: 0}]", "registers[0].scale", "makes no number"},
		{"registers: [{address: 40001, register_type: holding, scale_factor: 0}]", "registers[0].scale_factor", "every scaled_value 0"},
		{"registers: [{address: 40001, register_type: holding, tags: {slave_id: x}}]", "registers[0].tags.slave_id", "set by the protocol"},
		{"addressing: zero_based\nregisters: [" + everyTable("count: 65000") + "]", "registers", "more than 200000 values"},
		{"max_registers_per_request: 2\nregisters: [{address: 40001, register_type: holding, data_type: float64}]", "registers[0].data_type", "max_registers_per_request (2)"},
	} {
		errs := read(t, c.text).Validate()
		if len(errs) != 1 || errs[0].Path != c.path || !strings.Contains(errs[0].Msg, c.hint) {
			t.Errorf("%s\n  got %v, want one error at %s with %q", c.text, errs, c.path, c.hint)
		}
		if _, err := Plan(read(t, c.text)); err == nil {
			t.Errorf("%s\n  was planned", c.text)
		}
	}
}

// everyTable is an entry of registers for each table.
func everyTable(keys string) string {
	var entries []string
	for _, table := range registerTypes {
		entries = append(entries, fmt.Sprintf("{address: 0, register_type: %s, %s}", table, keys))
	}
	return strings.Join(entries, ", ")
}

// TestOneRegisterReadInTwoWays is no contradiction when the two have names, or
// addresses of their own.
func TestOneRegisterReadInTwoWays(t *testing.T) {
	for _, text := range []string{
		"registers: [{address: 40001, register_type: holding, name: raw}, {address: 40001, register_type: holding, data_type: float32, name: level}]",
		"registers: [{address: 40001, register_type: holding}, {address: 40001, register_type: holding, data_type: bit}, {address: 40001, register_type: holding, data_type: bit, bit: 3}]",
		"registers: [{address: 40001, register_type: holding}, {address: 40001, register_type: holding, slave_id: 2}, {address: 30001, register_type: input}]",
		"registers: [{address: 40001, count: 4, register_type: holding, data_type: uint32}, {address: 40002, register_type: holding}]",
	} {
		if errs := read(t, text).Validate(); len(errs) != 0 {
			t.Errorf("%s: %v", text, errs)
		}
	}
}

func TestEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"modbus+tcp://10.0.0.1":            "tcp://10.0.0.1:502",
		"modbus+tcp://10.0.0.1:1502":       "tcp://10.0.0.1:1502",
		"modbus://plc":                     "tcp://plc:502",
		"MODBUS+TLS://plc":                 "tcp+tls://plc:802",
		"modbus+udp://plc":                 "udp://plc:502",
		"modbus+rtutcp://gw:4001":          "rtuovertcp://gw:4001",
		"modbus+rtuovertcp://gw":           "rtuovertcp://gw:502",
		"modbus+tcp://[fe80::1]:502":       "tcp://[fe80::1]:502",
		"modbus+rtu:///dev/ttyUSB0":        "rtu:///dev/ttyUSB0",
		"modbusrtu:///dev/serial/by-id/x":  "rtu:///dev/serial/by-id/x",
		"modbus+tcp://10.0.0.1:502/":       "tcp://10.0.0.1:502",
		"modbus+rtu://dev/ttyUSB0":         "",
		"modbus+rtu://":                    "",
		"modbus+tcp://":                    "",
		"modbus+tcp://10.0.0.1:99999":      "",
		"modbus+tcp://10.0.0.1:0":          "",
		"modbus+tcp://10.0.0.1:502/unit/3": "",
		"modbus+tcp://10.0.0.1:502?unit=3": "",
		"modbus+tcp://u:p@10.0.0.1":        "",
		"tcp://10.0.0.1:502":               "",
		"10.0.0.1:502":                     "",
	} {
		transport, address, err := parseEndpoint(endpoint)
		got := settings{transport: transport, address: address}.key()
		if err != nil {
			got = ""
			if !strings.Contains(err.Error(), "modbus") {
				t.Errorf("%s: the error %q does not say what to write", endpoint, err)
			}
		}
		if got != want {
			t.Errorf("%s: got %q (%v), want %q", endpoint, got, err, want)
		}
	}
}

func TestNewRefusesWhatDoesNotGoTogether(t *testing.T) {
	one := "registers: [{address: 40001, register_type: holding}]\n"
	for _, c := range []struct{ endpoint, text, want string }{
		{"modbus+tcp://h", one + "serial: {baud_rate: 9600}", "serial: is for modbus+rtu"},
		{"modbus+tcp://h", one + "tls: {enabled: true}", "tls: is for modbus+tls"},
		{"modbus+tls://h", one + "tls: {enabled: true, insecure_skip_verify: true}", "tls.insecure_skip_verify"},
		{"modbus+rtu:///dev/ttyS0", one + "slave_id: 0", "broadcast"},
		{"opc.tcp://h", one, "endpoint: "},
	} {
		log := slog.New(slog.DiscardHandler)
		_, err := New("x", c.endpoint, nil, read(t, c.text), Deps{log, sources.NewStatus("x", "modbus"), NewBuses(log)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: got %v, want %q", c.endpoint, c.text, err, c.want)
		}
	}
}

func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"modbus+tcp://10.0.0.1:502", "modbus+rtu:///dev/ttyUSB0", "modbus+tls://[fe80::1%25eth0]", "modbus://", "modbus+tcp://h:0x1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, endpoint string) {
		transport, address, err := parseEndpoint(endpoint)
		if err == nil && (transport == "" || address == "") {
			t.Errorf("%q: got transport %q and address %q without an error", endpoint, transport, address)
		}
	})
}

// TestLibraryIsSilent checks that what the library logs goes to slog: it would
// print to standard output.
func TestLibraryIsSilent(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	l, err := dial(settings{transport: "udp", address: "127.0.0.1:9", timeout: time.Second}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if _, err := l.read(1, Coil, 65535, 2, nil); err == nil || !strings.Contains(out.String(), `msg="modbus library"`) {
		t.Errorf("got error %v and log %q", err, out.String())
	}
}
