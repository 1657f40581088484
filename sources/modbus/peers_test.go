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
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// goldenImage lays the golden vectors, each under each byte order, one after
// the other into a table of registers. It returns the table and the entries of
// registers that read it, with what each must hold.
func goldenImage(table RegisterType, reverse bool) (words string, registers string, want map[string]string) {
	want = map[string]string{}
	vectors := slices.Clone(golden)
	if reverse {
		slices.Reverse(vectors)
	}
	var b strings.Builder
	at := 0
	for _, g := range vectors {
		for i, order := range byteOrders {
			words += g.wire[i]
			fmt.Fprintf(&b, "  - {address: %d, register_type: %s, data_type: %s, byte_order: %s, bit: %d, length: %d}\n",
				at, table, g.point.DataType, order, g.point.Bit, g.point.Length)
			p := Point{Slave: 1, Type: table, DataType: g.point.DataType, Bit: g.point.Bit}
			p.place(place{offset: at, number: at}, 0, 1)
			r := abi.Record{Value: g.want}
			want[p.Address] = show(&r)
			at += len(g.wire[i]) / 4
		}
	}
	return words, b.String(), want
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
	holding, a, want := goldenImage(Holding, false)
	input, b, more := goldenImage(Input, true)
	for k, v := range more {
		want[k] = v
	}
	var coil, discrete strings.Builder
	for i := range peerBits {
		bit := i%3 == 0 || i%7 == 2
		fmt.Fprint(&coil, map[bool]string{true: "1", false: "0"}[bit])
		fmt.Fprint(&discrete, map[bool]string{true: "0", false: "1"}[bit])
		want[fmt.Sprintf("1:coil:%d", i)] = fmt.Sprint(bit)
		want[fmt.Sprintf("1:discrete:%d", i)] = fmt.Sprint(!bit)
	}
	path := filepath.Join(t.TempDir(), "image")
	text := fmt.Sprintf("holding %s\ninput %s\ncoil %s\ndiscrete %s\n", holding, input, coil.String(), discrete.String())
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
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
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
