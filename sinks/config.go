package sinks

import (
	"math/rand/v2"
	"time"
)

// BreakerConfig is the resilience.circuit_breaker section.
type BreakerConfig struct {
	// Enabled false never opens the breaker; reconnects still back off.
	Enabled bool `yaml:"enabled"`
	// FailureThreshold is the number of consecutive failures that opens it.
	FailureThreshold int `yaml:"failure_threshold"`
	// TimeoutSeconds is how long it stays open before one probe is let through.
	TimeoutSeconds float64 `yaml:"timeout_seconds"`
}

// DefaultBreakerConfig is what the document promises: 5 failures, 60 seconds.
func DefaultBreakerConfig() BreakerConfig {
	return BreakerConfig{Enabled: true, FailureThreshold: 5, TimeoutSeconds: 60}
}

// ReconnectConfig is how long to wait before another attempt: InitialDelaySeconds
// times BackoffMultiplier to the power of the failures before, at most
// MaxDelaySeconds, then spread by Jitter.
type ReconnectConfig struct {
	InitialDelaySeconds float64 `yaml:"initial_delay_seconds"`
	MaxDelaySeconds     float64 `yaml:"max_delay_seconds"`
	BackoffMultiplier   float64 `yaml:"backoff_multiplier"`
	// Jitter is the part of a delay that is random: with 0.2 a delay is between
	// 0.8 and 1.2 times its value. 0 is none.
	Jitter float64 `yaml:"jitter"`
}

// DefaultReconnectConfig is the back-off of sinks, 0.1 s to 30 s. It is shorter
// than that of sources: one service with many clients answers soon again, and
// the breaker, not the back-off, is what protects it.
func DefaultReconnectConfig() ReconnectConfig {
	return ReconnectConfig{InitialDelaySeconds: 0.1, MaxDelaySeconds: 30, BackoffMultiplier: 2, Jitter: 0.2}
}

// heldReconnect is the back-off of probes while a destination is held. A person
// has to act, so it starts slower and never exceeds five minutes.
func heldReconnect(c ReconnectConfig) ReconnectConfig {
	c.InitialDelaySeconds = max(1, c.InitialDelaySeconds)
	c.MaxDelaySeconds = max(300, c.MaxDelaySeconds)
	return c
}

// Delay is the wait before attempt n, counted from 0.
func (c ReconnectConfig) Delay(n int) time.Duration {
	d := c.InitialDelaySeconds
	for i := 0; i < n && d < c.MaxDelaySeconds; i++ {
		d *= max(1, c.BackoffMultiplier)
		if c.BackoffMultiplier <= 1 {
			break
		}
	}
	d = min(d, c.MaxDelaySeconds)
	if c.Jitter > 0 {
		d *= 1 + min(c.Jitter, 1)*(2*rand.Float64()-1)
	}
	return seconds(d)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
