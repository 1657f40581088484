//go:build conformance

package modbus

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// plantValues is what the peers encode, each by its own means, in every byte
// order, into both tables of registers. No byte of it comes from this package.
var plantValues = []struct {
	kind   string // type of the configuration; bit:N and string:N
	values []string
}{
	{"bool", []string{"0", "1"}}, {"bit:0", []string{"0", "1"}}, {"bit:9", []string{"0", "1"}}, {"bit:15", []string{"0", "1"}},
	{"int8", []string{"-128", "-2", "127"}}, {"int8_high", []string{"-128", "-2", "127"}},
	{"uint8", []string{"0", "254"}}, {"uint8_high", []string{"0", "254"}},
	{"int16", []string{"-32768", "-2", "32767"}}, {"uint16", []string{"4660", "65535"}},
	{"int32", []string{"-2147483648", "-559038737", "2147483647"}}, {"uint32", []string{"305419896", "4294967295"}},
	{"int64", []string{"-9223372036854775808", "-81985529216486896", "9223372036854775807"}},
	{"uint64", []string{"81985529216486895", "18446744073709551615"}},
	{"float16", []string{"-1.5", "65504", "5.960464477539063e-08", "0.0999755859375", "-Infinity", "NaN"}},
	{"float32", []string{"21.5", "-3.4028234663852886e+38", "1.401298464324817e-45", "0.1", "Infinity", "NaN"}},
	{"float64", []string{"-3.141592653589793", "1.7976931348623157e+308", "5e-324", "0.1", "-Infinity", "NaN"}},
	{"string:5", []string{"PUMP1"}}, {"string:6", []string{"AB", "ABCDEF"}}, {"bcd16", []string{"1234", "9999", "7"}}, {"bcd32", []string{"12345678", "99"}},
}

// plantImage returns the lines from which a peer fills a table, the entries of
// registers that read it, and what each must hold.
func plantImage(t *testing.T, table RegisterType, orders []ByteOrder) (image, registers string, want map[string]string) {
	t.Helper()
	want = map[string]string{}
	var lines, entries strings.Builder
	at := 0
	seen := map[DataType]bool{}
	for _, v := range plantValues {
		kind, number, _ := strings.Cut(v.kind, ":")
		n, _ := strconv.Atoi(number)
		p := Point{Slave: 1, Type: table, DataType: DataType(kind), Width: DataType(kind).width()}
		seen[p.DataType] = true
		if p.DataType == TypeString {
			p.Length, p.Width = n, (n+1)/2
		} else {
			p.Bit = n
		}
		for _, order := range orders {
			for _, value := range v.values {
				fmt.Fprintf(&lines, "%s %s %s %s\n", table, v.kind, order, value)
				fmt.Fprintf(&entries, "  - {address: %d, register_type: %s, data_type: %s, byte_order: %s, bit: %d, length: %d}\n",
					at, table, p.DataType, order, p.Bit, p.Length)
				p.place(place{offset: at, number: at}, 0, 1)
				want[p.Address] = plantText(t, p.DataType, value)
				at += p.Width
			}
		}
	}
	for _, d := range DataTypes {
		if !seen[d] {
			t.Errorf("no value of type %s", d)
		}
	}
	return lines.String(), entries.String(), want
}

// plantText is how show prints a value that is written as text.
func plantText(t *testing.T, d DataType, text string) string {
	t.Helper()
	switch d {
	case TypeBool, TypeBit:
		return strconv.FormatBool(text == "1")
	case TypeFloat16, TypeFloat32, TypeFloat64:
		size := 32
		if d == TypeFloat64 {
			size = 64
		}
		f, err := strconv.ParseFloat(text, size)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(f)
	}
	return text
}

// peerImage is the file that every peer serves, the configuration that reads
// all of it, and the values that it holds.
type peerImage struct {
	path, config string
	want         map[string]string
}

const peerBits = 400

func newPeerImage(t *testing.T) peerImage {
	t.Helper()
	backward := slices.Clone(byteOrders)
	slices.Reverse(backward) // so that the tables differ
	holding, a, want := plantImage(t, Holding, byteOrders)
	input, b, more := plantImage(t, Input, backward)
	maps.Copy(want, more)
	var coil, discrete strings.Builder
	for i := range peerBits {
		bit := i%3 == 0 || i%7 == 2
		fmt.Fprint(&coil, map[bool]string{true: "1", false: "0"}[bit])
		fmt.Fprint(&discrete, map[bool]string{true: "0", false: "1"}[bit])
		want[fmt.Sprintf("1:coil:%d", i)] = fmt.Sprint(bit)
		want[fmt.Sprintf("1:discrete:%d", i)] = fmt.Sprint(!bit)
	}
	path := filepath.Join(t.TempDir(), "image")
	text := holding + input + fmt.Sprintf("coil %s\ndiscrete %s\n", coil.String(), discrete.String())
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	config := "addressing: zero_based\npoll_interval_ms: 50\nregisters:\n" + a + b +
		fmt.Sprintf("  - {address: 0, count: %d, register_type: coil}\n  - {address: 0, count: %d, register_type: discrete}\n", peerBits, peerBits)
	return peerImage{path, config, want}
}

// numbersImage serves registers that hold their own offsets.
func numbersImage(t *testing.T, n int) string {
	t.Helper()
	var b []byte
	for i := range n {
		b = append(b, byte(i>>8), byte(i))
	}
	words, bit := hex.EncodeToString(b), strings.Repeat("01", n/2)
	path := filepath.Join(t.TempDir(), "numbers")
	if err := os.WriteFile(path, []byte(fmt.Sprintf("holding %s\ninput %s\ncoil %s\ndiscrete %s\n", words, words, bit, bit)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// process is a peer that runs until the test ends or kill is called.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	once sync.Once
}

func spawn(t *testing.T, name string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s (run conformance/install-modbus.sh): %v", name, err)
	}
	p := &process{t: t, cmd: cmd}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() && out.Len() > 0 {
			t.Logf("%s %v said:\n%s", name, args, out.String())
		}
	})
	return p
}

func (p *process) kill() {
	p.once.Do(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// spawnTCP starts a peer and waits until it takes connections.
func spawnTCP(t *testing.T, port, name string, args ...string) *process {
	t.Helper()
	p := spawn(t, name, args...)
	awaitPort(t, port)
	return p
}

// awaitListen waits until a port is listened on, without a connection to it.
func awaitListen(t *testing.T, port string) {
	t.Helper()
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	listens := fmt.Sprintf(":%04X 00000000:0000 0A ", n) // proc(5): local port, no peer, LISTEN
	eventually(t, "the peer to listen on port "+port, func() bool {
		table, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(table), listens)
	})
}

// tcpPeer is a server of Modbus TCP that nobody here wrote.
type tcpPeer struct {
	name    string
	command func(port string) []string
}

// start starts the peer and waits until it takes connections.
func (p tcpPeer) start(t *testing.T, port string) *process {
	t.Helper()
	command := p.command(port)
	return spawnTCP(t, port, command[0], command[1:]...)
}

// tcpPeers is the four of them, each of which serves image.
func tcpPeers(t *testing.T, image string) []tcpPeer {
	t.Helper()
	libmodbus := libmodbusServer(t)
	return []tcpPeer{
		{"pymodbus", func(port string) []string {
			return []string{python, "testdata/pymodbus_server.py", image, "tcp", port}
		}},
		{"libmodbus", func(port string) []string { return []string{libmodbus, image, "tcp", port} }},
		{"modbus-serial", func(port string) []string {
			return []string{"node", "testdata/modbus_serial_server.js", image, port}
		}},
		{"jsmodbus", func(port string) []string { return []string{"node", "testdata/jsmodbus_server.js", image, port} }},
	}
}

func awaitPort(t *testing.T, port string) {
	t.Helper()
	eventually(t, "the peer to listen on port "+port, func() bool {
		c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

const python = "/usr/bin/python3"

var libmodbus struct {
	once sync.Once
	path string
	err  error
}

// libmodbusServer compiles the C peer, once.
func libmodbusServer(t *testing.T) string {
	t.Helper()
	libmodbus.once.Do(func() {
		dir, err := os.MkdirTemp("", "libmodbus")
		if err != nil {
			libmodbus.err = err
			return
		}
		libmodbus.path = filepath.Join(dir, "server")
		out, err := exec.Command("gcc", "-O1", "-Wall", "-I/usr/include/modbus", "-o", libmodbus.path, "testdata/libmodbus_server.c", "-lmodbus").CombinedOutput()
		if err != nil {
			libmodbus.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if libmodbus.err != nil {
		t.Fatalf("compile the libmodbus peer (run conformance/install-modbus.sh): %v", libmodbus.err)
	}
	return libmodbus.path
}

// line is a serial line: two pseudo terminals that socat joins.
type line struct {
	master, slave string
	socat         *process
}

func newLine(t *testing.T) *line {
	t.Helper()
	dir := t.TempDir()
	l := &line{master: filepath.Join(dir, "master"), slave: filepath.Join(dir, "slave")}
	l.plug(t)
	return l
}

func (l *line) plug(t *testing.T) {
	t.Helper()
	cmd := exec.Command("socat", "-d", "-d", "pty,raw,echo=0,link="+l.master, "pty,raw,echo=0,link="+l.slave)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start socat (run conformance/install-modbus.sh): %v", err)
	}
	l.socat = &process{t: t, cmd: cmd}
	t.Cleanup(l.socat.kill)
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "starting data transfer") {
			go io.Copy(io.Discard, stderr)
			return
		}
	}
	t.Fatal("socat ended before the line was ready")
}

// certificates writes an authority, and a certificate of it for 127.0.0.1 that
// serves as server's and client's.
func certificates(t *testing.T) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	now := time.Now()
	caKey, caDER := makeCert(t, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	authority, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	leafKey, leafDER := makeCert(t, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "plc"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"plc.example"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, authority, caKey)
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("ca.crt", "CERTIFICATE", caDER), write("plc.crt", "CERTIFICATE", leafDER), write("plc.key", "PRIVATE KEY", keyDER)
}

func makeCert(t *testing.T, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}
