//go:build conformance

package mqtt

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// aedes is testdata/aedes_broker.js.
type aedes struct {
	broker
	ws string // its WebSocket endpoint
}

func startAedes(t *testing.T, options map[string]any) *aedes {
	t.Helper()
	arg, err := json.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", "testdata/aedes_broker.js", string(arg))
	var says strings.Builder
	cmd.Stderr = &says
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start aedes (conformance/install-mqtt.sh installs it): %v", err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() && says.Len() > 0 {
			t.Logf("aedes says: %s", says.String())
		}
	})
	var port, wsPort int
	if _, err := fmt.Fscanf(out, "ready %d %d\n", &port, &wsPort); err != nil {
		t.Fatalf("aedes does not listen (run conformance/install-mqtt.sh): %v: %s", err, says.String())
	}
	return &aedes{broker: broker{t, port}, ws: fmt.Sprintf("ws://127.0.0.1:%d", wsPort)}
}

func TestSmokeAedesQoS(t *testing.T) {
	a := startAedes(t, nil)
	for scheme, endpoint := range map[string]string{"tcp": a.url(), "ws": a.ws} {
		for qos := range 3 {
			t.Run(fmt.Sprintf("%s qos %d", scheme, qos), func(t *testing.T) { everyMessageOnce(t, &a.broker, endpoint, version3, qos) })
		}
	}
}

// TestSmokeAedesOverlappingFiltersDoNotDouble: this broker mixes up its packet
// identifiers when filters of a persistent session overlap. Those that others
// cover do not reach it; those that cross need clean_session.
func TestSmokeAedesOverlappingFiltersDoNotDouble(t *testing.T) {
	a := startAedes(t, nil)
	t.Run("covered", func(t *testing.T) {
		overlappingFilters(t, &a.broker, Config{Topics: []TopicConfig{{Topic: "a/+", QoS: 1}, {Topic: "a/#", QoS: 0}, {Topic: "a/b", QoS: 2}}})
	})
	t.Run("crossing", func(t *testing.T) {
		overlappingFilters(t, &a.broker, Config{CleanSession: true, Topics: crossingTopics})
	})
}

func TestSmokeAedesRestartRedelivers(t *testing.T) {
	for qos := 1; qos <= 2; qos++ {
		t.Run(fmt.Sprintf("qos %d", qos), func(t *testing.T) { restartRedelivers(t, &startAedes(t, nil).broker, version3, qos) })
	}
}

func TestSmokeAedesRetained(t *testing.T) {
	a := startAedes(t, nil)
	a.mustPublish("r/last", 1, []string{"kept"}, "-r")
	s, st := newTestSource(t, a.url(), oneTopic("r/#", 1))
	var k sink
	run(t, s, k.emit)
	awaitState(t, st, sources.Connected)
	eventually(t, "the retained message", func() bool { return len(k.records()) == 1 })
	if v, _ := k.records()[0].Attr(abi.AttrRetain); !v.AsBool() || k.texts()[0] != "kept" {
		t.Errorf("%+v", k.records()[0])
	}
}

// TestSmokeAedesRefusals: this broker says in SUBACK what it denies.
func TestSmokeAedesRefusals(t *testing.T) {
	a := startAedes(t, map[string]any{"users": map[string]string{"u": "secret"}, "denied": "secret/#"})
	login := func(user, password string, topics ...string) Config {
		cfg := Config{Username: user, Password: password}
		for _, topic := range topics {
			cfg.Topics = append(cfg.Topics, TopicConfig{Topic: topic, QoS: 1})
		}
		return cfg
	}
	five := login("u", "secret", "open/#")
	five.ProtocolVersion = version5
	cases := map[string]struct {
		cfg   Config
		state sources.State
		words []string
	}{
		"right":                {login("u", "secret", "open/#"), sources.Connected, nil},
		"wrong password":       {login("u", "guess", "open/#"), sources.AuthFailed, []string{"mqtt.username", "mqtt.password"}},
		"no user":              {login("", "", "open/#"), sources.AuthFailed, []string{"mqtt.username"}},
		"a denied topic":       {login("u", "secret", "open/#", "secret/#"), sources.Degraded, []string{"secret/#"}},
		"only a denied topic":  {login("u", "secret", "secret/#"), sources.AuthFailed, []string{"secret/#", "access control list"}},
		"a version it has not": {five, sources.Failed, []string{"mqtt.protocol_version", "3.1.1"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, st := newTestSource(t, a.url(), c.cfg)
			run(t, s, new(sink).emit)
			snap := awaitState(t, st, c.state, c.words...)
			if strings.Contains(snap.Detail, "guess") {
				t.Errorf("the password shows: %s", snap.Detail)
			}
		})
	}
}
