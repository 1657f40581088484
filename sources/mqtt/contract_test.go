package mqtt

import (
	"fmt"
	"log/slog"
	"strconv"
	"testing"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/sourcetest"
)

func newTestSource(t *testing.T, endpoint string, cfg Config) (*Source, *sources.Status) {
	t.Helper()
	status := sources.NewStatus("m", "mqtt")
	s, err := New("m", endpoint, map[string]string{"industry": "mining"}, cfg,
		Deps{Status: status, Logger: slog.New(slog.DiscardHandler), HostID: "host-1", StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return s, status
}

// spoilt is the payload that is no number.
const spoilt = "no number"

func contractHarness(version string, qos byte) sourcetest.Harness {
	return sourcetest.Harness{Spoils: true, New: func(t *testing.T) sourcetest.Rig {
		p := newPeer(t)
		p.v5 = version == version5
		s, status := newTestSource(t, p.url(), Config{ProtocolVersion: version, Topics: []TopicConfig{{Topic: "n/+", QoS: int(qos), Payload: PayloadConfig{Format: "number"}}}})
		if qos == 0 {
			p.taken = func() int { s.buf.mu.Lock(); defer s.buf.mu.Unlock(); return int(s.buf.seq) }
		}
		p.start()
		rig := sourcetest.Rig{
			Source: s,
			Status: status,
			Publish: func(first, last int) {
				for n := first; n <= last; n++ {
					p.publish(fmt.Sprintf("n/%d", n%3), strconv.Itoa(n), qos)
				}
			},
			Spoil: func() {
				for n := range 3 {
					p.publish(fmt.Sprintf("n/%d", n), spoilt, qos)
				}
			},
			Tags:   map[string]string{"industry": "mining"},
			Number: func(r abi.Record) (int, bool) { return int(r.Value.AsInt()), r.Value.Kind() == abi.KindInt },
		}
		if qos > 0 {
			rig.Acked = func() []int {
				var out []int
				for _, payload := range p.ackedPayloads() {
					if payload == spoilt {
						continue
					}
					n, err := strconv.Atoi(payload)
					if err != nil {
						t.Errorf("acknowledged payload %q", payload)
					}
					out = append(out, n)
				}
				return out
			}
		}
		return rig
	}}
}

func TestContractQoS0(t *testing.T) { sourcetest.Run(t, contractHarness(version3, 0)) }

func TestContractQoS1(t *testing.T) { sourcetest.Run(t, contractHarness(version3, 1)) }

func TestContractQoS2(t *testing.T) { sourcetest.Run(t, contractHarness(version3, 2)) }

func TestContract5QoS0(t *testing.T) { sourcetest.Run(t, contractHarness(version5, 0)) }

func TestContract5QoS1(t *testing.T) { sourcetest.Run(t, contractHarness(version5, 1)) }

func TestContract5QoS2(t *testing.T) { sourcetest.Run(t, contractHarness(version5, 2)) }
