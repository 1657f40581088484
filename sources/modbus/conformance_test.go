//go:build conformance

package modbus

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgehost/edgehost/sources"
)

// checkPeer reads everything that a peer serves and compares it with the
// golden values.
func checkPeer(t *testing.T, endpoint, extra string, image peerImage) {
	t.Helper()
	b := onWire(t, endpoint, image.config+extra)
	stop := b.run(t)
	got := map[string]string{}
	eventually(t, "every value of the peer", func() bool {
		maps.Copy(got, values(b.take()))
		return len(got) == len(image.want)
	})
	stop()
	if d := cmp.Diff(image.want, got); d != "" {
		t.Error(d)
	}
	t.Logf("%d values of %d are right", len(image.want), len(got))
	if s := b.status.Snapshot(); b.count(MetricReopens) != 0 || b.count(MetricSplits) != 0 {
		t.Errorf("%v", s)
	}
}

// TestSmokePeers reads four servers, four tables, all types, four byte orders,
// over five transports.
func TestSmokePeers(t *testing.T) {
	image := newPeerImage(t)
	for _, peer := range tcpPeers(t, image.path) {
		t.Run(peer.name, func(t *testing.T) {
			port := freePort(t)
			peer.start(t, port)
			checkPeer(t, "modbus+tcp://127.0.0.1:"+port, "", image)
		})
	}
	t.Run("pymodbus RTU over TCP", func(t *testing.T) {
		port := freePort(t)
		spawnTCP(t, port, python, "testdata/pymodbus_server.py", image.path, "rtutcp", port)
		checkPeer(t, "modbus+rtutcp://127.0.0.1:"+port, "", image)
	})
	t.Run("pymodbus UDP", func(t *testing.T) {
		port := freePort(t)
		spawn(t, python, "testdata/pymodbus_server.py", image.path, "udp", port)
		awaitUDP(t, port)
		checkPeer(t, "modbus+udp://127.0.0.1:"+port, "", image)
	})
	t.Run("libmodbus serial line", func(t *testing.T) {
		l := newLine(t)
		spawn(t, libmodbusServer(t), image.path, "rtu", l.slave, "1")
		awaitSerial(t, l)
		checkPeer(t, "modbus+rtu://"+l.master, "serial: {baud_rate: 115200}\n", image)
	})
	t.Run("pymodbus serial line", func(t *testing.T) {
		l := newLine(t)
		spawn(t, python, "testdata/pymodbus_server.py", image.path, "rtu", l.slave)
		awaitSerial(t, l)
		checkPeer(t, "modbus+rtu://"+l.master, "serial: {baud_rate: 115200}\n", image)
	})
}

// awaitSerial returns when a peer answers on the line.
func awaitSerial(t *testing.T, l *line) {
	t.Helper()
	awaitAnswer(t, "modbus+rtu://"+l.master, "serial: {baud_rate: 115200}\n")
}

func awaitUDP(t *testing.T, port string) {
	t.Helper()
	awaitAnswer(t, "modbus+udp://127.0.0.1:"+port, "")
}

func awaitAnswer(t *testing.T, endpoint, extra string) {
	t.Helper()
	b := onWire(t, endpoint, extra+"poll_interval_ms: 50\ntimeout_ms: 200\nunit_breaker: {retry_seconds: 0.05}\nregisters: [{address: 0, register_type: holding}]")
	stop := b.run(t)
	eventually(t, "the peer to answer", func() bool { return b.status.Snapshot().State == sources.Connected })
	stop()
}

// numbersConfig reads n registers that hold their own offsets.
func numbersConfig(n int, extra string) string {
	return fmt.Sprintf("addressing: zero_based\npoll_interval_ms: 50\ntimeout_ms: 300\n%sregisters: [{address: 0, count: %d, register_type: holding}]\n", extra, n)
}

func TestSmokeHolesOfPeers(t *testing.T) {
	numbers := numbersImage(t, 200)
	for name, command := range map[string][]string{
		"pymodbus":      {python, "testdata/pymodbus_server.py", numbers, "tcp", "PORT", "1", "50-52"},
		"modbus-serial": {"node", "testdata/modbus_serial_server.js", numbers, "PORT", "50-52"},
	} {
		t.Run(name, func(t *testing.T) {
			port := freePort(t)
			args := slices.Clone(command)
			args[slices.Index(args, "PORT")] = port
			spawnTCP(t, port, args[0], args[1:]...)
			b := onWire(t, "modbus+tcp://127.0.0.1:"+port, numbersConfig(120, ""))
			stop := b.run(t)
			bad := map[string]string{}
			right := 0
			eventually(t, "values around the hole", func() bool {
				for _, r := range b.take() {
					if r.Status != 0 {
						bad[r.Address] = show(&r)
					} else if r.Address != fmt.Sprintf("1:holding:%d", r.Value.AsUint()) {
						t.Fatalf("%s holds %d", r.Address, r.Value.AsUint())
					} else {
						right++
					}
				}
				return right > 10*117
			})
			stop()
			want := map[string]string{"1:holding:50": "BadNotFound", "1:holding:51": "BadNotFound", "1:holding:52": "BadNotFound"}
			if d := cmp.Diff(want, bad); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestAddressesBeyondTheTable reads past the end of libmodbus, which refuses,
// and of jsmodbus, which sends a reply that is too short.
func TestAddressesBeyondTheTable(t *testing.T) {
	numbers := numbersImage(t, 100)
	for name, command := range map[string][]string{
		"libmodbus": {libmodbusServer(t), numbers, "tcp", "PORT"},
		"jsmodbus":  {"node", "testdata/jsmodbus_server.js", numbers, "PORT"},
	} {
		t.Run(name, func(t *testing.T) {
			port := freePort(t)
			args := slices.Clone(command)
			args[slices.Index(args, "PORT")] = port
			spawnTCP(t, port, args[0], args[1:]...)
			b := onWire(t, "modbus+tcp://127.0.0.1:"+port, numbersConfig(103, ""))
			stop := b.run(t)
			good, bad := map[string]bool{}, map[string]bool{}
			eventually(t, "values below the end and bad records beyond it", func() bool {
				for _, r := range b.take() {
					if r.Status != 0 {
						bad[r.Address] = true
					} else if good[r.Address] = true; r.Address != fmt.Sprintf("1:holding:%d", r.Value.AsUint()) {
						t.Fatalf("%s holds %d", r.Address, r.Value.AsUint())
					}
				}
				return len(good) >= 100 && len(bad) >= 3
			})
			stop()
			if len(good) != 100 || !bad["1:holding:100"] || !bad["1:holding:101"] || !bad["1:holding:102"] {
				t.Errorf("%d good, bad %v", len(good), bad)
			}
		})
	}
}

// TestAbsentUnitAmongTenOfAPeer polls nine units, and then the same nine beside
// one that is not there.
func TestAbsentUnitAmongTenOfAPeer(t *testing.T) {
	l := newLine(t)
	spawn(t, python, "testdata/pymodbus_server.py", numbersImage(t, 20), "rtu", l.slave, "1,2,3,5,6,7,8,9,10")
	awaitSerial(t, l)
	alone, _ := pollUnits(t, l, 1, 2, 3, 5, 6, 7, 8, 9, 10)
	beside, absent := pollUnits(t, l, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	t.Logf("20 polls of nine units every 200 ms take %v, beside an absent unit %v", alone, beside)
	if absent != 0 {
		t.Errorf("%d records of the absent unit after its breaker had opened", absent)
	}
	if beside > 2*alone+time.Second {
		t.Errorf("20 polls of nine units take %v, beside an absent unit %v", alone, beside)
	}
}

// pollUnits returns how long 20 polls of nine units take, and how many records
// unit 4 made meanwhile.
func pollUnits(t *testing.T, l *line, units ...int) (took time.Duration, absent int) {
	t.Helper()
	text := "addressing: zero_based\npoll_interval_ms: 200\ntimeout_ms: 200\nserial: {baud_rate: 115200}\nregisters:\n"
	for _, unit := range units {
		text += fmt.Sprintf("  - {address: 0, count: 4, register_type: input, slave_id: %d}\n", unit)
	}
	b := onWire(t, "modbus+rtu://"+l.master, text)
	stop := b.run(t)
	eventually(t, "nine units, and the breaker of the absent one", func() bool {
		return b.count(MetricUnitsDown) == float64(len(units)-9) && b.count(MetricPolls) > 30
	})
	b.take()
	begin := time.Now()
	got := map[string]int{}
	eventually(t, "20 polls of nine units", func() bool {
		for _, r := range b.take() {
			unit, _, _ := strings.Cut(r.Address, ":")
			got[unit]++
		}
		return len(got) >= 9 && slices.Min(slices.Collect(maps.Values(got))) >= 80
	})
	took = time.Since(begin)
	stop()
	return took, got["4"]
}

// TestLateRepliesOfAPeer lets every third reply of a libmodbus slave come late,
// until there were 1,000 of them on eight serial lines, and on eight connections.
func TestLateRepliesOfAPeer(t *testing.T) {
	numbers := numbersImage(t, 400)
	t.Run("serial line", func(t *testing.T) {
		lateReplies(t, func(delay string) string {
			l := newLine(t)
			spawn(t, libmodbusServer(t), numbers, "rtu", l.slave, "1", "3", delay)
			return "modbus+rtu://" + l.master
		}, "serial: {baud_rate: 115200}\n")
	})
	t.Run("TCP", func(t *testing.T) {
		lateReplies(t, func(delay string) string {
			port := freePort(t)
			spawnTCP(t, port, libmodbusServer(t), numbers, "tcp", port, "1", "3", delay)
			return "modbus+tcp://127.0.0.1:" + port
		}, "")
	})
}

// lateReplies reads eight slaves; start starts one of a delay in milliseconds.
func lateReplies(t *testing.T, start func(delay string) (endpoint string), extra string) {
	const most, lines = 1000, 8
	benches, stops := make([]*bench, lines), make([]func(), lines)
	for i := range benches {
		// From just too late to later than the quiet time after it.
		endpoint := start(fmt.Sprint(25 + 15*(i%4)))
		benches[i] = onWire(t, endpoint, fourBlocks+"timeout_ms: 20\n"+extra)
		stops[i] = benches[i].run(t)
	}
	right := make([]int, lines)
	late := 0.0
	deadline := time.Now().Add(4 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late < most && time.Now().Before(deadline) {
		<-tick.C
		late = 0
		for i, b := range benches {
			right[i] += checkNumbers(t, b)
			late += b.count(MetricTimeouts)
		}
	}
	stopAll(stops...)
	for i, b := range benches {
		if right[i] += checkNumbers(t, b); right[i] == 0 {
			t.Errorf("slave %d gave no value", i)
		}
	}
	if late < most {
		t.Errorf("only %v late replies within 4 minutes", late)
	}
	t.Logf("%v time-outs, 0 wrong of %v values", late, right)
}

// TestScatteredFieldsTakeThreeRequests reads 200 fields that are strewn over 370
// registers, with default settings.
func TestScatteredFieldsTakeThreeRequests(t *testing.T) {
	port := freePort(t)
	spawnTCP(t, port, libmodbusServer(t), numbersImage(t, 370), "tcp", port)
	text := "addressing: zero_based\npoll_interval_ms: 100\nregisters:\n"
	for _, at := range rand.New(rand.NewPCG(1, 2)).Perm(370)[:200] {
		text += fmt.Sprintf("  - {address: %d, register_type: holding}\n", at)
	}
	b := onWire(t, "modbus+tcp://127.0.0.1:"+port, text)
	stop := b.run(t)
	right := 0
	eventually(t, "20 polls", func() bool { right += checkNumbers(t, b); return right >= 20*200 })
	stop()
	right += checkNumbers(t, b)
	polls, requests := b.count(MetricPolls), b.count(MetricRequests)
	t.Logf("%v requests in %v polls of 200 fields: %d values, 0 wrong", requests, polls, right)
	if requests > 3*polls {
		t.Errorf("%v requests a poll, want 3", requests/polls)
	}
}

// TestBackAfterTheServer kills a server 20 times, for between half a second and
// five, and takes the time from when it listens again to the first good record.
// The supervisor decides about it: back-off alone would double with every restart.
func TestBackAfterTheServer(t *testing.T) {
	const rounds, most = 20, 3 * time.Second
	numbers, port := numbersImage(t, 20), freePort(t)
	server := spawnTCP(t, port, libmodbusServer(t), numbers, "tcp", port)
	b := onWire(t, "modbus+tcp://127.0.0.1:"+port, numbersConfig(10, ""))
	stop := b.run(t)
	var took []time.Duration
	for round := range rounds {
		right := 0
		eventually(t, "values", func() bool { right += checkNumbers(t, b); return right > 0 })
		server.kill()
		eventually(t, "the source to notice", func() bool { return b.status.Snapshot().State == sources.Reconnecting })
		<-time.After(500*time.Millisecond + time.Duration(round)*4500*time.Millisecond/(rounds-1))
		server = spawn(t, libmodbusServer(t), numbers, "tcp", port)
		awaitListen(t, port)
		begin := time.Now()
		b.take()
		right = 0
		eventually(t, "values after the restart", func() bool { right += checkNumbers(t, b); return right > 0 })
		took = append(took, time.Since(begin))
	}
	stop()
	slices.Sort(took)
	p95 := took[rounds*95/100-1]
	t.Logf("back after the server, %d times: median %v, p95 %v, longest %v", rounds, took[rounds/2], p95, took[rounds-1])
	if p95 > most {
		t.Errorf("p95 is %v", p95)
	}
}

func TestServerRestart(t *testing.T) {
	numbers := numbersImage(t, 20)
	for _, peer := range tcpPeers(t, numbers) {
		t.Run(peer.name, func(t *testing.T) {
			port := freePort(t)
			server := peer.start(t, port)
			b := onWire(t, "modbus+tcp://127.0.0.1:"+port, numbersConfig(10, ""))
			stop := b.run(t)
			right := 0
			eventually(t, "values", func() bool { right += checkNumbers(t, b); return right > 100 })
			server.kill()
			eventually(t, "the source to notice", func() bool { return b.status.Snapshot().State == sources.Reconnecting })
			bad := 0
			for _, r := range b.take() {
				if r.Status != 0 {
					bad++
				}
			}
			if bad != 10 {
				t.Errorf("%d bad records, want one for each of 10 points", bad)
			}
			peer.start(t, port)
			right = 0
			eventually(t, "values after the restart", func() bool { right += checkNumbers(t, b); return right > 0 })
			stop()
		})
	}
}

func TestPlugIsPulled(t *testing.T) {
	numbers := numbersImage(t, 20)
	l := newLine(t)
	slave := spawn(t, libmodbusServer(t), numbers, "rtu", l.slave, "1")
	awaitSerial(t, l)
	b := onWire(t, "modbus+rtu://"+l.master, numbersConfig(10, "serial: {baud_rate: 115200}\n"))
	stop := b.run(t)
	right := 0
	eventually(t, "values", func() bool { right += checkNumbers(t, b); return right > 100 })
	l.socat.kill()
	slave.kill()
	os.Remove(l.master)
	os.Remove(l.slave)
	eventually(t, "the source to notice", func() bool { return b.status.Snapshot().State == sources.Reconnecting })
	if detail := b.status.Snapshot().Detail; !strings.Contains(detail, "no such file") {
		t.Errorf("detail is %q", detail)
	}
	l.plug(t)
	spawn(t, libmodbusServer(t), numbers, "rtu", l.slave, "1")
	right = 0
	eventually(t, "values after it was plugged in again", func() bool { right += checkNumbers(t, b); return right > 100 })
	stop()
}

func TestTwoSourcesOnOneTTY(t *testing.T) {
	l := newLine(t)
	spawn(t, python, "testdata/pymodbus_server.py", numbersImage(t, 200), "rtu", l.slave, "1,2")
	awaitSerial(t, l)
	link := l.master + "-by-id"
	if err := os.Symlink(l.master, link); err != nil {
		t.Fatal(err)
	}
	a := onWire(t, "modbus+rtu://"+l.master, numbersConfig(10, "serial: {baud_rate: 115200}\n"))
	b := joinBench(t, nil, a.buses, "other", "modbus+rtu://"+link, numbersConfig(120, "slave_id: 2\nserial: {baud_rate: 115200}\n"))
	stopA, stopB := a.run(t), b.run(t)
	var fromA, fromB int
	eventually(t, "values of both sources", func() bool {
		fromA += checkNumbers(t, a)
		fromB += checkNumbers(t, b)
		return fromA > 200 && fromB > 2000
	})
	stopAll(stopA, stopB)
	if a.count(MetricReopens)+b.count(MetricReopens) != 0 {
		t.Errorf("%v and %v reopens: the sources disturbed each other", a.count(MetricReopens), b.count(MetricReopens))
	}
}

func TestSmokeTLS(t *testing.T) {
	image := newPeerImage(t)
	plain, secure := freePort(t), freePort(t)
	ca, cert, key := certificates(t)
	otherCA, _, _ := certificates(t)
	spawnTCP(t, plain, python, "testdata/pymodbus_server.py", image.path, "tcp", plain)
	spawnTCP(t, secure, "socat", fmt.Sprintf("OPENSSL-LISTEN:%s,cert=%s,key=%s,cafile=%s,verify=1,fork,reuseaddr,bind=127.0.0.1", secure, cert, key, ca), "TCP:127.0.0.1:"+plain)
	endpoint := "modbus+tls://127.0.0.1:" + secure
	client := fmt.Sprintf("client_cert_path: %s, client_key_path: %s", cert, key)
	checkPeer(t, endpoint, fmt.Sprintf("tls: {enabled: true, ca_cert_path: %s, %s}\n", ca, client), image)
	checkPeer(t, endpoint, fmt.Sprintf("tls: {enabled: true, min_version: '1.3', server_name: plc.example, ca_cert_path: %s, %s}\n", ca, client), image)

	for name, c := range map[string]struct {
		tls   string
		state sources.State
	}{
		"another authority":     {fmt.Sprintf("ca_cert_path: %s, %s", otherCA, client), sources.AuthFailed},
		"no client certificate": {"ca_cert_path: " + ca, sources.AuthFailed},
		"another name":          {fmt.Sprintf("server_name: other.example, ca_cert_path: %s, %s", ca, client), sources.AuthFailed},
		"missing file":          {"ca_cert_path: /nowhere", sources.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			b := onWire(t, endpoint, numbersConfig(10, fmt.Sprintf("tls: {enabled: true, %s}\n", c.tls)))
			stop := b.run(t)
			eventually(t, "the refusal", func() bool {
				for _, r := range b.take() {
					if r.Status == 0 {
						t.Fatal("got a value")
					}
				}
				return b.status.Snapshot().State == c.state
			})
			t.Logf("%s: %s", b.status.Snapshot().State, b.status.Snapshot().Detail)
			stop()
		})
	}
}
